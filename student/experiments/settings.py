"""Every setting of `student sweep` and `student report`, once."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, CliPositionalArg

from student.experiments.plans import GIVEN
from teacher_api.client import checked_url
from teacher_api.command_line import File, Folder, ValueName, flags_and_variables


class SweepSettings(BaseSettings):
    """Runs every arm of a plan with every algorithm, environment and seed; the same command again goes on."""

    model_config = flags_and_variables("student sweep", "STUDENT_")

    plan: CliPositionalArg[Path] = Field(description="the plan, a TOML file: see docs/guides/sweeps.md")
    out: Folder = Field(description="the sweep's folder; made if it is not there, gone on with if it is")
    teacher: Annotated[str, AfterValidator(checked_url), ValueName("URL")] | None = Field(
        default=None, description=f'address of the teacher that arms with teacher = "{GIVEN}" learn from'
    )
    teacher_key_file: File | None = Field(
        default=None, description="a file that holds the key which the teacher at --teacher asks for"
    )
    teacher_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="seconds to wait for a teacher before the first run",
    )
    jobs: int | None = Field(
        default=None, ge=1, description="runs at once; default: one for each core, here or in the Ray cluster"
    )
    threads: int = Field(default=1, ge=1, description="threads of the arithmetic of each run")
    ray: Annotated[str, ValueName("HOST:PORT")] | None = Field(
        default=None,
        description="run on this Ray cluster: HOST:PORT, ray://HOST:PORT or auto; needs the extra `ray`",
    )
    progress: bool = Field(default=True, description="show how far the sweep is")


class ReportSettings(BaseSettings):
    """Compares runs: success against frames, samples to a threshold, speed-ups, questions, ablations."""

    model_config = flags_and_variables("student report", "STUDENT_")

    runs: CliPositionalArg[list[Path]] = Field(
        min_length=1,
        description="a sweep's folder, or folders of runs, or folders that have such in them",
    )
    out: Folder | None = Field(
        default=None,
        description="the report's folder; by default `report` in the folder that is named, or in the one that"
        " holds all that are named. An old one is replaced",
    )
    baseline: str | None = Field(
        default=None,
        description="the arm that the others are compared with; default: the plan's, and of runs without a"
        " plan those without a teacher",
    )
    threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="the success to be held over 3 evaluations; LavaGap's return: 0.91",
    )
    resamples: int = Field(default=2000, ge=200, description="bootstrap resamples behind each interval")
    seed: int = Field(default=1, ge=0, description="of the resampling")
