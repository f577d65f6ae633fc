"""Holds every argument of the module to the Google provider's own, as its cdktn bindings list
them. Called by check.sh, which fetches those; `terraform validate` would need the provider."""

import ast
import sys
from pathlib import Path

import hcl2

META = {"count", "depends_on", "for_each", "lifecycle", "provider"}
MAPS = {"labels", "resource_labels"}


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def arguments_by_class(module: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    names = {a.arg for a in (*method.args.args, *method.args.kwonlyargs)}
                    found.setdefault(node.name, names)
    return found


def unknown(classes: dict[str, set[str]], cls: str, block: dict, where: str, checked: list[str]):
    for name, value in block.items():
        if name.startswith("__") or name in META:
            continue
        if name == "dynamic":
            for dynamic in value:
                for inner, body in dynamic.items():
                    for content in body["content"]:
                        inner = inner.strip('"')
                        yield from unknown(
                            classes, cls + camel(inner), content, f"{where}.{inner}", checked
                        )
            continue
        checked.append(f"{where}.{name}")
        if name not in classes[cls] and f"{name}_" not in classes[cls]:
            yield f"{where}.{name}"
        elif name not in MAPS and isinstance(value, list):
            for inner in value:
                if isinstance(inner, dict):
                    yield from unknown(
                        classes, cls + camel(name), inner, f"{where}.{name}", checked
                    )


def main(module_folder: Path, bindings: Path) -> int:
    checked: list[str] = []
    wrong: list[str] = []
    for file in sorted(module_folder.glob("*.tf")):
        for resource in hcl2.loads(file.read_text("utf-8")).get("resource", []):
            for kind, named in resource.items():
                module = kind.strip('"').removeprefix("google_")
                classes = arguments_by_class(bindings / module / "__init__.py")
                for name, body in named.items():
                    wrong += unknown(classes, camel(module), body, f"{kind}.{name}", checked)
    print(f"{len(checked)} arguments checked, {len(wrong)} unknown", *wrong, sep="\n  ")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
