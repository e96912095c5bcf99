"""A checkpoint's folder: every layout is read, and all problems are reported at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2_5, QWEN3, Architecture
from teacher_server.checkpoints.checkpoint import BadCheckpoint, label_problems, read_checkpoint
from teacher_server.checkpoints.processor import processor_problems
from tests.teacher_server.checkpoints.breaking import (
    INDEX,
    SHARD,
    WEIGHTS,
    Break,
    change_tensors,
    cut,
    edit,
    in_place_of,
    lose_token,
    remove,
    set_fields,
    set_vision_fields,
    split,
    write,
)
from tools.random_checkpoint import CHAT_TEMPLATE, SPECIAL_TOKENS, make_checkpoint

pytestmark = pytest.mark.unit

_ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def _problems(folder: Path, *, weights: bool = True) -> tuple[str, ...]:
    with pytest.raises(BadCheckpoint) as caught:
        read_checkpoint(folder, weights=weights)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


_TEXT_ONLY = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_BREAKAGES: dict[str, tuple[Break, str, tuple[str, ...]]] = {
    "no config": (remove("config.json"), "config.json", ("missing", "copy it again")),
    "config cut": (cut("config.json", 100), "config.json", ("not JSON",)),
    "config in bytes": (write("config.json", b"\xff\xfe\x00"), "config.json", ("not JSON",)),
    "config deep": (write("config.json", "[" * 100_000), "config.json", ("not JSON",)),
    "config a list": (write("config.json", "[1]"), "config.json", ("not a JSON object", "[1]")),
    "a folder for a file": (in_place_of("config.json", Path.mkdir), "config.json", ("cannot be read",)),
    "other architecture": (
        set_fields("config.json", architectures=["LlamaForCausalLM"]),
        "config.json",
        ("LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"),
    ),
    "experts": (
        set_fields("config.json", architectures=["Qwen3VLMoeForConditionalGeneration"]),
        "config.json",
        ("Qwen3VLMoe", "use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint"),
    ),
    "another model_type": (
        set_fields("config.json", model_type="qwen3_vl"),
        "config.json",
        ("model_type is 'qwen3_vl', not 'qwen2_5_vl'",),
    ),
    "code in config": (
        set_fields("config.json", auto_map={"AutoModel": "x.Y"}),
        "config.json",
        ("auto_map", "never run"),
    ),
    "code in tokenizer": (
        set_fields("tokenizer_config.json", auto_map={}),
        "tokenizer_config.json",
        ("auto_map",),
    ),
    "code in processor": (
        set_fields("processor_config.json", auto_map={}),
        "processor_config.json",
        ("auto_map",),
    ),
    "no layers": (
        set_fields("config.json", num_hidden_layers=0),
        "config.json",
        ("num_hidden_layers", "not 0"),
    ),
    "a word for a number": (
        set_fields("config.json", hidden_size="128"),
        "config.json",
        ("hidden_size", "not '128'"),
    ),
    "text_config no object": (set_fields("config.json", text_config=5), "config.json", ("text", "not 5")),
    "three heads": (
        set_fields("config.json", num_attention_heads=3),
        "config.json",
        ("num_attention_heads 3",),
    ),
    "no mrope": (set_fields("config.json", rope_scaling=None), "config.json", ("mrope_section", "None")),
    "other mrope": (
        set_fields("config.json", rope_scaling={"mrope_section": [1, 2, 3]}),
        "config.json",
        ("[1, 2, 3]", "32"),
    ),
    "dtype": (set_fields("config.json", torch_dtype="int8"), "config.json", ("'int8'", "bfloat16")),
    "interleaved": (
        set_fields("config.json", rope_scaling={"mrope_section": [8, 12, 12], "mrope_interleaved": True}),
        "config.json",
        ("mrope_interleaved in rope_scaling is True, and Qwen2.5-VL needs False",),
    ),
    "one picture deep": (set_vision_fields(temporal_patch_size=1), "config.json", ("temporal_patch_size 1",)),
    "vision heads": (set_vision_fields(num_heads=3), "config.json", ("num_heads 3",)),
    "vision to text": (set_vision_fields(out_hidden_size=64), "config.json", ("out_hidden_size 64", "128")),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json", ("missing",)),
    "tokenizer cut": (cut("tokenizer.json", 5000), "tokenizer.json", ("not a tokenizer",)),
    "older tokenizer": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "vocab.json"),
        "tokenizer.json",
        ("the older format (vocab.json) is not read", "copy tokenizer.json"),
    ),
    "ties that disagree": (
        lambda folder: edit(
            folder / "config.json",
            lambda config: config.update(text_config={**config, "tie_word_embeddings": False}),
        ),
        "config.json",
        ("tie_word_embeddings is true, and false in text_config",),
    ),
    "no tokenizer config": (remove("tokenizer_config.json"), "tokenizer_config.json", ("missing",)),
    "no picture token": (lose_token("<|image_pad|>"), "tokenizer.json", ("<|image_pad|>",)),
    "no end token": (lose_token("<|im_end|>"), "tokenizer.json", ("<|im_end|>",)),
    "other picture id": (
        set_fields("config.json", image_token_id=5),
        "tokenizer.json",
        ("image_token_id", "5"),
    ),
    "no template": (remove("chat_template.jinja"), "chat_template.jinja", ("missing",)),
    "template damaged": (
        write("chat_template.jinja", "{% if"),
        "chat_template.jinja",
        ("damaged", "line 1"),
    ),
    "template of text": (write("chat_template.jinja", _TEXT_ONLY), "chat_template.jinja", ("picture",)),
    "template without the assistant": (
        write(
            "chat_template.jinja",
            CHAT_TEMPLATE.replace("in messages -", "in messages if message.role != 'assistant' -"),
        ),
        "chat_template.jinja",
        ("omits the assistant's earlier turn",),
    ),
    "template of the last turn": (
        write("chat_template.jinja", CHAT_TEMPLATE.replace("in messages -", "in messages[-1:] -")),
        "chat_template.jinja",
        ("omits or changes 'You look at pictures.'",),
    ),
    "template refusing": (
        write("chat_template.jinja", "{{ raise_exception('text only') }}"),
        "chat_template.jinja",
        ("text only",),
    ),
    "no processor": (remove("preprocessor_config.json"), "preprocessor_config.json", ("missing",)),
    "processor patches": (
        set_fields("preprocessor_config.json", patch_size=16),
        "preprocessor_config.json",
        ("[16, 2, 2]", "[14, 2, 2]"),
    ),
    "processor of pictures": (
        set_fields("processor_config.json", image_processor={"merge_size": 1}),
        "processor_config.json",
        ("[14, 1, 2]", "[14, 2, 2]"),
    ),
    "processor of another family": (
        set_fields("preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "preprocessor_config.json",
        ("CLIPImageProcessor",),
    ),
    "pictures not normalised": (
        set_fields("preprocessor_config.json", do_normalize=False),
        "preprocessor_config.json",
        ("do_normalize is False",),
    ),
    "another mean": (
        set_fields("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        "preprocessor_config.json",
        ("[0.5, 0.5, 0.5]", "0.48145466"),
    ),
    "not rescaled to 1": (
        set_fields("preprocessor_config.json", rescale_factor=1.0),
        "preprocessor_config.json",
        ("rescale_factor is 1.0", "0.00392157"),
    ),
    "a side for a size": (
        set_fields("preprocessor_config.json", size=448),
        "preprocessor_config.json",
        ("size is 448", "shortest_edge"),
    ),
    "bounds in words": (
        set_fields("preprocessor_config.json", size={"longest_edge": "large"}),
        "preprocessor_config.json",
        ("size.longest_edge is 'large'",),
    ),
    "record": (write("trained_on.json", "{}"), "trained_on.json", ("not a training record", "remove it")),
    "adapter": (write("adapter_config.json", "{}"), "adapter_config.json", ("merge the adapter",)),
}


_BREAKAGES_3: dict[str, tuple[Break, str, tuple[str, ...]]] = {
    "not interleaved": (
        lambda folder: edit(
            folder / "config.json",
            lambda config: config["text_config"]["rope_scaling"].pop("mrope_interleaved"),
        ),
        "config.json",
        ("mrope_interleaved in rope_scaling is False, and Qwen3-VL needs True",),
    ),
    "head of another size": (
        lambda folder: edit(folder / "config.json", lambda config: config["text_config"].update(head_dim=64)),
        "config.json",
        ("[18, 15, 15]", "32"),
    ),
    "levels that are no blocks": (
        set_vision_fields(deepstack_visual_indexes=[0, 3]),
        "config.json",
        ("deepstack_visual_indexes [0, 3]", "depth 3"),
    ),
    "more levels than layers": (
        set_vision_fields(deepstack_visual_indexes=[0, 1, 2]),
        "config.json",
        ("deepstack_visual_indexes [0, 1, 2]", "2 layers"),
    ),
    "the mean of the processor's class": (
        set_fields("preprocessor_config.json", image_mean=None),
        "preprocessor_config.json",
        ("0.48145466", "Qwen3-VL needs [0.5, 0.5, 0.5]"),
    ),
    "names of Qwen2.5-VL": (
        change_tensors(
            lambda tensors: [
                tensors.update({name.replace("language_model.", ""): tensors.pop(name)})
                for name in list(tensors)
            ]
        ),
        "weights",
        ("other names than transformers gives them", "for model.language_model."),
    ),
}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*((QWEN2_5, name) for name in _BREAKAGES), *((QWEN3, name) for name in _BREAKAGES_3)],
)
def test_what_is_wrong_is_told(tmp_path: Path, made: Path, architecture: Architecture, name: str) -> None:
    folder = tmp_path / "checkpoint"
    if architecture is QWEN2_5:
        shutil.copytree(made, folder)
    else:
        make_checkpoint(folder, architecture=architecture)
    break_it, file, words = (_BREAKAGES if architecture is QWEN2_5 else _BREAKAGES_3)[name]
    break_it(folder)
    (problem,) = _problems(folder)
    assert problem.startswith(f"{file}: ")
    for word in words:
        assert word in problem


def test_everything_is_told_at_once(folder: Path) -> None:
    for name in ("code in config", "no picture token", "template damaged", "processor patches"):
        _BREAKAGES[name][0](folder)
    cut(WEIGHTS, 100_000)(folder)
    files = [problem.split(":")[0] for problem in _problems(folder)]
    assert sorted(files) == [
        "chat_template.jinja",
        "config.json",
        WEIGHTS,
        "preprocessor_config.json",
        "tokenizer.json",
    ]


_BOUNDS = {
    "none": ({}, None, (3136, 12845056)),
    "fields": ({"min_pixels": 200704, "max_pixels": 3136}, None, (200704, 3136)),
    "edges": (
        {"size": {"shortest_edge": 784, "longest_edge": 12544}},
        ("min_pixels", "max_pixels"),
        (784, 12544),
    ),
    "both, and the field counts": (
        {"size": {"shortest_edge": 784}, "min_pixels": 6272},
        None,
        (6272, 12845056),
    ),
    "fields in size": (
        {"size": {"min_pixels": 784, "max_pixels": 12544}},
        ("min_pixels", "max_pixels"),
        (784, 12544),
    ),
}


@pytest.mark.parametrize("name", list(_BOUNDS))
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoints_own_pixel_bounds_are_read(folder: Path, name: str, nested: bool) -> None:
    fields, without, expected = _BOUNDS[name]
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text()) | fields
    said = {key: value for key, value in said.items() if key not in (without or ())}
    path.write_text(json.dumps(said))
    if nested:
        path.unlink()
        write("processor_config.json", json.dumps({"image_processor": said}))(folder)
    bounds = read_checkpoint(folder).own_bounds
    assert bounds is not None
    assert (bounds.least, bounds.most) == expected
    assert bounds.cut_into(3136, 1003520) == (name != "none")


def test_a_processor_that_vllm_cannot_load_by_its_name_is_told(folder: Path) -> None:
    for kind in ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2_5_VLImageProcessor"):
        set_fields("preprocessor_config.json", image_processor_type=kind)(folder)
        bounds = read_checkpoint(folder).own_bounds
        assert processor_problems(bounds, "transformers") == []
        assert len(processor_problems(bounds, "vllm")) == (kind == "Qwen2_5_VLImageProcessor")


def test_a_smaller_vocabulary_than_the_tokenizers_is_told(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(vocab_size=1000))
    of_tokenizer, of_weights = _problems(folder)
    assert of_tokenizer.startswith("tokenizer.json: ")
    assert "1000" in of_tokenizer
    assert "[1280, 128] instead of [1000, 128]" in of_weights


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "/nowhere/at all"])
def test_what_is_no_folder_is_not_looked_for_elsewhere(name: str) -> None:
    (problem,) = _problems(Path(name))
    assert problem.startswith(f"{name} is not a folder here")
    assert "local folder" in problem


def test_a_file_is_no_folder(made: Path) -> None:
    (problem,) = _problems(made / "config.json")
    assert "is a file" in problem


def test_a_hubs_cache_is_told_from_a_checkpoint(made: Path, tmp_path: Path) -> None:
    """The layout of `huggingface_hub`: files are links, in a folder named by a commit."""
    root = tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct"
    snapshot = root / "snapshots" / "66285546d2b821cf421d4f5eb2576359d3770cd3"
    snapshot.mkdir(parents=True)
    for path in made.iterdir():
        (snapshot / path.name).symlink_to(path)
    for place in (root, tmp_path, root / "snapshots"):
        (problem,) = _problems(place)
        assert problem.endswith(f"is in a folder below: give {snapshot}")
    read_checkpoint(snapshot)


def test_a_training_runs_folder_is_told_from_its_checkpoints(made: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-200"):
        shutil.copytree(made, tmp_path / name)
    (problem,) = _problems(tmp_path)
    assert problem.endswith(f"give {tmp_path / 'checkpoint-100'} (or checkpoint-200)")


def test_an_adapter_alone_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (problem,) = _problems(tmp_path)
    assert "is an adapter, not a checkpoint" in problem


def test_what_is_read(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.weights == (folder / WEIGHTS,)
    assert checkpoint.special_tokens == SPECIAL_TOKENS
    assert checkpoint.tokenizer.id_to_token(checkpoint.image_token_id) == "<|image_pad|>"
    assert checkpoint.tokenizer.id_to_token(checkpoint.end_token_id) == "<|im_end|>"
    assert checkpoint.chat_template.source == (folder / "chat_template.jinja").read_text()
    assert checkpoint.dtype() == "float32"


def test_a_tokenizer_saved_in_training_neither_cuts_nor_pads(folder: Path) -> None:
    tokenizer = read_checkpoint(folder).tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    read = read_checkpoint(folder).tokenizer
    assert len(read.encode("left right", add_special_tokens=False).ids) == 2
    assert len(read.encode("1234567890", add_special_tokens=False).ids) == 10


def test_published_layout(folder: Path) -> None:
    """The published layout: shards, the chat template in JSON, and a rope table of old versions."""
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    change_tensors(
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(32, np.float32)})
    )(folder)
    split(folder)
    checkpoint = read_checkpoint(folder)
    assert [path.name for path in checkpoint.weights] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert checkpoint.chat_template.source == template


@pytest.mark.parametrize("several", [False, True])
def test_chat_template_in_the_tokenizers_config(folder: Path, several: bool) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": template}]
    set_fields("tokenizer_config.json", chat_template=named if several else template)(folder)
    assert read_checkpoint(folder).chat_template.source == template


@pytest.mark.parametrize("architecture", ARCHITECTURES.values())
def test_layout_of_a_newer_transformers(tmp_path: Path, architecture: Architecture) -> None:
    """The layout of save_pretrained: a nested config, and tensors by transformers' names."""
    folder = make_checkpoint(tmp_path, architecture=architecture)
    before = read_checkpoint(folder)
    model = getattr(transformers, architecture.name).from_pretrained(folder)
    model.save_pretrained(folder)
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": pictures}))
    after = read_checkpoint(folder)
    assert "hidden_size" not in after.config
    assert after.dimensions == before.dimensions
    # Newer versions save the copy of tied weights too
    assert set(after.tensors) - set(before.tensors) == {"lm_head.weight"}
    assert after.weight_bytes("bfloat16") == before.weight_bytes("bfloat16")
    assert after.dtype() == "float32"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "model-00001-of-00003.safetensors",
        SHARD,
        INDEX,
    ],
)
def test_digest_follows_each_file_that_matters(folder: Path, name: str) -> None:
    split(folder)
    (folder / "processor_config.json").write_text("{}")
    before = read_checkpoint(folder).digest()
    path = folder / name
    if name.endswith(".safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif name.endswith(".jinja"):
        path.write_text(path.read_text() + "{# #}")
    else:
        path.write_text(path.read_text() + " ")
    assert read_checkpoint(folder).digest() != before


def test_digest_follows_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = read_checkpoint(folder).digest()
    (folder / "generation_config.json").unlink()
    (folder / "README.md").write_text("about")
    (folder / "chat_template.json").write_text("not in use beside chat_template.jinja")
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    checkpoint = read_checkpoint(elsewhere)
    assert checkpoint.digest() == before
    shutil.rmtree(elsewhere)
    assert checkpoint.digest() == before


def test_what_differs_in_weights_alone(folder: Path, tmp_path: Path) -> None:
    one = read_checkpoint(folder)
    for name, alone in ((WEIGHTS, True), ("tokenizer.json", False), ("preprocessor_config.json", False)):
        copy = Path(shutil.copytree(folder, tmp_path / f"without {name}"))
        if name == WEIGHTS:
            change_tensors(lambda tensors: tensors["model.norm.weight"].fill(2))(copy)
            split(copy)
        else:
            (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        other = read_checkpoint(copy)
        assert other.digest() != one.digest()
        assert other.differs_in_weights_alone(one) is alone


def test_digest_of_a_file_that_went_away(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadCheckpoint, match=WEIGHTS):
        checkpoint.digest()


def test_labels(made: Path) -> None:
    checkpoint = read_checkpoint(made)
    assert label_problems(checkpoint, {action: action for action in _ACTIONS}) == []
    assert label_problems(checkpoint, dict(zip(_ACTIONS, "ABCDEFG", strict=True))) == []
    long, empty, twice = label_problems(
        checkpoint, {"left": "leftwards", "right": "", "forward": "A", "drop": "A", "done": "done"}
    )
    assert "'leftwards' of left is" in long
    assert "0 tokens" in empty
    assert "forward and drop are the same token" in twice
