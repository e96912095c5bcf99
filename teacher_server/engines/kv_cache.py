"""Keys and values of conversations between their stages: stage 2 goes on where stage 1 has ended."""

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from teacher_server.engines.base import Prompt


class Kept:
    """Keys and values of a conversation's first tokens, for as long as somebody holds this.

    Attributes:
        token_ids: that they are of, with one image token for each picture.
        keys_values: [2, layers, heads, tokens, width], with a token for each visual token; None: let go.
    """

    def __init__(self, token_ids: tuple[int, ...], keys_values: torch.Tensor) -> None:
        self.token_ids = token_ids
        self.keys_values: torch.Tensor | None = keys_values


class KeptStates:
    """Keeps what conversations have computed; what is more than `most_bytes` goes, the oldest first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: deque[weakref.ref[Kept]] = deque()

    def keep(self, cache: Any, row: int, length: int, token_ids: tuple[int, ...]) -> Kept | None:
        """The last `length` columns of a cache's row; None where that alone is too much.

        Args:
            token_ids: that they are of.
        """
        columns = [(layer.keys[row, :, -length:], layer.values[row, :, -length:]) for layer in cache.layers]
        tensors = [keys for keys, _ in columns] + [values for _, values in columns]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not self._make_room(size):
            return None
        kept = Kept(token_ids, torch.stack(tensors).view(2, -1, *tensors[0].shape))
        self._kept.append(weakref.ref(kept))
        return kept

    def clear(self) -> None:
        """Lets everything go."""
        self._make_room(self._most_bytes)

    def _make_room(self, size: int) -> bool:
        living = [kept for kept in (each() for each in self._kept) if kept is not None]
        sizes = deque((kept, kept.keys_values.nbytes) for kept in living if kept.keys_values is not None)
        total = sum(each for _, each in sizes)
        while sizes and total + size > self._most_bytes:
            oldest, freed = sizes.popleft()
            oldest.keys_values = None
            total -= freed
        self._kept = deque(weakref.ref(kept) for kept, _ in sizes)
        return total + size <= self._most_bytes


def known_of(prompt: Prompt, length: int) -> torch.Tensor | None:
    """Keys and values of a prompt's beginning, if they were kept: never of its last token.

    Args:
        length: of the prompt, with a token for each visual token.
    """
    kept = prompt.kept
    if not isinstance(kept, Kept) or kept.token_ids != prompt.token_ids[: len(kept.token_ids)]:
        return None
    known = kept.keys_values
    return known if known is not None and known.shape[3] < length else None


def joined(known: Sequence[torch.Tensor | None], lengths: Sequence[int]) -> tuple[Any, int]:
    """A cache for prompts that are padded at the left, and how many of the last columns are left to compute.

    These are as many for all: of a prompt that needs fewer, the last known columns are computed anew.

    Args:
        known: keys and values of each prompt's beginning.
        lengths: of the prompts, in tokens.
    """
    left = max(n - (0 if each is None else each.shape[3]) for each, n in zip(known, lengths, strict=True))
    width = max(lengths) - left
    first = next((each for each in known if each is not None), None)
    if first is None or width == 0:
        return None, max(lengths)
    two, layers, heads, _, size = first.shape
    all_2LBHTD = first.new_zeros(two, layers, len(lengths), heads, width, size)
    for row, (each, length) in enumerate(zip(known, lengths, strict=True)):
        if each is not None and length > left:
            all_2LBHTD[:, :, row, :, width - (length - left) :] = each[:, :, :, : length - left]
    return DynamicCache([(all_2LBHTD[0, layer], all_2LBHTD[1, layer]) for layer in range(layers)]), left
