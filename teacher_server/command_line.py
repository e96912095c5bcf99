"""Command lines: every command finds its subcommand and reads its flags and variables the same way."""

import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from teacher_server.terminal import speak_as

_Settings = TypeVar("_Settings", bound=BaseSettings)

_SERVICE_VARIABLE = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


INTERRUPTED = 130
"""The exit code of a command that a signal ended: what the user asked for, and no error."""


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
) -> int:
    """Runs the subcommand that the arguments (None: the process's own) name.

    Returns:
        The exit code: the command's, 2 where it could not start, 130 where it was interrupted, 141 where its
        output was cut off.
    """
    # OpenMP reads it once, when torch is loaded: threads that spin while they wait slow down what else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        version = f"{program} {importlib.metadata.version('lvlm2p')}\n"
        print(version if name == "--version" else usage, end="")
        return 0
    if name not in commands:
        return fail(program, f"no command {name!r}; `{program} --help` lists them", 2)
    speak_as(f"{program} {name}")
    try:
        return commands[name](rest)
    except CannotStart as error:
        return fail(f"{program} {name}", error, 2)
    except KeyboardInterrupt:
        return fail(f"{program} {name}", "interrupted", INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough; what is left to flush at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


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
        return CliApp.run(kind, cli_args=list(arguments))
    except ValidationError as error:
        raise BadSetting("; ".join(_in_words(kind, problem) for problem in mistakes(error))) from error
    except SettingsError as error:
        raise BadSetting(str(error).removeprefix("error parsing CLI: ")) from error


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
