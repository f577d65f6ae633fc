"""A recipe's YAML file -> Recipe. Every mistake is named at once, by field path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import RecipeError

if TYPE_CHECKING:
    import yaml
    from pydantic_core import ErrorDetails

LIMIT_BYTES = 1 << 20
LIMIT_NODES = 100_000
FILE_NAME = "recipe.yaml"


def load(path: Path) -> Recipe:
    """The recipe in that file (or in that folder's `recipe.yaml`), rooted at its folder.

    Raises: RecipeError that lists every mistake as `field.path: what; remedy`.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    try:
        if file.stat().st_size > LIMIT_BYTES:
            raise RecipeError(
                f"{file}: {file.stat().st_size} bytes is too large for a recipe",
                fix="name the recipe's YAML file; arrays and weights go beside it",
            )
        text = file.read_text("utf-8")
    except OSError as error:
        raise RecipeError(
            f"{file}: cannot be read",
            why=str(error.strerror or error),
            fix="give the path of a recipe.yaml, or of the folder it is in",
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{file}: not a text file", why=str(error), fix="recipes are YAML in UTF-8"
        ) from error
    return parse(text, name=str(file)).at(file.resolve().parent)


def parse(text: str, *, name: str = "recipe") -> Recipe:
    """The recipe in that YAML text; `name` is what errors call it.

    Raises: RecipeError, as `load` does.
    """
    document = _yaml(text, name)
    if not isinstance(document, dict):
        raise RecipeError(
            f"{name}: not a recipe",
            why=f"the file holds {'nothing' if document is None else type(document).__name__}, "
            "where fields such as `name` and `source` are needed",
            fix="see examples/01_efficientnet_lite0/recipe.yaml",
        )
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        lines = _lines(error.errors(include_url=False))
        raise RecipeError(
            f"{name}: {len(lines)} mistake{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines)
        ) from None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors (`# yaml-language-server: $schema=…`)."""
    schema = Recipe.model_json_schema(mode="validation")
    _allow_three_numbers(schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _allow_three_numbers(definitions: dict[str, Any]) -> None:
    # A validator turns `[1, 8, 32]` and `8` into a DimRange before the schema's view of it.
    dims = definitions["Profile"]["properties"]["dims"]
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}
    reference = {"$ref": "#/$defs/DimRange"}
    dims["additionalProperties"] = {"anyOf": [reference, numbers, {"type": "integer"}]}
    for key in ("patternProperties",):
        dims.pop(key, None)


def _yaml(text: str, name: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key written twice, where YAML's own loader keeps the last in silence."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key.value, str):
                raise RecipeError(f"{name}: line {line}: a field's name must be text")
            if key.value in lines:
                raise RecipeError(
                    f"{name}: line {line}: `{key.value}` is written twice",
                    why=f"it is already there at line {lines[key.value]}",
                    fix="keep one of the two",
                )
            lines[key.value] = line
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > LIMIT_NODES:
            raise RecipeError(
                f"{name}: its aliases (`*name`) unfold to more than {LIMIT_NODES:,} values",
                fix="write the values out, or put data into a file beside the recipe",
            )
        return cast(Any, loader).construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        raise RecipeError(
            f"{name}:{where} not valid YAML",
            why=str(getattr(error, "problem", None) or error),
            fix="check indentation, quotes and colons there",
        ) from error


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values in a document with every alias unfolded, counted without unfolding any.

    Raises: RecursionError for a value that holds itself.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise RecursionError("a value holds itself")
    if known is None:
        sizes[id(node)] = 0
        held: Any = node.value  # text, nodes, or pairs of nodes
        parts = [] if isinstance(held, str) else list(_flat(held))
        sizes[id(node)] = known = 1 + sum(_expanded(part, sizes) for part in parts)
    return known


def _flat(held: Iterable[Any]) -> Iterable[yaml.Node]:
    for part in held:
        yield from part if isinstance(part, tuple) else (part,)


def _lines(details: Sequence[ErrorDetails]) -> list[str]:
    """One line a field; where pydantic tried several readings of a value, one line with all."""
    found: dict[str, list[str]] = {}
    for detail in details:
        if _is_echo(detail):
            continue
        path, what = _mistake(detail)
        if what not in found.setdefault(path, []):
            found[path].append(what)
    return [f"{path}: {', or '.join(whats)}" if path else whats[0] for path, whats in found.items()]


def _is_echo(detail: ErrorDetails) -> bool:
    """A list that is called too short because of a mistake in an item of it."""
    least = detail.get("ctx", {}).get("min_length", 0)
    return detail["type"] == "too_short" and len(detail["input"]) >= least


def _mistake(detail: ErrorDetails) -> tuple[str, str]:
    path, kind, given = _path(detail["loc"]), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "missing":
        return path, "missing; add it"
    if kind == "extra_forbidden":
        return path, "no such field; remove it or correct its name"
    if kind == "literal_error":
        return path, f"{given!r} is not known; use one of: {context['expected']}"
    if kind == "union_tag_invalid":
        tags = context["expected_tags"]
        return f"{path}.kind", f"{context['tag']!r} is not known; use one of: {tags}"
    if kind == "union_tag_not_found":
        return f"{path}.kind", f"missing; use one of: {', '.join(_BRANCHES)}"
    if kind == "string_pattern_mismatch":
        return path, f"{given!r} does not fit; write {_pattern(context['pattern'])}"
    if kind == "value_error":  # our own words
        message = detail["msg"].removeprefix("Value error, ")
        return (path if detail["loc"] else ""), message
    message = detail["msg"].removeprefix("Input ")
    return path, f"{message}; it is {_short(given)}"


def _pattern(pattern: str) -> str:
    if ":" in pattern:
        return "`file.py:name`, relative to the recipe, or `package.module:name`"
    if pattern.startswith("^[a-z0-9]("):
        return "lower-case letters, digits, and . _ - between them, 64 at most"
    return f"something that matches {pattern}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}…"


# pydantic names the branch of a union in the path; a recipe has no such level.
_BRANCHES = ("torch", "lightning", "exported_program", "onnx")
_NOT_FIELDS = ("constrained-", "function-", "[key]")


def _path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif path == "source" and part in _BRANCHES:
            continue
        elif part not in ("int", "str") and not part.startswith(_NOT_FIELDS):
            path += f".{part}" if path else part
    return path or "recipe"
