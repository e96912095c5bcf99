"""Keys and values between transformers' cache and the prefixes that are kept between two stages."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from teacher_server.engines.prefixes import CachedPrefix, PrefixCache


def keep_row(
    prefixes: PrefixCache, cache: Any, row: int, length: int, token_ids: tuple[int, ...]
) -> CachedPrefix | None:
    """Keeps the last `length` columns of a cache's row; returns None if there is no room for them.

    Args:
        token_ids: the tokens of these columns.
    """
    columns = [(layer.keys[row, :, -length:], layer.values[row, :, -length:]) for layer in cache.layers]
    tensors = [keys for keys, _ in columns] + [values for _, values in columns]
    if not prefixes.make_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors)):
        return None
    return prefixes.keep(token_ids, torch.stack(tensors).view(2, -1, *tensors[0].shape))


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
