"""Ifs that the recipe's sizes decide, and Ifs inside other Ifs, are taken out of a graph."""
