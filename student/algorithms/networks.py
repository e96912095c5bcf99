"""The student's network: cells as the agent sees them, marked where the mission names them."""

import numpy as np
import torch
from torch import Tensor, nn

from gridworld.views import N_CELL_CODES, N_COLOURS, N_KINDS, N_STATES, NAMES, STEPS, names_of, uncode
from student.environments import WORDS, Layout

_OUTSIDE = N_CELL_CODES
"""The code of what lies outside the grid."""
_MARKS = 4
"""The mission names a cell's kind, its colour, both or neither."""
_LOOKS = N_KINDS + N_COLOURS + N_STATES + _MARKS
"""L, the columns that say what a cell is: its kind, colour, state and mark."""


class ActorCritic(nn.Module):
    """Logits over the environment's actions and a value, from observations (see `student.environments.Row`).

    The cells are laid out as the agent sees them, itself in the middle and its heading upwards, so that
    what it learns in one place holds in all. Each is embedded as the sum of its kind's, colour's and
    state's embeddings and of a mark's, which tells whether the mission names its kind and its colour:
    what it learns about the object that is looked for holds whatever that is called. The mission's
    words as such are added to the first hidden layer; they start at zero.
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
        """Observations uint8 [B, K] to logits [B, A] and values [B]."""
        return self.judge(self.perceive(obs_BK))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """What `judge` works on, int64 [B, E + WORDS]: nothing in it is learnt, so it is computed once.

        For each of the E places around the agent the cell there and its mark, as one number; then the
        mission's words.
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
        """Logits [B, A] and values [B] from what `perceive` gave."""
        features_BH = self.features(seen_BE)
        return self.actor(features_BH), self.critic(features_BH).squeeze(1)

    def features(self, seen_BE: Tensor) -> Tensor:
        """What both heads work on: [B, H]."""
        table_CD: Tensor = self.looks(self._looks_CL).relu()
        # Both are sums of embeddings; their gradients take a third of the time in this form
        cells_BED = table_CD.index_select(0, seen_BE[:, :-WORDS].flatten())
        words_BW = seen_BE[:, -WORDS:]
        counts_BV = torch.zeros(len(seen_BE), len(self.words))
        counts_BV = counts_BV.scatter_add_(1, words_BW, (words_BW > 0).float())  # 0 pads
        seen_BH = self.cells(cells_BED.view(len(seen_BE), -1)) + counts_BV @ self.words
        features_BH: Tensor = self.hidden(seen_BH.relu()).relu()
        return features_BH


def _looks() -> np.ndarray:
    """float32 [(cell codes and outside) * marks, L]: what a cell with a mark looks like, as 0s and 1s."""
    looks_CML = np.zeros((N_CELL_CODES + 1, _MARKS, _LOOKS), np.float32)
    for cell in range(N_CELL_CODES):
        kind, colour, state = uncode(cell)
        for column in (kind, N_KINDS + colour, N_KINDS + N_COLOURS + state):
            looks_CML[cell, :, column] = 1
    looks_CML[:, range(_MARKS), range(_LOOKS - _MARKS, _LOOKS)] = 1
    return looks_CML.reshape(-1, _LOOKS)


def _names() -> np.ndarray:
    """int64 [cell codes and outside, 2]: the ids of the words for a cell's kind and colour; 0 for none."""
    ids = [
        (1 + NAMES.index(kind), 1 + NAMES.index(colour))
        for kind, colour in map(names_of, range(N_CELL_CODES))
    ]
    return np.array([*ids, (0, 0)], np.int64)


def _reach(layout: Layout) -> int:
    """How far the agent has to see in each direction: it never stands in the outermost wall."""
    return max(layout.height, layout.width) - 2


def _egocentric(layout: Layout) -> np.ndarray:
    """int64 [poses, side * side]: for each pose the cell index seen at each place, `cells` for outside."""
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
