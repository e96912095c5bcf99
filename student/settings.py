"""Every setting of the student's commands, once: its flag, STUDENT_* variable, default and meaning."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from gridworld.tasks import task_of
from teacher_server.client import checked_url


def _known(env_id: str) -> str:
    task_of(env_id)
    return env_id


def _address(url: str) -> str:
    return url if url == "none" else checked_url(url)


def _folder_or_address(policy: str) -> str:
    return checked_url(policy) if policy.startswith(("http://", "https://")) else policy


EnvId = Annotated[str, AfterValidator(_known)]


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

    env: EnvId = Field(default="MiniGrid-LavaGapS6-v0", description="a registered MiniGrid id")
    teacher: Annotated[str, AfterValidator(_address)] = Field(
        default="none", description="the teacher's address, such as http://127.0.0.1:8000; none: learn alone"
    )
    out: Path = Field(default=Path("runs/student"), description="the run's folder; made if it is not there")
    resume: Path | None = Field(
        default=None,
        description="go on with the run in this folder; --teacher, --frames, --teacher-wait-s, --threads,"
        " --allow-teacher-change and --progress may be told anew",
    )
    seed: int = Field(default=1, ge=0, description="of everything random in the run")
    frames: int = Field(default=60_000, ge=1, description="steps in the environments to train for")

    teacher_lambda: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        alias="lambda",
        description="weight of the distillation term, lambda of the paper's equation 1",
    )
    teacher_wait_s: float = Field(
        default=300.0, ge=0, description="seconds to wait for a teacher that is away before giving up"
    )
    allow_teacher_change: bool = Field(
        default=False, description="go on when the teacher is not the one that the run began with"
    )

    environments: int = Field(default=16, ge=1, description="environments stepped together")
    rollout_steps: int = Field(default=32, ge=1, description="steps in each environment between updates")
    epochs: int = Field(default=4, ge=1, description="passes over a rollout in one update")
    minibatch_size: int = Field(default=128, ge=1, description="states in one gradient step")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount of rewards, a step")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="generalised advantage estimation: 0 one-step, 1 whole returns"
    )
    clip: float = Field(default=0.2, gt=0, description="how far the policy's ratio may move in one update")
    clip_values: bool = Field(default=False, description="clip the value's change as well")
    normalise_advantages: bool = Field(
        default=True, description="make each minibatch's advantages zero-mean, unit-variance"
    )
    entropy_coefficient: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    value_coefficient: float = Field(default=0.5, ge=0, description="weight of the value loss")
    max_grad_norm: float = Field(default=0.5, gt=0, description="gradients are scaled down to this norm")
    threads: int = Field(default=1, ge=1, description="threads of the arithmetic")

    evaluate_every: int = Field(
        default=4096, ge=0, description="frames between evaluations on held-out seeds; 0: only at the end"
    )
    evaluation_episodes: int = Field(default=100, ge=1, description="episodes of each evaluation")
    checkpoint_every: int = Field(default=16_384, ge=1, description="frames between checkpoints")
    progress: bool = Field(default=True, description="show a progress bar")


class EvaluateSettings(BaseSettings):
    """Plays held-out episodes with a trained student, or with a teacher, and reports how it did."""

    model_config = _config("evaluate")

    policy: CliPositionalArg[Annotated[str, AfterValidator(_folder_or_address)]] = Field(
        description="a run's folder, or a teacher's address"
    )
    env: EnvId | None = Field(default=None, description="a registered MiniGrid id; the run's own by default")
    episodes: int = Field(default=200, ge=1, description="held-out episodes")
    seed: int = Field(default=1, ge=0, description="of the sampled actions")
    gif: Path | None = Field(default=None, description="write an animation of the first episodes here")
    out: Path | None = Field(default=None, description="write the report here as JSON as well")
    teacher_wait_s: float = Field(
        default=60.0, ge=0, description="seconds to wait for a teacher that is away before giving up"
    )
