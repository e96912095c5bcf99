"""Every setting of `teacher score` and `teacher compare`, once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from gridworld.environments import make
from gridworld.tasks import ALL_TASKS, TASKS, UnknownEnvironment, UnknownTask, task_key
from teacher_api.client import checked_url
from teacher_api.command_line import BadSetting, File, Folder, ValueName, flags_and_variables


class Scoring(BaseModel):
    """How a teacher is scored: what of it changes a figure, and how it is asked."""

    task: str | None = Field(default=None, description=f"score it on this task: {', '.join(ALL_TASKS)}")
    env: Annotated[str, ValueName("ID")] | None = Field(
        default=None, description="score it in this environment, a registered id of MiniGrid's kind"
    )
    all: bool = Field(default=False, description="score it on the paper's four tasks")
    episodes: int = Field(
        default=100, ge=1, description="held-out episodes, played twice: sampled and with arg-max"
    )
    states: int = Field(
        default=500, ge=1, description="held-out states, at most, whose answers are held against the planner"
    )
    seed: int = Field(default=1, ge=0, description="of the states and of the sampled actions")
    parallel: int = Field(default=64, ge=1, le=1024, description="questions asked at once")
    teacher_key_file: File | None = Field(
        default=None, description="a file that holds the key which the teacher asks for"
    )
    teacher_wait_s: float = Field(
        default=600.0, gt=0, allow_inf_nan=False, description="seconds that a teacher which is away is tried"
    )
    progress: bool = Field(default=True, description="tell on stderr how far it is")

    @property
    def places(self) -> dict[str, str]:
        """The environments to score in, each with its task's key.

        Raises:
            BadSetting: none or too many are named, or one that is not known.
        """
        if self.all:
            if self.task or self.env:
                raise BadSetting("--all: not together with --task or --env")
            return {task.env_id: task.key for task in TASKS.values()}
        if self.task is not None and self.task not in ALL_TASKS:
            raise BadSetting(
                f"--task: the planner, which answers are held against, knows {', '.join(ALL_TASKS)}, and not"
                f" {self.task!r}; how a teacher plays another task, `student evaluate URL` tells"
            )
        if self.env is not None:
            try:
                make(self.env)
                return {self.env: task_key(self.env, self.task)}
            except UnknownEnvironment as error:
                raise BadSetting(f"--env: {error}") from error
            except UnknownTask as error:
                raise BadSetting(str(error)) from error
        if self.task is None:
            raise BadSetting(f"say what to score: --task KEY ({', '.join(ALL_TASKS)}), --env ID, or --all")
        return {ALL_TASKS[self.task].env_id: self.task}


def is_address(where: str) -> bool:
    """Whether this is meant as a teacher's address, and not as a folder."""
    return "://" in where


class ScoreSettings(Scoring, BaseSettings):
    """Scores a running teacher: as a policy, against the optimal planner, and stage by stage."""

    model_config = flags_and_variables("teacher score", "TEACHER_SCORE_")

    url: CliPositionalArg[Annotated[str, AfterValidator(checked_url)]] = Field(
        default="http://127.0.0.1:8000", description="the teacher's address"
    )
    out: Folder | None = Field(
        default=None,
        description="a folder for the score, its diagrams and the worst mistakes; one with a part of the same"
        " score in it is gone on with",
    )


def _folder_or_address(where: str) -> str:
    return checked_url(where) if is_address(where) else where


class CompareSettings(Scoring, BaseSettings):
    """Puts teachers side by side: one table, and one page with the worst mistakes of each."""

    model_config = flags_and_variables("teacher compare", "TEACHER_SCORE_")

    teachers: CliPositionalArg[list[Annotated[str, AfterValidator(_folder_or_address)]]] = Field(
        description="folders that `teacher score --out` made, and addresses of teachers to be scored now"
    )
    out: Folder = Field(
        default=Path("comparison"),
        description="the folder for the table and the page, and for the scores of teachers given by address",
    )

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("the same teacher is named twice")
        if any(is_address(teacher) for teacher in self.teachers):
            _ = self.places
        return self


class ReplaySettings(BaseSettings):
    """Lists the episodes without success of a score; with --seed plays one again, with its teacher."""

    model_config = flags_and_variables("teacher replay", "TEACHER_SCORE_")

    score: CliPositionalArg[Path] = Field(description="a folder that `teacher score --out` made")
    url: Annotated[str, AfterValidator(checked_url)] = Field(
        default="http://127.0.0.1:8000", description="the address of the teacher whose score it is"
    )
    seed: int | None = Field(default=None, description="the episode to play again; without it all are listed")
    env: Annotated[str, ValueName("ID")] | None = Field(
        default=None, description="where the seed failed in several environments"
    )
    policy: Literal["argmax", "sampled"] | None = Field(
        default=None, description="the one that it failed with, where it did with both; default: argmax"
    )
    gif: File | None = Field(default=None, description="an animation of it, to be written too")
    teacher_key_file: File | None = Field(
        default=None, description="a file that holds the key which the teacher asks for"
    )
    teacher_wait_s: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="seconds that a teacher which is away is tried"
    )
