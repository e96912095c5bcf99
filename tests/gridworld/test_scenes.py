"""Scenes against MiniGrid's own objects."""

import itertools

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import pytest

from gridworld.scenes import Scene
from gridworld.tasks import ALL_TASKS
from gridworld.views import HEADINGS, view_of

pytestmark = pytest.mark.unit

_KINDS: dict[str, tuple[str, ...]] = {
    "fetch": ("key", "ball"),
    "go_to_door": ("door",),
    "go_to_object": ("key", "ball", "box"),
    **dict.fromkeys(("unlock", "unlock_pickup", "key_corridor", "put_near", "red_blue_doors"), ()),
}
"""The kinds of hazards in tasks whose missions name an object: those that a mission does not name."""
_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def _scenes(task: str, seeds: range = range(30)) -> list[tuple[Scene, gymnasium.Env]]:
    found = []
    for seed in seeds:
        env = gymnasium.make(ALL_TASKS[task].env_ids[-1]).unwrapped
        env.reset(seed=seed)
        env.place_agent()
        found.append((Scene(task, env.mission, view_of(env)), env))
    return found


def _cells_of(env: gymnasium.Env, wanted: str) -> set[tuple[int, int]]:
    """The cells where MiniGrid has an object of a kind, or of a colour and kind."""
    grid = env.unwrapped.grid
    return {
        (y, x)
        for y in range(grid.height)
        for x in range(grid.width)
        if (thing := grid.get(x, y)) is not None and wanted in (thing.type, f"{thing.color} {thing.type}")
    }


@pytest.mark.parametrize("task", ALL_TASKS)
def test_agent_target_and_hazards_are_those_of_minigrid(task: str) -> None:
    for scene, env in _scenes(task):
        world = env.unwrapped
        assert scene.here == (world.agent_pos[1], world.agent_pos[0])
        assert scene.heading == HEADINGS[world.agent_dir]
        if task in _KINDS:
            sought = scene.mission.split()[-2:]
            assert scene.sought == " ".join(sought).removeprefix("the ")
            targets = _cells_of(env, scene.sought)
            others = {cell for kind in _KINDS[task] for cell in _cells_of(env, kind)} - targets
        else:
            targets = _cells_of(env, "goal")
            others = _cells_of(env, "lava" if task == "lava_gap" else "ball")
        assert set(scene.targets) == targets
        assert set(scene.hazards) == others


@pytest.mark.parametrize("task", ALL_TASKS)
def test_names_are_the_words_of_minigrid(task: str) -> None:
    for scene, env in _scenes(task):
        height, width = scene.view.cells_HW.shape
        for cell in itertools.product(range(height), range(width)):
            thing = env.unwrapped.grid.get(cell[1], cell[0])
            name = scene.name(cell)
            if thing is None:
                assert name == "free floor"
            elif thing.type in ("wall", "lava"):
                assert name == thing.type
            else:
                assert name.startswith(f"{thing.color} {thing.type}")
            assert cell in scene.cells(name)
            assert all((cell in scene.cells(word)) == name.endswith(word) for word in ("box", "red box"))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_direction_is_where_steps_of_the_agents_own_lead(task: str) -> None:
    headings = ["up", "right", "down", "left"]  # each to the right of the one before
    for scene, _ in _scenes(task):
        to_its_right = headings[(headings.index(scene.heading) + 1) % 4]
        (ahead_y, ahead_x), (right_y, right_x) = _MOVES[scene.heading], _MOVES[to_its_right]
        for target in scene.targets:
            down, across = target[0] - scene.here[0], target[1] - scene.here[1]
            ahead, aside = down * ahead_y + across * ahead_x, down * right_y + across * right_x
            words = ["ahead" if ahead > 0 else "behind"] if ahead else []
            words += ["right" if aside > 0 else "left"] if aside else []
            assert scene.direction(target) == ("-".join(words) or "here")


def test_scenes_have_the_same_key_when_they_are_the_same() -> None:
    (first, _), (again, _), (other, _) = (_scenes("fetch", range(n, n + 1))[0] for n in (3, 3, 4))
    assert first.key == again.key != other.key


def test_the_target_has_the_goals_colour() -> None:
    env = gymnasium.make("tests.student.custom_environments:Custom-TwoGoals-v0")
    env.reset()
    view = view_of(env)
    scene = Scene("lava_gap", "get to the red goal square", view)
    assert (scene.sought, scene.name((4, 4))) == ("red goal square", "red goal square")
    assert scene.name((1, 4)) == "blue goal square"
    assert scene.targets == [(4, 4)]
