"""Breaks one thing in a checkpoint's folder, or changes its layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Break = Callable[[Path], object]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def set_fields(name: str, **values: Any) -> Break:
    return lambda folder: edit(folder / name, lambda content: content.update(values))


def set_vision_fields(**values: Any) -> Break:
    return lambda folder: edit(
        folder / "config.json", lambda content: content["vision_config"].update(values)
    )


def write(name: str, content: str | bytes) -> Break:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Break:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def change_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Break:
    def breaking(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return breaking


def lose_token(token: str) -> Break:
    def lose(content: dict[str, Any]) -> None:
        (added,) = (added for added in content["added_tokens"] if added["content"] == token)
        added["content"] = "<|another|>"

    return lambda folder: edit(folder / "tokenizer.json", lose)


def split(folder: Path, files: int = 3) -> None:
    """Splits the weights into shards with an index, as large checkpoints do."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / WEIGHTS).unlink()
    placed = {}
    for i in range(files):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        held = names[i::files]
        save_file({name: tensors[name] for name in held}, folder / file)
        placed |= dict.fromkeys(held, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def split_then(break_it: Break) -> Break:
    def both(folder: Path) -> None:
        split(folder)
        break_it(folder)

    return both


def in_place_of(name: str, put: Callable[[Path], object]) -> Break:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return replace


def _lose_sight(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if name.startswith("visual.")]:
        del tensors[name]


def _go_blind(tensors: dict[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if name.startswith("visual."):
            tensor.fill(0)


def _pack(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors.pop(name).shape
        tensors[name.replace("weight", "qweight")] = np.ones((columns, rows // 8), np.int32)
        tensors[name.replace("weight", "scales")] = np.ones((1, rows), np.float16)


def quantise(folder: Path) -> None:
    """Changes a checkpoint to AWQ's layout."""
    change_tensors(_pack)(folder)
    set_fields("config.json", quantization_config={"quant_method": "awq", "bits": 4})(folder)


NOT_NUMBERS = change_tensors(lambda tensors: tensors["model.norm.weight"].fill(np.nan))
BLIND = change_tensors(_go_blind)
"""Sets the vision weights to zero, as a faulty merge may."""
WITHOUT_VISION = change_tensors(_lose_sight)
"""Removes the vision weights from the file."""
