"""The settings of `teacher score`, `teacher compare` and `teacher replay`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from gridworld.environments import make
from gridworld.tasks import ALL_TASKS, TASKS, UnknownEnvironment, UnknownTask, task_key
from teacher_api.client import checked_url
from teacher_api.command_line import BadSetting, File, Folder, Listed, ValueName, flags_and_variables


class ScoringSettings(BaseModel):
    """What is measured, and how the teacher is asked."""

    task: str | None = Field(
        default=None, description=f"score the teacher on this task: {', '.join(ALL_TASKS)}"
    )
    env: Listed[Annotated[str, ValueName("ID")]] = Field(
        default=(),
        description="score the teacher in these environments, a list: ID,ID; ids of MiniGrid environments",
    )
    all: bool = Field(default=False, description="score the teacher on the paper's four tasks")
    episodes: int = Field(
        default=100, ge=1, description="held-out episodes, each played twice: sampled and with arg-max"
    )
    states: int = Field(
        default=500,
        ge=1,
        description="the maximal number of held-out states whose answers are compared with the planner",
    )
    seed: int = Field(default=1, ge=0, description="the seed of states and sampled actions")
    parallel: int = Field(default=64, ge=1, le=1024, description="questions in a request")
    teacher_key_file: File | None = Field(
        default=None, description="a file with the key that the teacher requires"
    )
    teacher_wait_s: float = Field(
        default=600.0, gt=0, allow_inf_nan=False, description="seconds to keep trying an unreachable teacher"
    )
    progress: bool = Field(default=True, description="show progress on stderr")

    @property
    def environments(self) -> dict[str, str]:
        """The environments of the score, each with its task's key.

        Raises:
            BadSetting: the settings name no environment, too many, or an unknown one.
        """
        if self.all:
            if self.task or self.env:
                raise BadSetting("`all` excludes `task` and `env`")
            return {task.env_id: task.key for task in TASKS.values()}
        if self.task is not None and self.task not in ALL_TASKS:
            raise BadSetting(
                f"`task`: the planner, which answers are compared with, knows {', '.join(ALL_TASKS)}, not"
                f" {self.task!r}; for other tasks, use `student evaluate URL`"
            )
        if self.env:
            try:
                for env_id in self.env:
                    make(env_id)
                return {env_id: task_key(env_id, self.task) for env_id in self.env}
            except UnknownEnvironment as error:
                raise BadSetting(f"`env`: {error}") from error
            except UnknownTask as error:
                raise BadSetting(str(error)) from error
        if self.task is None:
            raise BadSetting(f"nothing to score: set `task` ({', '.join(ALL_TASKS)}), `env` or `all`")
        return {ALL_TASKS[self.task].env_id: self.task}


def is_address(where: str) -> bool:
    """Returns whether this is a teacher's address rather than a folder."""
    return "://" in where


class ScoreSettings(ScoringSettings, BaseSettings):
    """Scores a running teacher: as a policy, compared with the planner, and stage by stage."""

    model_config = flags_and_variables("teacher score", "TEACHER_SCORE_")

    url: CliPositionalArg[Annotated[str, AfterValidator(checked_url)]] = Field(
        default="http://127.0.0.1:8000", description="the teacher's address"
    )
    out: Folder | None = Field(
        default=None,
        description="a folder for the score, its diagrams and the worst mistakes; an incomplete score in it"
        " is resumed",
    )


def _folder_or_address(where: str) -> str:
    return checked_url(where) if is_address(where) else where


class CompareSettings(ScoringSettings, BaseSettings):
    """Compares teachers: a table, and a page with the worst mistakes of each."""

    model_config = flags_and_variables("teacher compare", "TEACHER_SCORE_")

    teachers: CliPositionalArg[list[Annotated[str, AfterValidator(_folder_or_address)]]] = Field(
        description="folders of `teacher score --out`, and addresses of teachers, which are scored first"
    )
    out: Folder = Field(
        default=Path("comparison"),
        description="the folder for the table, the page, and the scores of teachers given by address",
    )

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("`teachers` contains the same teacher twice")
        if any(is_address(teacher) for teacher in self.teachers):
            _ = self.environments
        return self


class ReplaySettings(BaseSettings):
    """Lists the failed episodes of a score; with --seed, replays one with its teacher."""

    model_config = flags_and_variables("teacher replay", "TEACHER_SCORE_")

    score: CliPositionalArg[Path] = Field(description="a folder of `teacher score --out`")
    url: Annotated[str, AfterValidator(checked_url)] = Field(
        default="http://127.0.0.1:8000", description="the address of the scored teacher"
    )
    seed: int | None = Field(default=None, description="the episode to replay; default: list all episodes")
    env: Annotated[str, ValueName("ID")] | None = Field(
        default=None, description="the environment, if the seed failed in several"
    )
    policy: Literal["argmax", "sampled"] | None = Field(
        default=None, description="the policy, if both failed; default: argmax"
    )
    gif: File | None = Field(default=None, description="also write an animation of the episode to this file")
    teacher_key_file: File | None = Field(
        default=None, description="a file with the key that the teacher requires"
    )
    teacher_wait_s: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="seconds to keep trying an unreachable teacher"
    )
