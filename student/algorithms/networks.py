"""The student's networks, by the kind of observation: `network_of`."""

import numpy as np
import torch
from torch import Tensor, nn

from gridworld.views import N_CELL_CODES, N_COLOURS, N_KINDS, N_STATES, NAMES, STEPS, names_of, uncode
from worlds.general import Encoding, GeneralWorld
from worlds.minigrid import Layout, MinigridWorld
from worlds.world import World

_OUTSIDE = N_CELL_CODES
"""The code of a place outside the grid."""
_MARKS = 4
"""The mission names a cell's kind, its colour, both, or neither."""
_LARGEST_BOUND = 1e6
"""Bounds from here on are those of the type of number, and not of what is observed."""
_PICTURE_SIDE, _PICTURE_LEAST = 84, 36
"""Pixels a side that larger pictures are reduced to, and from which three convolutions fit."""
_LOOKS = N_KINDS + N_COLOURS + N_STATES + _MARKS
"""L, the one-hot columns of a cell: its kind, colour, state and mark."""


class ActorCritic(nn.Module):
    """Logits over the A actions and a value, from observations uint8 [B, K] of a world.

    Subclasses set `actor` and `critic`, and implement `perceive` and `features`.
    """

    actor: nn.Linear
    critic: nn.Linear

    def forward(self, obs_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, A] and values [B] for observations, uint8 [B, K]."""
        return self.judge(self.perceive(obs_BK))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the input of `judge`, [B, ...]; it has no parameters, so it is computed once."""
        raise NotImplementedError

    def judge(self, seen_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, A] and values [B] for the output of `perceive`."""
        features_BH = self.features(seen_BE)
        return self.actor(features_BH), self.critic(features_BH).squeeze(1)

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        raise NotImplementedError

    def _add_heads(self, hidden_size: int, actions: int) -> None:
        self.actor, self.critic = nn.Linear(hidden_size, actions), nn.Linear(hidden_size, 1)


def network_of(world: World) -> ActorCritic:
    """Returns a new network for a world's observations.

    - A grid: `GridNetwork`.
    - A state's number: an embedding (`StateNetwork`).
    - A vector: two hidden layers of 64 with tanh, as usual for PPO (`VectorNetwork`).
    - A picture: the three convolutions of Mnih et al., Nature 518 (2015) (`PictureNetwork`).
    """
    if isinstance(world, MinigridWorld):
        return GridNetwork(world.layout)
    assert isinstance(world, GeneralWorld)
    kinds = {"state": StateNetwork, "vector": VectorNetwork, "picture": PictureNetwork}
    return kinds[world.encoding.kind](world.encoding, len(world.actions))


class GridNetwork(ActorCritic):
    """The network of grids: an egocentric view of the cells, with marks on what the mission names.

    The cells are arranged egocentrically, with the agent in the middle and its heading upwards, so that what
    is learnt in one place holds in all places. A cell's embedding is the sum of the embeddings of its kind,
    colour, state and mark. The mark tells whether the mission names the cell's kind and its colour, so that
    what is learnt about the object of a mission holds for any object. Embeddings of the mission's words are
    added to the first hidden layer; they start at zero. What the agent carries is in its own cell, as in
    MiniGrid's partial view.
    """

    def __init__(self, layout: Layout, cell_size: int = 8, hidden_size: int = 64) -> None:
        super().__init__()
        self._layout = layout
        side = 2 * _reach(layout) + 1
        self.looks = nn.Linear(_LOOKS, cell_size, bias=False)
        self.words = nn.Parameter(torch.zeros(256, hidden_size))
        self.cells = nn.Linear(side * side * cell_size, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self._add_heads(hidden_size, len(layout.actions))
        self.register_buffer("_looks_CL", torch.from_numpy(_looks()), persistent=False)
        self.register_buffer("_names_C2", torch.from_numpy(_names()), persistent=False)
        self.register_buffer("_seen_PE", torch.from_numpy(_egocentric(layout)), persistent=False)
        nn.init.normal_(self.looks.weight, std=0.5)
        _initialise(self, (self.cells, 2**0.5), (self.hidden, 2**0.5))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the input of `judge`, int64 [B, E + W]; it has no parameters, so it is computed once.

        For each of the E places around the agent, one number for the cell and its mark; then the mission's
        W words.
        """
        cells = self._layout.cells
        obs_BK = obs_BK.long()
        x, y, heading = obs_BK[:, cells : cells + 3].unbind(1)
        words_BW = obs_BK[:, -self._layout.most_words :]
        here_B, cells_BC = y * self._layout.width + x, obs_BK[:, :cells]
        if self._layout.carries:
            here_B1, carried_B1 = here_B[:, None], obs_BK[:, cells + 3 : cells + 4]
            shown_B1 = carried_B1.where(carried_B1 > 0, cells_BC.gather(1, here_B1))
            cells_BC = cells_BC.scatter(1, here_B1, shown_B1)
        seen_BE = self._seen_PE[here_B * 4 + heading]  # type: ignore[index]
        cells_BE = nn.functional.pad(cells_BC, (0, 1), value=_OUTSIDE).gather(1, seen_BE)
        named_BN = torch.zeros(len(obs_BK), len(NAMES) + 1, dtype=torch.long)
        named_BN.scatter_(1, words_BW.where(words_BW <= len(NAMES), 0), 1)
        named_BN[:, 0] = 0
        kind_C, colour_C = self._names_C2.unbind(1)  # type: ignore[operator]
        marks_BE = named_BN.gather(1, kind_C[cells_BE]) + 2 * named_BN.gather(1, colour_C[cells_BE])
        return torch.cat([cells_BE * _MARKS + marks_BE, words_BW], 1)

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        table_CD: Tensor = self.looks(self._looks_CL).relu()
        # Both are sums of embeddings; their gradients take a third of the time in this form
        most_words = self._layout.most_words
        cells_BED = table_CD.index_select(0, seen_BE[:, :-most_words].flatten())
        words_BW = seen_BE[:, -most_words:]
        counts_BV = torch.zeros(len(seen_BE), len(self.words))
        counts_BV = counts_BV.scatter_add_(1, words_BW, (words_BW > 0).float())  # 0 pads
        seen_BH = self.cells(cells_BED.view(len(seen_BE), self.cells.in_features)) + counts_BV @ self.words
        features_BH: Tensor = self.hidden(seen_BH.relu()).relu()
        return features_BH


class StateNetwork(ActorCritic):
    """The network of numbered states: an embedding of each, and a hidden layer."""

    def __init__(self, encoding: Encoding, actions: int, hidden_size: int = 64) -> None:
        super().__init__()
        self.states = nn.Embedding(encoding.states, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self._add_heads(hidden_size, actions)
        _initialise(self, (self.hidden, 2**0.5))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the states' numbers, int64 [B, 1]."""
        return _numbers(obs_BK, torch.int32).long()

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        features_BH: Tensor = self.hidden(self.states(seen_BE[:, 0]).tanh()).tanh()
        return features_BH


class VectorNetwork(ActorCritic):
    """The network of vectors: two hidden layers. Numbers between finite bounds are scaled to -1 .. 1."""

    def __init__(self, encoding: Encoding, actions: int, hidden_size: int = 64) -> None:
        super().__init__()
        low_E, high_E = torch.tensor(encoding.low), torch.tensor(encoding.high)
        # Bounds such as float32's largest number say nothing of what occurs
        bounded_E = (low_E.abs() < _LARGEST_BOUND) & (high_E.abs() < _LARGEST_BOUND) & (high_E > low_E)
        self.register_buffer("_middle_E", torch.where(bounded_E, (low_E + high_E) / 2, 0), persistent=False)
        self.register_buffer("_scale_E", torch.where(bounded_E, (high_E - low_E) / 2, 1), persistent=False)
        self.first = nn.Linear(encoding.shape[0], hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self._add_heads(hidden_size, actions)
        _initialise(self, (self.first, 2**0.5), (self.hidden, 2**0.5))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the scaled numbers, float32 [B, E]."""
        numbers_BE = _numbers(obs_BK, torch.float32)
        scaled_BE: Tensor = (numbers_BE - self._middle_E) / self._scale_E  # type: ignore[operator]
        return scaled_BE

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        features_BH: Tensor = self.hidden(self.first(seen_BE).tanh()).tanh()
        return features_BH


class PictureNetwork(ActorCritic):
    """The network of pictures: convolutions; larger pictures are reduced to 84 pixels a side."""

    def __init__(self, encoding: Encoding, actions: int, hidden_size: int = 512) -> None:
        super().__init__()
        self._shape = encoding.shape
        self._channels_first = encoding.shape[0] < encoding.shape[2]
        channels, height, width = (
            encoding.shape if self._channels_first else (encoding.shape[2], *encoding.shape[:2])
        )
        self._reduced = tuple(min(side, _PICTURE_SIDE) for side in (height, width))
        if min(self._reduced) < _PICTURE_LEAST:
            layers = [nn.Conv2d(channels, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 1, 1)]
        else:
            layers = [nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        self.convolutions = nn.ModuleList(layers)
        with torch.no_grad():
            flat = self._convolved(torch.zeros(1, channels, *self._reduced)).shape[1]
        self.hidden = nn.Linear(flat, hidden_size)
        self._add_heads(hidden_size, actions)
        _initialise(self, *((layer, 2**0.5) for layer in layers), (self.hidden, 2**0.5))

    def perceive(self, obs_BK: Tensor) -> Tensor:
        """Returns the pictures, uint8 [B, channels, height, width], reduced."""
        pictures_BCHW = obs_BK.reshape(-1, *self._shape)
        if not self._channels_first:
            pictures_BCHW = pictures_BCHW.permute(0, 3, 1, 2)
        if self._reduced == pictures_BCHW.shape[2:]:
            return pictures_BCHW.contiguous()
        return nn.functional.interpolate(pictures_BCHW.float(), self._reduced, mode="area").byte()

    def features(self, seen_BE: Tensor) -> Tensor:
        """Returns the input of both heads [B, H]."""
        features_BH: Tensor = self.hidden(self._convolved(seen_BE.float() / 255)).relu()
        return features_BH

    def _convolved(self, pictures_BCHW: Tensor) -> Tensor:
        for layer in self.convolutions:
            pictures_BCHW = layer(pictures_BCHW).relu()
        return pictures_BCHW.flatten(1)


def _numbers(obs_BK: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the numbers of four bytes each that observations hold, [B, K / 4]."""
    return obs_BK.reshape(-1).clone().view(dtype).reshape(len(obs_BK), obs_BK.shape[1] // 4)


def _initialise(network: ActorCritic, *layers: tuple[nn.Linear | nn.Conv2d, float]) -> None:
    """Makes weights orthogonal, times a gain; the first policy is nearly even."""
    for layer, gain in (*layers, (network.actor, 0.01), (network.critic, 1.0)):
        nn.init.orthogonal_(layer.weight, gain)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


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
