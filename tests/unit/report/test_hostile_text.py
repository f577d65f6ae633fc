"""Every field of a report holds hostile text: the page has the elements that it has anyway."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hostile_text import TEXTS, report

from enginefarm.report import render


class Skeleton(HTMLParser):
    """Elements with the names of their attributes, without any text; and where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_comment(self, data: str) -> None:
        self.elements.append(("a comment",))


def skeleton(text: str) -> Skeleton:
    found = Skeleton()
    found.feed(render(report(text)))
    return found


HARMLESS = str.maketrans("<>\"'&{}`\x00\x1b", "()**+()*..")
"""The replaced text is as long, and still cannot be a name, a version or a digest."""


@pytest.mark.parametrize("text", TEXTS)
def test_text_adds_no_element_no_attribute_and_no_link(text: str) -> None:
    page = render(report(text))
    assert page.count("hacked=1") + page.count("7 * 7") > 30  # it is in the page, as text
    found = skeleton(text)
    assert found.elements == skeleton(text.translate(HARMLESS)).elements
    assert all(link.startswith("#") for link in found.links)
    assert [one for one in found.elements if one[0] == "script"] == [("script",)]


def test_every_part_of_the_page_is_there() -> None:
    """Else the test above would look at less than it says."""
    page = render(report("plain text, of no name"))
    for part in ('id="attention"', 'id="compare"', 'id="fleet"', "what changed between", "lineage"):
        assert part in page
    for part in ("Side by side", "Accuracy and latency", "Engine size", "Over the nights"):
        assert part in page
