"""Declares every setting of `teacher serve`: its flag, TEACHER_* variable, default and meaning."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_settings import BaseSettings

from gridworld.tasks import Fault
from teacher_api.command_line import File, Folder, PromptSetName, ValueName, flags_and_variables

LogFormat = Literal["text", "json"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LoadFormat = Literal["auto", "dummy"]
TokenSide = Annotated[int, Field(ge=28, le=32, multiple_of=4)]
"""Pixels a side of a visual token."""
Readout = Literal["labels", "numbers"]
Targets = Literal["soft", "hard"]
LogRequests = Annotated[
    Literal["all", "failed", "none"], BeforeValidator(lambda value: "none" if value is None else value)
]
"""The command line reads `none` as no value."""


_TEACHERS = ("planner", "uniform", "prompted")


def _teacher(name: str) -> str:
    if name not in _TEACHERS and not all(name.partition(":")):
        raise ValueError(f"{name!r} is none of {', '.join(_TEACHERS)}, and not written package.module:Name")
    return name


class EngineSettings(BaseModel):
    """The settings of the engine that runs a checkpoint."""

    model: Folder | None = Field(
        default=None, description="prompted: the checkpoint, a local folder; `teacher check DIR` examines it"
    )
    dtype: Dtype = Field(
        default="auto", description="prompted: data type of the weights; auto: the checkpoint's"
    )
    load_format: LoadFormat = Field(
        default="auto",
        description="prompted: auto: the checkpoint's weights; dummy: random weights, to measure speed",
    )
    seed: int = Field(
        default=0,
        description="planner: selects the questions that --noise answers wrongly;"
        " prompted: seed of sampling, if the prompt set samples, and of dummy weights",
    )
    max_model_len: int = Field(
        default=8192,
        ge=256,
        description="prompted: the most tokens of prompt and answer together, pictures included",
    )
    max_num_seqs: int = Field(
        default=64, ge=1, description="prompted: the most requests in one batch of the engine"
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="prompted, vllm: share of the GPU's memory that the engine uses"
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="prompted: GiB of the key-value cache; vllm: of the whole cache, default: what"
        " --gpu-memory-utilization leaves; transformers, onnx: of stage 1's cache for stage 2, default: 0.5",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="prompted, vllm: GPUs that one copy of the checkpoint is split over"
    )
    data_parallel_size: int = Field(default=1, ge=1, description="prompted, vllm: copies of the checkpoint")
    eager: bool = Field(
        default=False, description="prompted, vllm: no compilation: faster start, slower answers"
    )
    device: str = Field(
        default="auto",
        description="prompted, transformers: auto, cpu, cuda or cuda:N; auto: cuda if there is a GPU",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="prompted, transformers, onnx: threads of the arithmetic on a CPU; default:"
        " OMP_NUM_THREADS, or one per core",
    )


class Settings(EngineSettings, BaseSettings):
    """Serves a teacher over HTTP. Each flag is also a variable: --delay-ms is TEACHER_DELAY_MS."""

    model_config = flags_and_variables("teacher serve", "TEACHER_")
    help_groups: ClassVar[Mapping[str, str]] = {
        "teacher": "the teacher",
        "engine": "the engine (--teacher prompted)",
        "model": "the checkpoint (--teacher prompted)",
        "prompts": "prompts and read-out (--teacher prompted)",
        "store": "the answer store",
        "host": "address and keys",
        "concurrency": "limits",
        "stall_s": "the watchdog of the engine (--teacher prompted)",
        "max_batch": "limits",
        "log_format": "the log",
    }

    teacher: Annotated[
        str, AfterValidator(_teacher), ValueName("{planner,uniform,prompted,package.module:Name}")
    ] = Field(
        default="planner",
        description="the kind of teacher; planner: an optimal planner that reads the picture;"
        " uniform: all actions equally probable, as a control;"
        " prompted: a vision-language model, asked in two stages;"
        " package.module:Name: an object of yours, or the class that makes it",
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="planner: share of questions that get a wrong answer, 0 to 1"
    )
    fault: Fault | None = Field(
        default=None,
        description="planner: answer as if every picture was misread; mirrored: left and right are exchanged;"
        " shifted: the agent is read one column too far right; blind: hazards are not seen; default: none",
    )
    delay_ms: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="planner: milliseconds that each answer takes"
    )
    engine: Literal["vllm", "transformers", "onnx", "openai"] = Field(
        default="vllm",
        description="prompted: what runs the model; onnx: the fastest on a CPU; openai: a running server with"
        " OpenAI's chat API",
    )
    openai_url: str | None = Field(
        default=None, description="prompted, openai: the server's address, http://HOST:PORT/v1"
    )
    openai_model: str | None = Field(
        default=None, description="prompted, openai: the model's name on the server"
    )
    openai_token_side: TokenSide = Field(
        default=28,
        description="prompted, openai: pixels a side of the model's visual tokens, to whose multiples"
        " pictures are prepared; 32 for Qwen3-VL",
    )
    openai_key_file: File | None = Field(
        default=None, description="prompted, openai: a file with the server's API key"
    )
    allow_host: str | None = Field(
        default=None,
        description="prompted, openai: a host outside the local network that pictures and missions may be"
        " sent to",
    )
    prompts: PromptSetName | None = Field(
        default=None,
        description="prompted: the prompt set, by name (`teacher prompts list`) or folder; default: the one"
        " that the checkpoint was trained with by `teacher train`, else minigrid",
    )
    readout: Readout | None = Field(
        default=None,
        description="prompted: labels: probabilities of the actions' labels as the next token;"
        " numbers: probabilities that the model writes; default: the prompt set's",
    )
    targets: Targets = Field(
        default="soft",
        description="prompted: soft: the probabilities; hard: 1 for the most probable action, 0 for others",
    )
    label_temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="prompted, labels: temperature of the softmax over the labels; default: the prompt set's",
    )
    min_label_mass: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="prompted, labels: the least probability of all labels together; an answer with less is"
        " unreadable; default: the prompt set's",
    )
    sum_tolerance: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="prompted, numbers: allowed distance of the sum from 1; default: the prompt set's",
    )
    views: int = Field(
        default=1,
        ge=1,
        description="prompted: equivalent pictures of a state that are asked about, mirrored or turned; the"
        " answer is their mean; the prompt set's views.toml declares them",
    )
    store: Annotated[str, ValueName("FILE|URL")] | None = Field(
        default="answers.sqlite3",
        description="the answer store: an SQLite file on a local disk, created if missing, or a database that"
        " teachers on several machines share, postgresql://USER@HOST:PORT/DATABASE; none: answers are not"
        " stored",
    )
    store_password_file: File | None = Field(
        default=None,
        description="PostgreSQL: a file with the password; default: PGPASSWORD, or the file ~/.pgpass",
    )
    store_max_mib: float = Field(
        default=4096.0,
        ge=1,
        allow_inf_nan=False,
        description="MiB that the SQLite file may use; a full store deletes the oldest answers, those of"
        " other teachers first",
    )
    store_memory_mib: float = Field(
        default=256.0,
        ge=0,
        allow_inf_nan=False,
        description="PostgreSQL: MiB of answers that the teacher also holds in memory, to fetch each once",
    )
    keep_pictures: bool = Field(
        default=False,
        description="store each question's picture beside its answer, within --store-max-mib;"
        " `teacher answers export --csv --pictures DIR` writes the pictures into a folder",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="the address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on; 0: any free one")
    api_key_file: File | None = Field(
        default=None,
        description="a file of API keys, one per line; requests to /policy, /policy/batch and /teacher need"
        " one, as Authorization: Bearer KEY; the file is read again when it changes; without a file, or with"
        " an empty one, no key is needed",
    )
    admin_key_file: File | None = Field(
        default=None,
        description="a file of API keys, one per line; requests to /admin need one, as `teacher swap` sends;"
        " without a file, or with an empty one, /admin is disabled",
    )
    allow_keyless: bool = Field(
        default=False,
        description="allow a non-loopback --host without API keys, for networks that restrict access"
        " themselves",
    )
    concurrency: int = Field(
        default=64, ge=1, description="the most questions that the teacher answers at once"
    )
    max_pending: int = Field(
        default=4096,
        ge=1,
        description="the most questions in the service at once; more get 503; a client with more than its"
        " share of them gets 429",
    )
    max_pending_mib: float = Field(
        default=256.0,
        gt=0,
        allow_inf_nan=False,
        description="the most MiB of all request bodies in the service at once; clients have shares of it",
    )
    timeout_s: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a question gets 504; the header X-Timeout-S asks for less",
    )
    stall_s: float = Field(
        default=90.0,
        gt=0,
        allow_inf_nan=False,
        description="prompted: seconds without any answer after which a busy engine counts as unresponsive"
        " and is replaced; choose more than the slowest answer with --concurrency questions at once"
        " (teacher_seconds of GET /metrics), and less than --timeout-s",
    )
    watch_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="prompted: seconds without any answer after which a test question checks the engine",
    )
    replacements: int = Field(
        default=3,
        ge=0,
        description="prompted: the most replacements of a dead or unresponsive engine in an hour; after"
        " these the service ends with exit code 1",
    )
    max_batch: int = Field(default=1024, ge=1, description="the most questions in one batch")
    max_body_mib: float = Field(
        default=64.0, gt=0, allow_inf_nan=False, description="the most MiB of a request's body; more gets 413"
    )
    max_pixels: int = Field(
        default=3200 * 3200, ge=1, description="the most pixels of a picture; more gets 413 before decoding"
    )
    max_connections: int = Field(
        default=4096, ge=1, description="the most connections at once; more get 503 and are closed"
    )
    receive_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds for a client to send a request, and to receive the reply; then the connection"
        " is closed",
    )
    drain_s: int = Field(
        default=5,
        ge=0,
        description="seconds to finish questions in progress when the service stops; `docker stop` kills it"
        " after 10",
    )
    log_format: LogFormat = Field(default="text", description="format of the log on stderr")
    log_requests: LogRequests = Field(
        default="failed",
        description="the requests that are logged; failed: those with a status of 400 or more, except 429"
        " and 503",
    )
