"""Every setting of `teacher serve`, once: its flag, TEACHER_* variable, default and meaning."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Serves a teacher over HTTP. Each flag is a variable too: --delay-ms is TEACHER_DELAY_MS."""

    model_config = SettingsConfigDict(
        env_prefix="TEACHER_",
        env_ignore_empty=True,
        frozen=True,
        cli_prog_name="teacher serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    teacher: Literal["planner"] = Field(
        default="planner", description="who answers; planner: an optimal planner that reads the picture"
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="planner: share of questions answered wrongly, 0 to 1"
    )
    seed: int = Field(default=0, description="planner: decides which questions --noise answers wrongly")
    delay_ms: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="planner: milliseconds that each question takes"
    )
    store: Path = Field(
        default=Path("answers.sqlite3"),
        description="the answer store, an SQLite file on a local disk; made if it is not there",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="the address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on; 0: any free one")
    concurrency: int = Field(default=32, ge=1, description="questions that the teacher works on at once")
    max_pending: int = Field(
        default=4096, ge=1, description="questions in the service at once; further ones get 503"
    )
    timeout_s: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="seconds after which a question gets 504"
    )
    max_batch: int = Field(default=1024, ge=1, description="questions in one batch")
    max_body_mib: float = Field(
        default=64.0, gt=0, allow_inf_nan=False, description="MiB of one request's body; more gets 413"
    )
    max_pixels: int = Field(
        default=4096 * 4096, ge=1, description="pixels of one picture; more gets 413 before it is decoded"
    )
