"""Reads the flags and variables of commands into settings, and prints their help and their errors."""

import argparse
import difflib
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from teacher_api.terminal import say
from teacher_api.validation import problems, reason, sentence

_Settings = TypeVar("_Settings", bound=BaseSettings)

_SERVICE_VARIABLE = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


INTERRUPTED = 130
"""The exit code of a command that the user interrupted; not an error."""


@dataclass(frozen=True)
class ValueName:
    """The name of a setting's value in --help, as an annotation of the field's type."""

    name: str


File = Annotated[Path, ValueName("FILE")]
Folder = Annotated[Path, ValueName("DIR")]
PromptSetName = Annotated[str, ValueName("NAME|DIR")]


def _split(value: Any) -> Any:
    """Splits the text of a list, such as 1,4,16; `none` stands for an empty list."""
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_Item = TypeVar("_Item")
Listed = Annotated[tuple[_Item, ...], NoDecode, BeforeValidator(_split)]
"""A list on the command line, divided by commas."""

_UNITS = {"s": "SECONDS", "seconds": "SECONDS", "ms": "MILLISECONDS", "mib": "MIB", "gib": "GIB"}


class CommandFailed(Exception):
    """Ends a command with a line on stderr and an exit code.

    The message names settings by their fields in backticks; the command line prints the flags instead.
    """

    exit_code = 1


class CannotStart(CommandFailed):
    """A command cannot start; the message says what is wrong and what to do, in one line."""

    exit_code = 2


class BadSetting(CannotStart, ValueError):
    """A flag or variable has a value that cannot be used."""


def flags_and_variables(program: str, prefix: str) -> SettingsConfigDict:
    """Returns a settings class's configuration: --some-flag, then PREFIX_SOME_FLAG; `none` means no value."""
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


def fail(why: Exception | str, code: int) -> int:
    """Prints on stderr why a command failed or was interrupted; returns the exit code."""
    say(str(why) if code == INTERRUPTED else f"error: {why}")
    return code


def parse(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Returns settings from flags, then variables, then defaults; --help prints the settings and exits.

    Raises:
        BadSetting: a flag is unknown, or a value cannot be used.
    """
    try:
        return CliApp.run(kind, cli_args=list(arguments), cli_settings_source=_flags(kind))
    except ValidationError as error:
        raise BadSetting("; ".join(_in_words(kind, problem) for problem in problems(error))) from error
    except SettingsError as error:
        raise BadSetting(str(error)) from error


def names_a_service(variable: str, value: str) -> bool:
    """Returns whether Kubernetes set a variable: a Service named `teacher` sets TEACHER_PORT in its pods."""
    return bool(_SERVICE_ADDRESS.match(value) or _SERVICE_VARIABLE.search(variable.upper()))


def flag_of(kind: type[BaseSettings], name: str) -> str:
    """Returns the flag of a field."""
    field = kind.model_fields.get(name)
    return f"--{(field and field.alias) or name}".replace("_", "-")


def flags_of(kind: type[BaseSettings]) -> dict[str, str]:
    """Returns each field's flag; for a positional argument, its name in the usage."""
    return {
        name: name.upper() if _is_positional(field) else flag_of(kind, name)
        for name, field in kind.model_fields.items()
    }


def variables_of(kind: type[BaseSettings]) -> set[str]:
    """Returns the variables of a command's fields, in upper case."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    named = {prefix + name for name, field in kind.model_fields.items() if field.alias is None}
    if kind.model_config.get("env_prefix_target") == "all":
        named |= {prefix + field.alias for field in kind.model_fields.values() if field.alias}
    return {name.upper() for name in named}


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """Returns ": did you mean x?" if a known word resembles an unknown one, else an empty string."""
    names = list(known)
    near = difflib.get_close_matches(word, names, 1)
    longer = [name for name in names if len(word) > 1 and name.startswith(word)]
    shorter = [name for name in names if len(name) > 1 and word.startswith(name)]
    found = [f"{before}{name}" for name in dict.fromkeys([*near, *longer[:1], *shorter[:1]])]
    return f": did you mean {' or '.join(found)}?" if found else ""


def groups_of(kind: type[BaseSettings]) -> dict[str, str]:
    """Returns each field's heading in --help; `help_groups` names it at the first field of a group."""
    headings: Mapping[str, str] = getattr(kind, "help_groups", {})
    groups, heading = {}, ""
    for name in kind.model_fields:
        heading = headings.get(name, heading)
        groups[name] = heading
    return groups


class _Parser(argparse.ArgumentParser):
    """Reports errors as exceptions, with a suggestion for an unknown flag."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), None)
            if word is None:
                raise SettingsError(
                    f"{unknown[0]!r} is one argument too many; `{self.prog} --help` shows the usage"
                )
            flag = word.partition("=")[0]
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            near = did_you_mean(flag.lstrip("-").replace("_", "-"), known, "--")
            raise SettingsError(f"unknown flag {flag}{near or f'; `{self.prog} --help` lists them'}")
        return found


def _flags(kind: type[_Settings]) -> CliSettingsSource[Any]:
    """Returns the source of a command's flags, grouped by `help_groups`, with names for their values."""
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
    """Returns a value's name in --help: a ValueName, the choices, a unit or the flag's last word."""
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
    """Yields a type, the types within it, and their annotations."""
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _in_words(kind: type[BaseSettings], problem: ErrorDetails) -> str:
    if not problem["loc"]:
        return reason(problem)
    where, value = str(problem["loc"][0]), problem["input"]
    flag = next(
        (flag for name, flag in flags_of(kind).items() if where in (name, kind.model_fields[name].alias)),
        f"--{where}".replace("_", "-"),
    )
    variable = f"{kind.model_config.get('env_prefix', '')}{where}".upper().replace("-", "_")
    if isinstance(value, str) and value == os.environ.get(variable) and names_a_service(variable, value):
        service = variable.removesuffix("_PORT").replace("_", "-").lower()
        return (
            f"{variable} is {value!r}, which Kubernetes sets for a Service named {service}: add"
            f" enableServiceLinks: false to the pod's spec, or set {flag}"
        )
    return sentence(problem, f"{flag} (or {variable})")
