"""The `teacher` command: finds the subcommand and turns errors into one line and an exit code."""

import importlib.metadata
import sys
from collections.abc import Callable, Sequence

_USAGE = """usage: teacher [--version] COMMAND ...

commands:
  serve    answer questions over HTTP; `teacher serve --help` lists the settings
"""


class CannotStart(Exception):
    """Why a command cannot run, and what to do, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed while running, 2 could not start."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if name == "--version":
        print(f"teacher {importlib.metadata.version('lvlm2p')}")
        return 0
    if name not in _COMMANDS:
        print(f"teacher: error: no command {name!r}; `teacher --help` lists them", file=sys.stderr)
        return 2
    try:
        return _COMMANDS[name](rest)
    except CannotStart as error:
        print(f"teacher {name}: error: {error}", file=sys.stderr)
        return 2


def _serve(arguments: Sequence[str]) -> int:
    # Imported late, so that `teacher --help` and a wrong flag answer at once
    from teacher_server.flags import BadSetting, parse  # noqa: PLC0415
    from teacher_server.settings import Settings  # noqa: PLC0415

    try:
        settings = parse(Settings, arguments)
    except BadSetting as error:
        raise CannotStart(str(error)) from error

    from teacher_server.answers import StoreError  # noqa: PLC0415
    from teacher_server.serving import CannotListen, serve  # noqa: PLC0415

    try:
        return serve(settings)
    except (CannotListen, StoreError) as error:
        raise CannotStart(str(error)) from error


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"serve": _serve}
