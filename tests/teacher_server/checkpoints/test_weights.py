"""A checkpoint's weights: reported problems, and the shapes of real models by their configs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2_5, Architecture
from teacher_server.checkpoints.checkpoint import BadCheckpoint, quantisation_problems, read_checkpoint
from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.quantisation import quantisation_of
from teacher_server.settings import EngineSettings
from tests.teacher_server.checkpoints.breaking import (
    INDEX,
    SHARD,
    WEIGHTS,
    Break,
    change_tensors,
    cut,
    edit,
    in_place_of,
    quantise,
    remove,
    set_fields,
    split_then,
    write,
)
from tools.random_checkpoint import Size, make_checkpoint

pytestmark = pytest.mark.unit


def _renamed(prefix: str, of: str = "") -> Break:
    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(of)]:
            tensors[prefix + name.removeprefix(of)] = tensors.pop(name)

    return change_tensors(rename)


def _once_more(name: str) -> Break:
    """Stores another value of a tensor in a shard where the index does not place it."""

    def add(folder: Path) -> None:
        tensors = load_file(folder / SHARD)
        assert name not in tensors
        save_file({**tensors, name: np.ones(128, np.float32)}, folder / SHARD)

    return add


_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
_BREAKAGES: dict[str, tuple[Break, str, tuple[str, ...]]] = {
    "no weights": (remove(WEIGHTS), WEIGHTS, ("missing", INDEX)),
    "pickles": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin",
        ("pickle", "safetensors"),
    ),
    "weights cut": (cut(WEIGHTS, 100_000), WEIGHTS, ("damaged or cut short",)),
    "weights empty": (cut(WEIGHTS, 0), WEIGHTS, ("damaged or cut short",)),
    "weights a pointer": (write(WEIGHTS, _LFS), WEIGHTS, ("Git LFS",)),
    "weights a dead link": (
        in_place_of(WEIGHTS, lambda path: path.symlink_to("../blobs/abc")),
        WEIGHTS,
        ("broken link",),
    ),
    "weights beside": (
        lambda folder: shutil.copy(folder / WEIGHTS, folder / "old.safetensors"),
        "old.safetensors",
        ("not among the weights in use",),
    ),
    "a tensor missing": (
        change_tensors(lambda tensors: tensors.pop("visual.merger.ln_q.weight")),
        "weights",
        ("lack the tensor visual.merger.ln_q.weight",),
    ),
    "tensors missing": (
        change_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name]),
        "weights",
        ("lack 12 tensors", "model.layers.1."),
    ),
    "another shape": (
        change_tensors(lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.float32)})),
        "weights",
        ("model.norm.weight", "[64] instead of [128]"),
    ),
    "one tensor more": (
        change_tensors(lambda tensors: tensors.update({"model.layers.2.x": np.ones(1, np.float32)})),
        "weights",
        ("model.layers.2.x",),
    ),
    "twice under two names": (
        change_tensors(lambda t: t.update({"model.language_model.norm.weight": 2 * t["model.norm.weight"]})),
        "weights",
        ("model.norm.weight 2 times", "model.language_model.norm.weight in model.safetensors"),
    ),
    "twice in two shards": (
        split_then(_once_more("model.embed_tokens.weight")),
        "weights",
        (f"hold model.embed_tokens.weight in {SHARD}", "does not place it"),
    ),
    "a table that vLLM does not know": (
        change_tensors(lambda t: t.update({"visual.rotary_pos_emb.inv_freq": np.ones(8, np.float32)})),
        "weights",
        ("visual.rotary_pos_emb.inv_freq", "no place"),
    ),
    "tied, and another output layer": (
        change_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "weights",
        ("lm_head.weight that differs from model.embed_tokens.weight", "tie_word_embeddings"),
    ),
    "tied, and its output layer in another type": (
        change_tensors(
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].astype(np.float16)})
        ),
        "weights",
        ("lm_head.weight that differs from",),
    ),
    "adapters of peft": (_renamed("base_model.model."), "weights", ("peft", "merge_and_unload")),
    "adapters not merged": (
        change_tensors(
            lambda t: t.update(
                {
                    "model.layers.0.self_attn.q_proj.base_layer.weight": t.pop(
                        "model.layers.0.self_attn.q_proj.weight"
                    )
                }
            )
        ),
        "weights",
        ("peft", "merge_and_unload"),
    ),
    "compiled": (_renamed("_orig_mod."), "weights", ("torch.compile", "inner model")),
    "compiled, new names": (
        _renamed("_orig_mod.model.language_model.", "model."),
        "weights",
        ("torch.compile",),
    ),
    "data-parallel": (_renamed("module."), "weights", ("data-parallel",)),
    "names of another tool": (
        _renamed("language_model.model.", "model."),
        "weights",
        ("other names than transformers", "language_model.model.layers.0"),
    ),
    "quantised, and the config does not say": (
        change_tensors(
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale": np.ones((1, 1), np.float32)})
        ),
        "weights",
        ("are quantised", "weight_scale", "quantization_config"),
    ),
    "matrices of integers": (
        change_tensors(
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.ones((256, 128), np.int8)})
        ),
        "weights",
        ("are quantised", "quantization_config"),
    ),
    "plain, and the config says quantised": (
        set_fields("config.json", quantization_config={"quant_method": "awq"}),
        "weights",
        ("are plain", "quantised by awq"),
    ),
    "integers": (
        change_tensors(lambda tensors: tensors.update({"model.norm.weight": np.ones(128, np.int8)})),
        "weights",
        ("I8", "BF16"),
    ),
    "shards, no index": (split_then(remove(INDEX)), INDEX, ("missing", "model-00001-of-00003")),
    "shard missing": (split_then(remove(SHARD)), SHARD, ("missing",)),
    "shard cut": (split_then(cut(SHARD, 5000)), SHARD, ("damaged or cut short",)),
    "index cut": (split_then(cut(INDEX, 500)), INDEX, ("not JSON",)),
    "index empty": (split_then(write(INDEX, '{"metadata": {}}')), INDEX, ("weight_map",)),
    "index leads away": (
        split_then(write(INDEX, '{"weight_map": {"lm_head.weight": "../other.safetensors"}}')),
        INDEX,
        ("weight_map",),
    ),
    "shard lacks": (
        split_then(
            lambda folder: edit(
                folder / INDEX,
                lambda index: index["weight_map"].update({"model.embed_tokens.weight": SHARD}),
            )
        ),
        SHARD,
        ("lacks the tensor model.embed_tokens.weight",),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def _problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(BadCheckpoint) as caught:
        read_checkpoint(folder)
    return caught.value.problems


@pytest.mark.parametrize("name", list(_BREAKAGES))
def test_what_is_wrong_is_told(folder: Path, name: str) -> None:
    break_it, file, words = _BREAKAGES[name]
    break_it(folder)
    (problem,) = _problems(folder)
    assert problem.startswith(f"{file}: ")
    for word in words:
        assert word in problem


def test_dtype_is_the_weights_where_the_config_names_none(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.pop("torch_dtype"))
    change_tensors(lambda t: t.update({name: array.astype(np.float16) for name, array in t.items()}))(folder)
    assert read_checkpoint(folder).dtype() == "float16"


def test_quantised_weights_are_left_to_the_engine(folder: Path) -> None:
    quantise(folder)
    stored = load_file(folder / WEIGHTS).values()
    served = sum(array.nbytes if array.dtype == np.int32 else 2 * array.size for array in stored)
    assert read_checkpoint(folder).weight_bytes("bfloat16") == served
    change_tensors(lambda tensors: tensors.pop("model.norm.weight"))(folder)
    assert "model.norm.weight" in _problems(folder)[0]


def test_a_copy_of_the_embedding_for_an_output_layer_is_as_good_as_none(folder: Path) -> None:
    plain = read_checkpoint(folder).weight_bytes("float32")
    change_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))(folder)
    assert read_checkpoint(folder).weight_bytes("float32") == plain


def test_part_of_a_quantised_checkpoint_is_missing(folder: Path) -> None:
    def pack_one(tensors: dict[str, np.ndarray]) -> None:
        name = "model.layers.0.mlp.up_proj"
        tensors[f"{name}.qweight"] = tensors.pop(f"{name}.weight").astype(np.int32)
        del tensors["model.layers.1.self_attn.q_proj.weight"]  # its bias stays

    change_tensors(pack_one)(folder)
    set_fields("config.json", quantization_config={"quant_method": "gptq"})(folder)
    (problem,) = _problems(folder)
    assert "lack the tensor model.layers.1.self_attn.q_proj.weight" in problem


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"bits": 4}}, "an unnamed method"),
    ],
)
def test_the_method_of_quantisation_is_known(config: dict[str, object], method: str | None) -> None:
    assert quantisation_of(config) == method


def test_the_transformers_engine_serves_no_quantised_checkpoint(folder: Path) -> None:
    assert quantisation_problems(read_checkpoint(folder), EngineSettings(), "transformers") == []
    quantise(folder)
    (problem,) = quantisation_problems(read_checkpoint(folder), EngineSettings(), "transformers")
    assert "quantised by awq" in problem
    assert "set `engine` to vllm" in problem


def test_dummy_weights_need_none(folder: Path) -> None:
    with_weights = read_checkpoint(folder).digest()
    (folder / WEIGHTS).write_bytes(b"broken")
    checkpoint = read_checkpoint(folder, weights=False)
    (folder / WEIGHTS).unlink()
    assert checkpoint.weights == ()
    assert checkpoint.digest() == read_checkpoint(folder, weights=False).digest() != with_weights
    assert checkpoint.weight_bytes("bfloat16") == 2 * checkpoint.dimensions.parameters()


@pytest.mark.parametrize(
    ("architecture", "size", "parameters"),
    [
        *((architecture, "tiny", None) for architecture in ARCHITECTURES.values()),
        (QWEN2_5, "3b", 3_754_622_976),
        (QWEN2_5, "7b", 8_292_166_656),
    ],
)
def test_tensors_are_those_of_the_real_model(
    tmp_path: Path, architecture: Architecture, size: Size, parameters: int | None
) -> None:
    folder = make_checkpoint(tmp_path, size=size, architecture=architecture, weights=False)
    checkpoint = read_checkpoint(folder, weights=False)
    of_architecture = getattr(transformers, architecture.name)
    with torch.device("meta"):
        model = of_architecture(of_architecture.config_class.from_pretrained(folder))
    expected = {
        architecture.published(name): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (checkpoint.dimensions.tied and name == "lm_head.weight")
    }
    assert checkpoint.dimensions.shapes() == expected
    assert checkpoint.dimensions.parameters() == model.num_parameters()
    if parameters is not None:
        assert checkpoint.dimensions.parameters() == parameters  # as published
    if size == "tiny":
        assert checkpoint.dimensions.parameters() < 1_000_000


@pytest.mark.parametrize("architecture", ARCHITECTURES.values())
def test_what_a_config_leaves_out_is_what_transformers_takes(architecture: Architecture) -> None:
    full = json.loads(getattr(transformers, architecture.name).config_class().to_json_string(use_diff=False))
    assert Dimensions.of({}, architecture) == Dimensions.of(full, architecture)
