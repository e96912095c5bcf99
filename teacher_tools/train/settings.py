"""Every setting of `teacher train`, once: its flag, TEACHER_FORGE_* variable, default and meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode

from gridworld.environments import make
from gridworld.tasks import ALL_TASKS, TASKS, UnknownEnvironment, UnknownTask, family_of, task_key
from teacher_api.command_line import Folder, PromptSetName, ValueName, flags_and_variables

_OF_THE_MACHINE = {"out", "resume", "save_s", "progress", "device", "workers", "compile"}

Precision = Literal["bfloat16", "float32"]


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _known(env_id: str) -> str:
    try:
        make(env_id)
    except UnknownEnvironment as error:
        raise ValueError(str(error)) from error
    return env_id


class ForgeSettings(BaseSettings):
    """Makes a teacher: a Qwen2.5-VL checkpoint that the planner has taught to see, to describe and to act.

    Without --base a compact one is trained from scratch. With it, adapters (LoRA) are trained beside the
    weights of a checkpoint and merged into them. The result is OUT/checkpoint, to be served like any other.
    """

    model_config = flags_and_variables("teacher train", "TEACHER_FORGE_")
    help_groups: ClassVar[Mapping[str, str]] = {
        "out": "the run",
        "base": "adapters for a checkpoint that is there",
        "prompts": "what is learned, and how",
        "device": "the machine",
    }

    out: Folder = Field(default=Path("forged"), description="the run's folder; made if it is not there")
    resume: bool = Field(
        default=False,
        description="go on with the run in --out, with its settings but for those of the machine: --device,"
        " --workers, --compile, --save-s, --progress",
    )
    base: Folder | None = Field(
        default=None, description="train adapters for this checkpoint, a local folder, and merge them into it"
    )
    lora_rank: int = Field(default=16, ge=1, description="--base: of the adapters")
    prompts: PromptSetName = Field(
        default="compact", description="the prompt set that it is to be served with, by name or folder"
    )
    env: Annotated[
        tuple[Annotated[str, AfterValidator(_known), ValueName("ID")], ...],
        NoDecode,
        BeforeValidator(_split),
        Field(min_length=1),
    ] = Field(
        default=tuple(task.env_id for task in TASKS.values()),
        description="environments whose states it is taught, a list: ID,ID; the prompt set has to know"
        " their tasks",
    )
    task: str | None = Field(
        default=None,
        description=f"which of {', '.join(ALL_TASKS)} the environments in --env are that are of none of these"
        " families; MiniGrid's empty room is a lava_gap without lava",
    )
    pictures: int = Field(
        default=8_000,
        ge=0,
        description="from scratch: pictures that the vision tower is taught first, cell by cell",
    )
    samples: int = Field(default=96_000, ge=1, description="conversations that the rest is taught after that")
    batch_size: int = Field(default=32, ge=1, description="samples in a step")
    learning_rate: float = Field(
        default=2e-3, gt=0, allow_inf_nan=False, description="reached after a short rise; falls at the end"
    )
    seed: int = Field(default=0, ge=0, description="of weights and samples")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N; auto: cuda if it is there")
    workers: int = Field(
        default=0,
        ge=0,
        description="processes that make samples, for a GPU to have enough; 0: the one that trains does",
    )
    compile: bool = Field(
        default=False,
        description="let PyTorch compile the layers: a minute more at the start, and then faster; a CPU"
        " needs a C++ compiler for it",
    )
    precision: Precision = Field(
        default="bfloat16",
        description="of products while training; weights are kept in their own",
    )
    save_s: float = Field(
        default=300, gt=0, allow_inf_nan=False, description="seconds between savings of run and checkpoint"
    )
    progress: bool = Field(default=True, description="tell on stderr how far it is")

    @model_validator(mode="after")
    def _tasks_known(self) -> Self:
        if self.task is not None and self.task not in ALL_TASKS:
            raise ValueError(
                f"--task: the planner, who teaches, knows {', '.join(ALL_TASKS)}, not {self.task}"
            )
        _ = self.tasks
        return self

    @property
    def tasks(self) -> dict[str, str]:
        """The environments, each with its task's key."""
        try:
            return {env_id: task_key(env_id, None if family_of(env_id) else self.task) for env_id in self.env}
        except UnknownTask as error:
            raise ValueError(str(error)) from error

    def of_the_result(self) -> dict[str, Any]:
        """The settings that change what comes of a run, for JSON."""
        return self.model_dump(mode="json", exclude=_OF_THE_MACHINE)

    def on_this_machine(self, kept: dict[str, Any]) -> Self:
        """The settings that were kept of a run, with these ones where a run is gone on with.

        Raises:
            pydantic.ValidationError: what was kept is no longer understood.
        """
        return self.model_validate(kept | {name: getattr(self, name) for name in _OF_THE_MACHINE})

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps with pictures alone, and with conversations."""
        pictures = 0 if self.base else self.pictures
        return -(-pictures // self.batch_size), -(-self.samples // self.batch_size)
