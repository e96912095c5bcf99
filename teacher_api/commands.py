"""Runs the command that the arguments name, out of a table of commands."""

import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_settings import BaseSettings

from teacher_api.command_line import (
    INTERRUPTED,
    CannotStart,
    CommandFailed,
    did_you_mean,
    fail,
    flags_of,
    names_a_service,
    parse,
    variables_of,
)
from teacher_api.terminal import speak_as

_OURS = frozenset({"gridworld", "student", "teacher_api", "teacher_server", "teacher_tools"})
_OF_COMPOSE = frozenset({"TEACHER_GPUS", "TEACHER_IMAGE", "TEACHER_RESTART", "STUDENT_IMAGE", "STUDENT_RUN"})
"""Variables of docker-compose.yml, which also reach the containers."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        help: one line on what the command does.
        settings: "module:Class", or "module:function" if the class depends on the arguments.
        run: "module:function", imported after the settings are read. The function gets the settings and
            returns the exit code.
        takes_rest: the function also gets a list of the arguments after `--`.
    """

    help: str
    settings: str
    run: str
    takes_rest: bool = False


@dataclass(frozen=True)
class Group:
    """Commands by name.

    Attributes:
        help: one line on what the commands do.
    """

    help: str
    commands: Mapping[str, "Command | Group"]


def dispatch(
    program: str, group: Group, arguments: Sequence[str] | None, further_settings: Sequence[str] = ()
) -> int:
    """Runs the command that the arguments name (None: the process's arguments).

    Sets OMP_WAIT_POLICY to PASSIVE if the environment does not set it.

    Args:
        further_settings: settings of other programs whose variables begin like this program's.

    Returns:
        The command's exit code; 2 if the command could not start, 130 if it was interrupted, 141 if the
        reader of its output has gone.
    """
    # OpenMP reads it when torch is loaded. Threads that spin while they wait slow down other processes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # prints characters that the terminal lacks as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        found = _find(program, group, words)
        if found is None:
            return 0
        _warn_of_unknown_variables(program, (*settings_of(group), *further_settings))
        return _run(*found, words)
    except CommandFailed as error:
        return fail(error, error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # as of `| head`; the flush at exit goes to the null device
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _find(name: str, group: Group, words: list[str]) -> tuple[str, Command] | None:
    """Removes the words that name a command, and returns its name and the command; None after --help.

    Raises:
        CannotStart: the command does not exist.
    """
    speak_as(name)
    word = words.pop(0) if words else "--help"
    if word in ("-h", "--help"):
        print(_usage(name, group), end="")
        return None
    if word == "--version":
        print(f"{name} {importlib.metadata.version('lvlm2p')}")
        return None
    if word not in group.commands:
        near = did_you_mean(word, group.commands)
        raise CannotStart(f"no command {word!r}{near or f'; `{name} --help` lists them'}")
    name, found = f"{name} {word}", group.commands[word]
    return (name, found) if isinstance(found, Command) else _find(name, found, words)


def settings_of(group: Group) -> Iterator[str]:
    """Yields the settings of each command in a group, as "module:Class"."""
    for command in group.commands.values():
        if isinstance(command, Group):
            yield from settings_of(command)
        else:
            yield command.settings


def load_settings(where: str, arguments: Sequence[str] = ()) -> type[BaseSettings]:
    """Imports the settings class that a `Command` names, for its arguments."""
    found = _load(where)
    kind: type[BaseSettings] = found if isinstance(found, type) else found(arguments)
    return kind


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _usage(name: str, group: Group) -> str:
    width = max(map(len, group.commands)) + 3
    lines = "".join(f"  {word:{width}}{command.help}\n" for word, command in group.commands.items())
    about = f"{group.help[0].upper()}{group.help[1:]}."
    return (
        f"usage: {name} [--version] COMMAND ...\n\n{about}\n\ncommands:\n{lines}\n"
        f"`{name} COMMAND --help` lists a command's settings.\n"
    )


def _run(name: str, command: Command, arguments: Sequence[str]) -> int:
    rest: list[str] = []
    if command.takes_rest and "--" in arguments:
        end = list(arguments).index("--")
        arguments, rest = arguments[:end], list(arguments[end + 1 :])
    try:
        kind = load_settings(command.settings, arguments)
        speak_as(name, flags_of(kind))
        settings = parse(kind, arguments)
        run = _load(command.run)
        code: int = run(settings, rest) if command.takes_rest else run(settings)
        return code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        # Each program has an extra of its name
        extra = name.partition(" ")[0]
        raise CannotStart(f"{package} is not installed: pip install 'lvlm2p[{extra}]'") from error


def _warn_of_unknown_variables(program: str, settings: Sequence[str]) -> None:
    """Prints a warning for each TEACHER_* or STUDENT_* variable that no command reads."""
    prefix = f"{program}_".upper()
    given = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(prefix)}
    unknown = {
        name for name, value in given.items() if value and not names_a_service(name, value)
    } - _OF_COMPOSE
    known: set[str] = set()
    for where in settings:
        if unknown <= known:
            return  # the settings that are not loaded may import much
        known |= variables_of(load_settings(where))
    for name in sorted(unknown - known):
        near = did_you_mean(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], prefix)
        print(f"{program}: warning: no command reads the variable {name}{near}", file=sys.stderr)
