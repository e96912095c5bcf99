"""The settings of `teacher train`: each one's flag, TEACHER_TRAIN_* variable, default and meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings

from gridworld.tasks import ALL_TASKS, UnknownEnvironment, UnknownTask, family_of, task_key
from teacher_api.command_line import Folder, Listed, PromptSetName, ValueName, flags_and_variables
from worlds.minigrid import MinigridWorld
from worlds.registry import world_of

PLANNER, VALUE_ITERATION, BABYAI = "planner", "value-iteration", "babyai-bot"
"""The experts that are included."""

_MACHINE_SETTINGS = {
    *("out", "resume", "stop_after", "save_s", "progress", "device", "workers", "compile"),
    *("batch_tokens", "gradient_checkpointing"),
}

Precision = Literal["bfloat16", "float32"]


def is_run(expert: str) -> bool:
    """Returns whether an expert's name is a folder, that of a student's run."""
    return Path(expert).is_dir()


def _known(env_id: str) -> str:
    try:
        world_of(env_id)
    except UnknownEnvironment as error:
        raise ValueError(str(error)) from error
    return env_id


class TrainingSettings(BaseSettings):
    """Trains a teacher: a checkpoint that learns from the planner to describe pictures and to act.

    Without --base, a compact Qwen2.5-VL is trained from scratch. With --base, LoRA adapters are trained on a
    checkpoint and merged into its weights. The result is OUT/checkpoint, which is served like any checkpoint.
    """

    model_config = flags_and_variables("teacher train", "TEACHER_TRAIN_")
    help_groups: ClassVar[Mapping[str, str]] = {
        "out": "the run",
        "base": "adapting an existing checkpoint",
        "prompts": "what is learned, and how",
        "device": "the machine",
    }

    out: Folder = Field(default=Path("trained"), description="the run's folder; created if missing")
    resume: bool = Field(
        default=False,
        description="resume the run in --out with its stored settings; only --stop-after, --device,"
        " --workers, --compile, --batch-tokens, --gradient-checkpointing, --save-s and --progress are read"
        " anew",
    )
    stop_after: int | None = Field(
        default=None,
        ge=1,
        description="stop once the run has learned from this many samples, pictures and conversations"
        " together, and save; --resume continues the run; default: no stop",
    )
    base: Folder | None = Field(
        default=None,
        description="train LoRA adapters for this checkpoint (a local folder) and merge them into it",
    )
    lora_rank: int = Field(default=16, ge=1, description="with --base: the rank of the adapters")
    base_4bit: bool = Field(
        default=False,
        description="with --base: hold its language model in 4 bits while the adapters are trained (QLoRA,"
        " bitsandbytes); they are merged into the weights as they were",
    )
    prompts: PromptSetName = Field(
        default="compact",
        description="the prompt set that the checkpoint will be served with: name or folder",
    )
    env: Listed[Annotated[str, AfterValidator(_known), ValueName("ID")]] = Field(
        default=(),
        description="environments that the pictures come from, a list: ID,ID; the prompt set has to know"
        " their tasks; default: all that belong to the prompt set's tasks",
    )
    task: str | None = Field(
        default=None,
        description="the task of those environments in --env that belong to no task family; for the planner"
        f" one of {', '.join(ALL_TASKS)}",
    )
    expert: str = Field(
        default=PLANNER,
        description=f"what labels the states: {PLANNER} or the folder of a student's run, for environments"
        f" of MiniGrid's kind; {VALUE_ITERATION}, for Gymnasium's toy_text; {BABYAI}, for BabyAI's levels; or"
        " a Python object of your own: package.module:Name",
    )
    pictures: int = Field(
        default=32_000,
        ge=0,
        description="from scratch: pictures in the first phase, which trains the vision tower cell by cell",
    )
    samples: int = Field(
        default=160_000, ge=1, description="conversations in the second phase, which trains the rest"
    )
    batch_size: int = Field(default=32, ge=1, description="samples in a step")
    learning_rate: float = Field(
        default=2e-3,
        gt=0,
        allow_inf_nan=False,
        description="the highest learning rate: each phase warms up to it and decays from it",
    )
    seed: int = Field(default=0, ge=0, description="the seed of weights and samples")
    device: str = Field(
        default="auto", description="auto, cpu, cuda or cuda:N; auto is cuda where there is a GPU, else cpu"
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="processes that make samples, so that a GPU need not wait; 0: the training process makes"
        " them",
    )
    compile: bool = Field(
        default=False,
        description="compile the layers with PyTorch: one minute longer to start, then faster; on a CPU it"
        " needs a C++ compiler",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens in a forward pass, with padding; a step takes as many passes as its samples"
        " need, and its result is the same but for rounding; default: no limit, one pass",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep the language model's activations between layers alone, and calculate those within"
        " a layer again: far less memory, about a third slower",
    )
    precision: Precision = Field(
        default="bfloat16",
        description="the precision of matrix products in training; weights keep their own",
    )
    save_s: float = Field(
        default=300,
        gt=0,
        allow_inf_nan=False,
        description="seconds between two saves of the run and the checkpoint",
    )
    progress: bool = Field(default=True, description="show progress on stderr")

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.base_4bit and self.base is None:
            raise ValueError("`base_4bit` is for adapters: name their checkpoint with `base`")
        return self

    @model_validator(mode="after")
    def _tasks_known(self) -> Self:
        if self.expert == PLANNER or is_run(self.expert):
            if self.task is not None and self.task not in ALL_TASKS:
                raise ValueError(f"`task`: the planner knows {', '.join(ALL_TASKS)}, not {self.task}")
            for env_id in self.env:
                if not isinstance(world_of(env_id), MinigridWorld):
                    raise ValueError(
                        f"`expert`: {self.expert} is for environments of MiniGrid's kind, which {env_id} is"
                        f" not: name another expert, such as {VALUE_ITERATION}"
                    )
        elif self.expert not in (VALUE_ITERATION, BABYAI) and ":" not in self.expert:
            raise ValueError(
                f"`expert` {self.expert!r} is none of {PLANNER}, {VALUE_ITERATION}, {BABYAI}, the folder of a"
                " run, package.module:Name"
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

    def stored(self) -> dict[str, Any]:
        """Returns the settings that determine a run's result, as JSON values."""
        return self.model_dump(mode="json", exclude=_MACHINE_SETTINGS)

    def on_this_machine(self, stored: dict[str, Any]) -> Self:
        """Returns a run's stored settings, combined with this command's settings of the machine.

        Raises:
            pydantic.ValidationError: a stored setting is not valid.
        """
        return self.model_validate(stored | {name: getattr(self, name) for name in _MACHINE_SETTINGS})

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps in the first phase (pictures) and in the second (conversations)."""
        pictures = 0 if self.base else self.pictures
        return -(-pictures // self.batch_size), -(-self.samples // self.batch_size)

    @property
    def last_step(self) -> int:
        """The step after which this command ends: the last one, or that of `stop_after`."""
        total = sum(self.steps)
        return total if self.stop_after is None else min(total, -(-self.stop_after // self.batch_size))
