"""Every setting of `teacher bench`, once: its flag, TEACHER_BENCH_* variable, default and meaning."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, NoDecode

from gridworld.tasks import ALL_TASKS
from teacher_api.command_line import File, Folder, PromptSetName, ValueName, flags_and_variables

_Item = TypeVar("_Item")


def _split(value: Any) -> Any:
    """1,4,16 as a flag or a variable has it; nothing, or `none`, for an empty list."""
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _known(task: str) -> str:
    if task not in ALL_TASKS:
        raise ValueError(f"there is no task {task!r}; choose out of {', '.join(ALL_TASKS)}")
    return task


_Listed = Annotated[tuple[_Item, ...], NoDecode, BeforeValidator(_split)]


class BenchSettings(BaseSettings):
    """Measures how fast a running teacher answers.

    Where an address is asked for, the folder of a checkpoint serves as well: a teacher is started for it and
    ended with the run, with the flags that stand after `--` (those of `teacher serve`).
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
        default=None, description="another teacher's address or folder, asked in turn with the first"
    )
    vs_openai: Annotated[str, ValueName("URL")] | None = Field(
        default=None,
        description="the address of an OpenAI-compatible vision server, such as `vllm serve`, asked the same"
        " two stages in turn with the first",
    )
    allow_host: str | None = Field(
        default=None,
        description="--vs-openai: a host that pictures and missions may be sent to though it is not on the"
        " local network",
    )
    prompts: PromptSetName = Field(
        default="minigrid", description="--vs-openai: the prompt set to ask with, by name or folder"
    )
    concurrency: _Listed[Annotated[int, Field(ge=1)]] = Field(
        default=(1, 4, 16),
        description="closed loop: so many askers, each asking again as soon as it is answered; a list:"
        " 1,4,16; none: no closed loop",
    )
    rate: _Listed[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=(),
        description="open loop: questions a second that arrive at random times (Poisson), answered or not;"
        " a list: 5,10",
    )
    questions: int = Field(
        default=200,
        ge=1,
        description="counted at each point and pass, at least: in each round all askers are answered equally"
        " often, since answers may come in waves",
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="end a round after so long, questions left or not",
    )
    warm_up: int = Field(
        default=8,
        ge=0,
        description="questions before each round, not counted; in a closed loop at least as many as askers",
    )
    rounds: int | None = Field(
        default=None,
        ge=1,
        description="turns that each teacher's questions are dealt over, each with a warm-up of its own;"
        " default: 10 with --vs or --vs-openai, which need 2, and 1 without",
    )
    warm: bool = Field(
        default=True, description="ask the same questions a second time too, which the store then answers"
    )
    task: _Listed[Annotated[str, AfterValidator(_known)]] = Field(
        default=(),
        description=f"what to ask about, a list: {', '.join(ALL_TASKS)}; default: of the paper's four, those"
        " that all the teachers know",
    )
    target_ms: float = Field(
        default=1000,
        gt=0,
        allow_inf_nan=False,
        description="goodput counts answers within so many milliseconds",
    )
    timeout_s: float = Field(
        default=300, gt=0, allow_inf_nan=False, description="seconds after which a question has failed"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="of pictures, arrival times and turns; default: another one each time, so that no store"
        " knows the questions",
    )
    wait_s: float = Field(
        default=5,
        ge=0,
        allow_inf_nan=False,
        description="seconds to wait for a teacher that is not ready yet",
    )
    teacher_key_file: File | None = Field(
        default=None, description="a file that holds the key that the teachers ask for"
    )
    out: Folder | None = Field(
        default=None, description="a folder for bench.json, bench.md and plots, made if it is not there"
    )

    @model_validator(mode="after")
    def _has_points(self) -> "BenchSettings":
        if not self.concurrency and not self.rate:
            raise ValueError("there is nothing to measure: give --concurrency or --rate a value")
        return self

    @model_validator(mode="after")
    def _compares_rounds(self) -> "BenchSettings":
        if self.rounds == 1 and self.several:
            raise ValueError("--rounds is 1: two teachers are compared over 2 rounds or more")
        return self

    @property
    def several(self) -> bool:
        """Whether teachers are compared."""
        return self.vs is not None or self.vs_openai is not None
