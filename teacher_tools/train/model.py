"""The model in training: a genuine Qwen2.5-VL, what it says of a batch, and how far that is from right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from teacher_tools.train.batches import PLACE_SIZES, ROLE_SIZES, TILE_SIZES, UNTOLD, Batch

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
    _hf.utils.logging.disable_progress_bar()
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


def compile_layers(model: Any) -> None:
    """Has PyTorch compile the language model's layers, all to the same code."""
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def save_weights(model: Any, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model's weights, under their published names, whole or not at all.

    Args:
        dtype: what they are written in; None: what they are in.
    """
    tensors = {
        _published(name): value.detach().to("cpu", dtype or value.dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(path)


def _published(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


class Heads(nn.Module):
    """What only training needs: they read off a model from scratch what it is to have found out by there.

    Attributes:
        tiles: from a visual token: logits of what its cell shows and where it is, TILE_SIZES one by one.
        places: from a word, half way through the language model: logits of the row and the column of
            the cell that it speaks of.
        roles: from a visual token, there too: logits of its cell being a target or a hazard.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tiles = nn.Linear(width, sum(TILE_SIZES))
        self.places = nn.Linear(width, sum(PLACE_SIZES))
        self.roles = nn.Linear(width, sum(ROLE_SIZES))


@dataclass(frozen=True, eq=False)
class Outcome:
    """Losses of a batch (natural logarithms), with gradients, and shares of what was right.

    Attributes:
        losses: by name, what was taught: tiles; places, roles, analysis and actions.
        right: by name: tile, place and role (all that is told of it); of the analysis, each token given the
            right ones before it, value (tokens that are no signs) and whole (analyses without a wrong
            token); action (the arg-max is optimal).
    """

    losses: dict[str, torch.Tensor]
    right: dict[str, float]

    @property
    def loss(self) -> torch.Tensor:
        """The sum of all."""
        return torch.stack(list(self.losses.values())).sum()


def see(model: Any, heads: Heads, batch: Batch) -> Outcome:
    """Reads the pictures alone: for the vision tower's own lessons."""
    told_N = batch.tiles_N5[:, 0] != UNTOLD
    read = heads.tiles(_features(model, batch)[told_N])
    loss, right = _read(read, TILE_SIZES, batch.tiles_N5[told_N])
    return Outcome({"tiles": loss}, {"tile": right})


def speak(model: Any, heads: Heads | None, batch: Batch) -> Outcome:
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
    told = model.model.language_model(
        inputs_embeds=embeddings_BLH,
        position_ids=positions_3BL,
        use_cache=False,
        output_hidden_states=heads is not None,
    )
    hidden_BLH = told.last_hidden_state
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
    losses = {
        "analysis": functional.cross_entropy(logits_NV, targets_N),
        "actions": functional.cross_entropy(action_BV[:, :size], batch.action_BV),
    }
    if heads is not None:
        halfway_BLH = told.hidden_states[len(told.hidden_states) // 2]
        meant_BL = batch.meant_BL2[..., 0] != UNTOLD
        losses["places"], right["place"] = _read(
            heads.places(halfway_BLH[meant_BL]), PLACE_SIZES, batch.meant_BL2[meant_BL]
        )
        told_N = batch.roles_N1[:, 0] != UNTOLD
        losses["roles"], right["role"] = _read(
            heads.roles(halfway_BLH[is_image_BL][told_N]), ROLE_SIZES, batch.roles_N1[told_N]
        )
    return Outcome(losses, right)


def _features(model: Any, batch: Batch) -> torch.Tensor:
    return torch.cat(model.get_image_features(batch.patches_PX, batch.grids_B3).pooler_output)


def _read(
    logits_NX: torch.Tensor, sizes: Sequence[int], targets_NK: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The loss of K things told at N places, with so many values each, and the share of places all right."""
    parts = torch.split(logits_NX.float(), list(sizes), dim=-1)
    losses = [functional.cross_entropy(part, targets_NK[:, i]) for i, part in enumerate(parts)]
    said_NK = torch.stack([part.argmax(-1) for part in parts], dim=-1)
    return torch.stack(losses).sum(), _share((said_NK == targets_NK).all(-1))


def _share(truths: torch.Tensor) -> float:
    return float(truths.float().mean())
