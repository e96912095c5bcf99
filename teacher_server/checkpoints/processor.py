"""A checkpoint's picture processor: checks that it would not change prepared pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_server.checkpoints.architectures import QWEN2_5
from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, unusable

# The values of the class Qwen2VLImageProcessor, for what a file omits
_RESCALE = 1 / 255
_SIZES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
_BOUNDS = {"min_pixels": ("shortest_edge", 56 * 56), "max_pixels": ("longest_edge", 28 * 28 * 1280)}
_FAMILY = "Qwen2"
_KIND = "Qwen2VLImageProcessor"
_LOADED = (_KIND, f"{_KIND}Fast", f"{_KIND}Pil")
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Bounds:
    """The least and most pixels to which a picture processor would scale pictures.

    Attributes:
        kind: the processor's class, as named in the folder.
    """

    least: int
    most: int
    kind: str = _KIND

    def cut_into(self, least: int, most: int) -> bool:
        """Returns whether pictures of `least` to `most` pixels may lie outside these bounds."""
        return self.least > least or self.most < most

    def __str__(self) -> str:
        return f"{self.least:,} to {self.most:,} pixels"


def own_bounds(
    folder: Folder, configs: Mapping[str, Mapping[str, Any]], dimensions: Dimensions | None
) -> Bounds | None:
    """Returns the pixel bounds of a folder's picture processor; no engine here applies them.

    Args:
        configs: contents of processor_config.json and preprocessor_config.json, by file.

    Raises:
        Unusable: the processor is missing, broken or not that of the model.
    """
    # Newer versions of transformers save it in processor_config.json, and read it there first
    name = "processor_config.json"
    content = configs[name].get("image_processor")
    if not isinstance(content, dict):
        name = "preprocessor_config.json"
        content = configs[name]
        if not folder.has(name):
            raise unusable(name, f"is missing: {COPY_AGAIN}")
    if not content or dimensions is None:
        return None
    if whys := [*_problems(content, dimensions)]:
        raise unusable(name, *whys)
    size = content.get("size") or {}
    found = {}
    for key, (edge, usual) in _BOUNDS.items():
        given = [content.get(key), size.get(edge), size.get(key)]
        found[key] = next((value for value in given if value is not None), usual)
    kind = content.get("image_processor_type", _KIND)
    return Bounds(found["min_pixels"], found["max_pixels"], kind)


def processor_problems(bounds: Bounds | None, engine: str) -> list[str]:
    """Returns why vLLM cannot load a picture processor; the transformers engine uses our own class."""
    if engine != "vllm" or bounds is None or bounds.kind in _LOADED:
        return []
    return [
        f"image_processor_type in the picture processor's file is {bounds.kind!r}, which transformers, and so"
        f" vLLM, does not know: write {_KIND!r} there"
    ]


def _problems(content: Mapping[str, Any], dimensions: Dimensions) -> Iterator[str]:
    architecture, vision = dimensions.architecture, dimensions.vision
    sizes = [content.get(key, usual) for key, usual in _SIZES.items()]
    if sizes != (model := [vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size]):
        yield f"{', '.join(_SIZES)} are {sizes}, and in config.json {model}: {ONE_CHECKPOINT}"
    of_family = f"use the processor files of a {architecture.family} checkpoint"
    kind = content.get("image_processor_type", _FAMILY)
    if not (isinstance(kind, str) and kind.startswith(_FAMILY)):
        yield f"image_processor_type is {kind!r}: {of_family}"
    for key in ("do_rescale", "do_normalize"):
        if content.get(key, True) is not True:
            yield f"{key} is {content[key]!r}, and {architecture.family} needs true: {of_family}"
    # Key -> the class's value, and the one that the vision tower was trained with
    fixed: dict[str, tuple[Any, float | tuple[float, ...]]] = {
        "rescale_factor": (_RESCALE, _RESCALE),
        "image_mean": (list(QWEN2_5.image_mean), architecture.image_mean),
        "image_std": (list(QWEN2_5.image_std), architecture.image_std),
    }
    for key, (usual, needed) in fixed.items():
        given = content.get(key)
        if not _close(value := usual if given is None else given, needed):
            wanted = list(needed) if isinstance(needed, tuple) else f"{needed:.6g}"
            yield f"{key} is {value!r}, and {architecture.family} needs {wanted}: {of_family}"
    size = content.get("size") or {}
    if not isinstance(size, dict):
        yield f"size is {size!r}, not an object with shortest_edge and longest_edge: {of_family}"
        return
    bounds = {f"size.{key}": value for key, value in size.items()} | {
        key: content.get(key) for key in _BOUNDS
    }
    for key, value in bounds.items():
        if value is not None and not (type(value) is int and value > 0):
            yield f"{key} is {value!r}, not a number of pixels: {COPY_AGAIN}"


def _close(value: Any, needed: float | tuple[float, ...]) -> bool:
    if isinstance(needed, tuple):
        return isinstance(value, list) and len(value) == len(needed) and all(map(_close, value, needed))
    return type(value) in (int, float) and abs(value - needed) <= _TOLERANCE * needed
