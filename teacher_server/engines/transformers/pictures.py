"""Pictures on their way into transformers' language model: patches, features, and the inputs made of them."""

from typing import Any

import torch
import transformers

from teacher_server.checkpoints.dimensions import Dimensions

_hf: Any = transformers  # its annotations are too incomplete to check against


def picture_processor(dimensions: Dimensions) -> Any:
    """Returns a processor that cuts prepared pictures into patches and leaves their size alone."""
    architecture, vision = dimensions.architecture, dimensions.vision
    return _hf.Qwen2VLImageProcessorPil(
        do_resize=False,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        image_mean=list(architecture.image_mean),
        image_std=list(architecture.image_std),
    )


def picture_features(model: Any, patches_PX: torch.Tensor, grids_B3: torch.Tensor) -> list[torch.Tensor]:
    """Returns each picture's features [N, (1 + D) * H].

    The first H numbers of a visual token are its embedding. The others are added to the results of the first
    D layers of the language model: DeepStack, in Qwen3-VL alone.
    """
    seen = model.get_image_features(patches_PX, grids_B3)
    levels = [seen.pooler_output, *getattr(seen, "deepstack_features", ())]
    return [torch.cat(of_picture, dim=-1) for of_picture in zip(*levels, strict=True)]


def language_inputs(
    model: Any, ids_BL: torch.Tensor, image_BL: torch.Tensor, features_NX: torch.Tensor
) -> dict[str, Any]:
    """Returns the inputs by which the language model reads token ids and pictures.

    Args:
        image_BL: where the N visual tokens are.
        features_NX: their features, as `picture_features` returns them.
    """
    embeddings_BLH = model.get_input_embeddings()(ids_BL)
    first_NH, *deep = torch.split(features_NX.to(embeddings_BLH.dtype), embeddings_BLH.shape[-1], dim=-1)
    inputs = {"inputs_embeds": embeddings_BLH.masked_scatter(image_BL[..., None], first_NH)}
    return inputs | ({"visual_pos_masks": image_BL, "deepstack_visual_embeds": deep} if deep else {})
