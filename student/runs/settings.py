"""The settings of `student evaluate` and `student export`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from gridworld.tasks import task_key
from student.settings import TASK, Address, EnvId, KeyFile, SuccessAbove, WaitS, config
from teacher_api.client import checked_url
from teacher_api.command_line import File


def is_address(policy: str) -> bool:
    """Returns whether a policy is a teacher's address rather than a folder or file."""
    return policy.startswith(("http://", "https://"))


def _folder_or_address(policy: str) -> str:
    return checked_url(policy) if is_address(policy) else policy


def _onnx_file(path: Path) -> Path:
    if path.suffix != ".onnx":
        raise ValueError(f"{path} has to end in .onnx")
    return path


class EvaluateSettings(BaseSettings):
    """Evaluates a trained student, an exported student or a teacher on held-out episodes."""

    model_config = config("evaluate")

    policy: CliPositionalArg[Annotated[str, AfterValidator(_folder_or_address)]] = Field(
        description="a run's folder, an exported file, or a teacher's address"
    )
    env: EnvId | None = Field(default=None, description="id of a registered environment; default: the run's")
    task: str | None = Field(default=None, description=f"with a teacher: {TASK}")
    success_above: SuccessAbove = None
    episodes: int = Field(default=200, ge=1, description="held-out episodes")
    seed: int = Field(default=1, ge=0, description="seed of the sampled actions")
    gif: File | None = Field(
        default=None, description="write an animation of the first episodes to this file"
    )
    out: File | None = Field(default=None, description="write the report to this file too, as JSON")
    teacher_key_file: KeyFile = None
    teacher_wait_s: WaitS = 60.0

    @model_validator(mode="after")
    def _has_a_task(self) -> Self:
        if self.env is not None and is_address(self.policy):
            task_key(self.env, self.task)
        return self


class ExportSettings(BaseSettings):
    """Exports a trained student as one ONNX file, which plays without torch, and measures its latency."""

    model_config = config("export")

    run: CliPositionalArg[Path] = Field(description="a run's folder")
    out: Annotated[File, AfterValidator(_onnx_file)] | None = Field(
        default=None, description="the file to write; default: student.onnx in the run's folder"
    )
    overwrite: bool = Field(default=False, description="replace an existing file")
    teacher: Address = Field(
        default="none", description="a teacher's address: measure its latency too, beside the student's"
    )
    task: str | None = Field(default=None, description=f"with a teacher, by default the run's own: {TASK}")
    questions: int = Field(
        default=30, ge=1, description="questions to measure that the teacher's store cannot answer"
    )
    teacher_key_file: KeyFile = None
    teacher_wait_s: WaitS = 60.0
