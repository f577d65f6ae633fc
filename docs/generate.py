"""Writes docs/cli.md, errors.md, gpus.md and recipe.md from the code that they describe.

python docs/generate.py            writes them
python docs/generate.py --check    fails, naming the page, when one is not as it would be
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click

from enginefarm import errors
from enginefarm.cli import COMMANDS, cli
from enginefarm.documents import gpus, support
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import DEFAULT_BUDGETS

DOCS = Path(__file__).parent
WRITTEN = "<!-- written by docs/generate.py; edit the code instead -->\n"
WIDTH = 88
COMPLETION = """
The shell completes commands, GPUs, precisions, and the recipes and channels of the store after
`eval "$(_ENGINEFARM_COMPLETE=zsh_source enginefarm)"`; put `bash_source` for bash, or
`fish_source` for fish. The line belongs in the shell's startup file.
"""


def cli_page() -> str:
    """Every help page, as `enginefarm COMMAND --help` prints it."""
    parts = ["# The command line", WRITTEN, COMPLETION, _help(cli, "enginefarm")]
    root = click.Context(cli, info_name="enginefarm", terminal_width=WIDTH)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None, name
        parts += _pages(command, f"enginefarm {name}")
    return "\n".join(parts)


def _pages(command: click.Command, path: str) -> list[str]:
    parts = [f"## {path}\n", _help(command, path)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path, terminal_width=WIDTH)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            parts += _pages(inner, f"{path} {name}")
    return parts


def _help(command: click.Command, path: str) -> str:
    context = click.Context(
        command,
        info_name=path,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return f"```text\n{command.get_help(context)}\n```\n"


def errors_page() -> str:
    """Every error with its exit code, whether it is worth a retry, and what it means."""
    meanings = dict(re.findall(r"[├└]── (\w+)\s+\d+  (.+)", errors.__doc__ or ""))
    rows = [
        "# Errors and exit codes",
        WRITTEN,
        "Every deliberate error says what is wrong, why, and what to do next. Its code is the exit",
        "code of the command line. Transient errors are retried with back-off; others are not",
        "retried. Exit code 0 means success, and 130 an interruption.\n",
        "| code | error | is a | transient | when |",
        "|---|---|---|---|---|",
    ]
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.EnginefarmError) and kind is not errors.EnginefarmError
    ]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        parent = kind.__base__.__name__ if kind.__base__ else ""
        retried = "yes" if kind.transient else ""
        when = meanings.get(kind.__name__, "")
        rows.append(f"| {kind.exit_code} | {kind.__name__} | {parent} | {retried} | {when} |")
    return "\n".join(rows) + "\n"


def gpus_page() -> str:
    """Every GPU of the table and every precision, with its default budget."""
    rows = [
        "# GPUs and precisions",
        WRITTEN,
        "Each row is a table in `enginefarm/documents/gpus.toml`; to add a GPU, add a table there.",
        "The last column says what NVIDIA's support matrix lists for TensorRT-RTX. NVIDIA does not",
        "promise that an engine which is not listed works, even if it builds.\n",
        "| label | compute capability | memory, GiB | bandwidth, GB/s | precisions | work pool "
        "| TensorRT-RTX |",
        "|---|---|---|---|---|---|---|",
    ]
    for gpu in gpus.table().values():
        rows.append(
            f"| {gpu.label} | {gpu.compute_capability} | {gpu.memory_gib:g} | "
            f"{gpu.bandwidth_gb_s:g} | {' '.join(gpu.precisions)} | {gpu.work_pool} | "
            f"{support.sentence(gpu, 'tensorrt-rtx')} |"
        )
    rows += ["\n## Listed by NVIDIA, or proven here\n"]
    rows += [f"- {line}" for line in support.evidence(_link)]
    rows += [
        "\n## Default accuracy budgets\n",
        "An engine is compared with FP32 PyTorch. One that is over its budget is not published. A",
        "recipe's `accuracy` overrides these defaults.\n",
        "| precision | minimum cosine | maximum relative L2 | or times FP32's own rounding |",
        "|---|---|---|---|",
    ]
    for name, budget in DEFAULT_BUDGETS.items():
        times = f"{budget.rounding:g}" if budget.rounding else "–"
        limits = f"{budget.min_cosine:g} | {budget.max_relative_l2:g}"
        rows.append(f"| {name} | {limits} | {times} |")
    return "\n".join(rows) + "\n"


def _link(page: str) -> str:
    return f"[{page.rpartition('/')[2]}]({page.removeprefix('docs/')})"


RECIPE = """\
A recipe is one YAML 1.2 file, such as
[the recipe of example 1](../examples/01_efficientnet_lite0/recipe.yaml).

Paths and `file.py:name` are relative to the recipe's folder. These are all keys, from the top down:
"""


def recipe_page() -> str:
    """Every key of a recipe: its type, its default and its meaning, from the JSON Schema."""
    schema = Recipe.model_json_schema()
    parts = ["# The recipe", WRITTEN, RECIPE]
    parts += _keys("recipe", schema)
    told: set[str] = {"JsonValue"}
    waiting = _named(schema)
    while waiting:
        name = waiting.pop(0)
        if name not in told:
            told.add(name)
            parts += _keys(name, schema["$defs"][name])
            waiting += _named({**schema["$defs"][name], "$defs": {}})
    return "\n".join(parts)


def _keys(name: str, schema: dict[str, Any]) -> list[str]:
    first = str(schema.get("description", "")).partition("\n\n")[0].replace("\n", " ")
    rows = [f"## {name}\n", f"{first}\n", "| key | type | default | |", "|---|---|---|---|"]
    for key, value in schema.get("properties", {}).items():
        default = "required" if key in schema.get("required", ()) else _default(value)
        meaning = str(value.get("description", "")).replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(value)} | {default} | {meaning} |")
    return [*rows, ""] if len(rows) > 4 else [f"## {name}\n", f"{first}\n"]


def _default(value: dict[str, Any]) -> str:
    default = value.get("default", value.get("const"))
    return "" if default in (None, {}, []) or isinstance(default, dict) else f"`{default}`"


def _type(value: dict[str, Any]) -> str:
    """A JSON Schema's type in few words, with links to the tables of the page."""
    for kind in ("anyOf", "oneOf"):
        if kind in value:
            shown = [_type(one) for one in value[kind] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(shown))
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return "any value" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any value")
    if kind == "array" and isinstance(value.get("items"), dict):
        return f"list of {_type(value['items'])}"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"mapping to {_type(value['additionalProperties'])}"
    limits = [
        f"{sign} {value[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in value
    ]
    return " ".join([kind, *limits])


def _named(schema: Any) -> list[str]:
    """Tables that a schema refers to, in order."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return [str(schema["$ref"]).rpartition("/")[2]]
        return [name for key, value in schema.items() if key != "$defs" for name in _named(value)]
    return [name for one in schema for name in _named(one)] if isinstance(schema, list) else []


PAGES = {
    "recipe.md": recipe_page,
    "cli.md": cli_page,
    "errors.md": errors_page,
    "gpus.md": gpus_page,
}


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        text, file = page(), DOCS / name
        if not file.exists() or file.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, "utf-8")
    if stale and "--check" in arguments:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
