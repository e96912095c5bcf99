"""Command lines: every command finds its subcommand and reads its flags and variables the same way."""

import argparse
import difflib
import importlib
import importlib.metadata
import inspect
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict, SettingsError

from teacher_api.terminal import say, speak_as
from teacher_api.validation import problems, reason, sentence

_Settings = TypeVar("_Settings", bound=BaseSettings)

_SERVICE_VARIABLE = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


INTERRUPTED = 130
"""The exit code of a command that a signal ended: what the user asked for, and no error."""


@dataclass(frozen=True)
class ValueName:
    """What a setting's value is called in --help; stands in the field's type."""

    name: str


File = Annotated[Path, ValueName("FILE")]
Folder = Annotated[Path, ValueName("DIR")]
PromptSetName = Annotated[str, ValueName("NAME|DIR")]

_UNITS = {"s": "SECONDS", "seconds": "SECONDS", "ms": "MILLISECONDS", "mib": "MIB", "gib": "GIB"}


_OURS = frozenset({"gridworld", "student", "teacher_api", "teacher_server", "teacher_tools"})
_OF_COMPOSE = frozenset({"TEACHER_GPUS", "TEACHER_IMAGE", "TEACHER_RESTART", "STUDENT_IMAGE", "STUDENT_RUN"})
"""Variables of docker-compose.yml alone, which reach the containers with those of the commands."""


class CommandFailed(Exception):
    """Ends a command with one line on stderr and an exit code.

    The message names a setting by its field in backticks; the command line prints the field's flag.
    """

    exit_code = 1


class CannotStart(CommandFailed):
    """A command cannot start: what is wrong and what to do, in one line."""

    exit_code = 2


class BadSetting(CannotStart, ValueError):
    """A flag or variable has a value that cannot be used."""


@dataclass(frozen=True)
class Command:
    """A command: its line of help, its settings and the function that runs it.

    Attributes:
        settings: "module:Class", or "module:function" where the class depends on the arguments.
        run: "module:function", imported after the settings are read; gets them and returns the exit code.
        takes_rest: `run` gets the arguments after `--` as a list, second.
    """

    help: str
    settings: str
    run: str
    takes_rest: bool = False


@dataclass(frozen=True)
class Group:
    """Commands by their names, and a line of help."""

    help: str
    commands: Mapping[str, "Command | Group"]


def flags_and_variables(program: str, prefix: str) -> SettingsConfigDict:
    """How a command's settings are read: --some-flag, else PREFIX_SOME_FLAG; `none` stands for no value."""
    return SettingsConfigDict(
        env_prefix=prefix,
        env_ignore_empty=True,
        env_parse_none_str="none",
        frozen=True,
        cli_prog_name=program,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        cli_implicit_flags=True,
        cli_parse_none_str="none",
    )


def dispatch(
    program: str, group: Group, arguments: Sequence[str] | None, further_settings: Sequence[str] = ()
) -> int:
    """Runs the command that the arguments (None: the process's own) name.

    Sets OMP_WAIT_POLICY for the process, where the environment has none.

    Args:
        further_settings: settings whose variables have the program's prefix, besides those of its commands.

    Returns:
        The exit code: the command's, 2 if it could not start, 130 if it was interrupted, 141 if the reader of
        its output is gone.
    """
    # OpenMP reads it once, when torch is loaded: threads that spin while they wait slow down other processes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal lacks is shown as its number
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
    except BrokenPipeError:  # such as `| head`; what is flushed at exit goes to the null device
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _find(name: str, group: Group, words: list[str]) -> tuple[str, Command] | None:
    """The command that the first words name, which are taken away; None after --help and --version.

    Raises:
        CannotStart: no command has such a name.
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
    """The settings of each command in a group, as "module:Class"."""
    for command in group.commands.values():
        if isinstance(command, Group):
            yield from settings_of(command)
        else:
            yield command.settings


def load_settings(where: str, arguments: Sequence[str] = ()) -> type[BaseSettings]:
    """The settings that a `Command` names, for its arguments."""
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
        # The extras have the programs' names
        extra = name.partition(" ")[0]
        raise CannotStart(f"it needs {package}: pip install 'lvlm2p[{extra}]'") from error


def fail(why: Exception | str, code: int) -> int:
    """Prints on stderr, in one line, why a command failed or was interrupted; returns the exit code."""
    say(str(why) if code == INTERRUPTED else f"error: {why}")
    return code


def parse(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Settings from flags, then variables, then defaults; --help prints them and exits.

    Raises:
        BadSetting: an unknown flag, or a value that cannot be used.
    """
    try:
        return CliApp.run(kind, cli_args=list(arguments), cli_settings_source=_flags(kind))
    except ValidationError as error:
        raise BadSetting("; ".join(_in_words(kind, problem) for problem in problems(error))) from error
    except SettingsError as error:
        raise BadSetting(str(error)) from error


def names_a_service(variable: str, value: str) -> bool:
    """Whether Kubernetes set a variable: a Service named `teacher` gives its pods TEACHER_PORT and others."""
    return bool(_SERVICE_ADDRESS.match(value) or _SERVICE_VARIABLE.search(variable.upper()))


def flag_of(kind: type[BaseSettings], name: str) -> str:
    """The flag that sets a field."""
    field = kind.model_fields.get(name)
    return f"--{(field and field.alias) or name}".replace("_", "-")


def flags_of(kind: type[BaseSettings]) -> dict[str, str]:
    """Each field's flag; of a positional argument, its name in the usage."""
    return {
        name: name.upper() if _is_positional(field) else flag_of(kind, name)
        for name, field in kind.model_fields.items()
    }


def variables_of(kind: type[BaseSettings]) -> set[str]:
    """The variables that set a command's fields, in upper case."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    named = {prefix + name for name, field in kind.model_fields.items() if field.alias is None}
    if kind.model_config.get("env_prefix_target") == "all":
        named |= {prefix + field.alias for field in kind.model_fields.values() if field.alias}
    return {name.upper() for name in named}


def _warn_of_unknown_variables(program: str, settings: Sequence[str]) -> None:
    """Says on stderr which TEACHER_* or STUDENT_* variables no command reads, and what they are like."""
    prefix = f"{program}_".upper()
    given = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(prefix)}
    unknown = {
        name for name, value in given.items() if value and not names_a_service(name, value)
    } - _OF_COMPOSE
    known: set[str] = set()
    for where in settings:
        if unknown <= known:
            return  # before the settings that load the most
        known |= variables_of(load_settings(where))
    for name in sorted(unknown - known):
        near = did_you_mean(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], prefix)
        print(f"{program}: warning: no command reads the variable {name}{near}", file=sys.stderr)


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """`: did you mean x?` for the end of an error, where known words are like an unknown one; else ""."""
    names = list(known)
    near = difflib.get_close_matches(word, names, 1)
    longer = [name for name in names if len(word) > 1 and name.startswith(word)]
    shorter = [name for name in names if len(name) > 1 and word.startswith(name)]
    found = [f"{before}{name}" for name in dict.fromkeys([*near, *longer[:1], *shorter[:1]])]
    return f": did you mean {' or '.join(found)}?" if found else ""


def groups_of(kind: type[BaseSettings]) -> dict[str, str]:
    """Each field's heading in --help: the class's `help_groups` has it for the first field of each group."""
    headings: Mapping[str, str] = getattr(kind, "help_groups", {})
    groups, heading = {}, ""
    for name in kind.model_fields:
        heading = headings.get(name, heading)
        groups[name] = heading
    return groups


class _Parser(argparse.ArgumentParser):
    """Refuses in a line, and names what is like a flag that there is not."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), None)
            if word is None:
                raise SettingsError(
                    f"{unknown[0]!r} is one argument too many; `{self.prog} --help` shows what it takes"
                )
            flag = word.partition("=")[0]
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            near = did_you_mean(flag.lstrip("-").replace("_", "-"), known, "--")
            raise SettingsError(f"unknown flag {flag}{near or f'; `{self.prog} --help` lists them'}")
        return found


def _flags(kind: type[_Settings]) -> CliSettingsSource[Any]:
    """A command's flags, in the groups of `help_groups` and in its order, with the names of their values."""
    fields = {field.alias or name: (name, field) for name, field in kind.model_fields.items()}
    program = str(kind.model_config.get("cli_prog_name"))
    named = "".join(f" {name.upper()}" for name, field in kind.model_fields.items() if _is_positional(field))
    parser = _Parser(
        prog=program,
        usage=f"{program}{named} [--flag ...]",
        description=inspect.getdoc(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    headings = groups_of(kind)
    groups = {
        title: parser.add_argument_group(title)
        for title in dict.fromkeys(getattr(kind, "help_groups", {}).values())
    }

    def add_argument(_: Any, *names: str, **options: Any) -> argparse.Action:
        name, field = fields[options.get("dest", names[0])]
        if "metavar" in options and names[0].startswith("-"):
            options["metavar"] = _value_name(name, field, options["metavar"])
        if field.default is None:
            options["help"] = re.sub(r" \(default: \w+\)$", "", options["help"])
        group = None if _is_positional(field) else groups.get(headings[name])
        return (group or parser).add_argument(*names, **options)

    return CliSettingsSource(
        kind, root_parser=parser, parse_args_method=_Parser.parse_args, add_argument_method=add_argument
    )


def _is_positional(field: FieldInfo) -> bool:
    return any(getattr(mark, "__name__", "") == "_CliPositionalArg" for mark in field.metadata)


def _value_name(name: str, field: FieldInfo, choices: str) -> str:
    """What --help calls a value: by its type's ValueName, its choices, its unit, or the flag's last word."""
    types = list(_types(field.annotation))
    marks = [mark for mark in (*field.metadata, *types) if isinstance(mark, ValueName)]
    last = name.rpartition("_")[2]
    if marks:
        word = marks[0].name
    elif choices.startswith("{"):
        return choices
    elif last in _UNITS:
        word = _UNITS[last]
    elif Path in types or str in types:
        word = last.upper()
    else:
        word = "N" if int in types else "NUMBER"
    return f"{word},..." if {list, tuple} & set(types) else word


def _types(annotation: Any) -> Iterator[Any]:
    """A type, those within it, and what is annotated to it."""
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _in_words(kind: type[BaseSettings], problem: ErrorDetails) -> str:
    if not problem["loc"]:
        return reason(problem)
    flag = f"--{problem['loc'][0]}".replace("_", "-")
    variable = f"{kind.model_config.get('env_prefix', '')}{flag[2:]}".upper().replace("-", "_")
    value = problem["input"]
    if isinstance(value, str) and value == os.environ.get(variable) and names_a_service(variable, value):
        service = variable.removesuffix("_PORT").replace("_", "-").lower()
        return (
            f"{variable} is {value!r}, which is no setting: Kubernetes sets it for a Service named {service};"
            f" write enableServiceLinks: false into the pod's spec, or give {flag} a value"
        )
    return sentence(problem, f"{flag} (or {variable})")
