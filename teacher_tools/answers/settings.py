"""Every setting of `teacher answers`, once."""

import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from teacher_api.command_line import File, Folder, ValueName, flags_and_variables

_DURATION = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


Identity = Annotated[str, ValueName("IDENTITY")]


class _OfAStore(BaseModel):
    store: File = Field(default=Path("answers.sqlite3"), description="the answer store, a file")


_OF_A_TEACHER = (
    "of this teacher alone: an identity, or a checkpoint's name; `teacher answers stats` lists them"
)


class ShowSettings(_OfAStore, BaseSettings):
    """Shows the newest answers of each teacher; `export --csv` gives all of them, with the analyses."""

    model_config = flags_and_variables("teacher answers show", "TEACHER_")

    # By an alias, which no TEACHER_TEACHER (who is served) fills
    identity: Identity | None = Field(default=None, alias="teacher", description=_OF_A_TEACHER)
    task: str | None = Field(default=None, description="about this task alone")
    limit: int = Field(default=20, ge=1, description="answers of each teacher, at most")


class ExportSettings(_OfAStore, BaseSettings):
    """Writes answers into a file of JSON lines, as a whole or not at all; a teacher may use the store."""

    model_config = flags_and_variables("teacher answers export", "TEACHER_")

    file: CliPositionalArg[str] = Field(description="compressed if it ends in .gz; -: stdout")
    identity: Identity | None = Field(default=None, alias="teacher", description=_OF_A_TEACHER)
    as_csv: bool = Field(
        default=False,
        alias="csv",
        description="as a table for spreadsheets and pandas, which `import` does not read",
    )
    task: str | None = Field(default=None, description="with --csv: about this task alone")
    pictures: Folder | None = Field(
        default=None,
        description="with --csv: a folder for the pictures that `teacher serve --keep-pictures` kept",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for flag, value in (("--task", self.task), ("--pictures", self.pictures)):
            if value is not None and not self.as_csv:
                raise ValueError(f"{flag} goes with --csv; an export for `teacher answers import` is whole")
        return self


class ImportSettings(_OfAStore, BaseSettings):
    """Takes over what `export` wrote: each file as a whole or not at all; answers that are there stay."""

    model_config = flags_and_variables("teacher answers import", "TEACHER_")

    files: CliPositionalArg[list[str]] = Field(description="files; compressed if they end in .gz; -: stdin")


class StatsSettings(_OfAStore, BaseSettings):
    """Tells what the store holds, how much room it takes, and whether it is sound."""

    model_config = flags_and_variables("teacher answers stats", "TEACHER_")

    as_json: bool = Field(default=False, alias="json", description="as JSON")


class PruneSettings(_OfAStore, BaseSettings):
    """Deletes answers and gives their room on the disk back; a teacher may use the store meanwhile."""

    model_config = flags_and_variables("teacher answers prune", "TEACHER_")

    identities: list[Identity] = Field(
        default=[], alias="teacher", description="of this teacher; may be given more than once"
    )
    before: Annotated[str, ValueName("TIME")] | None = Field(
        default=None,
        description="given before this day or moment, 2026-11-21 or 2026-11-21T22:00 (UTC), or longer ago"
        " than this: 90m, 12h, 30d, 8w",
    )
    max_mib: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="the oldest, until the others take no more MiB than this; not with --teacher or --before",
    )
    dry_run: bool = Field(default=False, description="only tell what would go")

    @property
    def before_s(self) -> float:
        """The time of --before in seconds since 1970; later than any answer without one."""
        return math.inf if self.before is None else _seconds(self.before)

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        by_age_or_teacher = bool(self.identities) or self.before is not None
        if by_age_or_teacher == (self.max_mib is not None):
            raise ValueError("say what is to go: either --teacher and --before, or one of them, or --max-mib")
        if self.before is not None:
            _seconds(self.before)
        return self


def _seconds(moment: str) -> float:
    """
    Raises:
        ValueError: it is no moment.
    """
    try:
        if ago := _DURATION.fullmatch(moment):
            return (datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp()
        at = datetime.fromisoformat(moment)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"--before: a day as 2026-11-21, a moment as 2026-11-21T22:00, or a time as 30d, not {moment!r}"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
