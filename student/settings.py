"""The settings of `student train`: flag, STUDENT_* variable, default and meaning of each."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gridworld.tasks import family_of, task_key
from teacher_api.client import checked_url
from teacher_api.command_line import File, Folder, ValueName

ALGORITHMS = {
    "ppo": "student.algorithms.ppo:PPO",
    "a2c": "student.algorithms.a2c:A2C",
    "soft-q": "student.algorithms.soft_q:SoftQLearning",
}
"""The classes by `--algo`; as texts, so that reading the flags does not load torch."""
FORMER_NAMES = {"dqn": "soft-q"}
"""Names that earlier versions gave algorithms, and that stored runs, sweeps and plans hold."""


def _known(env_id: str) -> str:
    if family_of(env_id) is None:
        from worlds.registry import check  # noqa: PLC0415  (needs MiniGrid; the families' ids do not)

        check(env_id)
    return env_id


def _address(url: str) -> str:
    return url if url == "none" else checked_url(url)


def algorithm_name(name: str) -> str:
    """Returns the name of an algorithm, also for the name that an earlier version gave it.

    Raises:
        ValueError: no algorithm has this name.
    """
    current = FORMER_NAMES.get(name, name)
    if current not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return current


AlgorithmName = Annotated[str, AfterValidator(algorithm_name), ValueName(f"{{{','.join(ALGORITHMS)}}}")]

Preset = Literal["fast", "alone", "paper"]


def preset_for(teacher: str | None) -> Preset:
    """Returns the default preset for a teacher's address or name; "none" or None: no teacher."""
    return "alone" if teacher in (None, "none") else "fast"


class _Of(dict[str, object]):
    """A default for each algorithm; the key "" stands for the algorithms without a key."""


def _by_preset(*, fast: object, paper: object, alone: object = None, **field: Any) -> Any:
    """Returns a field with a default for each preset; that of `alone` is that of `fast` if not given."""

    def default(chosen: dict[str, Any]) -> object:
        presets = {"fast": fast, "paper": paper, "alone": fast if alone is None else alone}
        found = presets[chosen["preset"]]
        return found.get(chosen["algo"], found[""]) if isinstance(found, _Of) else found

    return Field(default_factory=default, **field)


def _only(algorithms: str) -> dict[str, Any]:
    """Marks a setting that only these algorithms have."""
    return {"algorithms": algorithms}


Address = Annotated[str, AfterValidator(_address), ValueName("URL")]
EnvId = Annotated[str, AfterValidator(_known), ValueName("ID")]
SuccessAbove = Annotated[
    float | None,
    Field(
        allow_inf_nan=False,
        description="an episode is a success if its return is above this; default: 0, or the reward_threshold"
        " that an environment of another kind than MiniGrid's is registered with",
    ),
]
TASK = (
    "task key in the questions to the teacher; required for an environment of no known family, by default the"
    " key of the family"
)
KeyFile = Annotated[
    File | None,
    Field(description="file with the API key that the teacher requires (its --api-key-file)"),
]
WaitS = Annotated[
    float, Field(ge=0, description="seconds to wait for an unavailable teacher before giving up")
]


def config(command: str) -> SettingsConfigDict:
    """Returns how a command's settings are read: flags, then STUDENT_* variables."""
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
    """Trains a student, alone or with a teacher. Each flag has a variable: STUDENT_SEED for --seed."""

    model_config = config("train")
    help_groups: ClassVar[Mapping[str, str]] = {
        "env": "the run",
        "teacher_lambda": "learning from the teacher",
        "environments": "learning from rewards",
        "evaluate_every": "evaluations, the log, checkpoints",
    }

    env: EnvId = Field(
        default="MiniGrid-LavaGapS6-v0",
        description="id of a registered environment with discrete actions; package.module:Some-Env-v0 imports"
        " the module, and FrozenLake-v1@is_slippery=false gives the environment an argument",
    )
    algo: AlgorithmName = Field(
        default="ppo", description="learning algorithm: ppo, a2c or soft-q (soft Q-learning)"
    )
    teacher: Address = Field(
        default="none",
        description="the teacher's address, such as http://127.0.0.1:8000; none: learn from rewards alone",
    )
    task: str | None = Field(default=None, description=TASK)
    success_above: SuccessAbove = None
    preset: Preset = Field(
        default_factory=lambda chosen: preset_for(chosen["teacher"]),
        description="source of the defaults below. fast, the default with a teacher: learns fast from a"
        " teacher; alone, the default without: learns fast from rewards alone; paper: the paper's Algorithm 1"
        " as printed, with the hyper-parameters of its code. A setting that is given overrides the preset;"
        " --help shows the defaults for the preset, algorithm and teacher beside it",
    )
    out: Folder = Field(
        default=Path("runs/student"), description="the run's folder; created if it does not exist"
    )
    resume: Folder | None = Field(
        default=None,
        description="resume the run in this folder; --teacher, --teacher-key-file, --teacher-wait-s,"
        " --allow-teacher-change, --frames, --threads and --progress may change",
    )
    go_on: bool = Field(
        default=False,
        exclude=True,
        description="resume the run in --out, as --resume does, or start it if there is none; do nothing if"
        " it is complete. For schedulers that start the same command again",
    )
    seed: int = Field(default=1, ge=0, description="seed of all random numbers of the run")
    seeds: int = Field(
        default=1,
        ge=1,
        exclude=True,
        description="train this many students one after another, with --seed and the seeds that follow, each"
        " in the folder seed-N of --out; `student sweep` trains several at once",
    )
    frames: int = _by_preset(
        fast=60_000, paper=20_000, ge=1, description="environment steps to train for, over all environments"
    )

    teacher_lambda: float = _by_preset(
        fast=1.0,
        paper=0.01,
        ge=0,
        allow_inf_nan=False,
        alias="lambda",
        description="weight of the distillation term: lambda of the paper's equation 1",
    )
    lambda_schedule: Literal["constant", "linear"] = _by_preset(
        fast="linear",
        paper="constant",
        description="linear: lambda falls to 0, after which the teacher is not asked",
    )
    lambda_frames: int = _by_preset(
        fast=4096,
        paper=0,
        ge=0,
        description="frames over which a linear lambda falls to 0; 0: all frames of the run. 4,096 suits"
        " episodes of up to 200 steps; longer ones need more, such as 20,480 for 300 steps",
    )
    targets: Literal["soft", "hard"] = Field(
        default="soft",
        description="distillation targets. soft: the teacher's probabilities; hard: probability 1 for its"
        " most probable action, for the first of several",
    )
    teacher_temperature: float = _by_preset(
        fast=0.5,
        paper=1.0,
        gt=0,
        allow_inf_nan=False,
        description="soft targets are the teacher's probabilities to the power of 1/temperature; below 1"
        " sharpens them, which removes improbable actions",
    )
    judge_labels: bool = _by_preset(
        fast=True,
        paper=False,
        description="judge labels by the student's own experience: where actions were tried, what followed"
        " replaces a label that it contradicts; systematic mistakes are corrected in all states; where the"
        " teacher's mistakes have no system, labels count less that the student disagrees with. False: all"
        " labels count alike",
    )
    recover: bool = _by_preset(
        fast=True,
        paper=False,
        description="once lambda is 0, learn faster from rewards while episodes fail. PPO, above 3 percent"
        " failures: with the epochs, minibatch size, learning rate and normalised advantages of the preset"
        " alone, above 95 percent also in longer rollouts, and below 3 without an entropy bonus; A2C: with"
        " epsilon 1e-5, a learning rate of 1e-3, above 70 percent up to 7e-3, and, in proportion to the share"
        " of failures, an entropy bonus and a limit to each update's change of the policy",
    )
    doubt: float = _by_preset(
        fast=0.5,
        paper=0.0,
        ge=0,
        le=1,
        description="share of the targets that is spread evenly over all actions when lambda's frames are"
        " over and no episode succeeds; it grows with the frames, and is 0 if half of the episodes succeed."
        " It keeps a student exploring that has learnt a teacher's mistakes",
    )
    replay_ratio: float = _by_preset(
        fast=48.0,
        paper=0.0,
        ge=0,
        allow_inf_nan=False,
        description="stored labels to learn from again for each frame; scaled with lambda",
    )
    replay_rate: float = Field(
        default=1e-3, gt=0, description="learning rate of replay, which has its own Adam optimiser"
    )
    teacher_key_file: KeyFile = None
    teacher_wait_s: WaitS = 300.0
    allow_teacher_change: bool = Field(
        default=False, description="continue when the teacher is not the one that the run began with"
    )

    late_labels: Literal["wait", "go-on"] = Field(
        default="wait",
        description="wait: an update waits for the labels of all its states; go-on: an update uses the labels"
        " that have arrived, and later updates the others; such a run is not reproducible bit for bit",
    )
    teacher_budget: int | None = Field(
        default=None,
        ge=1,
        description="most states to ask the teacher about in the whole run, stored answers included; each"
        " update asks about those with the highest policy entropy; default: all",
    )

    ask_when_unsure: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="once lambda falls, ask only about states in which the entropy of the student's policy is"
        " above this number, in nats; a uniform policy over 7 actions has 1.95; default: ask about all",
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
        fast=_Of({"": 3, "soft-q": 4}),
        alone=4,
        paper=4,
        ge=1,
        description="PPO: passes over a rollout in one update; soft-q: as many steps on its buffer",
        json_schema_extra=_only("ppo soft-q"),
    )
    minibatch_size: int = _by_preset(
        fast=512,
        alone=256,
        paper=256,
        ge=1,
        description="PPO and soft-q: states in one gradient step",
        json_schema_extra=_only("ppo soft-q"),
    )
    buffer_size: int = Field(
        default=50_000,
        ge=1,
        description="soft-q: steps in the replay buffer; the oldest are dropped",
        json_schema_extra=_only("soft-q"),
    )
    target_rate: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="soft-q: share by which the target network follows in each gradient step",
        json_schema_extra=_only("soft-q"),
    )
    optimiser: Literal["adam", "rmsprop"] = Field(
        default_factory=lambda chosen: (
            "rmsprop" if chosen["algo"] == "a2c" and chosen["preset"] != "fast" else "adam"
        ),
        description="optimiser of the network",
    )
    learning_rate: float = _by_preset(
        fast=3e-4,
        alone=_Of({"": 1e-3, "a2c": 3e-3}),
        paper=1e-3,
        gt=0,
        description="learning rate of the optimiser; replay has its own",
    )
    optimiser_epsilon: float = _by_preset(
        fast=_Of({"": 1e-5, "a2c": 1e-2}),
        alone=1e-5,
        paper=1e-8,
        gt=0,
        description="the optimiser's epsilon; for A2C with Adam a large one keeps a student that succeeds"
        " from unlearning",
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount factor of rewards, for each step")
    gae_lambda: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="lambda of generalised advantage estimation; 0: one-step, 1: full returns",
    )
    clip: float = Field(
        default=0.2,
        gt=0,
        description="PPO: clip range of the policy ratio in one update",
        json_schema_extra=_only("ppo"),
    )
    clip_values: bool = Field(
        default=False, description="PPO: clip the change of the value too", json_schema_extra=_only("ppo")
    )
    normalise_advantages: bool = _by_preset(
        fast=False,
        alone=_Of({"": True, "a2c": False}),
        paper=False,
        description="scale the advantages of each gradient step to mean 0 and variance 1; helps a student"
        " that learns alone, and harms one that succeeds already",
    )
    entropy_coefficient: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    value_coefficient: float = Field(default=0.5, ge=0, description="weight of the value loss")
    max_grad_norm: float = Field(
        default=0.5, gt=0, description="maximum norm of the gradients; larger ones are scaled down"
    )
    threads: int = Field(default=1, ge=1, description="threads of torch")

    evaluate_every: int = Field(
        default=4096, ge=0, description="frames between evaluations on held-out seeds; 0: only at the end"
    )
    evaluation_episodes: int = Field(default=100, ge=1, description="episodes of each evaluation")
    log_every: int = Field(
        default=512,
        ge=1,
        description="frames between rows of metrics.jsonl; a row describes the newest update",
    )
    checkpoint_every: int = Field(default=16_384, ge=1, description="frames between checkpoints")
    progress: bool = Field(default=True, description="show a progress bar")

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> Self:
        others = sorted(f"`{name}`" for name in self._unused() & self.model_fields_set)
        if others:
            raise ValueError(f"{', '.join(others)} cannot be used with `algo` {self.algo}")
        return self

    @model_validator(mode="after")
    def _resumes_one_run(self) -> Self:
        if self.go_on and self.resume is not None:
            raise ValueError("`go_on` cannot be used with `resume`: it resumes the run in `out`")
        if self.seeds > 1 and self.resume is not None:
            raise ValueError("`seeds` cannot be used with `resume`: use `go_on`, which resumes all its runs")
        return self

    @model_validator(mode="after")
    def _asks_by_one_rule(self) -> Self:
        if self.ask_when_unsure is not None and self.teacher_budget is not None:
            raise ValueError(
                "`ask_when_unsure` cannot be used with `teacher_budget`, which chooses by entropy too"
            )
        return self

    @model_validator(mode="after")
    def _has_a_task(self) -> Self:
        if self.teacher != "none" or self.task is not None:
            task_key(self.env, self.task)
        return self

    def in_force(self) -> dict[str, Any]:
        """Returns the settings that the algorithm uses, as JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude=self._unused())

    def _unused(self) -> set[str]:
        """Returns the settings that only other algorithms have."""
        marks = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        return {
            name
            for name, mark in marks.items()
            if isinstance(mark, dict) and self.algo not in str(mark["algorithms"]).split()
        }


def train_settings_for(arguments: Sequence[str]) -> type[TrainSettings]:
    """Returns TrainSettings; for --help, with the defaults for the preset, algorithm and teacher given."""
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
