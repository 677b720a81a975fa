"""The command line ``kinetics-lab``: its commands, and how each of them may end."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any

import typer
from typer.main import get_command

import kinetics_lab
from kinetics_lab.cli import ask, chapters, machine
from kinetics_lab.cli.cost import cost
from kinetics_lab.cli.shared import Command
from kinetics_lab.errors import absent, printable, report

NAME = "kinetics-lab"
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"{NAME} {kinetics_lab.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What test-time compute costs: price a setting, run a chapter with your own parameters, build the book."""


for command in (
    *(cost, ask.plan, ask.traces, ask.known),
    *(chapters.run, chapters.sweep, chapters.book, chapters.serve, chapters.pdf, chapters.claims),
    *(machine.measure, machine.ladder, machine.generate),
):
    app.command({"known": "list"}.get(command.__name__), cls=Command)(command)


def _tell(message: Warning | str, *_: Any, **__: Any) -> None:
    report(f"{NAME}: warning: {message}")


class _Printable:
    """Standard output of which a name in somebody's data cannot make commands to the terminal."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # by this the command parser tells a stream of bytes
            raise TypeError("a text is written here, no bytes")
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        return int(self._out.write(printable(text).encode(encoding, "backslashreplace").decode(encoding)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0, or 2 for wrong input and 1 for a failed run or build, with one message on stderr."""
    code, message = 0, ""
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(spare, True)  # of a closed stream: a file that is written would take its number
    os.close(spare)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    try:
        with warnings.catch_warnings(), redirect_stdout(_Printable(sys.stdout)):
            warnings.showwarning = _tell
            code = get_command(app)(args=argv, prog_name=NAME, standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        told = " ".join(error.format_message().split())
        code, message = 2, f"{context.command_path if context else NAME}: error: {told}"
    except ModuleNotFoundError as error:
        code, message = 2, f"{NAME}: error: {absent(error.name or str(error), 'this command')}"
    except (ValueError, OSError) as error:
        code, message = 2, f"{NAME}: error: {error}"
    except (RuntimeError, MemoryError) as error:
        code, message = 1, f"{NAME}: {error or 'out of memory'}"
    message = f"{NAME}: stopped" if code == 130 else message  # what typer makes of Ctrl-C
    if message:
        with suppress(OSError):  # where standard error is full, the code still tells
            report(message)
    return code
