"""transformers' picture processor, made so that it leaves the size of prepared pictures alone."""

from typing import Any

import transformers

from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.processor import IMAGE_MEAN, IMAGE_STD

_hf: Any = transformers  # annotated too partially to be checked against


def picture_processor(dimensions: Dimensions) -> Any:
    """Cuts prepared pictures into patches; the checkpoint's own pixel bounds have no part."""
    vision = dimensions.vision
    return _hf.Qwen2VLImageProcessorPil(
        do_resize=False,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
