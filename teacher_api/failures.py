"""Counts of failures in words, the same in the service's log and in a student's summary."""

from collections.abc import Mapping


def in_words(counts: Mapping[str, int], most: int = 5) -> str:
    """Returns the most frequent kinds, as "1,100 x 422 mission: ...; 3 x other reasons".

    Args:
        counts: the number of failures of each kind.
        most: the number of kinds that are named.
    """
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} x {kind}" for kind, count in kinds[:most]]
    others = sum(count for _, count in kinds[most:])
    return "; ".join([*shown, f"{others:,} x other reasons"] if others else shown)
