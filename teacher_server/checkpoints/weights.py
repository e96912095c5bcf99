"""The safetensors files of a checkpoint: which are in use, and whether they match the config."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from teacher_server.checkpoints.architectures import Architecture
from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, unusable
from teacher_server.checkpoints.quantisation import absent, is_plain, packed

INDEX = "model.safetensors.index.json"
# safetensors' names for the dtypes of plain weights; F64 is rounded when it is loaded
DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PIECE = 2**24
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "data-parallel training",
    "_fsdp_wrapped_module.": "FSDP",
}
_ADAPTED = re.compile(r"^base_model\.model\.|\.lora_|\.base_layer\.|\.modules_to_save\.")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: safetensors' name of its dtype, such as BF16, its shape, and its stored bytes."""

    kind: str
    shape: tuple[int, ...]
    stored: int

    def bytes_in(self, item_bytes: int) -> int:
        """Returns its bytes when served: a quantised tensor as stored, others with `item_bytes` a number."""
        return prod(self.shape) * item_bytes if self.kind in DTYPES else self.stored


Tensors = dict[str, Tensor]


def read_weights(
    folder: Folder, dimensions: Dimensions | None, *, quantisation: str | None
) -> tuple[tuple[Path, ...], Tensors]:
    """Returns the files in use and published name -> tensor; records problems in the folder.

    Args:
        dimensions: by the config; None: it could not be read.
        quantisation: the method that the config names, if any; each stores large matrices in its own form.
    """
    found: Tensors = {}
    places: dict[str, list[tuple[str, str]]] = {}
    files: dict[str, list[str]] = {}
    before = len(folder.problems)
    with folder.noting():
        files = _files(folder)
    for name, placed in files.items():
        with folder.noting():
            held = _header(folder, name)
            for tensor, entry in held.items():
                known = dimensions.architecture.published(tensor) if dimensions else tensor
                found[known] = entry
                places.setdefault(known, []).append((name, tensor))
            if lacking := [tensor for tensor in placed if tensor not in held]:
                folder.wrong(name, f"lacks {_some(lacking)} that {INDEX} places there: {COPY_AGAIN}")
    # After a broken file, a report of its missing tensors would add nothing
    if len(folder.problems) == before:
        whys = [*_unplaced(places, files)] or [*_twice(places)]
        if dimensions is not None and not whys:
            whys = [*_differences(found, dimensions, quantisation=quantisation)]
            whys += _untied(folder, places, dimensions.architecture) if dimensions.tied else ()
        for why in whys:
            folder.wrong("weights", why)
    return tuple(folder.path / name for name in files), found


def _files(folder: Folder) -> dict[str, list[str]]:
    """Returns the names of the files in use, each with the tensors that the index places in it."""
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
        raise unusable(pickles[0], "is a pickle, which can run code and is never read: use safetensors files")
    else:
        raise unusable("model.safetensors", f"is missing, and so is {INDEX}: {COPY_AGAIN}")
    for name in sorted(set(stored) - set(files)):
        folder.wrong(name, "is not among the weights in use, and some engines would read it: move it away")
    return dict(sorted(files.items()))


def _header(folder: Folder, name: str) -> Tensors:
    folder.read(name, 64)
    try:
        with safe_open(folder.path / name, "np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return {key: _tensor(s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise unusable(name, f"is damaged or cut short ({error}): {COPY_AGAIN}") from None


def _tensor(kind: str, shape: tuple[int, ...]) -> Tensor:
    # The first number in U8, BF16 and F8_E4M3 is the bits; BOOL has none and takes a byte
    bits = re.search(r"\d+", kind)
    return Tensor(kind, shape, prod(shape) * (int(bits[0]) if bits else 8) // 8)


def _differences(
    found: Mapping[str, Tensor], dimensions: Dimensions, *, quantisation: str | None
) -> Iterator[str]:
    expected = dimensions.shapes()
    strange = [name for name, tensor in found.items() if tensor.kind not in DTYPES]
    if odd := [name for name in strange if name in expected and is_plain(name, expected)]:
        kind = found[odd[0]].kind
        yield f"hold {_some(odd)} of dtype {kind}, and {', '.join(DTYPES)} are served: convert the weights"
    parts = packed(found, strange, expected)
    if quantisation and not parts:
        yield (
            f"are plain, and config.json says that they are quantised by {quantisation}: remove"
            " quantization_config from it, or copy the quantised weights"
        )
    if parts and not quantisation:
        yield (
            f"are quantised (such as {parts[0]}), and config.json has no quantization_config that says how:"
            f" {ONE_CHECKPOINT}"
        )
        return
    missing = absent(expected, found) if quantisation else [name for name in expected if name not in found]
    # Old versions saved these tables, which every engine computes
    unknown = [name for name in found if name not in expected and not name.endswith("rotary_emb.inv_freq")]
    if dimensions.tied:
        # Some checkpoints hold the copy
        expected["lm_head.weight"] = expected[dimensions.architecture.embedding]
        unknown = [name for name in unknown if name != "lm_head.weight"]
    if why := misnamed(missing, unknown, dimensions.architecture):
        yield why
        return
    if missing:
        yield f"lack {_some(missing)} that config.json asks for: {COPY_AGAIN}"
    if quantisation:  # the engine knows the shapes of the method's parts
        expected = {name: shape for name, shape in expected.items() if len(shape) == 1 or "embed" in name}
        unknown = []
    if other := [name for name, shape in expected.items() if name in found and found[name].shape != shape]:
        shapes = f"{list(found[other[0]].shape)} instead of {list(expected[other[0]])}"
        yield f"hold {_some(other)} of another shape than config.json asks for, {shapes}: {ONE_CHECKPOINT}"
    if unknown:
        yield f"hold {_some(unknown)} that config.json has no place for: {ONE_CHECKPOINT}"


def _unplaced(
    places: Mapping[str, Sequence[tuple[str, str]]], files: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yields tensors that the index does not place: some engines would read them, and others not."""
    known = {(file, tensor) for file, placed in files.items() for tensor in placed}
    held = [entry for entries in places.values() for entry in entries]
    if known and (unplaced := [entry for entry in held if entry not in known]):
        file, tensor = unplaced[0]
        yield f"hold {tensor} in {file}, where {INDEX} does not place it: {COPY_AGAIN}"


def _twice(places: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[str]:
    """Yields a tensor that is stored more than once: engines differ in which one they read."""
    for name, held in places.items():
        if len(held) > 1:
            stored = " and ".join(f"{tensor} in {file}" for file, tensor in held)
            yield f"hold {name} {len(held)} times ({stored}): {COPY_AGAIN}"
            return


def _untied(
    folder: Folder, places: Mapping[str, Sequence[tuple[str, str]]], architecture: Architecture
) -> Iterator[str]:
    """Yields an output layer that differs from the tied embedding: transformers reads it, vLLM does not."""
    head, embedding = (places.get(name) for name in ("lm_head.weight", architecture.embedding))
    if head and embedding and not same_tensor(folder.path, head[0], embedding[0]):
        yield (
            f"hold an lm_head.weight that differs from {architecture.embedding}, and tie_word_embeddings in"
            " config.json says that they are equal: set it to false, in text_config too, if the output layer"
            " was trained separately, or else save the weights without lm_head.weight"
        )


def same_tensor(folder: Path, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Returns whether two tensors, each given by file and name, have the same dtype, shape and bytes."""
    with (folder / one[0]).open("rb") as first, (folder / other[0]).open("rb") as second:
        kind, left = _seek(first, one[1])
        if (kind, left) != _seek(second, other[1]):
            return False
        while left > 0:
            size = min(left, _PIECE)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _seek(file: BinaryIO, tensor: str) -> tuple[tuple[str, list[int]], int]:
    """Seeks the beginning of a tensor's bytes; returns its dtype and shape, and the number of bytes."""
    size = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(size))[tensor]
    begin, end = entry["data_offsets"]
    file.seek(8 + size + begin)
    return (entry["dtype"], entry["shape"]), end - begin


def misnamed(missing: Sequence[str], unknown: Sequence[str], architecture: Architecture) -> str | None:
    """Returns which tool named tensors otherwise than published, and what to do; None if it is unknown."""
    if adapted := [name for name in unknown if _ADAPTED.search(name)]:
        return (
            f"are those of a model with peft adapters (such as {adapted[0]}): merge the adapters"
            " (merge_and_unload), and save the merged model with its save_pretrained"
        )
    lost = set(missing)
    for name in unknown:
        wrapper = next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), "")
        if wrapper and architecture.published(name.removeprefix(wrapper)) in lost:
            return (
                f"have names that begin with {wrapper}, the wrapper of {_WRAPPERS[wrapper]}"
                f" (such as {name}): save the inner model with its save_pretrained"
            )
    ends = {name.split(".", 2)[-1]: name for name in missing if name.count(".") > 2}
    for name in unknown:
        if end := next((end for end in ends if name.endswith(f".{end}")), None):
            return (
                f"have other names than transformers gives them ({name} for {ends[end]}; {len(unknown)} in"
                " all): convert the checkpoint with the tool that made it, or load it there and save it with"
                " save_pretrained"
            )
    return None


def _some(names: list[str]) -> str:
    return f"the tensor {names[0]}" if len(names) == 1 else f"{len(names)} tensors (the first: {names[0]})"


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name
