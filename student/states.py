"""Row numbers for states: each state is hashed once, and is known by its row from there on."""

import numpy as np
from numpy.typing import NDArray


class StateIndex:
    """Numbers states 0, 1, 2, ... in the order in which they are first met."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, obs_NK: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Returns the row of each of N states [N]; a new state gets the next row."""
        data, length = obs_NK.tobytes(), obs_NK.shape[1]
        keys = [data[i : i + length] for i in range(0, len(data), length)]
        return np.array([self._rows.setdefault(key, len(self._rows)) for key in keys], np.intp)
