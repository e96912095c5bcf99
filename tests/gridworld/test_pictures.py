"""Pictures against MiniGrid's own renderer, and read back: exact ones, lossy ones, unreadable ones."""

import io
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from PIL import Image

from gridworld.pictures import (
    TILE,
    TILE_SIZES,
    Picture,
    UnreadablePicture,
    draw,
    encode_png,
    read,
    tile_size,
    without_highlights,
)
from gridworld.tasks import ALL_TASKS, TASKS
from gridworld.tiles import tile_picture
from gridworld.views import EMPTY, PICKABLE, View, code, encode_cells, view_of
from tests.student.custom_environments import Star

pytestmark = pytest.mark.unit

_ENV_IDS = [
    env_id
    for task in ALL_TASKS.values()
    for env_id in (task.env_ids if task.key in TASKS else task.env_ids[:2])
]
_ONE_OF_EACH = [
    "MiniGrid-LavaGapS7-v0",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-Fetch-8x8-N3-v0",
    "MiniGrid-GoToDoor-8x8-v0",
]


def _world(env_id: str, seed: int = 0) -> Any:
    """An environment that never stops, at the start of an episode."""
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=seed)
    return env


def _random_episode(env_id: str, seed: int) -> list[View]:
    """The views of an episode of at most 40 random actions."""
    rng = np.random.default_rng(seed)
    env = _world(env_id, seed)
    views = [view_of(env)]
    for _ in range(40):
        _, _, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        views.append(view_of(env))
        if terminated or truncated:
            break
    return views


def _things() -> dict[int, WorldObj | None]:
    """MiniGrid's objects by cell code."""
    things: dict[int, WorldObj | None] = {EMPTY: None, code("lava"): Lava()}  # type: ignore[no-untyped-call]
    for colour in COLOR_NAMES:
        for made_of in (Wall, Floor, Goal, Ball, Key):
            things[code(made_of.__name__.lower(), colour)] = made_of(colour)
        things[code("box", colour)] = Box(colour, contains=Ball("red"))
        for state in range(3):
            things[code("door", colour, state)] = Door(colour, is_open=state == 0, is_locked=state == 2)
    return things


def _gallery(*without: int) -> tuple[View, Grid]:
    """A view with all these objects side by side and the agent in a free cell, and MiniGrid's grid of it."""
    cells = [cell for cell in _things() if cell not in without]
    cells += [EMPTY] * (-len(cells) % 8 or 8)
    grid = Grid(8, len(cells) // 8)
    grid.grid = [_things()[cell] for cell in cells]
    cells_HW = np.array(cells, np.uint8).reshape(grid.height, grid.width)
    return View(cells_HW, 7, grid.height - 1, 0), grid


def _alike() -> list[int]:
    """Cell codes that are read as another: walls and goals of one colour have the same picture."""
    return [code("wall", colour) for colour in COLOR_NAMES if colour != "grey"] + [code("goal", "grey")]


def _rendered(view: View, tile: int) -> Picture:
    """MiniGrid's own picture of a view of any shape."""
    height, width = view.cells_HW.shape
    grid = Grid(width, height)
    grid.grid = [_things()[cell] for cell in view.cells_HW.ravel().tolist()]
    return grid.render(tile, agent_pos=(view.x, view.y), agent_dir=view.heading)


def _jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("tile", [8, TILE])
@pytest.mark.parametrize(
    "env_id", [*_ENV_IDS, "MiniGrid-ObstructedMaze-1Dlhb-v0", "MiniGrid-RedBlueDoors-6x6-v0"]
)
def test_the_picture_is_minigrids_frame(env_id: str, tile: int) -> None:
    rng = np.random.default_rng(1)
    env = _world(env_id, seed=3)
    for _ in range(4):
        frame = env.get_frame(highlight=False, tile_size=tile)
        picture = draw(view_of(env), tile)
        assert picture.dtype == frame.dtype
        np.testing.assert_array_equal(picture, frame)
        env.step(rng.choice([0, 1, 2]))


def test_a_tile_has_28_pixels_by_default() -> None:
    env = _world("MiniGrid-LavaGapS5-v0")
    np.testing.assert_array_equal(draw(view_of(env)), env.get_frame(highlight=False, tile_size=28))


@pytest.mark.parametrize("tile", [8, 11])
@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 8), (9, 4), (7, 12)])
def test_oblong_views_are_drawn_and_read(height: int, width: int, tile: int) -> None:
    rng = np.random.default_rng(height * width)
    cells_HW = rng.choice([EMPTY, EMPTY, code("wall", "grey"), code("key", "blue")], (height, width))
    cells_HW[height - 1, width - 1] = cells_HW[0, 0] = EMPTY
    view = View(cells_HW.astype(np.uint8), width - 1, height - 1, 2)
    picture = draw(view, tile)
    assert picture.shape == (height * tile, width * tile, 3)
    np.testing.assert_array_equal(picture, _rendered(view, tile))
    assert read(picture) == view


@pytest.mark.parametrize(("tile", "seen"), [(8, False), (9, True)])
def test_all_that_minigrid_draws_is_drawn_pixel_for_pixel(tile: int, seen: bool) -> None:
    for cell, thing in _things().items():
        for heading in (None, 0, 1, 2, 3):
            theirs = Grid.render_tile(thing, agent_dir=heading, highlight=seen, tile_size=tile)
            np.testing.assert_array_equal(tile_picture(cell, heading, tile, seen), theirs.astype(np.uint8))


def test_a_view_of_all_things_is_drawn_as_minigrid_does() -> None:
    view, grid = _gallery()
    assert encode_cells(grid) == view.cells_HW.tobytes()
    np.testing.assert_array_equal(draw(view, 12), grid.render(12, (view.x, view.y), view.heading))


def test_tiles_of_other_packages_are_not_used() -> None:
    """MiniGrid keeps tiles by type, colour and state alone."""
    white = Star("purple")
    Grid.render_tile(white, tile_size=10)
    assert (Grid.render_tile(Ball("purple"), tile_size=10) == 255).any()
    assert not (tile_picture(code("ball", "purple"), None, 10) == 255).any()


@pytest.mark.parametrize("tile", [8, 9, 13, 28])
def test_objects_are_distinguished(tile: int) -> None:
    view, _ = _gallery(*_alike())
    assert read(draw(view, tile)) == view


@pytest.mark.parametrize("colour", COLOR_NAMES)
def test_a_square_of_one_colour_is_a_goal_or_a_grey_wall(colour: str) -> None:
    for kind in ("wall", "goal"):
        cells_HW = np.full((3, 4), EMPTY, np.uint8)
        cells_HW[1, 1] = code(kind, colour)
        read_as = read(draw(View(cells_HW, 3, 1, 0), 12)).cells_HW[1, 1]
        assert read_as == code("wall" if colour == "grey" else "goal", colour)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("heading", range(4))
def test_the_agent_is_read_with_what_it_stands_on(heading: int, seen: bool) -> None:
    for cell, thing in _things().items():
        if thing is not None and (thing.type == "wall" or cell == code("goal", "red")):
            continue  # nobody stands in a wall, and on a red goal the red agent cannot be seen
        cells_HW = np.full((3, 4), EMPTY, np.uint8)
        cells_HW[1, 2] = cell
        view = View(cells_HW, 2, 1, heading)
        picture = draw(view, 10)
        if seen:
            picture[10:20, 20:30] = tile_picture(cell, heading, 10, highlighted=True)
        assert read(picture) == view


@pytest.mark.parametrize("tile", [*range(8, 24), 27, 32, 64])
def test_the_tile_size_is_detected(tile: int) -> None:
    assert tile in TILE_SIZES
    view = view_of(_world("MiniGrid-LavaGapS6-v0", seed=tile))
    assert tile_size(draw(view, tile)) == tile
    assert read(draw(view, tile)) == view


@pytest.mark.parametrize("tile", [8, 14, TILE])
@pytest.mark.parametrize("env_id", _ENV_IDS)
def test_every_state_of_random_play_is_read_back(env_id: str, tile: int) -> None:
    for seed in range(4):
        for view in _random_episode(env_id, seed):
            assert read(draw(view, tile)) == view


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("tile", TILE_SIZES)
def test_what_is_carried_is_drawn_and_read_at_every_size(tile: int, seen: bool) -> None:
    view = view_of(_world("MiniGrid-DoorKey-5x5-v0"))
    for carried in PICKABLE:
        carrying = replace(view, carried=carried)
        picture = draw(carrying, tile)
        np.testing.assert_array_equal(picture[:tile, :tile], tile_picture(carried, None, tile))
        rest = draw(view, tile)
        rest[:tile, :tile] = picture[:tile, :tile]
        np.testing.assert_array_equal(picture, rest)
        if seen:
            picture[:tile, :tile] = tile_picture(carried, None, tile, highlighted=True)
            assert read(without_highlights(picture)) == carrying
        assert read(picture) == carrying


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("tile", [20, 28, 32])
def test_what_is_carried_is_read_from_a_jpeg(tile: int, quality: int) -> None:
    view = view_of(_world("MiniGrid-Empty-5x5-v0"))
    for carried in PICKABLE:
        carrying = replace(view, carried=carried)
        assert read(_jpeg(draw(carrying, tile), quality)) == carrying


def test_without_a_corner_of_grey_walls_an_object_there_is_not_carried() -> None:
    cells_HW = np.full((3, 4), EMPTY, np.uint8)
    view = View(cells_HW, 2, 1, 0)
    np.testing.assert_array_equal(draw(replace(view, carried=code("key", "red"))), draw(view))
    cells_HW[0, 0] = code("key", "red")
    assert read(draw(view)) == view


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("tile", [16, 28, 32])
@pytest.mark.parametrize("env_id", _ONE_OF_EACH)
def test_a_jpeg_is_read(env_id: str, tile: int, quality: int) -> None:
    for seed in range(4):
        for view in _random_episode(env_id, seed)[:3]:
            picture = draw(view, tile)
            lossy = _jpeg(picture, quality)
            assert (lossy != picture).any()
            assert tile_size(lossy) == tile
            assert read(lossy) == view


@pytest.mark.parametrize("quality", [75, 90])
def test_every_object_is_read_from_a_jpeg(quality: int) -> None:
    view, _ = _gallery(*_alike())
    assert read(_jpeg(draw(view, 28), quality)) == view


@pytest.mark.parametrize(
    ("env_id", "tile"),
    [
        ("MiniGrid-LavaGapS6-v0", 8),
        ("MiniGrid-LavaGapS6-v0", 14),
        ("MiniGrid-Fetch-8x8-N3-v0", 8),
        ("MiniGrid-Dynamic-Obstacles-8x8-v0", 14),
    ],
)
def test_a_jpeg_of_too_small_tiles_is_refused_rather_than_misread(env_id: str, tile: int) -> None:
    for view in _random_episode(env_id, 0)[:3]:
        with pytest.raises(UnreadablePicture):
            read(_jpeg(draw(view, tile), 90))


@pytest.mark.parametrize("tile", [16, TILE])
@pytest.mark.parametrize(("column", "row"), [(0, 0), (3, 2), (5, 4), (2, 5)])
@pytest.mark.parametrize("paint", ["noise", "white", "magenta"])
def test_a_corrupted_tile_is_named_by_column_and_row(tile: int, column: int, row: int, paint: str) -> None:
    picture = draw(view_of(_world("MiniGrid-Fetch-6x6-N2-v0", seed=2)), tile)
    spoilt = picture[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
    colours = {"white": (255, 255, 255), "magenta": (255, 0, 255)}
    noise = np.random.default_rng(column).integers(0, 256, spoilt.shape)
    spoilt[:] = np.array(colours[paint]) if paint in colours else noise
    with pytest.raises(UnreadablePicture, match=rf"column {column}, row {row} "):
        read(picture)


@pytest.mark.parametrize(("kind", "colours"), [("key", ("blue", "purple")), ("ball", ("grey", "purple"))])
def test_a_tile_halfway_between_two_objects_is_neither(kind: str, colours: tuple[str, str]) -> None:
    pictures = []
    for colour in colours:
        cells_HW = np.full((3, 4), EMPTY, np.uint8)
        cells_HW[1, 2] = code(kind, colour)
        pictures.append(draw(View(cells_HW, 0, 0, 0), TILE))
    blend = np.mean(pictures, axis=0).astype(np.uint8)
    with pytest.raises(UnreadablePicture, match="column 2, row 1 "):
        read(blend)


def test_a_picture_without_an_agent_says_so() -> None:
    view = view_of(_world("MiniGrid-LavaGapS5-v0"))
    with pytest.raises(UnreadablePicture, match="no agent"):
        read(_rendered(View(view.cells_HW, -1, -1, 0), 16))


def test_two_agents_are_both_named() -> None:
    view = view_of(_world("MiniGrid-LavaGapS5-v0"))
    picture = draw(view, 16)
    picture[48:64, 16:32] = picture[16:32, 16:32]
    assert (view.x, view.y) == (1, 1)
    with pytest.raises(UnreadablePicture, match=r"2 agents \(column 1, row 1, column 1, row 3\)"):
        read(picture)


@pytest.mark.parametrize("tile", [8, 21, 28, 32])
@pytest.mark.parametrize("env_id", [*_ONE_OF_EACH, "MiniGrid-FourRooms-v0", "MiniGrid-Empty-5x5-v0"])
def test_gymnasiums_picture_is_read_and_loses_its_highlights(env_id: str, tile: int) -> None:
    rng = np.random.default_rng(tile)
    env: Any = gymnasium.make(env_id, render_mode="rgb_array", tile_size=tile).unwrapped
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(3):
            shown, view = env.render(), view_of(env)
            plain = env.get_frame(highlight=False, tile_size=tile)
            assert (shown != plain).any()
            assert read(shown) == view
            np.testing.assert_array_equal(without_highlights(shown), plain)
            if tile >= 21:
                np.testing.assert_array_equal(without_highlights(_jpeg(shown, 75)), plain)
            env.step(rng.choice([0, 1, 2]))


def test_a_picture_without_highlights_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    plain = draw(view_of(_world("MiniGrid-Fetch-8x8-N3-v0")), 28)
    pink = np.full_like(plain, 76)
    pink[..., 0] = 255  # what a highlighted agent looks like
    torn = _world("MiniGrid-Fetch-8x8-N3-v0").get_frame(tile_size=28)
    torn[30:40, 30:40] = 77
    for picture in (plain, _jpeg(plain, 75), rng.integers(0, 256, plain.shape, np.uint8), pink, torn):
        assert without_highlights(picture) is picture


@pytest.mark.parametrize("tile", [8, 28, 32])
@pytest.mark.parametrize("env_id", [*_ONE_OF_EACH, "MiniGrid-FourRooms-v0"])
def test_the_agents_own_view_is_refused_by_name(env_id: str, tile: int) -> None:
    env = _world(env_id)
    for seed in range(4):
        env.reset(seed=seed)
        with pytest.raises(UnreadablePicture, match=r"own view \(agent_pov\)"):
            read(env.get_frame(tile_size=tile, agent_pov=True))


@pytest.mark.parametrize("tile", [16, 28])
@pytest.mark.parametrize("env_id", _ONE_OF_EACH)
def test_the_tile_size_is_found_even_where_the_picture_is_no_view(env_id: str, tile: int) -> None:
    view = view_of(_world(env_id))
    spoilt = draw(view, tile)
    spoilt[tile : 2 * tile, : 2 * tile] = 255
    nobody = _rendered(View(view.cells_HW, -1, -1, 0), tile)
    for picture in (spoilt, nobody):
        assert tile_size(picture) == tile
        with pytest.raises(UnreadablePicture):
            read(picture)


@pytest.mark.parametrize(
    ("height", "width"),
    [(0, 0), (1, 1), (37, 37), (96, 97), (16, 96), (96, 16), (7 * 5, 7 * 5), (52 * 64, 52 * 64)],
)
def test_a_size_that_no_grid_has_is_refused(height: int, width: int) -> None:
    for question in (read, tile_size):
        with pytest.raises(UnreadablePicture, match=f"{width} x {height} pixels"):
            question(np.zeros((height, width, 3), np.uint8))


def test_other_pictures_are_refused() -> None:
    rng = np.random.default_rng(0)
    drawn = draw(view_of(_world("MiniGrid-LavaGapS5-v0")), 28)
    pictures = {
        "noise": rng.integers(0, 256, drawn.shape, np.uint8),
        "black": np.zeros_like(drawn),
        "white": np.full_like(drawn, 255),
        "grey, as a wall is": np.full_like(drawn, 100),
        "shifted by half a tile": np.roll(drawn, 14, axis=(0, 1)),
        "upside down": drawn[::-1].copy(),
        "blue and red exchanged": drawn[..., ::-1].copy(),
        "negative": 255 - drawn,
        "the agent's own view": _world("MiniGrid-LavaGapS5-v0").get_frame(tile_size=28, agent_pov=True),
    }
    for name, picture in pictures.items():
        try:
            view = read(picture)
        except UnreadablePicture:
            continue
        pytest.fail(f"{name}: read as {view}")


def test_png_is_lossless_and_the_same_every_time() -> None:
    env = _world("MiniGrid-GoToDoor-8x8-v0")
    pictures = [draw(view_of(env)), np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)]
    for picture in pictures:
        file = encode_png(picture)
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            np.testing.assert_array_equal(np.asarray(image), picture)
        assert encode_png(picture.copy()) == file
        changed = picture.copy()
        changed[-1, -1, 2] ^= 1
        assert encode_png(changed) != file
