"""Every setting of `teacher serve`, once: its flag, TEACHER_* variable, default and meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import BaseSettings

from teacher_api.command_line import File, Folder, PromptSetName, flags_and_variables

LogFormat = Literal["text", "json"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LoadFormat = Literal["auto", "dummy"]
Readout = Literal["labels", "numbers"]
Targets = Literal["soft", "hard"]
LogRequests = Annotated[
    Literal["all", "failed", "none"], BeforeValidator(lambda value: "none" if value is None else value)
]
"""On a command line `none` is read as no value."""


class EngineSettings(BaseModel):
    """Of the engine that runs a checkpoint."""

    model: Folder | None = Field(
        default=None, description="prompted: the checkpoint, a local folder; `teacher check DIR` examines one"
    )
    dtype: Dtype = Field(default="auto", description="prompted: of the weights; auto: the checkpoint's own")
    load_format: LoadFormat = Field(
        default="auto", description="prompted: dummy: random weights from the config alone, to measure speed"
    )
    seed: int = Field(
        default=0,
        description="planner: decides which questions --noise answers wrongly;"
        " prompted: of sampling, where a prompt set samples, and of dummy weights",
    )
    max_model_len: int = Field(
        default=8192, ge=256, description="prompted: tokens of prompt and answer together, pictures included"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="prompted: requests in one batch of the engine")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="prompted, vllm: share of the GPU's memory to take"
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="prompted: GiB for keys and values; vllm: of all; without it, what the share of memory"
        " leaves; transformers: kept of stage 1 for stage 2, at most; without it, 0.5",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="prompted, vllm: GPUs a copy is split over"
    )
    data_parallel_size: int = Field(default=1, ge=1, description="prompted, vllm: copies of the checkpoint")
    eager: bool = Field(
        default=False, description="prompted, vllm: no compilation: starts sooner, answers slower"
    )
    device: str = Field(
        default="auto",
        description="prompted, transformers: auto, cpu, cuda or cuda:N; auto: cuda if it is there",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="prompted, transformers: threads of the arithmetic on a CPU; default: OMP_NUM_THREADS, or"
        " a thread a core",
    )


class Settings(EngineSettings, BaseSettings):
    """Serves a teacher over HTTP. Each flag is a variable too: --delay-ms is TEACHER_DELAY_MS."""

    model_config = flags_and_variables("teacher serve", "TEACHER_")
    help_groups: ClassVar[Mapping[str, str]] = {
        "teacher": "the teacher",
        "engine": "what runs the model (--teacher prompted)",
        "model": "the checkpoint and its engine (--teacher prompted)",
        "prompts": "prompts and read-out (--teacher prompted)",
        "store": "the answer store",
        "host": "address and keys",
        "concurrency": "limits",
        "stall_s": "the watchdog of the engine (--teacher prompted)",
        "max_batch": "limits",
        "log_format": "the log",
    }

    teacher: Literal["planner", "uniform", "prompted"] = Field(
        default="planner",
        description="who answers; planner: an optimal planner that reads the picture;"
        " uniform: one that knows nothing, all actions alike, as a control;"
        " prompted: a vision-language model, asked in two stages",
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="planner: share of questions answered wrongly, 0 to 1"
    )
    delay_ms: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="planner: milliseconds that each question takes"
    )
    engine: Literal["vllm", "transformers", "openai"] = Field(
        default="vllm",
        description="prompted: what runs the checkpoint; openai: a chat server that is there already",
    )
    openai_url: str | None = Field(
        default=None, description="prompted, openai: the server's address, http://HOST:PORT/v1"
    )
    openai_model: str | None = Field(
        default=None, description="prompted, openai: the name that the server serves the model by"
    )
    openai_key_file: File | None = Field(
        default=None, description="prompted, openai: a file with the key that the server asks for"
    )
    allow_host: str | None = Field(
        default=None,
        description="prompted, openai: a host that pictures and missions may be sent to though it is not on"
        " the local network",
    )
    prompts: PromptSetName | None = Field(
        default=None,
        description="prompted: a prompt set, by name (`teacher prompts list`) or folder; default: the one"
        " that teacher train trained the checkpoint with, or else minigrid",
    )
    readout: Readout | None = Field(
        default=None,
        description="prompted: labels: the log-probabilities of the actions' labels, in one step;"
        " numbers: probabilities that the model writes down; default: the prompt set's",
    )
    targets: Targets = Field(
        default="soft", description="prompted: soft: the probabilities; hard: 1 for the most probable action"
    )
    label_temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="prompted, labels: of the softmax over the labels; default: the prompt set's",
    )
    min_label_mass: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="prompted, labels: probability that all labels together must have, or the answer is"
        " unreadable; default: the prompt set's",
    )
    sum_tolerance: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="prompted, numbers: how far from 1 the sum may be; default: the prompt set's",
    )
    store: File | None = Field(
        default=Path("answers.sqlite3"),
        description="the answer store, an SQLite file on a local disk, made if it is not there;"
        " none: remember nothing",
    )
    store_max_mib: float = Field(
        default=4096.0,
        ge=1,
        allow_inf_nan=False,
        description="MiB that the answer store may use; beyond, the oldest answers go, other teachers' first",
    )
    keep_pictures: bool = Field(
        default=False,
        description="keep each question's picture beside its answer in the store, within --store-max-mib;"
        " `teacher answers export --csv --pictures DIR` writes them out",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="the address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on; 0: any free one")
    api_key_file: File | None = Field(
        default=None,
        description="a file of keys, one a line, one of which requests to /policy, /policy/batch and"
        " /teacher have to bear, as Authorization: Bearer KEY; read again when it changes; an empty file asks"
        " for none",
    )
    admin_key_file: File | None = Field(
        default=None,
        description="a file of keys of which requests to /admin have to bear one, as `teacher swap` does;"
        " without it, or where it is empty, there is no /admin",
    )
    allow_keyless: bool = Field(
        default=False,
        description="listen to others than this machine (--host) though no key is asked for, as where the"
        " network keeps them out",
    )
    concurrency: int = Field(default=64, ge=1, description="questions that the teacher works on at once")
    max_pending: int = Field(
        default=4096,
        ge=1,
        description="questions in the service at once; further ones get 503, and 429 where one client has"
        " as many of them as are free for all",
    )
    max_pending_mib: float = Field(
        default=256.0,
        gt=0,
        allow_inf_nan=False,
        description="MiB of all bodies in the service at once, shared as questions are",
    )
    timeout_s: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a question gets 504; its client may"
        " ask for less by the header X-Timeout-S",
    )
    stall_s: float = Field(
        default=90.0,
        gt=0,
        allow_inf_nan=False,
        description="prompted: seconds without any answer after which an engine that is asked is taken to be"
        " stuck and is replaced; choose more than the slowest answer takes with --concurrency questions at"
        " once (teacher_seconds of GET /metrics), and less than --timeout-s",
    )
    watch_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="prompted: seconds without any answer after which a question is asked to see whether the"
        " engine lives",
    )
    replacements: int = Field(
        default=3,
        ge=0,
        description="prompted: how often within an hour a dead or stuck engine is replaced; after that the"
        " service ends with exit code 1",
    )
    max_batch: int = Field(default=1024, ge=1, description="questions in one batch")
    max_body_mib: float = Field(
        default=64.0, gt=0, allow_inf_nan=False, description="MiB of one request's body; more gets 413"
    )
    max_pixels: int = Field(
        default=3200 * 3200, ge=1, description="pixels of one picture; more gets 413 before it is decoded"
    )
    max_connections: int = Field(
        default=4096, ge=1, description="connections at once; further ones get 503 and are closed"
    )
    receive_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds in which a request has to come, and its answer to be taken, or its connection"
        " is closed",
    )
    drain_s: int = Field(
        default=5,
        ge=0,
        description="seconds for the questions in hand when the service is told to stop; `docker stop` kills"
        " after 10",
    )
    log_format: LogFormat = Field(default="text", description="of the lines on stderr: text or json")
    log_requests: LogRequests = Field(
        default="failed",
        description="requests that get a line: failed: with a status of 400 or more, but for 429 and 503",
    )
