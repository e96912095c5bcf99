"""The settings of `teacher answers`."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from teacher_api.command_line import File, Folder, ValueName, flags_and_variables

_DURATION = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


Identity = Annotated[str, ValueName("IDENTITY")]


class OfAStore(BaseModel):
    """The store that a command is about."""

    store: Annotated[str, ValueName("FILE|URL")] = Field(
        default="answers.sqlite3",
        description="the answer store: an SQLite file, or a database, postgresql://USER@HOST:PORT/DATABASE",
    )
    store_password_file: File | None = Field(
        default=None, description="a file with the database's password; default: PGPASSWORD, or ~/.pgpass"
    )


_OF_A_TEACHER = "only this teacher's: an identity or a checkpoint's name; `teacher answers stats` lists both"


class ShowSettings(OfAStore, BaseSettings):
    """Shows the newest answers of each teacher; `export --csv` writes all answers, with the analyses."""

    model_config = flags_and_variables("teacher answers show", "TEACHER_")

    # By an alias, so that TEACHER_TEACHER (the kind of teacher to serve) does not set it
    identity: Identity | None = Field(default=None, alias="teacher", description=_OF_A_TEACHER)
    task: str | None = Field(default=None, description="only answers about this task")
    limit: int = Field(default=20, ge=1, description="answers per teacher, at most")


class ExportSettings(OfAStore, BaseSettings):
    """Writes answers into a file of JSON lines; a teacher may use the store meanwhile.

    A file that exists is replaced when the new one is complete.
    """

    model_config = flags_and_variables("teacher answers export", "TEACHER_")

    file: CliPositionalArg[str] = Field(description="the file; compressed if it ends in .gz; -: stdout")
    identity: Identity | None = Field(default=None, alias="teacher", description=_OF_A_TEACHER)
    as_csv: bool = Field(
        default=False,
        alias="csv",
        description="write a table for spreadsheets and pandas, which `import` does not read",
    )
    task: str | None = Field(default=None, description="with --csv: only answers about this task")
    pictures: Folder | None = Field(
        default=None,
        description="with --csv: a folder for the pictures that `teacher serve --keep-pictures` stored",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, value in (("task", self.task), ("pictures", self.pictures)):
            if value is not None and not self.as_csv:
                raise ValueError(
                    f"`{name}` needs `as_csv`: an export for `teacher answers import` is complete"
                )
        return self


class ImportSettings(OfAStore, BaseSettings):
    """Adds exported answers to the store, all of a file's or none; answers already stored stay."""

    model_config = flags_and_variables("teacher answers import", "TEACHER_")

    files: CliPositionalArg[list[str]] = Field(
        description="files that `export` wrote; compressed if they end in .gz; -: stdin"
    )


class RecoverSettings(OfAStore, BaseSettings):
    """Recovers the answers of a damaged store into a sound one, which a teacher may use meanwhile.

    Needs SQLite's program sqlite3 with its command .recover, and disk space for a copy of the file.
    """

    model_config = flags_and_variables("teacher answers recover", "TEACHER_")

    file: CliPositionalArg[File] = Field(
        description="the damaged store, named like answers.sqlite3.damaged-TIME"
    )


class StatsSettings(OfAStore, BaseSettings):
    """Shows what the store holds, its size on the disk, and whether it is sound."""

    model_config = flags_and_variables("teacher answers stats", "TEACHER_")

    as_json: bool = Field(default=False, alias="json", description="print JSON")


class PruneSettings(OfAStore, BaseSettings):
    """Deletes answers and frees their disk space; a teacher may use the store meanwhile."""

    model_config = flags_and_variables("teacher answers prune", "TEACHER_")

    identities: list[Identity] = Field(
        default=[], alias="teacher", description="answers of this teacher; may be given more than once"
    )
    before: Annotated[str, ValueName("TIME")] | None = Field(
        default=None,
        description="answers given before this day or time (UTC): 2026-11-21, 2026-11-21T22:00; or longer ago"
        " than this: 90m, 12h, 30d, 8w",
    )
    max_mib: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="the oldest answers, until the store uses at most this; not with --teacher or --before",
    )
    dry_run: bool = Field(default=False, description="print what would be deleted, and delete nothing")

    @property
    def before_s(self) -> float:
        """The time `before` in seconds since 1970; infinity if it is not set."""
        return math.inf if self.before is None else _seconds(self.before)

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        by_age_or_teacher = bool(self.identities) or self.before is not None
        if by_age_or_teacher == (self.max_mib is not None):
            raise ValueError(
                "nothing says what to delete: give `identities`, `before` or both, or else `max_mib`"
            )
        if self.before is not None:
            _seconds(self.before)
        return self


def _seconds(moment: str) -> float:
    """
    Raises:
        ValueError: the text is not a time.
    """
    try:
        if ago := _DURATION.fullmatch(moment):
            return (datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp()
        at = datetime.fromisoformat(moment)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"`before` {moment!r} is not a day (2026-11-21), a time (2026-11-21T22:00) or a duration (30d)"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
