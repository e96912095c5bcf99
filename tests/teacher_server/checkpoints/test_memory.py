"""Memory that serving needs, compared with real caches, and the memory of simulated machines."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2_5, Architecture
from teacher_server.checkpoints.checkpoint import Checkpoint, memory_problems, read_checkpoint
from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.memory import (
    GIB,
    Engine,
    Hardware,
    MemoryNeed,
    Place,
    gib,
    machine_memory,
    memory_need,
    need_problems,
)
from teacher_server.settings import EngineSettings
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.unit

_MACHINE = Place("this machine", 64 * GIB, 32 * GIB)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(make_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """7B: 28 layers, 28 heads of 128 numbers, 4 of keys and values, 16 of vision; bfloat16."""
    folder = make_checkpoint(tmp_path_factory.mktemp("large"), size="7b", weights=False)
    return read_checkpoint(folder, weights=False)


def _gpus(count: int, total: float = 80, free: float = 79) -> Hardware:
    places = tuple(Place(f"GPU {i}", int(total * GIB), int(free * GIB)) for i in range(count))
    return Hardware(_MACHINE, places)


def _need(
    checkpoint: Checkpoint, hardware: Hardware, engine: Engine = "vllm", **settings: object
) -> tuple[MemoryNeed, list[str]]:
    asked = EngineSettings.model_validate(settings)
    need = checkpoint.memory_need(asked, engine, hardware)
    return need, need_problems(need, checkpoint.dimensions, asked, engine, hardware)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values())
def test_keys_and_values_are_as_large_as_the_real_ones(tmp_path: Path, architecture: Architecture) -> None:
    tiny = read_checkpoint(make_checkpoint(tmp_path, architecture=architecture))
    model = getattr(transformers, architecture.name).from_pretrained(tiny.folder)
    with torch.no_grad():
        cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert 10 * tiny.dimensions.kv_bytes(4) == held


def test_one_gpu(large: Checkpoint) -> None:
    need, problems = _need(large, _gpus(1))
    assert problems == []
    assert need.weights == 2 * 8_292_166_656
    assert need.cache == 8192 * 2 * 28 * 4 * 128 * 2
    assert need.total == need.weights + need.cache + 2 * GIB
    assert need.places == _gpus(1).gpus
    assert need.there(need.places[0]) == int(0.9 * 80 * GIB)


def test_shares_and_copies(large: Checkpoint) -> None:
    whole, _ = _need(large, _gpus(1))
    need, problems = _need(large, _gpus(8), tensor_parallel_size=2, data_parallel_size=3)
    assert problems == []
    assert (need.weights, need.cache, len(need.places)) == (whole.weights // 2, whole.cache // 2, 6)
    # Heads are not split: with more GPUs than heads of keys and values, each GPU holds one
    sixteen, _ = _need(large, _gpus(16), tensor_parallel_size=16)
    assert sixteen.cache == whole.cache // 4


def test_a_dtype_that_is_asked_for(large: Checkpoint) -> None:
    asked, _ = _need(large, _gpus(1), dtype="float32")
    own, _ = _need(large, _gpus(1))
    assert (asked.weights, asked.cache) == (2 * own.weights, 2 * own.cache)


def test_too_small_a_gpu(large: Checkpoint) -> None:
    need, (problem,) = _need(large, _gpus(1, total=16, free=15.5))
    assert "GPU 0" in problem
    assert gib(need.total) in problem
    assert "14.4 GiB are available" in problem
    assert "`max_model_len`" in problem


def test_a_gpu_that_others_use(large: Checkpoint) -> None:
    _, (problem,) = _need(large, _gpus(1, free=40))
    assert "`gpu_memory_utilization` 0.9 takes 72.0 GiB, and 40.0 GiB are free" in problem
    # transformers takes what it needs, not a share
    assert _need(large, _gpus(1, free=40), "transformers")[1] == []


def test_what_is_closed_before_leaves_its_memory(large: Checkpoint) -> None:
    served, problems = _need(large, _gpus(2, free=79))
    assert problems == []
    taken = _gpus(2, free=6)
    (problem,) = _need(large, taken)[1]
    assert "6.0 GiB are free" in problem
    later = taken.without(served)
    assert [place.free for place in later.gpus or ()] == [78 * GIB, 6 * GIB]
    assert later.machine == taken.machine
    assert _need(large, later)[1] == []
    # Other programs have taken GPU memory meanwhile
    assert _need(large, _gpus(1, free=2).without(_need(large, _gpus(1, free=75))[0]))[1] == []
    assert _gpus(1, free=79).without(served).gpus == (Place("GPU 0", 80 * GIB, 80 * GIB),)

    on_machine, _ = _need(large, Hardware(_MACHINE, None), engine="transformers", device="cpu")
    full = Hardware(Place("this machine", 64 * GIB, 3 * GIB), None)
    assert full.without(on_machine).machine.free == 3 * GIB + on_machine.total
    unknown = Hardware(Place("this machine", None, None), None)
    assert unknown.without(on_machine) == unknown


def test_too_few_gpus(large: Checkpoint) -> None:
    _, problems = _need(large, _gpus(2), tensor_parallel_size=2, data_parallel_size=2)
    assert "torch sees 2" in problems[0]
    _, problems = _need(large, _gpus(0))
    assert "torch sees 0" in problems[0]


def test_a_split_that_leaves_a_rest(large: Checkpoint) -> None:
    _, problems = _need(large, _gpus(8), tensor_parallel_size=8)
    assert "`tensor_parallel_size` 8" in problems[0]
    assert "28 of text, 4 of keys and values, 16 of vision" in problems[0]


def test_keys_and_values_that_hold_no_sequence(large: Checkpoint) -> None:
    need, (problem,) = _need(large, _gpus(1), kv_cache_gib=0.25)
    assert need.cache == GIB // 4
    assert "`kv_cache_gib` 0.25" in problem
    assert gib(need.sequence) in problem
    assert _need(large, _gpus(1), kv_cache_gib=1)[1] == []


def test_what_transformers_keeps_between_two_stages(large: Checkpoint, tiny: Checkpoint) -> None:
    def kept(checkpoint: Checkpoint, **settings: object) -> int:
        need, _ = _need(checkpoint, _gpus(1), "transformers", **settings)
        return need.cache - need.sequence

    assert kept(large) == GIB // 2
    assert kept(large, kv_cache_gib=2) == 2 * GIB
    assert kept(tiny) == 4 * 8192 * tiny.dimensions.kv_bytes(4)


def test_longer_than_the_checkpoint_reads(large: Checkpoint) -> None:
    _, (problem,) = _need(large, _gpus(1), max_model_len=128_001)
    assert "`max_model_len` 128001" in problem
    assert "128000" in problem


def test_a_machine_without_gpus(large: Checkpoint) -> None:
    hardware = Hardware(_MACHINE, None)
    need, problems = _need(large, hardware, data_parallel_size=2)
    assert need.places == (_MACHINE,)
    assert need.total == 2 * (need.weights + need.cache) + GIB
    assert len(problems) == 1
    assert "2 copies" in problems[0]
    assert "32.0 GiB are available" in problems[0]
    assert _need(large, hardware)[1] == []
    assert _need(large, Hardware(Place("this machine", None, None), None))[1] == []


@pytest.mark.parametrize(
    ("device", "place"), [("auto", "GPU 0"), ("cuda", "GPU 0"), ("cuda:1", "GPU 1"), ("cpu", "this machine")]
)
def test_devices_of_transformers(large: Checkpoint, device: str, place: str) -> None:
    need, problems = _need(large, _gpus(2), "transformers", device=device)
    assert problems == []
    assert [place.name for place in need.places] == [place]


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "tpu", "cuda:"])
def test_devices_that_are_not_there(large: Checkpoint, device: str) -> None:
    _, problems = _need(large, _gpus(2), "transformers", device=device)
    assert len(problems) == 1
    assert device in problems[0]


def test_this_machine(tiny: Checkpoint) -> None:
    assert memory_problems(tiny, EngineSettings(device="cpu"), "transformers") == []
    (problem,) = memory_problems(tiny, EngineSettings(device="cpu", max_model_len=32769), "transformers")
    assert "32768" in problem


def _machine(root: Path, cgroup: str, files: dict[str, str]) -> Place:
    files |= {"proc/meminfo": "MemTotal: 8192 kB\nMemAvailable: 4096 kB\n", "proc/self/cgroup": cgroup}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return machine_memory(root)


def _group(folder: str, limit: object, used: int, droppable: int) -> dict[str, str]:
    names = ("memory.max", "memory.current", "inactive_file")
    if "/memory" in folder:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return {
        f"{folder}/{names[0]}": f"{limit}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": f"anon 1\n{names[2]} {droppable}\n",
    }


def test_machine_memory_without_limits(tmp_path: Path) -> None:
    files = _group("sys/fs/cgroup/a", "max", 1000, 0)
    assert _machine(tmp_path, "0::/a\n", files) == Place("this machine", 8192 * 1024, 4096 * 1024)


def test_machine_memory_of_nested_groups(tmp_path: Path) -> None:
    """The tightest limit counts, for the total and for the free memory; the file cache counts as free."""
    files = _group("sys/fs/cgroup/a", 2_000_000, 1_900_000, 100_000) | _group(
        "sys/fs/cgroup/a/b", 1_500_000, 9, 0
    )
    assert _machine(tmp_path, "0::/a/b\n", files) == Place("this machine", 1_500_000, 200_000)


def test_machine_memory_in_a_container(tmp_path: Path) -> None:
    """The path is the host's, and the container sees its own group at the top."""
    files = _group("sys/fs/cgroup", 1_000_000, 400_000, 0)
    assert _machine(tmp_path, "0::/docker/abc\n", files) == Place("this machine", 1_000_000, 600_000)


def test_machine_memory_of_version_1(tmp_path: Path) -> None:
    files = _group("sys/fs/cgroup/memory/docker/abc", 1_000_000, 1_200_000, 0)
    cgroup = "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"
    assert _machine(tmp_path, cgroup, files) == Place("this machine", 1_000_000, 0)


def test_machine_memory_that_cannot_be_found_out(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) == Place("this machine", None, None)


def test_machine_memory_here() -> None:
    here = machine_memory()
    assert here.total is not None
    assert here.free is not None
    assert 0 < here.free <= here.total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_defaults_have_no_heads_of_their_own() -> None:
    """Without heads of keys and values in the config, there are as many as of queries."""
    config = {"num_key_value_heads": None, "num_attention_heads": 4, "hidden_size": 32}
    dimensions = Dimensions.of(config, QWEN2_5)
    assert dimensions.kv_heads == 4
    need = memory_need(dimensions, 0, "float32", EngineSettings(), "vllm", Hardware(_MACHINE, None))
    assert need.cache == 8192 * 2 * 80 * 4 * 8 * 4
