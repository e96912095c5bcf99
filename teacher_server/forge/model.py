"""The model in training: a genuine Qwen2.5-VL, what it says of a batch, and how far that is from right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from teacher_server.forge.batches import TILE_SIZES, UNTOLD, Batch

_hf: Any = transformers  # annotated too partially to be checked against


def new_model(folder: Path, device: torch.device) -> Any:
    """A model with random weights, by torch's seed, of the config in a folder."""
    config = _hf.Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)
    model = _hf.Qwen2_5_VLForConditionalGeneration._from_config(
        config, dtype=torch.float32, attn_implementation=_attention(device)
    )
    return _quick(model).to(device)


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that a folder holds."""
    model = _hf.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        attn_implementation=_attention(device),
    )
    return _quick(model).to(device)


def _attention(device: torch.device) -> str:
    # Backwards and in bfloat16, torch's own attention is slower on a CPU than plain products are
    return "eager" if device.type == "cpu" else "sdpa"


class _PatchProduct(nn.Module):
    """The patches' embedding as the product that it is: as a convolution it is many times slower on a CPU."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution

    def forward(self, patches_PX: torch.Tensor) -> torch.Tensor:
        kernel_HX = self.proj.weight.flatten(1)
        return functional.linear(patches_PX.to(kernel_HX.dtype), kernel_HX)


def _quick(model: Any) -> Any:
    visual = model.model.visual
    visual.patch_embed = _PatchProduct(visual.patch_embed.proj)
    return model


def picture_processor(folder: Path) -> Any:
    """The processor that serves the checkpoint in a folder."""
    return _hf.Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)


def save_weights(model: Any, path: Path) -> None:
    """Writes a model's weights, under their published names, whole or not at all."""
    tensors = {
        _published(name): value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(path)


def _published(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


class TileReader(nn.Module):
    """Tells from a visual token what its cell shows and where it is: only training needs it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._heads = nn.Linear(width, sum(TILE_SIZES))

    def forward(self, features_NH: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [N, size] of each of the TILE_SIZES."""
        parts: tuple[torch.Tensor, ...] = self._heads(features_NH).split(TILE_SIZES, dim=-1)
        return parts


@dataclass(frozen=True, eq=False)
class Outcome:
    """Losses of a batch (natural logarithms), with gradients, and shares of what was right.

    Attributes:
        tiles, analysis, action: losses; None where nothing was taught of them.
        right: by name: tile (all that is told of it); of the analysis, each token given the right ones
            before it, value (tokens that are no signs) and whole (analyses without a wrong token); action
            (the arg-max is optimal).
    """

    tiles: torch.Tensor | None
    analysis: torch.Tensor | None
    action: torch.Tensor | None
    right: dict[str, float]

    @property
    def loss(self) -> torch.Tensor:
        """The sum of all."""
        return torch.stack(
            [each for each in (self.tiles, self.analysis, self.action) if each is not None]
        ).sum()


def see(model: Any, reader: TileReader, batch: Batch) -> Outcome:
    """Reads the pictures alone: for the vision tower's own lessons."""
    tiles, right = _read_tiles(reader, _features(model, batch), batch)
    return Outcome(tiles, None, None, {"tile": right})


def speak(model: Any, batch: Batch) -> Outcome:
    """Reads the conversations, as the engines do: stage 1 word by word, and the action.

    The vision tower has had its own lessons, and gets no gradients. The action's loss is the cross-entropy
    with the planner's probabilities, so that the model becomes as sure as the planner is.
    """
    with torch.no_grad():
        features_NH = _features(model, batch)
    is_image_BL = batch.ids_BL == model.config.image_token_id
    embeddings_BLH = model.get_input_embeddings()(batch.ids_BL)
    embeddings_BLH = embeddings_BLH.masked_scatter(
        is_image_BL[..., None], features_NH.to(embeddings_BLH.dtype)
    )
    positions_3BL, _ = model.model.get_rope_index(
        batch.ids_BL,
        mm_token_type_ids=is_image_BL.int(),
        image_grid_thw=batch.grids_B3,
        attention_mask=batch.mask_BL,
    )
    # Padding stands at the right, where nothing that counts looks: the causal mask is enough
    hidden_BLH = model.model.language_model(
        inputs_embeds=embeddings_BLH, position_ids=positions_3BL, use_cache=False
    ).last_hidden_state
    told_BL = batch.targets_BL != UNTOLD
    logits_NV = model.lm_head(hidden_BLH[told_BL]).float()
    targets_N = batch.targets_BL[told_BL]
    last_BH = hidden_BLH[torch.arange(len(batch.last_B), device=batch.last_B.device), batch.last_B]
    action_BV = model.lm_head(last_BH).float()
    size = batch.action_BV.shape[1]
    right_N = logits_NV.argmax(-1) == targets_N
    wrong_BL = torch.zeros_like(told_BL)
    wrong_BL[told_BL] = ~right_N
    right = {
        "value": _share(right_N[batch.values_BL[told_BL]]),
        "whole": _share(~wrong_BL.any(1)),
        "action": _share(batch.optimal_BV.gather(1, action_BV[:, :size].argmax(-1, keepdim=True)) > 0),
    }
    return Outcome(
        None,
        functional.cross_entropy(logits_NV, targets_N),
        functional.cross_entropy(action_BV[:, :size], batch.action_BV),
        right,
    )


def _features(model: Any, batch: Batch) -> torch.Tensor:
    return torch.cat(model.get_image_features(batch.patches_PX, batch.grids_B3).pooler_output)


def _read_tiles(reader: TileReader, features_NH: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
    told_N = batch.tiles_N5[:, 0] != UNTOLD
    parts, targets_N5 = reader(features_NH[told_N]), batch.tiles_N5[told_N]
    losses = [
        functional.cross_entropy(logits_NC.float(), targets_N5[:, i]) for i, logits_NC in enumerate(parts)
    ]
    said_N5 = torch.stack([logits_NC.argmax(-1) for logits_NC in parts], dim=-1)
    return torch.stack(losses).sum(), _share((said_N5 == targets_N5).all(-1))


def _share(truths: torch.Tensor) -> float:
    return float(truths.float().mean())
