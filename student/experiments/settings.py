"""The settings of `student sweep` and `student report`."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, CliPositionalArg

from student.experiments.plans import GIVEN
from teacher_api.client import checked_url
from teacher_api.command_line import File, Folder, ValueName, flags_and_variables


class SweepSettings(BaseSettings):
    """Runs every arm of a plan with every algorithm, environment and seed. Run it again to resume a sweep."""

    model_config = flags_and_variables("student sweep", "STUDENT_")

    plan: CliPositionalArg[Path] = Field(
        description="plan of the sweep, a TOML file: see docs/guides/sweeps.md"
    )
    out: Folder = Field(
        description="folder of the sweep; created if missing, resumed if it holds a sweep of this plan"
    )
    teacher: Annotated[str, AfterValidator(checked_url), ValueName("URL")] | None = Field(
        default=None, description=f'address of the teacher of arms with teacher = "{GIVEN}"'
    )
    teacher_key_file: File | None = Field(
        default=None, description="file with the API key that the teacher at --teacher requires"
    )
    teacher_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="seconds to wait for each teacher before the first run",
    )
    jobs: int | None = Field(
        default=None,
        ge=1,
        description="runs at a time; default: one per core of this machine, or of the Ray cluster",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of each run")
    ray: Annotated[str, ValueName("HOST:PORT")] | None = Field(
        default=None,
        description="Ray cluster to run on: HOST:PORT, ray://HOST:PORT or auto; requires lvlm2p[ray]",
    )
    progress: bool = Field(default=True, description="show the progress of the sweep")


class ReportSettings(BaseSettings):
    """Compares the arms of a sweep, or of any runs: success, samples to a threshold, questions, ablations."""

    model_config = flags_and_variables("student report", "STUDENT_")

    runs: CliPositionalArg[list[Path]] = Field(
        min_length=1,
        description="folder of a sweep, or folders that are or contain runs",
    )
    out: Folder | None = Field(
        default=None,
        description="folder of the report, which replaces an older report; default: `report` in the given"
        " folder, or in the folder that contains all given folders",
    )
    baseline: str | None = Field(
        default=None,
        description="arm that the other arms are compared with; default: the baseline of the plan, or without"
        " a plan the runs without a teacher",
    )
    arms: list[str] | None = Field(
        default=None,
        min_length=1,
        description="arms to compare with the baseline, separated by commas; default: all",
    )
    threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="success that three evaluations in a row must reach; LavaGap's return has a threshold of"
        " its own, 0.91",
    )
    resamples: int = Field(default=2000, ge=200, description="bootstrap resamples for each interval")
    seed: int = Field(default=1, ge=0, description="seed of the resampling")
