"""The memory that serving a checkpoint needs, and the memory of this machine."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from teacher_server.checkpoints.dimensions import ITEM_BYTES, Dimensions
from teacher_server.settings import EngineSettings

GIB = 2**30

Engine = Literal["vllm", "transformers", "onnx"]
_ALLOWANCE_MACHINE = 1 * GIB
_ALLOWANCE_GPU = 2 * GIB
_PREFIX_BYTES, _PREFIX_SEQUENCES = GIB // 2, 4
"""Most that an engine in this process keeps between stages: bytes, and sequences of the greatest length."""
_ONNX_COPIES = 2
"""ONNX Runtime keeps the weights once more, laid out for its products."""


@dataclass(frozen=True)
class Place:
    """The memory of a GPU or of this machine, in bytes; None: unknown."""

    name: str
    total: int | None
    free: int | None

    def with_free(self, freed: Mapping[str, int]) -> "Place":
        """Returns the place with more free bytes, by its name, up to its total."""
        if self.free is None or self.total is None:
            return self
        return replace(self, free=min(self.total, self.free + freed.get(self.name, 0)))


@dataclass(frozen=True)
class Hardware:
    """The memory of this machine; `gpus` is None if no torch is installed that supports GPUs."""

    machine: Place
    gpus: tuple[Place, ...] | None

    @staticmethod
    def here(settings: EngineSettings, engine: Engine) -> "Hardware":
        """Finds this machine's memory; it looks for GPUs only if the engine can use one."""
        on_cpu = engine == "onnx" or (engine == "transformers" and settings.device == "cpu")
        return Hardware(machine_memory(), None if on_cpu else gpu_memory())

    def without(self, leaving: "MemoryNeed") -> "Hardware":
        """Returns an estimate of the memory after what takes `leaving` is closed."""
        freed = {place.name: leaving.taken(place) for place in leaving.places}
        gpus = None if self.gpus is None else tuple(place.with_free(freed) for place in self.gpus)
        return Hardware(self.machine.with_free(freed), gpus)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that serving needs in each place.

    `weights`, `sequence` and `cache` are those of one copy of the checkpoint, or of its share on one GPU.

    Attributes:
        sequence: keys and values of one sequence of the greatest length.
        cache: all keys and values: as set, or else of one sequence; transformers and onnx add the prefixes
            that they keep between stages.
        allowance: for libraries, intermediate results and CUDA graphs.
        copies: of the checkpoint in one place; above 1 only on a machine without a GPU.
        places: the GPUs of all shares and copies, or this machine.
        share: share of a place's total that the engine takes, free or not; None: it takes what it needs.
    """

    weights: int
    sequence: int
    cache: int
    allowance: int
    copies: int
    dtype: str
    places: tuple[Place, ...]
    share: float | None

    @property
    def total(self) -> int:
        return self.copies * (self.weights + self.cache) + self.allowance

    def there(self, place: Place) -> int | None:
        """Returns the bytes of a place that serving may take; None: unknown."""
        if self.share is None or place.total is None:
            return place.free
        return int(place.total * self.share)

    def taken(self, place: Place) -> int:
        """Returns the bytes of a place that serving takes."""
        if self.share is None or place.total is None:
            return self.total
        return int(place.total * self.share)

    def __str__(self) -> str:
        copies = f"{self.copies} copies of: " if self.copies > 1 else ""
        return (
            f"{gib(self.total)} ({copies}weights {gib(self.weights)} in {self.dtype}, keys and values"
            f" {gib(self.cache)}; {gib(self.allowance)} for the rest)"
        )


def memory_need(
    dimensions: Dimensions,
    weight_bytes: int,
    dtype: str,
    settings: EngineSettings,
    engine: Engine,
    hardware: Hardware,
) -> MemoryNeed:
    """Returns the memory that serving a checkpoint needs.

    Args:
        weight_bytes: bytes of all weights, in the dtype in which they are served.
        dtype: float32, bfloat16 or float16.
    """
    vllm = engine == "vllm"
    device = "cpu" if engine == "onnx" else settings.device
    gpus = hardware.gpus or () if vllm else _device(device, hardware)
    split, copies = (settings.tensor_parallel_size, settings.data_parallel_size) if vllm else (1, 1)
    if not gpus:
        # On a CPU the shares of a copy are processes of this machine
        split = 1
    sequence = settings.max_model_len * dimensions.kv_bytes(ITEM_BYTES[dtype], split)
    if vllm:
        cache = int(settings.kv_cache_gib * GIB) if settings.kv_cache_gib else sequence
    else:
        cache = sequence + prefix_cache_bytes(dimensions, dtype, settings)
    return MemoryNeed(
        weights=weight_bytes // split * (_ONNX_COPIES if engine == "onnx" else 1),
        sequence=sequence,
        cache=cache,
        allowance=_ALLOWANCE_GPU if gpus else _ALLOWANCE_MACHINE,
        copies=1 if gpus else copies,
        dtype=dtype,
        places=gpus[: split * copies] or (hardware.machine,),
        share=settings.gpu_memory_utilization if vllm and gpus else None,
    )


def prefix_cache_bytes(dimensions: Dimensions, dtype: str, settings: EngineSettings) -> int:
    """Returns the most bytes of keys and values that an engine in this process keeps between stages."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * GIB)
    sequence = settings.max_model_len * dimensions.kv_bytes(ITEM_BYTES[dtype])
    return min(_PREFIX_BYTES, _PREFIX_SEQUENCES * sequence)


def need_problems(
    need: MemoryNeed,
    dimensions: Dimensions,
    settings: EngineSettings,
    engine: Engine,
    hardware: Hardware,
) -> list[str]:
    """Returns why a checkpoint cannot be served here with these settings, and what to do."""
    found = []
    most = dimensions.text.max_position_embeddings
    if settings.max_model_len > most:
        found.append(
            f"`max_model_len` {settings.max_model_len} is more than the checkpoint reads: lower it to {most}"
        )
    if engine == "vllm":
        found += _split_problems(dimensions, settings, hardware)
    elif engine == "transformers":
        found += _device_problems(settings, hardware)
    if need.cache < need.sequence:
        found.append(
            f"`kv_cache_gib` {settings.kv_cache_gib:g} is too small for a sequence of `max_model_len`"
            f" {settings.max_model_len}, which takes {gib(need.sequence)}: raise the one or lower the other"
        )
    for place in need.places:
        there = need.there(place)
        if there is not None and need.total > there:
            found.append(
                f"{place.name}: serving takes {need}, and {gib(there)} are available: free some, lower"
                " `max_model_len`, or use a smaller checkpoint"
            )
        elif there is not None and place.free is not None and there > place.free:
            found.append(
                f"{place.name}: `gpu_memory_utilization` {need.share:g} takes {gib(there)}, and"
                f" {gib(place.free)} are free: lower it, or end other programs on this GPU"
            )
    return found


def gib(count: int) -> str:
    """Returns bytes as text, in GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def _split_problems(dimensions: Dimensions, settings: EngineSettings, hardware: Hardware) -> list[str]:
    found, split = [], settings.tensor_parallel_size
    text, keys, vision = dimensions.text.num_attention_heads, dimensions.kv_heads, dimensions.vision.num_heads
    if text % split or vision % split or (keys % split and split % keys):
        found.append(
            f"`tensor_parallel_size` {split} does not divide the checkpoint's heads ({text} of text,"
            f" {keys} of keys and values, {vision} of vision): choose another one"
        )
    asked = split * settings.data_parallel_size
    if hardware.gpus is not None and len(hardware.gpus) < asked:
        found.append(
            f"`tensor_parallel_size` {split} times `data_parallel_size` {settings.data_parallel_size} GPUs"
            f" are needed, and torch sees {len(hardware.gpus)}: check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    return found


def _device(device: str, hardware: Hardware) -> tuple[Place, ...]:
    """Returns the GPU that the setting `device` of transformers names, if it exists."""
    kind, _, number = device.partition(":")
    if kind == "cpu" or not (number.isdecimal() or not number):
        return ()
    return (hardware.gpus or ())[int(number or 0) :][:1]


def _device_problems(settings: EngineSettings, hardware: Hardware) -> list[str]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", settings.device):
        return [f"`device` {settings.device!r} is none of auto, cpu, cuda and cuda:N"]
    if settings.device.startswith("cuda") and not _device(settings.device, hardware):
        seen = len(hardware.gpus or ())
        return [f"`device` {settings.device}: torch sees {seen} GPUs here; auto uses one if there is one"]
    return []


def machine_memory(root: Path = Path("/")) -> Place:
    """Returns this machine's memory, limited to what the control group allows this process."""
    try:
        table = dict(
            line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        )
        total, free = (int(table[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Place("this machine", None, None)
    for limit, used in _group_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Place("this machine", total, free)


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yields limit and use, in bytes, of each memory control group of this process (version 2 or 1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        # In a container the path may be the host's and not exist: then its own group is the top
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (limit := _group_limit(folder, *names)) is not None:
                yield limit


def _group_limit(folder: Path, limit: str, used: str, cache: str) -> tuple[int, int] | None:
    try:
        most, now = (
            int((folder / limit).read_text(encoding="utf-8")),
            int((folder / used).read_text(encoding="utf-8")),
        )
        stat = dict(
            line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        )
        # The cache of files, which the system can drop, does not count
        return most, now - int(stat.get(cache, 0))
    except (OSError, ValueError):
        # Missing, or "max": no limit
        return None


_LIST_GPUS = """
import json, torch
places = []
for i in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(i)
    places.append([f"GPU {i} ({torch.cuda.get_device_name(i)})", total, free])
print(json.dumps(places))
"""


def gpu_memory() -> tuple[Place, ...] | None:
    """Returns the GPUs that torch sees; None if torch is not installed, or built without GPU support."""
    if find_spec("torch") is None:
        return None
    try:
        import torch  # noqa: PLC0415 - seconds
    except (ImportError, OSError):
        return None
    if not (torch.version.cuda or torch.version.hip):
        return None
    # In a process of its own: listing takes memory on each GPU, and an engine could not fork after it
    command = [sys.executable, "-c", _LIST_GPUS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8"
        )
    except subprocess.SubprocessError:
        return ()
    return tuple(Place(*place) for place in json.loads(done.stdout.splitlines()[-1]))
