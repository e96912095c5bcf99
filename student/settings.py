"""Every setting of the student's commands, once: its flag, STUDENT_* variable, default and meaning."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from gridworld.tasks import family_of, task_key
from teacher_api.client import checked_url
from teacher_api.command_line import File, Folder, ValueName, flag_of

ALGORITHMS = {
    "ppo": "student.algorithms.ppo:PPO",
    "a2c": "student.algorithms.a2c:A2C",
    "dqn": "student.algorithms.soft_q:DQN",
}
"""Their classes, by their names for --algo; as texts, so that flags are read before torch is loaded."""


def _known(env_id: str) -> str:
    if family_of(env_id) is None:
        from student.environments import check  # noqa: PLC0415  (the families' ids are checked without MiniGrid)

        check(env_id)
    return env_id


def _address(url: str) -> str:
    return url if url == "none" else checked_url(url)


def is_address(policy: str) -> bool:
    """Whether a policy is a teacher's address, and no folder or file."""
    return policy.startswith(("http://", "https://"))


def _folder_or_address(policy: str) -> str:
    return checked_url(policy) if is_address(policy) else policy


def _onnx_file(path: Path) -> Path:
    if path.suffix != ".onnx":
        raise ValueError(f"{path} has to end in .onnx")
    return path


def _algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return name


AlgorithmName = Annotated[str, AfterValidator(_algorithm), ValueName(f"{{{','.join(ALGORITHMS)}}}")]


Preset = Literal["fast", "alone", "paper"]


def preset_for(teacher: str | None) -> Preset:
    """The preset where none is chosen, by the teacher's address or name; "none" or None: no teacher."""
    return "alone" if teacher in (None, "none") else "fast"


class _Of(dict[str, object]):
    """A default for each algorithm; that of "" for those that are not named."""


def _by_preset(*, fast: object, paper: object, alone: object = None, **field: Any) -> Any:
    """A setting whose default is that of the preset; `alone` differs from `fast` only where it is given."""

    def default(chosen: dict[str, Any]) -> object:
        presets = {"fast": fast, "paper": paper, "alone": fast if alone is None else alone}
        found = presets[chosen["preset"]]
        return found.get(chosen["algo"], found[""]) if isinstance(found, _Of) else found

    return Field(default_factory=default, **field)


def _only(algorithms: str) -> dict[str, Any]:
    """Marks a setting that means nothing to other algorithms than these."""
    return {"algorithms": algorithms}


Address = Annotated[str, AfterValidator(_address), ValueName("URL")]
EnvId = Annotated[str, AfterValidator(_known), ValueName("ID")]
_TASK = (
    "the task's key that the teacher is asked with; needed with environments of no known family;"
    " one of a family is asked with its key"
)

_KeyFile = Annotated[
    File | None,
    Field(description="a file that holds the key which the teacher asks for (its --api-key-file)"),
]
_WaitS = Annotated[
    float, Field(ge=0, description="seconds to wait for a teacher that is away before giving up")
]


def _config(command: str) -> SettingsConfigDict:
    return SettingsConfigDict(
        env_prefix="STUDENT_",
        env_prefix_target="all",
        env_ignore_empty=True,
        frozen=True,
        cli_prog_name=f"student {command}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )


class TrainSettings(BaseSettings):
    """Trains a student, alone or with a teacher. Each flag is a variable too: --seed is STUDENT_SEED."""

    model_config = _config("train")
    help_groups: ClassVar[Mapping[str, str]] = {
        "env": "the run",
        "teacher_lambda": "learning from the teacher",
        "environments": "learning from rewards",
        "evaluate_every": "evaluations, the log, checkpoints",
    }

    env: EnvId = Field(
        default="MiniGrid-LavaGapS6-v0",
        description="a registered id of MiniGrid's kind; package.module:Some-Env-v0 imports the module first",
    )
    algo: AlgorithmName = Field(
        default="ppo", description=f"the algorithm to learn by: {' or '.join(ALGORITHMS)}"
    )
    teacher: Address = Field(
        default="none", description="the teacher's address, such as http://127.0.0.1:8000; none: learn alone"
    )
    task: str | None = Field(default=None, description=_TASK)
    preset: Preset = Field(
        default_factory=lambda chosen: preset_for(chosen["teacher"]),
        description="where the defaults below come from. fast, the default with a teacher: what learns fast"
        " here from one; alone, the default without: what learns fast here from rewards alone; paper: the"
        " paper's Algorithm 1 as printed, with the hyper-parameters of its code. A setting that is given wins"
        " over all of them; add --help to see the defaults of a preset, an algorithm and a teacher",
    )
    out: Folder = Field(default=Path("runs/student"), description="the run's folder; made if it is not there")
    resume: Folder | None = Field(
        default=None,
        description="go on with the run in this folder; --teacher, --teacher-key-file, --teacher-wait-s,"
        " --allow-teacher-change, --frames, --threads and --progress may be told anew",
    )
    go_on: bool = Field(
        default=False,
        exclude=True,
        description="go on with the run in --out if there is one, as --resume does, and do nothing if it is"
        " complete: for whatever starts the same command again",
    )
    seed: int = Field(default=1, ge=0, description="of everything random in the run")
    seeds: int = Field(
        default=1,
        ge=1,
        exclude=True,
        description="train this many students one after another, from --seed and the seeds that follow, each"
        " in a folder seed-N of --out; `student sweep` trains many at once",
    )
    frames: int = _by_preset(
        fast=60_000, paper=20_000, ge=1, description="steps in the environments to train for"
    )

    teacher_lambda: float = _by_preset(
        fast=1.0,
        paper=0.01,
        ge=0,
        allow_inf_nan=False,
        alias="lambda",
        description="weight of the distillation term, lambda of the paper's equation 1",
    )
    lambda_schedule: Literal["constant", "linear"] = _by_preset(
        fast="linear",
        paper="constant",
        description="linear: lambda falls to 0, and from there on the teacher is not asked",
    )
    lambda_frames: int = _by_preset(
        fast=4096,
        paper=0,
        ge=0,
        description="frames over which a linear lambda falls to 0; 0: all of the run's",
    )
    targets: Literal["soft", "hard"] = Field(
        default="soft",
        description="soft: the teacher's probabilities; hard: all on its most probable action, on the first"
        " of them where several are",
    )
    teacher_temperature: float = _by_preset(
        fast=0.5,
        paper=1.0,
        gt=0,
        allow_inf_nan=False,
        description="soft targets: the teacher's probabilities to the power of 1/temperature; below 1"
        " sharpens them, so that what it deems improbable is forgotten",
    )
    doubt: float = _by_preset(
        fast=0.5,
        paper=0.0,
        ge=0,
        le=1,
        description="share of the targets that is spread over all actions where no episode succeeds though"
        " the teacher's time is over; less before, and none where half of them succeed. A student that is"
        " sure of a wrong teacher's mistakes never finds out about them",
    )
    replay_ratio: float = _by_preset(
        fast=32.0,
        paper=0.0,
        ge=0,
        allow_inf_nan=False,
        description="stored labels learnt from again for each frame, fewer as lambda falls",
    )
    replay_rate: float = Field(
        default=1e-3, gt=0, description="learning rate of replay, by an Adam of its own"
    )
    teacher_key_file: _KeyFile = None
    teacher_wait_s: _WaitS = 300.0
    allow_teacher_change: bool = Field(
        default=False, description="go on when the teacher is not the one that the run began with"
    )

    late_labels: Literal["wait", "go-on"] = Field(
        default="wait",
        description="wait: an update waits for the labels of all its states; go-on: it goes on with those"
        " that have come, and the others serve later ones; such a run cannot be repeated bit for bit",
    )
    teacher_budget: int | None = Field(
        default=None,
        ge=1,
        description="states that the teacher may be asked about in the whole run, stored answers included;"
        " each update asks about those where the policy is least decided; default: all",
    )

    environments: int = _by_preset(
        fast=32, alone=16, paper=3, ge=1, description="environments stepped together"
    )
    rollout_steps: int = _by_preset(
        fast=_Of({"": 16, "a2c": 5}),
        alone=_Of({"": 128, "a2c": 5}),
        paper=_Of({"": 128, "a2c": 5}),
        ge=1,
        description="steps in each environment between updates",
    )
    epochs: int = _by_preset(
        fast=_Of({"": 3, "dqn": 4}),
        alone=4,
        paper=4,
        ge=1,
        description="PPO: passes over a rollout in one update; DQN: as many steps on its buffer",
        json_schema_extra=_only("ppo dqn"),
    )
    minibatch_size: int = _by_preset(
        fast=512,
        alone=256,
        paper=256,
        ge=1,
        description="PPO and DQN: states in one gradient step",
        json_schema_extra=_only("ppo dqn"),
    )
    buffer_size: int = Field(
        default=50_000,
        ge=1,
        description="DQN: the newest steps, which it learns from",
        json_schema_extra=_only("dqn"),
    )
    target_rate: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="DQN: how far the target network follows in each gradient step",
        json_schema_extra=_only("dqn"),
    )
    optimiser: Literal["adam", "rmsprop"] = Field(
        default_factory=lambda chosen: (
            "rmsprop" if chosen["algo"] == "a2c" and chosen["preset"] != "fast" else "adam"
        ),
        description="how gradients become steps",
    )
    learning_rate: float = _by_preset(
        fast=3e-4,
        alone=_Of({"": 1e-3, "a2c": 3e-3}),
        paper=1e-3,
        gt=0,
        description="of the optimiser; replay has its own",
    )
    optimiser_epsilon: float = _by_preset(
        fast=1e-5, paper=1e-8, gt=0, description="what the optimiser adds to the gradients' size"
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount of rewards, a step")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="generalised advantage estimation: 0 one-step, 1 whole returns"
    )
    clip: float = Field(
        default=0.2,
        gt=0,
        description="PPO: how far the policy's ratio may move in one update",
        json_schema_extra=_only("ppo"),
    )
    clip_values: bool = Field(
        default=False, description="PPO: clip the value's change as well", json_schema_extra=_only("ppo")
    )
    normalise_advantages: bool = _by_preset(
        fast=False,
        alone=_Of({"": True, "a2c": False}),
        paper=False,
        description="make the advantages of each gradient step zero-mean, unit-variance: helps a student that"
        " learns alone, and drives one off that can do all already",
    )
    entropy_coefficient: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    value_coefficient: float = Field(default=0.5, ge=0, description="weight of the value loss")
    max_grad_norm: float = Field(default=0.5, gt=0, description="gradients are scaled down to this norm")
    threads: int = Field(default=1, ge=1, description="threads of the arithmetic")

    evaluate_every: int = Field(
        default=4096, ge=0, description="frames between evaluations on held-out seeds; 0: only at the end"
    )
    evaluation_episodes: int = Field(default=100, ge=1, description="episodes of each evaluation")
    log_every: int = Field(
        default=512, ge=1, description="frames between lines of the log; each has the newest update's figures"
    )
    checkpoint_every: int = Field(default=16_384, ge=1, description="frames between checkpoints")
    progress: bool = Field(default=True, description="show a progress bar")

    @model_validator(mode="after")
    def _of_the_algorithm(self) -> Self:
        others = sorted(flag_of(type(self), name) for name in self._meaningless() & self.model_fields_set)
        if others:
            raise ValueError(f"{', '.join(others)}: of no meaning to --algo {self.algo}")
        return self

    @model_validator(mode="after")
    def _one_way_on(self) -> Self:
        if self.go_on and self.resume is not None:
            raise ValueError("--go-on: not together with --resume; it goes on with the run in --out")
        return self

    @model_validator(mode="after")
    def _one_run_to_resume(self) -> Self:
        if self.seeds > 1 and self.resume is not None:
            raise ValueError("--seeds: not together with --resume; with --go-on it goes on with all its runs")
        return self

    @model_validator(mode="after")
    def _with_a_task(self) -> Self:
        if self.teacher != "none" or self.task is not None:
            task_key(self.env, self.task)
        return self

    def in_force(self) -> dict[str, Any]:
        """Every setting that has a meaning to the algorithm, as JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude=self._meaningless())

    def _meaningless(self) -> set[str]:
        """The settings that are another algorithm's own."""
        marks = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        return {
            name
            for name, mark in marks.items()
            if isinstance(mark, dict) and self.algo not in str(mark["algorithms"]).split()
        }


def train_settings_for(arguments: Sequence[str]) -> type[TrainSettings]:
    """TrainSettings, and where --help is asked for, with the defaults of what is chosen beside it."""
    if not {"-h", "--help"} & set(arguments):
        return TrainSettings
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for name in ("algo", "teacher", "preset"):
        parser.add_argument(f"--{name}", default=os.environ.get(f"STUDENT_{name.upper()}") or None)
    try:
        chosen = vars(parser.parse_known_args(list(arguments))[0])
        shown = TrainSettings.model_validate({name: value for name, value in chosen.items() if value})
    except (argparse.ArgumentError, ValidationError):
        return TrainSettings
    defaults: dict[str, Any] = {
        name: (
            field.annotation,
            Field(default=getattr(shown, name), alias=field.alias, description=field.description),
        )
        for name, field in TrainSettings.model_fields.items()
        if field.default_factory is not None
    }
    return create_model("TrainSettings", __base__=TrainSettings, __doc__=TrainSettings.__doc__, **defaults)


class EvaluateSettings(BaseSettings):
    """Plays held-out episodes with a trained or exported student or with a teacher; reports how it did."""

    model_config = _config("evaluate")

    policy: CliPositionalArg[Annotated[str, AfterValidator(_folder_or_address)]] = Field(
        description="a run's folder, an exported file, or a teacher's address"
    )
    env: EnvId | None = Field(default=None, description="a registered MiniGrid id; the run's own by default")
    task: str | None = Field(default=None, description=f"with a teacher: {_TASK}")
    episodes: int = Field(default=200, ge=1, description="held-out episodes")
    seed: int = Field(default=1, ge=0, description="of the sampled actions")
    gif: File | None = Field(default=None, description="write an animation of the first episodes here")
    out: File | None = Field(default=None, description="write the report here as JSON as well")
    teacher_key_file: _KeyFile = None
    teacher_wait_s: _WaitS = 60.0

    @model_validator(mode="after")
    def _with_a_task(self) -> Self:
        if self.env is not None and is_address(self.policy):
            task_key(self.env, self.task)
        return self


class ExportSettings(BaseSettings):
    """Writes a trained student into one ONNX file that plays without torch, and measures it."""

    model_config = _config("export")

    run: CliPositionalArg[Path] = Field(description="a run's folder")
    out: Annotated[File, AfterValidator(_onnx_file)] | None = Field(
        default=None, description="the file to write; student.onnx in the run's folder by default"
    )
    overwrite: bool = Field(default=False, description="replace the file where there is one already")
    teacher: Address = Field(
        default="none", description="a teacher's address: measure its answers too, beside the student's"
    )
    task: str | None = Field(default=None, description=f"with a teacher, the run's own by default: {_TASK}")
    questions: int = Field(
        default=30, ge=1, description="states to ask the teacher about that its store cannot answer"
    )
    teacher_key_file: _KeyFile = None
    teacher_wait_s: _WaitS = 60.0
