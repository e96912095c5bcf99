"""Views against MiniGrid's own encoding of the grid and its agent."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES, COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from gridworld.tasks import ALL_TASKS, TASKS
from gridworld.views import (
    COLOURS,
    EMPTY,
    HEADINGS,
    KINDS,
    N_CELL_CODES,
    STEPS,
    Unobservable,
    View,
    code,
    encode_cells,
    uncode,
    view_of,
)
from tests.student.custom_environments import Coin, Ice, Star

pytestmark = pytest.mark.unit

_ENV_IDS = [
    env_id
    for task in ALL_TASKS.values()
    for env_id in (task.env_ids if task.key in TASKS else task.env_ids[:2])
]


def _minigrids_encoding(cells_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cell codes in the form of `Grid.encode`: uint8 [W, H, 3]."""
    rows = [[uncode(cell) for cell in row] for row in cells_HW.tolist()]
    return np.array(rows, np.uint8).swapaxes(0, 1)


def _assert_shows(view: View, world: Any) -> None:
    assert view.cells_HW.dtype == np.uint8
    np.testing.assert_array_equal(_minigrids_encoding(view.cells_HW), world.grid.encode())
    assert (view.x, view.y) == tuple(world.agent_pos)
    assert view.heading == world.agent_dir
    assert view.front == tuple(world.front_pos)


@pytest.mark.parametrize("env_id", _ENV_IDS)
def test_a_view_is_minigrids_encoding_at_every_step(env_id: str) -> None:
    with gymnasium.make(env_id) as env:
        env.action_space.seed(0)
        for seed in range(10):
            env.reset(seed=seed)
            _assert_shows(view_of(env), env.unwrapped)
            ended = False
            while not ended:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                _assert_shows(view_of(env.unwrapped), env.unwrapped)
                ended = terminated or truncated


def test_every_object_in_every_colour_and_state_has_minigrids_code() -> None:
    things: list[WorldObj | None] = [None, Goal(), Lava()]  # type: ignore[no-untyped-call]
    for colour in COLOR_NAMES:
        things += [Wall(colour), Floor(colour), Key(colour), Ball(colour), Box(colour)]  # type: ignore[no-untyped-call]
        things += [Door(colour, is_open=True), Door(colour), Door(colour, is_locked=True)]
    grid = Grid(3, len(things) // 3)
    assert len(things) == len(grid.grid)
    grid.grid = things
    cells_HW = np.frombuffer(encode_cells(grid), np.uint8).reshape(grid.height, grid.width)
    np.testing.assert_array_equal(_minigrids_encoding(cells_HW), grid.encode())
    assert len(set(cells_HW.ravel().tolist())) == len(things)


def test_codes_are_one_for_each_encoding() -> None:
    assert N_CELL_CODES <= 256, "a code is one byte"
    encodings = [
        (kind, colour, state)
        for kind in map(OBJECT_TO_IDX.__getitem__, KINDS)  # other packages add to MiniGrid's tables
        for colour in map(COLOR_TO_IDX.__getitem__, COLOURS)
        for state in STATE_TO_IDX.values()
    ]
    assert sorted(uncode(cell) for cell in range(N_CELL_CODES)) == sorted(encodings)
    for kind in KINDS:
        for colour in COLOURS:
            for state in STATE_TO_IDX.values():
                encoding = (OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], state)
                assert uncode(code(kind, colour, state)) == encoding
    assert uncode(EMPTY) == (OBJECT_TO_IDX["empty"], 0, 0), "as Grid.encode writes a cell without an object"


def test_kinds_and_colours_are_minigrids_and_stay_so_when_others_add_to_them() -> None:
    assert dict(zip(KINDS, range(11), strict=True)).items() <= OBJECT_TO_IDX.items()
    assert dict(zip(COLOURS, range(6), strict=True)).items() <= COLOR_TO_IDX.items()


def test_what_is_none_of_minigrids_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECT_TO_IDX, "ice", 11)
    monkeypatch.setitem(COLOR_TO_IDX, "orange", 6)
    refused = {
        "a blue ice is none of MiniGrid's": Ice(),
        "an orange ball is none of MiniGrid's": Ball("orange"),
        r"Star, a red ball, has its own render\(\)": Star("red"),
    }
    grid = Grid(3, 3)
    for said, thing in refused.items():
        grid.grid[4] = thing
        with pytest.raises(Unobservable, match=said) as caught:
            encode_cells(grid)
        assert "\n" not in str(caught.value)
    grid.grid[4] = Coin("red")  # of another class, and drawn as MiniGrid draws a ball
    assert encode_cells(grid)[4] == code("ball", "red")
    lava = Lava()  # type: ignore[no-untyped-call]
    lava.color = "blue"
    grid.grid[4] = lava
    assert encode_cells(grid)[4] == code("lava", "red"), "it is the same picture"


def test_headings_are_minigrids() -> None:
    np.testing.assert_array_equal(STEPS, DIR_TO_VEC)
    named = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}
    assert tuple(named[name] for name in HEADINGS) == STEPS


class _Oblong(MiniGridEnv):
    """A grid that is wider than high; no family has one."""

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.put_obj(Goal(), width - 2, 1)
        self.put_obj(Door("blue"), 0, height - 2)
        self.agent_pos, self.agent_dir = (3, height - 2), 3


def test_rows_and_columns_of_an_oblong_grid() -> None:
    env = _Oblong(MissionSpace(lambda: "look"), width=9, height=4, max_steps=9)
    env.reset()
    view = view_of(env)
    assert view.cells_HW.shape == (4, 9)
    assert view.cells_HW[1, 7] == code("goal", "green")
    _assert_shows(view, env)


def test_a_view_does_not_change_with_the_environment() -> None:
    with gymnasium.make("MiniGrid-Dynamic-Obstacles-5x5-v0") as env:
        env.reset(seed=0)
        before = view_of(env)
        copy = View(before.cells_HW.copy(), before.x, before.y, before.heading)
        env.step(0)
        assert before == copy
        assert view_of(env) != before


def test_views_are_equal_when_every_part_is() -> None:
    cells_HW = np.full((3, 4), EMPTY, np.uint8)
    other_HW = cells_HW.copy()
    other_HW[2, 1] = code("lava", "red")
    view = View(cells_HW, 1, 2, 3)
    assert view == View(cells_HW.copy(), 1, 2, 3)
    different = [
        View(other_HW, 1, 2, 3),
        View(cells_HW.reshape(4, 3), 1, 2, 3),
        View(cells_HW, 2, 2, 3),
        View(cells_HW, 1, 1, 3),
        View(cells_HW, 1, 2, 0),
        View(cells_HW, 1, 2, 3, code("key", "red")),
    ]
    assert all(view != other for other in different)
    assert view != (cells_HW, 1, 2, 3)
