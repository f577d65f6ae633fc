"""The command line. A command is loaded when it is called, so `--help` costs nothing.

The table holds strings: what a command needs is imported when it runs.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import click

from enginefarm import __version__
from enginefarm.child import COLLECT
from enginefarm.cli import foreign_errors, interrupts
from enginefarm.cli.screen import Screen, plain
from enginefarm.errors import (
    BuildCancelled,
    EnginefarmError,
    ToolchainError,
    UsageError,
    did_you_mean,
    running,
)
from enginefarm.names import loaded

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (where it is, the line that --help shows)
    "plan": ("enginefarm.cli.planning:plan", "Show what would be built, what is cached, and why."),
    "build": ("enginefarm.cli.build:build", "Build the engines of a recipe or of a model."),
    "init": ("enginefarm.cli.init:init", "Write a recipe for a model."),
    "recipes": (
        "enginefarm.cli.planning:recipes",
        "Push, list or remove the recipes in the store.",
    ),
    "up": ("enginefarm.cli.farm:up", "Start a whole farm in one terminal."),
    "submit": ("enginefarm.cli.farm:submit", "Build a recipe on the farm and follow the run."),
    "server": ("enginefarm.cli.farm:server", "Run the farm's Prefect server and its UI."),
    "worker": ("enginefarm.cli.farm:worker", "Run a worker that takes runs from a work pool."),
    "workers": ("enginefarm.cli.farm:workers", "List the workers and what each offers."),
    "deploy": ("enginefarm.cli.farm:deploy", "Put deployments and automations on the server."),
    "pull": ("enginefarm.cli.pull:pull", "Download the engine that fits this host."),
    "url": ("enginefarm.cli.exports:url", "Print a download URL that needs no credentials."),
    "doctor": (
        "enginefarm.cli.host:doctor",
        "Describe this host and whether a plan can run on it.",
    ),
    "run": ("enginefarm.cli.host:run_", "Run an engine once on this machine's GPU."),
    "triton-repo": ("enginefarm.cli.exports:triton_repo", "Write a model repository for Triton."),
    "package": (
        "enginefarm.cli.exports:package",
        "Write a model package that ONNX Runtime opens, with a CPU fallback.",
    ),
    "rollout": (
        "enginefarm.cli.channels:rollout",
        "Bring a new version into a running Triton if it passes there.",
    ),
    "promote": ("enginefarm.cli.channels:promote", "Point a channel at a recipe's engines."),
    "rollback": (
        "enginefarm.cli.channels:rollback",
        "Point a channel back at an earlier revision.",
    ),
    "channel": ("enginefarm.cli.channels:channel", "Show a recipe's channels and who moved them."),
    "verify": ("enginefarm.cli.verify:verify", "Check the signatures of a recipe or channel."),
    "sign": ("enginefarm.cli.verify:sign", "Sign engines that were published unsigned."),
    "keygen": ("enginefarm.cli.verify:keygen", "Make a signing key."),
    "gc": ("enginefarm.cli.storage:gc", "Delete what nothing refers to; a dry run by default."),
    "fsck": (
        "enginefarm.cli.storage:fsck",
        "Check the store for lost, damaged or unlisted objects.",
    ),
    "cache": ("enginefarm.cli.storage:cache", "Show or prune this machine's cache."),
    "store": ("enginefarm.cli.storage:store", "Show, start, stop or check the store."),
    "list": ("enginefarm.cli.listing:list_", "List the engines in the store."),
    "show": ("enginefarm.cli.listing:show", "Show one manifest in full."),
    "diff": ("enginefarm.cli.layers:diff_", "Compare two engines layer by layer."),
    "reproduce": (
        "enginefarm.cli.exports:reproduce",
        "Write a folder that rebuilds an engine without enginefarm.",
    ),
    "bom": ("enginefarm.cli.exports:bom", "Print a CycloneDX bill of materials of an engine."),
    "fleet": ("enginefarm.cli.channels:fleet", "Show which host runs which revision."),
    "cost": ("enginefarm.cli.figures:cost", "Compare what a million inferences cost on each GPU."),
    "log": ("enginefarm.cli.listing:log", "Print the builder's log, also of a failed build."),
    "why": ("enginefarm.cli.planning:why", "Show which fields would cause a rebuild."),
    "bench": ("enginefarm.cli.bench:bench", "Run benchmarks and read their tables."),
    "report": ("enginefarm.cli.figures:report", "Write one HTML page about every engine."),
    "upgrade": ("enginefarm.cli.figures:upgrade", "Show what a new toolchain release changes."),
    "gpus": ("enginefarm.cli.tables:gpus", "List the GPUs and what each can do."),
    "schema": ("enginefarm.cli.planning:schema", "Print the JSON Schema of a recipe, for editors."),
}

NEEDS_PREFECT = frozenset({"build", "server", "worker", "workers", "deploy", "up", "submit"})
BROKEN_PIPE = 141


def farm_missing(what: str) -> ToolchainError:
    """The error for what needs the farm's packages, on a host that has the pull client alone."""
    return ToolchainError(
        f"{what} needs the 'farm' packages",
        why="Prefect is not installed; this installation can only pull engines",
        fix="pip install 'enginefarm[farm]'",
    )


class LazyGroup(click.Group):
    """Knows every command's name and help line; imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in NEEDS_PREFECT and find_spec("prefect") is None:
            raise farm_missing(f"enginefarm {cmd_name}")
        if cmd_name == "pull":  # nobody's plugins have a part in it, and the search takes 10 ms
            os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        command: click.Command = loaded(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UsageError(
                f"No such command {args[0]!r}",
                fix=did_you_mean(args[0], COMMANDS) or "enginefarm --help lists the commands",
            )
        if args:
            ctx.with_resource(running(args[0]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names or super().shell_complete(ctx, incomplete)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="enginefarm")
def cli() -> None:
    """Verified, benchmarked TensorRT engines for every GPU of a fleet.

    Exit codes: 0 done; 2 usage; 10-17 recipe, source, export, calibration; 20-26 build;
    30 accuracy; 40-47 store and disk; 50 no engine fits; 51 signature; 55 gate;
    56 Triton; 60-67 host; 70-71 farm. `docs/errors.md` has them all.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; every deliberate error becomes its message and its exit code."""
    gc.set_threshold(*COLLECT)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = Screen(sys.stdout), Screen(sys.stderr)  # type: ignore[assignment]
    interrupts.install()
    status = run(arguments)
    gc.freeze()  # else Python looks at every object once more on its way out: 0.4 s after Prefect
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """main() without the exit: returns the exit code."""
    try:
        _require_text(sys.argv[1:] if arguments is None else arguments)
        result = cli.main(args=arguments, prog_name="enginefarm", standalone_mode=False)
    except BuildCancelled as error:
        return interrupts.report_interrupt() if interrupts.ASKED.is_set() else _fail(error)
    except EnginefarmError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        return _fail(foreign_errors.of_a_module(error))
    except BrokenPipeError:
        return _enough()
    except SystemExit as end:  # click's and rich's answer to a broken pipe
        if isinstance(end.__context__, BrokenPipeError):
            return _enough()
        raise
    except OSError as error:
        return _fail(foreign_errors.of_the_disk(error))
    except (click.exceptions.Abort, KeyboardInterrupt):
        return interrupts.report_interrupt()
    except click.ClickException as error:
        error.show()
        return UsageError.exit_code
    except Exception as error:
        if interrupts.ASKED.is_set():  # libraries wrap KeyboardInterrupt in an error of their own
            return interrupts.report_interrupt()
        if foreign_errors.is_of_prefects_settings(error):
            return _fail(foreign_errors.of_prefects_settings(error))
        raise
    return result if isinstance(result, int) else 0


def _enough() -> int:
    """The reader, such as `head`, has enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _require_text(arguments: Iterable[str]) -> None:
    """Raises: UsageError for bytes that are not UTF-8. Names in the store are, and so are the
    documents and libraries that paths are handed to."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"the argument {argument!r} is not UTF-8",
                fix="rename the file or folder, or run the command inside it",
            ) from None


def _fail(error: EnginefarmError) -> int:
    interrupts.quiet(False)
    text = plain(f"error: {error}")
    print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return error.exit_code
