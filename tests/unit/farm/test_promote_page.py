"""What a person sees who is asked whether a channel may move."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt
from sample_manifest import make_manifest

from enginefarm.store.channels import GateResult
from flows.promote import to_approve


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://evil.example/pixel.png)",
        "[approve](https://evil.example)",
        "<img src=https://evil.example/pixel.png>",
        "<https://evil.example>",
        "`code` and **bold** and __more__",
        "two\n\n# a heading\n\n- and a list\n\n---\n",
        "&lt;b&gt; &#x3c;",
    ],
)
def test_what_a_gate_found_is_shown_as_it_is(text: str) -> None:
    gate = GateResult(gate="triton-outputs", verdict="refused", detail=text, label=text)
    page = to_approve("tiny", "production", (make_manifest(),), (gate,))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or ()]
    types = {token.type for token in (*tokens, *inline)}
    # `code_inline` is the digest's
    assert not types & {"html_inline", "html_block", "link_open", "image", "strong_open", "hr"}
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert sum(token.type == "list_item_open" for token in tokens) == 1
    assert sum(token.type == "code_inline" for token in inline) == 1
    shown = "".join("".join(child.content for child in inline).split())
    assert shown.count("".join(text.split())) == 2
