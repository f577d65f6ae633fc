"""A page of docs/, followed word for word: commands run, files are written, patches applied.

Its blocks say what they are: `sh` commands, `sh fails` one that ends with the exit code which
the text before it says in brackets, `python` a script; with a path, `python` and `yaml` are a
file to write, `toml` what to append to one, `diff` what to change in one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.farm.farm_fixture import PATIENCE_S, Farm, until

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
EXIT_CODE = re.compile(r"\(exit code (\d+)\)")


@dataclass(frozen=True)
class Block:
    where: str
    kind: str
    argument: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = [
        Block(
            where=f"{page.name}:{text.count(chr(10), 0, one.start()) + 1}",
            kind=one[1],
            argument=one[2].strip(),
            text=one[3],
            before=text[: one.start()],
        )
        for one in BLOCK.finditer(text)
    ]
    assert found, page
    return found


def patched(text: str, patch: str, where: str) -> str:
    """The text with the patch's lines in place of those that it names. They must be there once."""
    lines = [line or " " for line in patch.splitlines()]
    assert all(line[0] in " +-" for line in lines), f"{where}: no patch"
    old, new = (
        "".join(f"\n{line[1:]}" for line in lines if line[0] in kept) + "\n"
        for kept in (" -", " +")
    )
    around = f"\n{text}"
    times = len(re.findall(f"(?={re.escape(old)})", around))  # two may share a line's end
    assert times == 1, f"{where}: found {times} times: {old}"
    return around.replace(old, new)[1:]


class Reader:
    """Follows pages on a farm, in its folder of recipes, and keeps what each command said."""

    def __init__(self, farm: Farm, checkout: Path | None = None) -> None:
        """checkout: what pages that change the code change. None: no page may."""
        self.farm = farm
        self.checkout = checkout
        self._said: list[tuple[str, str]] = []
        self.workers: list[str] = []
        self._starting: list[str] = []

    def follow(self, name: str) -> None:
        for block in blocks(DOCS / name):
            match block.kind, block.argument:
                case "sh", "":
                    self._commands(block, [0])
                case "sh", "fails":
                    paragraphs = block.before.rstrip().split("\n\n")
                    self._commands(block, [int(code) for code in EXIT_CODE.findall(paragraphs[-1])])
                case "python", "":
                    self._script(block)
                case "yaml", file:
                    (self.farm.recipes / file).write_text(block.text)
                case (("python" | "toml" | "diff"), file):
                    self._change(block, file)
                case _:
                    raise AssertionError(f"{block.where}: nobody runs this block")
        self._wait()

    def said(self, command: str) -> list[str]:
        """What the commands that begin like this have said, oldest first."""
        return [said for line, said in self._said if line.startswith(command)]

    def stop_workers(self) -> None:
        for name in self.workers:
            self.farm.stop(name)
        self.workers.clear()

    def _commands(self, block: Block, codes: list[int]) -> None:
        for line in filter(None, block.text.splitlines()):
            program, *arguments = shlex.split(line)
            if arguments[:1] == ["worker"] and codes == [0]:
                assert program == "enginefarm", line
                name = arguments[arguments.index("--name") + 1]
                self.farm.start(name, *arguments)
                self.workers.append(name)
                self._starting.append(name)
                continue
            self._wait()
            ended = self._run(["bash", "-c", line])
            self._said.append((line, ended.stdout))
            said = f"{block.where}: {line}\n{ended.stdout}\n{ended.stderr}"
            assert ended.returncode in codes, f"{said}\n{self._logs()}"
            assert "Traceback" not in ended.stderr, said

    def _script(self, block: Block) -> None:
        """What it prints is what the comments beside its calls of print say."""
        # Where folders shadow packages, as in the farm's, a script of the user needs -P too.
        ended = self._run([sys.executable, "-P", "-c", block.text])
        assert ended.returncode == 0, f"{block.where}\n{ended.stderr}\n{self._logs()}"
        promised = re.findall(r"^print\(.*\)  # (.*)$", block.text, re.MULTILINE)
        assert ended.stdout.splitlines() == promised, block.where

    def _change(self, block: Block, file: str) -> None:
        assert self.checkout is not None, f"{block.where}: a page about running changes code"
        path = self.checkout / file
        assert path.exists() == (block.kind != "python"), f"{block.where}: {file}"
        before = path.read_text("utf-8") if path.exists() else ""
        match block.kind:
            case "python":
                path.write_text(block.text)
            case "toml":
                path.write_text(f"{before}\n{block.text}")
            case _:
                path.write_text(patched(before, block.text, block.where))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{self.farm.environment['PATH']}"
        return subprocess.run(
            command,
            env={**self.farm.environment, **self.farm.exported(), "PATH": path, "COLUMNS": "200"},
            cwd=self.farm.recipes,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def _wait(self) -> None:
        for name in self._starting:
            until(partial(self._online, name), f"worker {name} is online")
        self._starting.clear()

    def _online(self, name: str) -> bool:
        """By its own word: only the page's own code may know the toolchains of its card."""
        assert self.farm.processes[name].poll() is None, self.farm.log(name)
        return f"{name}: pool " in self.farm.log(name)

    def _logs(self) -> str:
        return "\n".join(self.farm.log(name)[-3000:] for name in self.farm.processes)
