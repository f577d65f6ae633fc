"""YAML text -> plain values, and the line on which each of them stands.

ruamel.yaml scans and parses. What a plain word means is decided here, by YAML 1.2 and JSON:
`true`, `null`, `8` and `1e-3` have a type, everything else is text. A word that older YAML
reads as a number or a boolean (`010`, `1:30`, `yes`) is text too, so a field that wants a
number refuses it; in free-form arguments, which no type guards, it has to be quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

from enginefarm.errors import RecipeError

Node = Any
"""A node of ruamel.yaml, which is typed in part only."""

LIMIT_VALUES = 100_000
"""Values in a document, aliases unfolded."""

LONGEST_NUMBER = 100
"""Digits. No field holds a longer number, and Python refuses to print the longest."""

FREE_FORM = "arguments"
"""The fields of this name hold whatever the user's own code wants."""

PLAIN = "tag:enginefarm,2026:plain"
TEXT, SEQUENCE, MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
MERGE = "<<"

CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0b[01_]+|0[xo][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])+"
                        r"|[0-9]*_[0-9_]*)(\.[0-9_]*)?")  # fmt: skip
OLD_BOOLEAN = re.compile("yes|no|on|off", re.IGNORECASE)

FORBIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]"
)


@dataclass
class Document:
    """What a YAML text holds, and where.

    lines: the line (from 1) of each value, by its path as errors write it: `inputs[0].name`.
    """

    value: Any
    lines: dict[str, int] = field(default_factory=dict[str, int])

    def line_of(self, path: str) -> int | None:
        """The line of that value, or of the nearest value around it that is in the text."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path)


def ambiguous(word: object) -> bool:
    """Whether YAML 1.1 and YAML 1.2 read that plain word as different things."""
    return isinstance(word, str) and any(
        pattern.fullmatch(word) for pattern in (OLD_NUMBER, OLD_BOOLEAN)
    )


def read(text: str, name: str) -> Document:
    """The one document in that text; `name` is what errors call it.

    Raises: RecipeError with the line, for what is not YAML, a key that is written twice or is
    not text, a tag, a control character, and aliases that unfold to too many values.
    """
    text = text.removeprefix("\ufeff")
    _refuse_control(text, name)
    document = Document(None)
    node = _parsed(text, name)
    if node is not None:
        try:
            values = _unfolded(node, {}, name)
        except RecursionError:
            raise _not_yaml(name, None, "lists and mappings are nested too deeply") from None
        if values > LIMIT_VALUES:
            raise RecipeError(
                f"{name}: the document holds more than {LIMIT_VALUES:,} values",
                why="an alias (`*name`) counts as the value that it repeats",
                fix="put data into a file next to the recipe",
            )
        document.value = _Reader(name, document.lines).value(node, "")
    return document


def _parsed(text: str, name: str) -> Node | None:
    yaml: Any = import_module("ruamel.yaml")  # it is typed in part

    class Resolver(yaml.VersionedResolver):
        """Tells plain words from quoted ones, and leaves their meaning to `_Reader`."""

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            plain = kind is yaml.nodes.ScalarNode and implicit[0]
            if plain:
                return yaml.tag.Tag(suffix=PLAIN)
            return cast("Any", super().resolve(kind, value, implicit))  # pyright: ignore

    parser = yaml.YAML(typ="safe", pure=True)
    parser.Resolver = Resolver
    try:
        return parser.compose(text)
    except RecursionError:
        raise _not_yaml(name, None, "lists and mappings are nested too deeply") from None
    except (yaml.error.YAMLError, ValueError) as error:
        cause: Any = error
        mark = getattr(cause, "problem_mark", None) or getattr(cause, "context_mark", None)
        why = getattr(cause, "problem", None) or str(cause).partition("\n")[0]
        raise _not_yaml(name, mark and mark.line + 1, why) from error


def _unfolded(node: Node, sizes: dict[int, int], name: str) -> int:
    """How many values the node stands for when each alias is unfolded. Unfolds none."""
    known = sizes.get(id(node))
    if known == 0:
        raise RecipeError(
            f"{name}: line {_line(node)}: this value contains itself", fix="remove the alias"
        )
    if known is None:
        sizes[id(node)] = 0
        parts: list[Node] = []  # a scalar holds text, a mapping pairs of nodes
        for item in () if isinstance(node.value, str) else node.value:
            parts += cast("tuple[Node, ...]", item) if isinstance(item, tuple) else (item,)
        sizes[id(node)] = known = 1 + sum(_unfolded(part, sizes, name) for part in parts)
    return known


def _not_yaml(name: str, line: int | None, why: str) -> RecipeError:
    where = f" line {line}:" if line else ""
    return RecipeError(
        f"{name}:{where} the text is not valid YAML",
        why=why,
        fix="check the indentation, quotes and colons there",
    )


def _refuse_control(text: str, name: str) -> None:
    found = FORBIDDEN.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise _forbidden(name, line, found[0], "remove it; an editor may not show it")


def _forbidden(name: str, line: int, character: str, fix: str) -> RecipeError:
    return RecipeError(
        f"{name}: line {line}: the character U+{ord(character):04X} is not allowed",
        why="a control character or half of a surrogate pair is not text",
        fix=fix,
    )


class _Reader:
    """Nodes -> values, noting the line of each."""

    def __init__(self, name: str, lines: dict[str, int]) -> None:
        self._name = name
        self._lines = lines

    def value(self, node: Node, path: str) -> Any:
        self._lines.setdefault(path, _line(node))
        tag = str(node.tag)
        if tag in (PLAIN, TEXT) and isinstance(node.value, str):
            return self._scalar(node, path)
        if tag == SEQUENCE:
            return [self.value(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        if tag == MAPPING:
            return self._mapping(node, path)
        raise self._error(
            _line(node),
            f"the tag {tag.removeprefix('tag:yaml.org,2002:')!r} is not allowed",
            "a recipe holds text, numbers, lists and mappings only",
            "remove the tag",
        )

    def _scalar(self, node: Node, path: str) -> Any:
        word = str(node.value)
        self._require_text(word, node)
        if str(node.tag) == TEXT:
            return word
        if word in CONSTANTS:
            return CONSTANTS[word]
        if INTEGER.fullmatch(word) or FLOAT.fullmatch(word):
            if len(word) > LONGEST_NUMBER:
                raise self._error(
                    _line(node),
                    f"the number has {len(word):,} characters",
                    "",
                    "write a shorter one",
                )
            return int(word) if INTEGER.fullmatch(word) else float(word)
        if NOT_FINITE.fullmatch(word):
            return float(word.replace(".", ""))
        if ambiguous(word) and FREE_FORM in re.split(r"[.\[]", path):
            raise self._error(
                _line(node),
                f"{path}: {word!r} can be read in two ways",
                "YAML 1.1 reads a number or a boolean, YAML 1.2 reads text",
                f'write "{word}" in quotes for text; else write true, false or a plain number',
            )
        return word

    def _mapping(self, node: Node, path: str) -> dict[str, Any]:
        written: dict[str, int] = {}
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = self._key(key_node), _line(key_node)
            if key in written:
                raise self._error(
                    line,
                    f"`{key}` is written twice",
                    f"it is already at line {written[key]}",
                    "keep one of the two",
                )
            written[key] = line
            if key == MERGE and str(key_node.tag) == PLAIN:
                merged = self._merged(value_node, path)
                continue
            inner = f"{path}.{key}" if path else key
            self._lines[inner] = line
            found[key] = self.value(value_node, inner)
        return {**merged, **found}

    def _merged(self, node: Any, path: str) -> dict[str, Any]:
        """What `<<: *name` brings in: of several mappings the first one wins."""
        several = str(node.tag) == SEQUENCE
        merged: dict[str, Any] = {}
        for part in reversed(node.value) if several else (node,):
            if str(part.tag) != MAPPING:
                raise self._error(
                    _line(part), "`<<` needs a mapping", "", "name one with `*name` after it"
                )
            merged |= self.value(part, path)
        return merged

    def _key(self, node: Any) -> str:
        word = node.value
        if isinstance(word, str):
            self._require_text(word, node)
        if not isinstance(word, str) or (
            str(node.tag) == PLAIN
            and (word in CONSTANTS or INTEGER.fullmatch(word) or FLOAT.fullmatch(word))
        ):
            shown = f"{word!r} is not text" if isinstance(word, str) else "a key is not text"
            raise self._error(
                _line(node), f"{shown}, and a key must be text", "", "put the key in quotes"
            )
        return word

    def _require_text(self, word: str, node: Node) -> None:
        """Refuses the characters that `\\x00` and `\\ud800` can make."""
        found = FORBIDDEN.search(word)
        if found is not None:
            raise _forbidden(self._name, _line(node), found[0], "remove the escape")

    def _error(self, line: int, what: str, why: str, fix: str) -> RecipeError:
        return RecipeError(f"{self._name}: line {line}: {what}", why=why, fix=fix)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
