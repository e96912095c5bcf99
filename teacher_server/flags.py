"""Settings classes to command lines: every command reads its flags and variables the same way."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, SettingsError

_Settings = TypeVar("_Settings", bound=BaseSettings)


class BadSetting(ValueError):
    """A flag or variable that cannot be used, in one line."""


def parse(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Settings from flags, then variables, then defaults; --help prints them and exits.

    Raises:
        BadSetting: an unknown flag, or a value that cannot be used.
    """
    try:
        return CliApp.run(kind, cli_args=list(arguments))
    except ValidationError as error:
        raise BadSetting("; ".join(_in_words(kind, problem) for problem in error.errors())) from error
    except SettingsError as error:
        raise BadSetting(str(error).removeprefix("error parsing CLI: ")) from error


def flag_of(kind: type[BaseSettings], name: str) -> str:
    """The flag that sets a field."""
    field = kind.model_fields.get(name)
    return f"--{(field and field.alias) or name}".replace("_", "-")


def _in_words(kind: type[BaseSettings], problem: ErrorDetails) -> str:
    if not problem["loc"]:
        return problem["msg"]
    flag = f"--{problem['loc'][0]}".replace("_", "-")
    variable = f"{kind.model_config.get('env_prefix', '')}{flag[2:]}".upper().replace("-", "_")
    if problem["type"] == "missing":
        return f"{flag.removeprefix('--').upper()} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    said = "" if message is not problem["msg"] else f", not {problem['input']!r}"
    return f"{flag} (or {variable}): {message}{said}"
