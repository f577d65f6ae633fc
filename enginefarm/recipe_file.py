"""A recipe's YAML file -> Recipe. Every mistake is named at once, by field path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from enginefarm.errors import RecipeError
from enginefarm.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LIMIT_BYTES = 1 << 20
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
            if key.value in lines:
                raise RecipeError(
                    f"{name}: line {line}: `{key.value}` is written twice",
                    why=f"it is already there at line {lines[key.value]}",
                    fix="keep one of the two",
                )
            if isinstance(key.value, str):
                lines[key.value] = line
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        raise RecipeError(
            f"{name}:{where} not valid YAML",
            why=str(getattr(error, "problem", None) or error),
            fix="check indentation, quotes and colons there",
        ) from error


def _lines(details: Sequence[ErrorDetails]) -> list[str]:
    return list(dict.fromkeys(_line(detail) for detail in details))


def _line(detail: ErrorDetails) -> str:
    path = _path(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{path}: missing; add it"
    if kind == "extra_forbidden":
        return f"{path}: no such field; remove it or correct its name"
    if kind == "literal_error":
        return f"{path}: {detail['input']!r} is not known; use one of: {context['expected']}"
    if kind == "union_tag_invalid":
        return (
            f"{path}.kind: {context['tag']!r} is not known; use one of: {context['expected_tags']}"
        )
    if kind == "union_tag_not_found":
        return f"{path}.kind: missing; use torch, lightning, exported_program or onnx"
    if kind == "string_pattern_mismatch":
        return f"{path}: {detail['input']!r} does not fit; it must match {context['pattern']}"
    if not detail["loc"]:
        return message
    return f"{path}: {message}; it is {_short(detail['input'])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


# pydantic puts the branches of a union into the path; a recipe has no such fields.
_BRANCHES = frozenset({"torch", "lightning", "exported_program", "onnx", "int", "constrained-int"})


def _path(location: Iterable[int | str]) -> str:
    parts = ""
    for part in location:
        if isinstance(part, int):
            parts += f"[{part}]"
        elif (
            (part in _BRANCHES and parts in ("source",))
            or part in ("int", "[key]")
            or part.startswith(("constrained-", "function-"))
        ):
            continue
        else:
            parts += f".{part}" if parts else part
    return parts or "recipe"
