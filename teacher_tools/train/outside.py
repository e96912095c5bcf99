"""States that no training covers: a teacher learns from them to give all actions the same probability."""

from dataclasses import dataclass, replace

import numpy as np

from gridworld.pictures import TILE, Picture, draw
from gridworld.scenes import Scene
from gridworld.views import COLOURS, EMPTY, View, code

OTHER_COLOURS = ((1, 0, 2), (2, 1, 0), (2, 0, 1), (1, 2, 0))
"""Exchanged colour channels: those permutations that leave no agent red."""
_THINGS = np.array(
    [code("wall", "grey"), code("lava")]
    + [code(kind, colour) for kind in ("goal", "floor", "ball", "key", "box") for colour in COLOURS[:-1]]
    + [code("door", colour, state) for colour in COLOURS for state in range(3)],
    np.uint8,
)
_CLUTTER = 0.5
"""The share of cells that get a random thing in a cluttered grid."""


@dataclass(frozen=True, eq=False)
class Outside:
    """What is shown instead of a scene.

    Attributes:
        picture: the picture.
        view: the grid that it shows; None: the picture shows no grid of MiniGrid's.
    """

    picture: Picture
    view: View | None


def outside(scene: Scene, rng: np.random.Generator) -> Outside:
    """Returns one of five kinds of pictures, at random.

    They are: tiles of noise; exchanged colours; and the scene's grid with random things in it, without its
    target, or with a wall and a closed door between agent and target.

    The planner can have an answer for a changed grid, and a picture can be one that prompt sets refuse.
    """
    kind = rng.integers(5)
    if kind == 0:
        return Outside(_noise(scene.view, rng), None)
    if kind == 1:
        return Outside(draw(scene.view)[..., list(rng.choice(OTHER_COLOURS))].copy(), None)
    change = (_cluttered, _without_target, _divided)[kind - 2]
    view = replace(scene.view, cells_HW=change(scene, rng))
    return Outside(draw(view), view)


def _noise(view: View, rng: np.random.Generator) -> Picture:
    """Returns the picture with squares of random colours, up to a tile in size, in place of some tiles."""
    side = int(rng.choice((1, 4, 14, TILE)))
    height, width = (cells * TILE // side for cells in view.cells_HW.shape)
    squares = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
    noise = squares.repeat(side, 0).repeat(side, 1)
    kept_HW = (view.cells_HW == EMPTY) & (rng.random(view.cells_HW.shape) < rng.uniform(0.1, 0.6))
    return np.where(kept_HW.repeat(TILE, 0).repeat(TILE, 1)[..., None], draw(view), noise)


def _cluttered(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    cells_HW = scene.view.cells_HW.copy()
    random_HW = rng.random(cells_HW.shape) < _CLUTTER
    random_HW[scene.here] = False
    cells_HW[random_HW] = rng.choice(_THINGS, random_HW.sum())
    return cells_HW


def _without_target(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    cells_HW = scene.view.cells_HW.copy()
    for cell in scene.targets:
        cells_HW[cell] = EMPTY
    return cells_HW


def _divided(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    cells_HW = scene.view.cells_HW.copy()
    target = scene.targets[0]
    across = [axis for axis in (0, 1) if abs(scene.here[axis] - target[axis]) > 1]
    if across:
        axis = int(rng.choice(across))
        first, last = sorted((scene.here[axis], target[axis]))
        line = cells_HW.swapaxes(0, axis)[int(rng.integers(first + 1, last))]
        line[:] = code("wall", "grey")
        line[rng.integers(1, len(line) - 1)] = code("door", str(rng.choice(COLOURS)), int(rng.integers(1, 3)))
    return cells_HW
