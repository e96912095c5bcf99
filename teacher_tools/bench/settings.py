"""The settings of `teacher bench`: each one's flag, TEACHER_BENCH_* variable, default and meaning."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from gridworld.tasks import ALL_TASKS
from teacher_api.command_line import File, Folder, Listed, PromptSetName, ValueName, flags_and_variables


def _known(task: str) -> str:
    if task not in ALL_TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(ALL_TASKS)}")
    return task


class BenchSettings(BaseSettings):
    """Measures how fast a running teacher answers.

    In place of an address, a checkpoint's folder can be given: the command then starts a teacher with the
    flags after `--` (flags of `teacher serve`) and stops it at the end.
    """

    model_config = flags_and_variables("teacher bench", "TEACHER_BENCH_")
    help_groups: ClassVar[Mapping[str, str]] = {
        "teacher": "what is measured",
        "concurrency": "the load",
        "target_ms": "the measurement",
    }

    teacher: CliPositionalArg[str] = Field(
        default="http://127.0.0.1:8000", description="the teacher's address, or a checkpoint's folder"
    )
    vs: Annotated[str, ValueName("URL|DIR")] | None = Field(
        default=None,
        description="another teacher's address or folder; the two are measured in alternate rounds",
    )
    vs_openai: Annotated[str, ValueName("URL")] | None = Field(
        default=None,
        description="the address of an OpenAI-compatible vision server, such as `vllm serve`: it gets the"
        " same two stages, in alternate rounds with the first teacher",
    )
    allow_host: str | None = Field(
        default=None,
        description="with --vs-openai: a host outside the local network that may get pictures and missions",
    )
    prompts: PromptSetName = Field(
        default="minigrid", description="with --vs-openai: the prompt set of the requests, by name or folder"
    )
    concurrency: Listed[Annotated[int, Field(ge=1)]] = Field(
        default=(1, 4, 16),
        description="closed loop: concurrent clients, each of which sends its next question when one is"
        " answered; a list: 1,4,16; none: no closed loop",
    )
    rate: Listed[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=(),
        description="open loop: questions a second, sent at random times (Poisson) whether or not earlier"
        " ones are answered; a list: 5,10",
    )
    questions: int = Field(
        default=200,
        ge=1,
        description="questions that are counted at each load and pass, at least: in each round all clients"
        " get equally many answers, since answers may come in waves",
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="end a round after this time, even with questions left",
    )
    warm_up: int = Field(
        default=8,
        ge=0,
        description="uncounted questions before each round; in a closed loop at least one for each client",
    )
    rounds: int | None = Field(
        default=None,
        ge=1,
        description="rounds that each teacher's questions are divided into, each with its own warm-up;"
        " default: 10 with --vs or --vs-openai, which need at least 2, else 1",
    )
    warm: bool = Field(
        default=True, description="send the same questions a second time, which the store answers"
    )
    task: Listed[Annotated[str, AfterValidator(_known)]] = Field(
        default=(),
        description=f"the tasks of the questions, a list: {', '.join(ALL_TASKS)}; default: those of the"
        " paper's four that all teachers know",
    )
    target_ms: float = Field(
        default=1000,
        gt=0,
        allow_inf_nan=False,
        description="goodput counts the answers within this latency",
    )
    timeout_s: float = Field(
        default=300, gt=0, allow_inf_nan=False, description="seconds after which a question counts as failed"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="the seed of pictures, arrival times and turns; default: a new one in each run, so that"
        " no store has answers to the questions",
    )
    wait_s: float = Field(
        default=5,
        ge=0,
        allow_inf_nan=False,
        description="seconds to wait for a teacher that is not ready",
    )
    teacher_key_file: File | None = Field(
        default=None, description="a file with the key that the teachers require"
    )
    out: Folder | None = Field(
        default=None, description="a folder for bench.json, bench.md and plots; created if missing"
    )

    @model_validator(mode="after")
    def _has_points(self) -> "BenchSettings":
        if not self.concurrency and not self.rate:
            raise ValueError("there is no load to measure: set `concurrency` or `rate`")
        return self

    @model_validator(mode="after")
    def _compares_rounds(self) -> "BenchSettings":
        if self.rounds == 1 and self.several:
            raise ValueError("`rounds` is 1: a comparison of two teachers needs at least 2")
        return self

    @property
    def several(self) -> bool:
        """Whether several teachers are compared."""
        return self.vs is not None or self.vs_openai is not None
