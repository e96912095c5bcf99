"""The student's network: an egocentric view of the grid, with marks on what the mission names."""

import numpy as np
import torch
from torch import Tensor, nn

from gridworld.views import N_CELL_CODES, N_COLOURS, N_KINDS, N_STATES, NAMES, STEPS, names_of, uncode
from student.environments import WORDS, Layout

_OUTSIDE = N_CELL_CODES
"""The code of a place outside the grid."""
_MARKS = 4
"""The mission names a cell's kind, its colour, both, or neither."""
_LOOKS = N_KINDS + N_COLOURS + N_STATES + _MARKS
"""L, the one-hot columns of a cell: its kind, colour, state and mark."""


class ActorCritic(nn.Module):
    """Logits over the environment's actions and a value, from a `student.environments.Observation`.

    The cells are arranged egocentrically, with the agent in the middle and its heading upwards, so that what
    is learnt in one place holds in all places. A cell's embedding is the sum of the embeddings of its kind,
    colour, state and mark. The mark tells whether the mission names the cell's kind and its colour, so that
    what is learnt about the object of a mission holds for any object. Embeddings of the mission's words are
    added to the first hidden layer; they start at zero.
    """

    def __init__(self, layout: Layout, cell_size: int = 8, hidden_size: int = 64) -> None:
        super().__init__()
        self._layout = layout
        side = 2 * _reach(layout) + 1
        self.looks = nn.Linear(_LOOKS, cell_size, bias=False)
        self.words = nn.Parameter(torch.zeros(256, hidden_size))
        self.cells = nn.Linear(side * side * cell_size, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.actor = nn.Linear(hidden_size, len(layout.actions))
        self.critic = nn.Linear(hidden_size, 1)
        self.register_buffer("_looks_CL", torch.from_numpy(_looks()), persistent=False)
        self.register_buffer("_names_C2", torch.from_numpy(_names()), persistent=False)
        self.register_buffer("_seen_PE", torch.from_numpy(_egocentric(layout)), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.looks.weight, std=0.5)
        for layer, gain in (
            (self.cells, 2**0.5),
            (self.hidden, 2**0.5),
            (self.actor, 0.01),
            (self.critic, 1.0),
        ):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, obs_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, A] and values [B] for observations, uint8 [B, K]."""
        return self.judge(self.perceive(obs_BK))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the input of `judge`, int64 [B, E + WORDS]; it has no parameters, so it is computed once.

        For each of the E places around the agent, one number for the cell and its mark; then the mission's
        words.
        """
        cells = self._layout.cells
        obs_BK = obs_BK.long()
        x, y, heading = obs_BK[:, cells : cells + 3].unbind(1)
        words_BW = obs_BK[:, -WORDS:]
        seen_BE = self._seen_PE[(y * self._layout.width + x) * 4 + heading]  # type: ignore[index]
        cells_BE = nn.functional.pad(obs_BK[:, :cells], (0, 1), value=_OUTSIDE).gather(1, seen_BE)
        named_BN = torch.zeros(len(obs_BK), len(NAMES) + 1, dtype=torch.long)
        named_BN.scatter_(1, words_BW.where(words_BW <= len(NAMES), 0), 1)
        named_BN[:, 0] = 0
        kind_C, colour_C = self._names_C2.unbind(1)  # type: ignore[operator]
        marks_BE = named_BN.gather(1, kind_C[cells_BE]) + 2 * named_BN.gather(1, colour_C[cells_BE])
        return torch.cat([cells_BE * _MARKS + marks_BE, words_BW], 1)

    def judge(self, seen_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, A] and values [B] for the output of `perceive`."""
        features_BH = self.features(seen_BE)
        return self.actor(features_BH), self.critic(features_BH).squeeze(1)

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        table_CD: Tensor = self.looks(self._looks_CL).relu()
        # Both are sums of embeddings; their gradients take a third of the time in this form
        cells_BED = table_CD.index_select(0, seen_BE[:, :-WORDS].flatten())
        words_BW = seen_BE[:, -WORDS:]
        counts_BV = torch.zeros(len(seen_BE), len(self.words))
        counts_BV = counts_BV.scatter_add_(1, words_BW, (words_BW > 0).float())  # 0 pads
        seen_BH = self.cells(cells_BED.view(len(seen_BE), self.cells.in_features)) + counts_BV @ self.words
        features_BH: Tensor = self.hidden(seen_BH.relu()).relu()
        return features_BH


def _looks() -> np.ndarray:
    """Returns the one-hot columns of each cell and mark, float32 [(cell codes and outside) * marks, L]."""
    looks_CML = np.zeros((N_CELL_CODES + 1, _MARKS, _LOOKS), np.float32)
    for cell in range(N_CELL_CODES):
        kind, colour, state = uncode(cell)
        for column in (kind, N_KINDS + colour, N_KINDS + N_COLOURS + state):
            looks_CML[cell, :, column] = 1
    looks_CML[:, range(_MARKS), range(_LOOKS - _MARKS, _LOOKS)] = 1
    return looks_CML.reshape(-1, _LOOKS)


def _names() -> np.ndarray:
    """Returns the word ids of each cell's kind and colour, int64 [cell codes and outside, 2]; 0: no word."""
    ids = [
        (1 + NAMES.index(kind), 1 + NAMES.index(colour))
        for kind, colour in map(names_of, range(N_CELL_CODES))
    ]
    return np.array([*ids, (0, 0)], np.int64)


def _reach(layout: Layout) -> int:
    """Returns how far the view reaches in each direction: the agent never stands in the outermost wall."""
    return max(layout.height, layout.width) - 2


def _egocentric(layout: Layout) -> np.ndarray:
    """Returns the cell index at each place for each pose, int64 [poses, side * side]; outside: `cells`."""
    reach = _reach(layout)
    offsets = [(ahead, right) for ahead in range(reach, -reach - 1, -1) for right in range(-reach, reach + 1)]
    seen_PE = np.full((layout.cells * 4, len(offsets)), layout.cells, np.int64)
    for place in range(layout.cells):
        y, x = divmod(place, layout.width)
        for heading, (dx, dy) in enumerate(STEPS):
            rx, ry = STEPS[(heading + 1) % 4]
            for i, (ahead, right) in enumerate(offsets):
                cx, cy = x + ahead * dx + right * rx, y + ahead * dy + right * ry
                if 0 <= cx < layout.width and 0 <= cy < layout.height:
                    seen_PE[place * 4 + heading, i] = cy * layout.width + cx
    return seen_PE
