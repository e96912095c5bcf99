"""Keys and values of conversations' beginnings, so that what continues one does not compute it again."""

import weakref
from collections import deque
from typing import Any

from teacher_server.engines.base import Prompt


class CachedPrefix:
    """Keys and values of a conversation's first tokens; they are freed when the last reference goes.

    Attributes:
        token_ids: the tokens of the prefix, with one image token for each picture.
        keys_values: [2, layers, heads, tokens, width], a torch or numpy array with a token for each visual
            token; None: evicted.
    """

    def __init__(self, token_ids: tuple[int, ...], keys_values: Any) -> None:
        self.token_ids = token_ids
        self.keys_values: Any = keys_values


class PrefixCache:
    """Keeps the prefixes of conversations, up to `max_bytes`; beyond that it evicts the oldest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: deque[weakref.ref[CachedPrefix]] = deque()

    def make_room(self, size: int) -> bool:
        """Evicts the oldest until `size` bytes fit; returns whether they do."""
        living = [prefix for prefix in (each() for each in self._prefixes) if prefix is not None]
        sizes = deque((each, each.keys_values.nbytes) for each in living if each.keys_values is not None)
        total: int = sum(nbytes for _, nbytes in sizes)
        while sizes and total + size > self._max_bytes:
            oldest, freed = sizes.popleft()
            oldest.keys_values = None
            total -= freed
        self._prefixes = deque(weakref.ref(prefix) for prefix, _ in sizes)
        return total + size <= self._max_bytes

    def keep(self, token_ids: tuple[int, ...], keys_values: Any) -> CachedPrefix:
        """Keeps keys and values that there is room for."""
        prefix = CachedPrefix(token_ids, keys_values)
        self._prefixes.append(weakref.ref(prefix))
        return prefix

    def clear(self) -> None:
        """Evicts everything."""
        self.make_room(self._max_bytes)


def cached_prefix(prompt: Prompt, length: int) -> Any:
    """Returns the cached keys and values of a prompt's beginning, which never include its last token.

    Args:
        length: tokens of the prompt, with a token for each visual token.

    Returns:
        An array as in `CachedPrefix`, or None.
    """
    prefix = prompt.cached
    if not isinstance(prefix, CachedPrefix) or prefix.token_ids != prompt.token_ids[: len(prefix.token_ids)]:
        return None
    known = prefix.keys_values
    return known if known is not None and known.shape[3] < length else None
