"""From the store to a host: which engine fits, how it is fetched, what a host lacks."""
