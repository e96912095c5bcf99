"""Keys and values that are kept between the two stages of a session, so that stage 2 continues stage 1."""

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from teacher_server.engines.base import Prompt


class CachedPrefix:
    """Keys and values of a conversation's first tokens; they are freed when the last reference goes.

    Attributes:
        token_ids: the tokens of the prefix, with one image token for each picture.
        keys_values: [2, layers, heads, tokens, width], with a token for each visual token; None: evicted.
    """

    def __init__(self, token_ids: tuple[int, ...], keys_values: torch.Tensor) -> None:
        self.token_ids = token_ids
        self.keys_values: torch.Tensor | None = keys_values


class PrefixCache:
    """Keeps the prefixes of conversations, up to `max_bytes`; beyond that it evicts the oldest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: deque[weakref.ref[CachedPrefix]] = deque()

    def keep(self, cache: Any, row: int, length: int, token_ids: tuple[int, ...]) -> CachedPrefix | None:
        """Keeps the last `length` columns of a cache's row; returns None if they exceed `max_bytes`.

        Args:
            token_ids: the tokens of these columns.
        """
        columns = [(layer.keys[row, :, -length:], layer.values[row, :, -length:]) for layer in cache.layers]
        tensors = [keys for keys, _ in columns] + [values for _, values in columns]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not self._evict_for(size):
            return None
        prefix = CachedPrefix(token_ids, torch.stack(tensors).view(2, -1, *tensors[0].shape))
        self._prefixes.append(weakref.ref(prefix))
        return prefix

    def clear(self) -> None:
        """Evicts everything."""
        self._evict_for(self._max_bytes)

    def _evict_for(self, size: int) -> bool:
        """Evicts the oldest until `size` bytes fit; returns whether they do."""
        living = [prefix for prefix in (each() for each in self._prefixes) if prefix is not None]
        sizes = deque((each, each.keys_values.nbytes) for each in living if each.keys_values is not None)
        total = sum(nbytes for _, nbytes in sizes)
        while sizes and total + size > self._max_bytes:
            oldest, freed = sizes.popleft()
            oldest.keys_values = None
            total -= freed
        self._prefixes = deque(weakref.ref(prefix) for prefix, _ in sizes)
        return total + size <= self._max_bytes


def cached_prefix(prompt: Prompt, length: int) -> torch.Tensor | None:
    """Returns the cached keys and values of a prompt's beginning, which never include its last token.

    Args:
        length: tokens of the prompt, with a token for each visual token.
    """
    prefix = prompt.cached
    if not isinstance(prefix, CachedPrefix) or prefix.token_ids != prompt.token_ids[: len(prefix.token_ids)]:
        return None
    known = prefix.keys_values
    return known if known is not None and known.shape[3] < length else None


def join_prefixes(known: Sequence[torch.Tensor | None], lengths: Sequence[int]) -> tuple[Any, int]:
    """Joins the prefixes of prompts that are padded at the left into one cache.

    The number of columns left to compute is the same for all prompts: where a prompt needs fewer, its last
    cached columns are computed again.

    Args:
        known: cached keys and values of each prompt's beginning.
        lengths: of the prompts, in tokens.

    Returns:
        The cache, or None where nothing is cached, and the number of last columns to compute.
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
