"""A recipe's YAML file -> Recipe. All mistakes are reported together, by line and field path."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import BaseModel, ValidationError

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import SOURCES
from enginefarm.errors import RecipeError, did_you_mean
from enginefarm.recipes import document, model_paths
from enginefarm.recipes.document import Document

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LIMIT_BYTES = 1 << 20
MOST_MISTAKES = 20
FILE_NAME = "recipe.yaml"


def load(path: Path) -> Recipe:
    """The recipe in that file (or in that folder's `recipe.yaml`), rooted at its folder.

    Raises: RecipeError that lists the mistakes as `line N: field.path: what; remedy`.
    """
    path = Path(path)
    model_paths.refuse_other(str(path))
    if model_paths.is_model(str(path)) and not path.is_dir():
        raise RecipeError(
            f"{path} is a model, where a recipe is needed",
            fix=f"enginefarm init {path} --gpu GPU --save recipe.yaml writes a recipe for it",
        )
    file = path / FILE_NAME if path.is_dir() else path
    return parse(_text(file), name=str(file)).at(file.resolve().parent)


def below(folder: Path) -> tuple[Path, ...]:
    """Every recipe.yaml in a folder and its subfolders, except hidden ones."""
    found = folder.rglob(FILE_NAME) if folder.is_dir() else ()
    return tuple(
        path
        for path in sorted(found)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def parse(text: str, *, name: str = "recipe") -> Recipe:
    """The recipe in that YAML text; `name` is what errors call it.

    Raises: RecipeError, as `load` does.
    """
    found: Document = document.read(text, name)
    value: object = found.value
    if not isinstance(value, dict):
        holds = "nothing" if value is None else type(value).__name__
        raise RecipeError(
            f"{name} is not a recipe",
            why=f"the file holds {holds}, where fields such as `name` and `source` are needed",
            fix="see examples/01_efficientnet_lite0/recipe.yaml",
        )
    written = json.dumps(cast("object", value))
    try:
        # As JSON, because a strict reading takes a list for a tuple there, and still refuses
        # text, booleans and fractions where a whole number is wanted.
        return Recipe.model_validate_json(written, strict=True)
    except ValidationError as error:
        raise _refusal(name, _lines(error.errors(include_url=False), found)) from None


def _text(file: Path) -> str:
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise RecipeError(
                f"{file} is not a regular file",
                why="a pipe or a device has no known size",
                fix="save the recipe as a file, and give the path of that file",
            )
        if about.st_size > LIMIT_BYTES:
            raise RecipeError(
                f"{file}: {about.st_size:,} bytes is too large for a recipe",
                fix="name the recipe's YAML file; arrays and weights go into other files",
            )
        text = file.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = error.object.count(b"\n", 0, error.start) + 1
            raise RecipeError(
                f"{file}: line {line} is not text",
                why=str(error),
                fix="save the recipe as YAML in UTF-8",
            ) from error
        raise RecipeError(
            f"{file} cannot be read",
            why=str(getattr(error, "strerror", None) or error),
            fix="give the path of a recipe.yaml, or of the folder it is in; "
            "`enginefarm init MODEL` writes one",
        ) from error
    _refuse_link_text(text.strip(), file)
    return text


def _refuse_link_text(text: str, file: Path) -> None:
    """Raises: RecipeError for a link that was copied or checked out as the text of its target."""
    if "\n" not in text and ": " not in text and text.endswith((".yaml", ".yml")):
        raise RecipeError(
            f"{file}: this is the text of a link to {text!r}, not the recipe",
            why="a symbolic link was copied or checked out as a text file",
            fix="give the path of the recipe that the link leads to, or put it here",
        )


def _refusal(name: str, lines: list[str]) -> RecipeError:
    shown = lines[:MOST_MISTAKES]
    if len(lines) > len(shown):
        shown.append(f"… and {len(lines) - len(shown):,} more")
    return RecipeError(
        f"{name}: {len(lines):,} mistake{'s' * (len(lines) > 1)}\n  " + "\n  ".join(shown)
    )


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
    dims.pop("patternProperties", None)


def _lines(details: Sequence[ErrorDetails], text: Document) -> list[str]:
    """One line a field; where pydantic tried several readings of a value, one line with all."""
    found: dict[str, list[str]] = {}
    for detail in details:
        if _is_echo(detail):
            continue
        path, what = _mistake(detail)
        if what not in found.setdefault(path, []):
            found[path].append(what)
    return [_line(path, whats, text) for path, whats in found.items()]


def _line(path: str, whats: list[str], text: Document) -> str:
    # A mistake that concerns several fields has no path of its own: its words begin with one.
    named = path or re.split(r"[^\w.\[\]-]", whats[0], maxsplit=1)[0]
    line = text.line_of(named)
    where = f"line {line}: " if line else ""
    return where + (f"{path}: {', or '.join(whats)}" if path else whats[0])


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
        meant = did_you_mean(str(detail["loc"][-1]), _fields_at(detail["loc"][:-1]))
        return path, f"no such field; {meant or 'remove it or correct its name'}"
    if kind == "literal_error":
        return path, f"{given!r} is not known; use one of: {context['expected']}"
    if kind == "union_tag_invalid":
        tags = context["expected_tags"]
        return f"{path}.kind", f"{context['tag']!r} is not known; use one of: {tags}"
    if kind == "union_tag_not_found":
        return f"{path}.kind", f"missing; use one of: {', '.join(SOURCES)}"
    if kind == "string_pattern_mismatch":
        return path, f"{_short(given)} is not allowed; write {_pattern(context['pattern'])}"
    if kind == "value_error":  # our own words
        message = detail["msg"].removeprefix("Value error, ")
        return (path if detail["loc"] else ""), message
    if kind == "too_short":
        return path, "should have at least one entry"
    message = _WORDS.get(kind, detail["msg"].removeprefix("Input "))
    return path, f"{message}; it is {_short(given)}{_remedy(kind, given)}"


def _fields_at(location: Iterable[int | str]) -> set[str]:
    """The fields that a recipe may have there."""
    kinds: set[type[BaseModel]] = {Recipe}
    for part in location:
        inner = {
            model
            for kind in kinds
            if (field := kind.model_fields.get(str(part))) is not None
            for model in _models(field.annotation)
        }
        kinds = inner or kinds  # an index, the key of a mapping, or a branch of a union
    return {name for kind in kinds for name in kind.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _remedy(kind: str, given: object) -> str:
    """What to write where the type is wrong, when the value shows what was meant."""
    if document.ambiguous(given):
        return f"; {_MEANT.get(kind, 'write a plain number')}"
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(given, str):
        return "; write it without quotes, or correct it"
    return ""


_WORDS = {
    "int_type": "should be a whole number",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "string_type": "should be text",
    "bool_type": "should be true or false",
}
_MEANT = {
    "bool_type": "write true or false",
    "int_type": "YAML 1.1 reads another number there; write a plain decimal number",
    "float_type": "YAML 1.1 reads another number there; write a plain decimal number",
}


def _pattern(pattern: str) -> str:
    if ":" in pattern:
        return "`file.py:name`, relative to the recipe, or `package.module:name`"
    if pattern.startswith("^[a-z0-9]("):
        return "at most 64 lower-case letters and digits, with . _ - between them"
    return f"something that matches {pattern}"


def _short(value: object) -> str:
    words = {"None": "empty", "True": "true", "False": "false"}
    text = repr(value)
    text = words.get(text, text)
    return text if len(text) <= 80 else f"{text[:77]}…"


_NOT_FIELDS = ("constrained-", "function-", "[key]")


def _path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif path == "source" and part in SOURCES:
            continue  # pydantic names the branch of a union; a recipe has no such level
        elif part not in ("int", "str") and not part.startswith(_NOT_FIELDS):
            path += f".{part}" if path else part
    return path or "recipe"
