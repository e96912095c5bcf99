"""The student's network: cells seen from the agent, combined with the mission's words."""

import numpy as np
import torch
from torch import Tensor, nn

from gridworld.views import N_CELL_CODES, N_COLOURS, N_STATES, STEPS, uncode
from student.envs import WORDS, Layout

_OUTSIDE = N_CELL_CODES
"""The code of what lies outside the grid."""


class ActorCritic(nn.Module):
    """Logits over the environment's actions and a value, from observations (see `student.envs.Row`).

    Each cell is embedded as the sum of its object's, colour's and state's embeddings, plus a vector
    that the mission's words make: a unit can so respond to "a key" and "green" and "the mission says
    green key" in one step. The cells are laid out as the agent sees them, itself in the middle and
    its heading upwards, so that what it learns in one place holds in all.
    """

    def __init__(self, layout: Layout, cell_size: int = 12, hidden_size: int = 128) -> None:
        super().__init__()
        self._layout = layout
        side = 2 * _reach(layout) + 1
        kinds = torch.tensor([uncode(cell) for cell in range(N_CELL_CODES)])
        self.objects = nn.Embedding(N_CELL_CODES // (N_COLOURS * N_STATES), cell_size)
        self.colours = nn.Embedding(N_COLOURS, cell_size)
        self.states = nn.Embedding(N_STATES, cell_size)
        self.words = nn.Embedding(256, cell_size, padding_idx=0)
        self.trunk = nn.Sequential(
            nn.Linear(side * side * cell_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
        )
        self.actor = nn.Linear(hidden_size, len(layout.actions))
        self.critic = nn.Linear(hidden_size, 1)
        self.register_buffer("_kinds", kinds, persistent=False)
        self.register_buffer("_seen_PE", torch.from_numpy(_egocentric(layout)), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for embedding in (self.objects, self.colours, self.states, self.words):
            nn.init.normal_(embedding.weight, std=0.5)
        nn.init.zeros_(self.words.weight[0])
        for layer, gain in (
            (self.trunk[0], 2**0.5),
            (self.trunk[2], 2**0.5),
            (self.actor, 0.01),
            (self.critic, 1.0),
        ):
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, obs_BK: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, K] to logits [B, A] and values [B]."""
        cells = self._layout.cells
        obs_BK = obs_BK.long()
        x, y, heading = obs_BK[:, cells : cells + 3].unbind(1)
        seen_BE = self._seen_PE[(y * self._layout.width + x) * 4 + heading]  # type: ignore[index]
        bordered_BC = nn.functional.pad(obs_BK[:, :cells], (0, 1), value=_OUTSIDE)
        kinds_K, colours_K, states_K = self._kinds.unbind(1)  # type: ignore[operator]
        table_KD = self.objects(kinds_K) + self.colours(colours_K) + self.states(states_K)
        table_KD = nn.functional.pad(table_KD, (0, 0, 0, 1))
        cells_BED = nn.functional.embedding(bordered_BC.gather(1, seen_BE), table_KD)
        mission_BD = self.words(obs_BK[:, -WORDS:]).sum(1)
        features_BH = self.trunk(cells_BED.add_(mission_BD[:, None]).relu_().flatten(1))
        return self.actor(features_BH), self.critic(features_BH).squeeze(1)


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
