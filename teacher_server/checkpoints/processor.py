"""A checkpoint's picture processor: checks that it would not change prepared pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_server.checkpoints.dimensions import Dimensions, patch_problems
from teacher_server.checkpoints.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, unusable

# Qwen2.5-VL's own, which the engines apply; its vision tower was trained with no others
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
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
        Unusable: the processor is missing, broken or not Qwen2.5-VL's.
    """
    # Newer versions of transformers save it in processor_config.json, and read it there first
    name = "processor_config.json"
    content = configs[name].get("image_processor")
    if not isinstance(content, dict):
        name = "preprocessor_config.json"
        content = configs[name]
        if not folder.has(name):
            raise unusable(name, f"is missing: {COPY_AGAIN}")
    if not content:
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


def _problems(content: Mapping[str, Any], dimensions: Dimensions | None) -> Iterator[str]:
    sizes = [content.get(key, usual) for key, usual in _SIZES.items()]
    yield from (whys := [*patch_problems(*sizes)])
    if dimensions is not None and not whys:
        vision = dimensions.vision
        model = [vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size]
        if sizes != model:
            yield f"{', '.join(_SIZES)} are {sizes}, and in config.json {model}: {ONE_CHECKPOINT}"
    of_family = "use the processor files of a Qwen2.5-VL checkpoint"
    kind = content.get("image_processor_type", _FAMILY)
    if not (isinstance(kind, str) and kind.startswith(_FAMILY)):
        yield f"image_processor_type is {kind!r}: {of_family}"
    for key in ("do_rescale", "do_normalize"):
        if content.get(key, True) is not True:
            yield f"{key} is {content[key]!r}, and Qwen2.5-VL needs true: {of_family}"
    fixed: dict[str, float | tuple[float, ...]] = {
        "rescale_factor": _RESCALE,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    for key, needed in fixed.items():
        if (value := content.get(key)) is not None and not _close(value, needed):
            wanted = list(needed) if isinstance(needed, tuple) else f"{needed:.6g}"
            yield f"{key} is {value!r}, and Qwen2.5-VL needs {wanted}: {of_family}"
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
