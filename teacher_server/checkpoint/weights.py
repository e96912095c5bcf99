"""The safetensors files of a checkpoint: which are in use, and whether they hold what the config asks for."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from teacher_server.checkpoint.dimensions import Dimensions
from teacher_server.checkpoint.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, unusable

INDEX = "model.safetensors.index.json"
# What safetensors calls the types of weights that are not quantised; F64 is rounded as it is loaded
DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its type as safetensors calls it, such as BF16, its shape, and its bytes there."""

    kind: str
    shape: tuple[int, ...]
    stored: int

    def bytes_in(self, item_bytes: int) -> int:
        """Bytes as it is served: a quantised one as it is, others with so many a number."""
        return prod(self.shape) * item_bytes if self.kind in DTYPES else self.stored


Tensors = dict[str, Tensor]


def read_weights(
    folder: Folder, dimensions: Dimensions | None, *, quantised: bool
) -> tuple[tuple[Path, ...], Tensors]:
    """The files in use, and what is in them by its published names; problems are noted in the folder.

    Args:
        dimensions: what the config asks for, if it could be read.
        quantised: by any of the many ways there are, each of which stores the large matrices in its own form.
    """
    found: Tensors = {}
    files: dict[str, list[str]] = {}
    before = len(folder.problems)
    with folder.noting():
        files = _files(folder)
    for name, placed in files.items():
        with folder.noting():
            held = _header(folder, name)
            found |= {_published(tensor): entry for tensor, entry in held.items()}
            if absent := [tensor for tensor in placed if tensor not in held]:
                folder.wrong(name, f"lacks {_some(absent)} that {INDEX} places there: {COPY_AGAIN}")
    # A broken file has been told of; that its tensors are missing too would say nothing new
    if dimensions is not None and len(folder.problems) == before:
        for why in _differences(found, dimensions, quantised=quantised):
            folder.wrong("weights", why)
    return tuple(folder.path / name for name in files), found


def _files(folder: Folder) -> dict[str, list[str]]:
    """Names of the files in use, each with the tensors that the index places in it."""
    stored = folder.names("*.safetensors")
    files: dict[str, list[str]] = {}
    if folder.has(INDEX):
        placed = folder.json(INDEX)
        if not placed:
            return {}
        weight_map = placed.get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_name(name) for name in weight_map.values()):
            raise unusable(INDEX, f"has no weight_map of file names: {COPY_AGAIN}")
        for tensor, name in sorted(weight_map.items()):
            files.setdefault(name, []).append(tensor)
    elif "model.safetensors" in stored or folder.has("model.safetensors"):
        files["model.safetensors"] = []
    elif stored:
        raise unusable(INDEX, f"is missing beside {stored[0]}: {COPY_AGAIN}")
    elif pickles := folder.names(*_PICKLES):
        raise unusable(
            pickles[0], "is a pickle, which can run code and is never read: take safetensors files"
        )
    else:
        raise unusable("model.safetensors", f"is missing, and so is {INDEX}: {COPY_AGAIN}")
    for name in sorted(set(stored) - set(files)):
        folder.wrong(name, "lies beside the weights in use, and some engines would read it: move it away")
    return dict(sorted(files.items()))


def _header(folder: Folder, name: str) -> Tensors:
    folder.read(name, 64)
    try:
        with safe_open(folder.path / name, "np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            return {key: _tensor(s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise unusable(name, f"is damaged or cut short ({error}): {COPY_AGAIN}") from None


def _tensor(kind: str, shape: tuple[int, ...]) -> Tensor:
    # Of U8, BF16 and F8_E4M3 the first number is the bits; BOOL has none, and takes a byte
    bits = re.search(r"\d+", kind)
    return Tensor(kind, shape, prod(shape) * (int(bits[0]) if bits else 8) // 8)


def _differences(found: Mapping[str, Tensor], dimensions: Dimensions, *, quantised: bool) -> Iterator[str]:
    expected = dimensions.shapes()
    if quantised:
        expected = {name: shape for name, shape in expected.items() if len(shape) == 1 or "embed" in name}
    if missing := [name for name in expected if name not in found]:
        yield f"lack {_some(missing)} that config.json asks for: {COPY_AGAIN}"
    if dimensions.tied:
        # Some are saved with the copy, which no engine reads
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    if other := [name for name, shape in expected.items() if name in found and found[name].shape != shape]:
        shapes = f"{list(found[other[0]].shape)} and not {list(expected[other[0]])}"
        yield f"hold {_some(other)} of another shape than config.json asks for, {shapes}: {ONE_CHECKPOINT}"
    if quantised:
        return
    # Tables that old versions saved, and that every engine computes
    if unknown := [name for name in found if name not in expected and not name.endswith("inv_freq")]:
        yield f"hold {_some(unknown)} that config.json has no place for: {ONE_CHECKPOINT}"
    if strange := [name for name, tensor in found.items() if tensor.kind not in DTYPES]:
        kind = found[strange[0]].kind
        yield f"hold {_some(strange)} of type {kind}, and {', '.join(DTYPES)} are served: convert the weights"


def _published(name: str) -> str:
    """A tensor's name as in the published checkpoints, from that in one saved by a newer transformers."""
    for new, old in {"model.language_model.": "model.", "model.visual.": "visual."}.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _some(names: list[str]) -> str:
    return f"the tensor {names[0]}" if len(names) == 1 else f"{len(names)} tensors (the first: {names[0]})"


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name
