"""What the farm's pages say of engines: text of models and errors is shown, and is never markup."""

from __future__ import annotations

import pytest
from hostile_text import TEXTS
from markdown_it import MarkdownIt

from enginefarm.planning.outcome import Outcome, markdown

HOSTILE = (
    *(text.replace("\x00", "") for text in TEXTS),
    "[click here](javascript:window.hacked=1)",
    "![](http://evil.example/seen.png)",
    "<http://evil.example>",
    "| a | b |\n|---|---|\n| c | d |",
    "```\n`code` **bold** _it_ ~~gone~~ \\[link](x)",
    "[ref]\n\n[ref]: http://evil.example",
)
ELEMENTS = {
    "html_inline",
    "html_block",
    "link_open",
    "image",
    "code_inline",
    "strong_open",
    "em_open",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_the_text_of_a_reason_is_shown_as_it_is(text: str) -> None:
    outcome = Outcome(
        recipe="m", gpu="t4", precision="fp16", status="failed", reason=text, notes=(text,)
    )
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown([outcome]))
    inline = [child for token in tokens for child in token.children or ()]
    assert not ELEMENTS & {token.type for token in (*tokens, *inline)}
    assert sum(token.type == "table_open" for token in tokens) == 1
    shown = "".join(child.content for child in inline)
    assert "".join(text.split())[:20] in "".join(shown.split())
