"""transformers' picture processor, configured to keep the size of prepared pictures."""

from typing import Any

import transformers

from teacher_server.checkpoints.dimensions import Dimensions
from teacher_server.checkpoints.processor import IMAGE_MEAN, IMAGE_STD

_hf: Any = transformers  # its annotations are too incomplete to check against


def picture_processor(dimensions: Dimensions) -> Any:
    """Returns a processor that cuts prepared pictures into patches and leaves their size alone."""
    vision = dimensions.vision
    return _hf.Qwen2VLImageProcessorPil(
        do_resize=False,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
