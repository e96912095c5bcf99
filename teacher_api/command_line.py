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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict, SettingsError

from teacher_api.terminal import speak_as

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


class CannotStart(Exception):
    """Why a command cannot do what it was asked to, and what to do, in one line."""


class BadSetting(CannotStart, ValueError):
    """A flag or variable that cannot be used."""


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
    program: str,
    usage: str,
    commands: Mapping[str, Callable[[Sequence[str]], int]],
    arguments: Sequence[str] | None,
    settings: Sequence[str] = (),
) -> int:
    """Runs the subcommand that the arguments (None: the process's own) name.

    Args:
        settings: "module:Class" of each command's settings: a variable that is none of theirs gets a warning.

    Returns:
        The exit code: the command's, 2 where it could not start, 130 where it was interrupted, 141 where its
        output was cut off.
    """
    # OpenMP reads it once, when torch is loaded: threads that spin while they wait slow down what else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a sign shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        version = f"{program} {importlib.metadata.version('lvlm2p')}\n"
        print(version if name == "--version" else usage, end="")
        return 0
    if name not in commands:
        near = did_you_mean(name, commands)
        return fail(program, f"no command {name!r}{near or f'; `{program} --help` lists them'}", 2)
    _warn_of_unknown_variables(program, settings)
    speak_as(f"{program} {name}")
    try:
        return _run(program, commands[name], rest)
    except CannotStart as error:
        return fail(f"{program} {name}", error, 2)
    except KeyboardInterrupt:
        return fail(f"{program} {name}", "interrupted", INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough; what is left to flush at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(program: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return command(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        # The extras have the programs' names
        raise CannotStart(f"it needs {package}: pip install 'lvlm2p[{program}]'") from error


def fail(command: str, why: Exception | str, code: int) -> int:
    """Says on stderr, in one line, why a command failed or that it was interrupted; returns the exit code."""
    kind = "" if code == INTERRUPTED else "error: "
    print(f"{command}: {kind}{why}", file=sys.stderr)
    return code


def parse(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Settings from flags, then variables, then defaults; --help prints them and exits.

    Raises:
        BadSetting: an unknown flag, or a value that cannot be used.
    """
    try:
        return CliApp.run(kind, cli_args=list(arguments), cli_settings_source=_flags(kind))
    except ValidationError as error:
        raise BadSetting("; ".join(_in_words(kind, problem) for problem in mistakes(error))) from error
    except SettingsError as error:
        raise BadSetting(str(error)) from error


def mistakes(error: ValidationError) -> list[ErrorDetails]:
    """What is wrong with settings, without defaults that are missing only because they hang on what is."""
    return [each for each in error.errors() if each["type"] != "default_factory_not_called"]


def names_a_service(variable: str, value: str) -> bool:
    """Whether Kubernetes set a variable: a Service named `teacher` gives its pods TEACHER_PORT and others."""
    return bool(_SERVICE_ADDRESS.match(value) or _SERVICE_VARIABLE.search(variable.upper()))


def flag_of(kind: type[BaseSettings], name: str) -> str:
    """The flag that sets a field."""
    field = kind.model_fields.get(name)
    return f"--{(field and field.alias) or name}".replace("_", "-")


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
        module, _, name = where.partition(":")
        known |= variables_of(getattr(importlib.import_module(module), name))
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
        return problem["msg"].removeprefix("Value error, ")
    flag = f"--{problem['loc'][0]}".replace("_", "-")
    variable = f"{kind.model_config.get('env_prefix', '')}{flag[2:]}".upper().replace("-", "_")
    if problem["type"] == "missing":
        return f"{flag} (or {variable}) is missing: give it a value"
    value = problem["input"]
    if isinstance(value, str) and value == os.environ.get(variable) and names_a_service(variable, value):
        service = variable.removesuffix("_PORT").replace("_", "-").lower()
        return (
            f"{variable} is {value!r}, which is no setting: Kubernetes sets it for a Service named {service};"
            f" write enableServiceLinks: false into the pod's spec, or give {flag} a value"
        )
    # A check of our own has said the value already
    said = "" if problem["type"] == "value_error" else f", not {value!r}"
    return f"{flag} (or {variable}): {problem['msg'].removeprefix('Value error, ')}{said}"
