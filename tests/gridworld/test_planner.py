"""The planner against exhaustive search of the environments themselves, and against real play."""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid

from gridworld.planner import TEMPERATURE, NoPlan, plan
from gridworld.problems import MOST_STATES, puzzle_of
from gridworld.tasks import ACTIONS, ALL_TASKS, task_of
from gridworld.views import EMPTY, View, code, view_of

pytestmark = pytest.mark.unit

_SUCCESS, _FAILURE = "success", "failure"
_State = tuple[int, int, int, bytes, tuple[int, int, int] | None]
"""The agent's x, y, heading, the grid and what is carried as MiniGrid encodes them."""
_STILL = ("lava_gap", "fetch", "go_to_door", "go_to_object")
"""Tasks in whose environments only the agent moves."""
_CHANGING = {"go_to_object": ("pickup", "drop"), "put_near": ("toggle",)}
"""Actions that would carry targets away or destroy them; MiniGrid calls them unused."""
_WALL, _GOAL, _LAVA, _BALL = (
    code(*names) for names in (("wall", "grey"), ("goal", "green"), ("lava", "red"), ("ball", "blue"))
)


def _world(env_id: str, seed: int = 0, **settings: Any) -> Any:
    env = gymnasium.make(env_id, **settings).unwrapped
    env.reset(seed=seed)
    return env


def _state(env: Any) -> _State:
    x, y = env.agent_pos
    carried = None if env.carrying is None else env.carrying.encode()
    return int(x), int(y), int(env.agent_dir), env.grid.encode().tobytes(), carried


@dataclass
class _Graph:
    """The outcome of every action in every reachable state of an environment."""

    start: _State
    views: dict[_State, View]
    after: dict[_State, dict[str, _State | str]]
    lost_in: list[View]
    """The outcome of an episode that ended in failure."""

    def steps(self, actions: Iterable[str]) -> dict[_State | str, float]:
        """The fewest steps to success from each state with these actions alone, by Bellman's equation."""
        allowed = tuple(actions)
        steps: dict[_State | str, float] = {_SUCCESS: 0.0, _FAILURE: math.inf}
        steps |= dict.fromkeys(self.after, math.inf)
        improved = True
        while improved:
            improved = False
            for state, after in self.after.items():
                fewest = 1 + min((steps[after[action]] for action in allowed), default=math.inf)
                improved |= fewest < steps[state]
                steps[state] = fewest
        return steps


def _explored(env: Any) -> tuple[str, ...]:
    """The actions of the environment, except those that change its targets."""
    left_out = _CHANGING.get(task_of(env.spec.id).key, ())
    return tuple(name for name in ACTIONS[: env.action_space.n] if name not in left_out)


def _explore(env: Any) -> _Graph:
    """Takes every action in every state, each in a copy of the environment."""
    names = _explored(env)
    graph = _Graph(_state(env), {_state(env): view_of(env)}, {}, [])
    waiting = [env]
    while waiting:
        here = waiting.pop()
        outcomes: dict[str, _State | str] = {}
        for name in names:
            fixed = (here.np_random, here.observation_space, here.action_space, here.spec)
            there = copy.deepcopy(here, {id(part): part for part in fixed})
            there.step_count = 0  # running out of time is not what is planned for
            _, reward, terminated, _, _ = there.step(ACTIONS.index(name))
            state = _state(there)
            if terminated:
                outcomes[name] = _SUCCESS if reward > 0 else _FAILURE
                if reward <= 0:
                    graph.lost_in.append(view_of(there))
                continue
            outcomes[name] = state
            if state not in graph.views:
                graph.views[state] = view_of(there)
                waiting.append(there)
        graph.after[_state(here)] = outcomes
    return graph


def _assert_follows(graph: _Graph, task: str, mission: str, actions: tuple[str, ...]) -> int:
    """Compares every state's probabilities with the search; returns the number of states."""
    steps = graph.steps(set(actions) & set(ALL_TASKS[task].useful))
    for state, view in graph.views.items():
        if math.isinf(steps[state]):
            with pytest.raises(NoPlan) as caught:
                plan(view, task, mission, actions)
            assert caught.value.field == "actions"
            continue
        probabilities = plan(view, task, mission, actions).probabilities
        assert tuple(probabilities) == actions
        weights = {
            action: math.exp(-(1 + steps[graph.after[state][action]] - steps[state]) / TEMPERATURE)
            if action in ALL_TASKS[task].useful
            else 0.0
            for action in actions
        }
        expected = {action: weight / sum(weights.values()) for action, weight in weights.items()}
        assert probabilities == pytest.approx(expected, abs=1e-12), (view, expected)
        best = {action for action, p in probabilities.items() if p == max(probabilities.values())}
        assert best == {action for action, weight in weights.items() if weight == 1.0}
        never = {action for action, p in probabilities.items() if p == 0}
        assert never == {action for action, weight in weights.items() if weight == 0}
    return len(graph.views)


_CHANGED = [
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-KeyCorridorS3R1-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
]
"""Environments in which the agent changes the grid: each has many states."""
_STATIC = [
    *((env_id, {}, 3) for task in _STILL for env_id in ALL_TASKS[task].env_ids),
    ("MiniGrid-Dynamic-Obstacles-Random-6x6-v0", {"n_obstacles": 0}, 3),
    *((env_id, {}, 1) for env_id in _CHANGED),
]


@pytest.mark.parametrize(("env_id", "settings", "seeds"), _STATIC)
def test_costs_are_those_of_an_exhaustive_search(env_id: str, settings: dict[str, int], seeds: int) -> None:
    task = task_of(env_id)
    for seed in range(seeds):
        env = _world(env_id, seed, **settings)
        graph = _explore(env)
        everything = graph.steps(_explored(env))
        assert everything == graph.steps(task.useful), "the other actions shorten no way"
        assert math.isfinite(everything[graph.start])
        assert _assert_follows(graph, task.key, env.mission, task.useful) > 8
        if env.action_space.n == len(ACTIONS):
            _assert_follows(graph, task.key, env.mission, ACTIONS)


@pytest.mark.parametrize("env_id", [ALL_TASKS[key].env_ids[0] for key in _STILL])
def test_every_choice_of_actions_is_planned_with_those_alone(env_id: str) -> None:
    task = task_of(env_id)
    env = _world(env_id, seed=1)
    graph = _explore(env)
    for size in range(1, len(task.useful)):
        for actions in itertools.combinations(task.useful, size):
            _assert_follows(graph, task.key, env.mission, (*actions, "drop"))


def test_one_step_more_than_the_best_gets_a_twentieth_of_its_weight() -> None:
    assert math.exp(-1 / TEMPERATURE) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("env_id", [task.env_ids[0] for task in ALL_TASKS.values()])
def test_probabilities_have_the_order_of_the_actions(env_id: str) -> None:
    env, task = _world(env_id), task_of(env_id)
    usual = plan(view_of(env), task.key, env.mission, ACTIONS).probabilities
    assert sum(usual.values()) == pytest.approx(1)
    assert all(usual[action] == 0 for action in set(ACTIONS) - set(task.useful))
    rng = np.random.default_rng(0)
    for _ in range(10):
        order = [str(action) for action in rng.permutation(ACTIONS)]
        asked = plan(view_of(env), task.key, env.mission, order).probabilities
        assert list(asked) == order
        assert asked == pytest.approx(usual)


def _fetched(env: Any) -> tuple[str, str]:
    return env.targetType, env.targetColor


_SOUGHT: dict[str, Callable[[Any], tuple[str, str]]] = {
    "fetch": _fetched,
    "go_to_door": lambda env: ("door", env.target_color),
    "go_to_object": lambda env: (env.targetType, env.target_color),
}
"""The kind and colour of each task's target in an environment."""


@pytest.mark.parametrize("env_id", [env_id for key in _SOUGHT for env_id in ALL_TASKS[key].env_ids])
def test_the_analysis_names_what_the_environment_holds(env_id: str) -> None:
    for seed in range(3):
        env, task = _world(env_id, seed), task_of(env_id)
        analysis = plan(view_of(env), task.key, env.mission, task.useful).analysis
        x, y = env.agent_pos
        facing = {(1, 0): "right", (0, 1): "down", (-1, 0): "left", (0, -1): "up"}[tuple(env.dir_vec)]
        assert f"Agent: column {x}, row {y}, facing {facing}." in analysis
        kind, colour = _SOUGHT[task.key](env)
        assert f"the {colour} {kind} at " in analysis
        places = {
            (i, j)
            for i, j in itertools.product(range(env.width), range(env.height))
            if (thing := env.grid.get(i, j)) and (thing.type, thing.color) == (kind, colour)
        }
        target = analysis.split("Target: ")[1].split(".")[0]
        assert {(int(i), int(j)) for i, j in re.findall(r"column (\d+), row (\d+)", target)} == places
        graph = _explore(env)
        assert f"about {graph.steps(task.useful)[graph.start]:.0f} steps" in analysis


def test_the_analysis_names_the_hazards() -> None:
    env = _world("MiniGrid-LavaGapS5-v0")
    hazards = plan(view_of(env), "lava_gap", env.mission, ACTIONS).analysis.split("Hazards: ")[1]
    column, gap = env.gap_pos
    rows = [row for row in (1, 2, 3) if row != gap]
    assert hazards.startswith(", ".join(f"column {column}, row {row}" for row in rows) + ".")


@pytest.mark.parametrize("syntax", ["get a", "go get a", "fetch a", "go fetch a", "you must fetch a"])
@pytest.mark.parametrize("kind", ["key", "ball"])
def test_every_mission_of_fetch_is_understood(syntax: str, kind: str) -> None:
    for colour in COLOR_NAMES:
        cells_HW = _room("A..", "...")
        cells_HW[1, 2] = code(kind, colour)
        cells_HW[2, 1] = code("ball" if kind == "key" else "key", colour)
        planned = plan(View(cells_HW, 1, 1, 0), "fetch", f"{syntax} {colour} {kind}", ("pickup", "right"))
        assert planned.probabilities["pickup"] > 0.9
        planned = plan(View(cells_HW, 1, 1, 1), "fetch", f"{syntax} {colour} {kind}", ("pickup", "left"))
        assert planned.probabilities["pickup"] == 0, "it would be another object"


@pytest.mark.parametrize(
    "task", [key for key, task in ALL_TASKS.items() if task.carries and key != "put_near"]
)
def test_a_grid_with_many_doors_and_things_is_planned_in_bounded_time(task: str) -> None:
    rng = np.random.default_rng(0)
    crowd = [code("door", colour, state) for colour in ("red", "blue") for state in (1, 2)]
    crowd += [code(kind, colour) for kind in ("key", "ball", "box") for colour in ("red", "blue")]
    mission = {"unlock": "open the green door", "door_key": "go"}.get(task, "pick up the green ball")
    cells_HW = rng.choice([EMPTY] * 40 + crowd, (50, 50)).astype(np.uint8)
    cells_HW[[0, -1]] = cells_HW[:, [0, -1]] = _WALL
    cells_HW[1:4, 1:4] = EMPTY
    cells_HW[48, 1:4] = _GOAL, code("ball", "green"), code("door", "green", 1)
    problem = puzzle_of(View(cells_HW, 1, 1, 0), task, mission, ACTIONS).problem
    slots, cells = 1 + problem.holds.count(1), len(problem.enter) - problem.enter.count(0)
    assert cells * 4 * 2 ** len(problem.doors) * slots**problem.things <= MOST_STATES
    assert plan(View(cells_HW, 1, 1, 0), task, mission, ACTIONS).probabilities


_PLAYED = {
    "MiniGrid-GoToObject-6x6-N2-v0": 60,
    "MiniGrid-GoToObject-8x8-N2-v0": 60,
    "MiniGrid-DoorKey-8x8-v0": 10,
    "MiniGrid-Unlock-v0": 10,
    "MiniGrid-UnlockPickup-v0": 10,
    "MiniGrid-KeyCorridorS3R2-v0": 10,
    "MiniGrid-KeyCorridorS3R3-v0": 10,
    "MiniGrid-MultiRoom-N6-v0": 3,
    "MiniGrid-PutNear-8x8-N3-v0": 20,
    "MiniGrid-RedBlueDoors-8x8-v0": 10,
    "MiniGrid-FourRooms-v0": 10,
}
"""Episodes of each environment."""


@pytest.mark.parametrize("env_id", _PLAYED)
def test_the_path_has_the_planned_length_and_succeeds(env_id: str) -> None:
    task = task_of(env_id).key
    for seed in range(_PLAYED[env_id]):
        env = _world(env_id, seed)
        analysis = plan(view_of(env), task, env.mission, ACTIONS).analysis
        steps, ended = 0, False
        while not ended:
            best = plan(view_of(env), task, env.mission, ACTIONS).best[0]
            _, reward, terminated, truncated, _ = env.step(ACTIONS.index(best))
            steps, ended = steps + 1, terminated or truncated
        assert reward == pytest.approx(1 - 0.9 * steps / env.max_steps)
        assert f"about {steps} steps" in analysis


@pytest.mark.parametrize(
    "env_id",
    [
        "MiniGrid-DoorKey-8x8-v0",
        "MiniGrid-UnlockPickup-v0",
        "MiniGrid-BlockedUnlockPickup-v0",  # a ball lies in front of the door
        "MiniGrid-KeyCorridorS3R3-v0",
        "MiniGrid-KeyCorridorS4R3-v0",  # more doors than the search follows
    ],
)
def test_the_planner_succeeds_from_wherever_random_actions_lead(env_id: str) -> None:
    """Also where keys are put down in doorways."""
    task, rng = task_of(env_id), np.random.default_rng(0)
    for seed in range(3):
        env, reward, ended = _world(env_id, seed), 0.0, False
        for _ in range(60):
            front = env.grid.get(*env.front_pos)
            if front is None or front.type not in ("box", "ball"):  # the targets
                env.step(rng.choice(6))
        while not ended:
            best = plan(view_of(env), task.key, env.mission, ACTIONS).best[0]
            _, reward, terminated, truncated, _ = env.step(ACTIONS.index(best))
            ended = terminated or truncated
        assert reward > 0


@pytest.mark.parametrize(
    ("task", "mission", "things", "carried", "field", "said"),
    [
        ("unlock", "open the door", {}, None, "mission", "asks for the door, and the picture shows none"),
        ("unlock", "open the door", {(3, 1): ("door", "red", 0)}, None, "image", "the door is open"),
        ("unlock", "open the door", {(3, 1): ("door", "red", 2)}, None, "image", "no path leads to the door"),
        ("unlock", "open the door", {(3, 1): ("door", "red", 2)}, ("key", "blue"), "image", "no path leads"),
        ("unlock_pickup", "pick up the red box", {}, None, "mission", "asks for the 'red box'"),
        (
            "red_blue_doors",
            "open the red door then the blue door",
            {
                (3, 3): ("door", "red", 1),
                (2, 3): ("wall", "grey"),
                (3, 2): ("wall", "grey"),
                (1, 3): ("door", "blue", 1),
            },
            None,
            "image",
            "no path leads to the door that has to be open",
        ),
        (
            "put_near",
            "put the red ball near the blue box",
            {(3, 1): ("box", "blue")},
            ("key", "red"),
            "image",
            "carries another thing",
        ),
        (
            "put_near",
            "put the red ball near the blue box",
            {(3, 1): ("box", "blue")},
            None,
            "mission",
            "asks for the 'red ball'",
        ),
        (
            "red_blue_doors",
            "open the red door then the blue door",
            {(3, 1): ("door", "red", 1), (1, 3): ("door", "blue", 0)},
            None,
            "image",
            "the blue door is open",
        ),
    ],
)
def test_the_reason_for_no_plan_with_doors_and_things_is_named(
    task: str,
    mission: str,
    things: dict[tuple[int, int], tuple[Any, ...]],
    carried: tuple[str, str] | None,
    field: str,
    said: str,
) -> None:
    cells_HW = _room("A..", "...", "...")
    for (x, y), names in things.items():
        cells_HW[y, x] = code(*names)
    view = View(cells_HW, 1, 1, 0, carried and code(*carried))
    with pytest.raises(NoPlan, match=said) as caught:
        plan(view, task, mission, ACTIONS)
    assert caught.value.field == field


@pytest.mark.parametrize("env_id", ALL_TASKS["go_to_object"].env_ids)
def test_done_is_chosen_beside_the_object_and_not_diagonally_to_it(env_id: str) -> None:
    beside, diagonal = 0, 0
    for seed in range(10):
        start = _world(env_id, seed)
        column, row = start.target_pos
        for x, y in itertools.product(range(1, start.width - 1), range(1, start.height - 1)):
            if start.grid.get(x, y) is not None:
                continue
            away = abs(x - column), abs(y - row)
            beside, diagonal = beside + (sum(away) == 1), diagonal + (away == (1, 1))
            for heading in range(4):
                env = copy.deepcopy(start)
                env.agent_pos, env.agent_dir = (x, y), heading
                p = plan(view_of(env), "go_to_object", env.mission, ACTIONS).probabilities
                _, reward, terminated, _, _ = env.step(env.actions.done)
                assert terminated
                assert (p["done"] > 0) == (max(p.values()) == p["done"]) == (reward > 0) == (sum(away) == 1)
    assert beside
    assert diagonal


_MANY = {"MiniGrid-Dynamic-Obstacles-16x16-v0": 5}


@pytest.mark.parametrize("env_id", ALL_TASKS["dynamic_obstacles"].env_ids)
def test_sampled_play_among_obstacles_never_dies(env_id: str) -> None:
    rng = np.random.default_rng(7)
    blocked = 0
    for seed in range(_MANY.get(env_id, 40)):
        env = _world(env_id, seed)
        ended = False
        while not ended:
            probabilities = plan(view_of(env), "dynamic_obstacles", env.mission, ACTIONS[:3]).probabilities
            front = env.grid.get(*env.front_pos)
            occupied = front is not None and front.type != "goal"
            tried = copy.deepcopy(env)
            dies = tried.step(tried.actions.forward)[1] < 0
            assert (probabilities["forward"] == 0) == occupied == dies
            blocked += front is not None and front.type == "ball"
            _, reward, terminated, truncated, _ = env.step(rng.choice(3, p=list(probabilities.values())))
            ended = terminated or truncated
        assert reward > 0
    assert blocked, "no ball was ever in front: nothing was tried"


def test_a_ball_on_the_only_path_is_waited_for() -> None:
    cells_HW = _room("A.o.G")
    for x in (1, 2):
        planned = plan(View(cells_HW, x, 1, 0), "dynamic_obstacles", "", ACTIONS)
        assert (planned.probabilities["forward"] == 0) == (x == 2)
        assert planned.probabilities["left"] == planned.probabilities["right"] > 0


def test_a_ball_on_the_path_costs_less_than_a_step() -> None:
    right_to_forward = []
    for way in ("A..", "A.o"):
        view = View(_room(way, ".#.", "..G"), 1, 1, 0)
        probabilities = plan(view, "dynamic_obstacles", "", ACTIONS).probabilities
        right_to_forward.append(probabilities["right"] / probabilities["forward"])
    without, beside_a_ball = right_to_forward
    assert without < beside_a_ball < 1, "the other way is one step longer"


def _room(*rows: str) -> Any:
    """Cell codes, uint8 [H, W], of a drawn grid with walls around it; A is the agent's cell."""
    codes = {"A": EMPTY, ".": EMPTY, "#": _WALL, "G": _GOAL, "~": _LAVA, "o": _BALL}
    inner = np.array([[codes[sign] for sign in row] for row in rows], np.uint8)
    return np.pad(inner, 1, constant_values=_WALL)


@pytest.mark.parametrize("env_id", ALL_TASKS["lava_gap"].env_ids)
def test_there_is_nothing_to_plan_in_lava(env_id: str) -> None:
    env = _world(env_id)
    lost_in = _explore(env).lost_in
    assert lost_in
    for view in lost_in:
        with pytest.raises(NoPlan, match="stands in lava") as caught:
            plan(view, "lava_gap", env.mission, ACTIONS)
        assert caught.value.field == "image"


@pytest.mark.parametrize("task", ["lava_gap", "dynamic_obstacles"])
def test_there_is_nothing_to_plan_on_the_goal(task: str) -> None:
    for heading in range(4):
        with pytest.raises(NoPlan, match="on the goal already") as caught:
            plan(View(_room("A.G"), 3, 1, heading), task, "", ACTIONS)
        assert caught.value.field == "image"


def test_a_fetched_object_can_not_be_fetched_again() -> None:
    for seed in range(10):
        env = _world("MiniGrid-Fetch-5x5-N2-v0", seed)
        objects = {(thing.type, thing.color) for thing in env.grid.grid if thing and thing.type != "wall"}
        terminated = False
        while not terminated:
            p = plan(view_of(env), "fetch", env.mission, ACTIONS).probabilities
            _, reward, terminated, _, _ = env.step(ACTIONS.index(max(p, key=p.__getitem__)))
        assert reward > 0
        if len(objects) == 2:
            with pytest.raises(NoPlan, match=" ".join(reversed(_fetched(env)))) as caught:
                plan(view_of(env), "fetch", env.mission, ACTIONS)
            assert caught.value.field == "mission"


@pytest.mark.parametrize(
    ("task", "mission", "rows", "actions", "field"),
    [
        ("lava_gap", "", ("A..",), ACTIONS, "image"),
        ("dynamic_obstacles", "", ("A.o",), ACTIONS, "image"),
        ("lava_gap", "", ("A~G",), ACTIONS, "image"),
        ("lava_gap", "", ("A#G",), ACTIONS, "image"),
        ("dynamic_obstacles", "", ("A#G",), ACTIONS, "image"),
        ("fetch", "get a blue ball", ("A#o",), ACTIONS, "image"),
        ("fetch", "get a red ball", ("A.o",), ACTIONS, "mission"),
        ("fetch", "get a blue door", ("A.o",), ACTIONS, "mission"),
        ("fetch", "get a ball", ("A.o",), ACTIONS, "mission"),
        ("fetch", "", ("A.o",), ACTIONS, "mission"),
        ("go_to_door", "go to the red door", ("A.o",), ACTIONS, "mission"),
        ("go_to_door", "go to the door", ("A.o",), ACTIONS, "mission"),
        ("go_to_door", "go to the blue ball", ("A.o",), ACTIONS, "mission"),
        ("go_to_object", "go to the red ball", ("A.o",), ACTIONS, "mission"),
        ("go_to_object", "go to the blue door", ("A.o",), ACTIONS, "mission"),
        ("go_to_object", "go to the blue ball", ("A#.o",), ACTIONS, "image"),
        ("go_to_object", "go to the blue ball", ("Ao",), ACTIONS[:6], "actions"),
        ("lava_gap", "", ("A.G",), (), "actions"),
        ("lava_gap", "", ("A.G",), ("pickup", "drop", "toggle", "done"), "actions"),
        ("lava_gap", "", ("A.G",), ("left", "right"), "actions"),
        ("fetch", "get a blue ball", ("A.o",), ("left", "right", "forward", "done"), "actions"),
    ],
)
def test_the_reason_for_no_plan_is_named(
    task: str, mission: str, rows: tuple[str, ...], actions: tuple[str, ...], field: str
) -> None:
    with pytest.raises(NoPlan) as caught:
        plan(View(_room(*rows), 1, 1, 0), task, mission, actions)
    assert caught.value.field == field
    assert str(caught.value)


def test_missing_actions_are_named() -> None:
    with pytest.raises(NoPlan, match=r"with left, done; it needs left, right, forward"):
        plan(View(_room("A.G"), 1, 1, 0), "lava_gap", "", ("left", "done"))


def test_the_drawn_grid_is_solvable() -> None:
    """Guards the other tests: a drawn grid has walls, and without obstacles a plan."""
    grid = Grid(5, 3)
    grid.wall_rect(0, 0, 5, 3)
    assert (_room("A.G") == _WALL).sum() == sum(thing is not None for thing in grid.grid)
    assert plan(View(_room("A.G"), 1, 1, 0), "lava_gap", "", ["forward"]).probabilities == {"forward": 1.0}
    fetch = plan(View(_room("A.o"), 1, 1, 0), "fetch", "get a blue ball", ["forward", "pickup"])
    assert max(fetch.probabilities, key=fetch.probabilities.__getitem__) == "forward"


def _walled(*things: tuple[int, int, int], walls: str = "grey") -> View:
    """6 x 6 with the agent at (1, 1), facing right; things: x, y and cell code."""
    cells_HW = np.full((6, 6), EMPTY, np.uint8)
    cells_HW[[0, -1], :] = cells_HW[:, [0, -1]] = code("wall" if walls == "grey" else "goal", walls)
    for x, y, cell in things:
        cells_HW[y, x] = cell
    return View(cells_HW, 1, 1, 0)


_RED, _BLUE = (4, 1, code("goal", "red")), (1, 4, code("goal", "blue"))


@pytest.mark.parametrize(
    ("mission", "things", "walls", "best", "target"),
    [
        (
            "get to the red goal square",
            (_RED, _BLUE),
            "grey",
            "forward",
            "the red goal square at column 4, row 1",
        ),
        (
            "get to the blue goal square",
            (_RED, _BLUE),
            "grey",
            "right",
            "the blue goal square at column 1, row 4",
        ),
        ("go", ((1, 4, _GOAL), _RED), "grey", "right", "the green goal square at column 1, row 4"),
        ("go", (_BLUE,), "grey", "right", "the blue goal square at column 1, row 4"),
        ("go", (_BLUE, (4, 4, _GOAL)), "red", "forward", "the green goal square at column 4, row 4"),
    ],
)
def test_the_goal_is_the_one_that_the_mission_names(
    mission: str, things: tuple[tuple[int, int, int], ...], walls: str, best: str, target: str
) -> None:
    """Other goals end an episode, so the path avoids them."""
    for task in ("lava_gap", "dynamic_obstacles"):
        told = plan(_walled(*things, walls=walls), task, mission, ("left", "right", "forward"))
        assert told.best == (best,)
        assert f"Target: {target}." in told.analysis


def test_the_path_avoids_goals_of_other_colours() -> None:
    view = _walled((2, 1, code("goal", "blue")), (4, 1, code("goal", "red")))
    told = plan(view, "lava_gap", "get to the red goal square", ("left", "right", "forward"))
    assert told.probabilities["forward"] == 0
    assert "Hazards: column 2, row 1." in told.analysis


@pytest.mark.parametrize(
    ("mission", "things", "walls", "field", "said"),
    [
        ("go", (_RED, _BLUE), "grey", "mission", "does not say which goal: the picture shows red and blue"),
        ("not the red goal but the blue goal", (_RED, _BLUE), "grey", "mission", "does not say which goal"),
        ("get to the red goal square", (_BLUE,), "grey", "image", "shows no red goal square"),
        ("go", (), "grey", "image", "shows no green goal square"),
        ("go", ((4, 4, _GOAL),), "green", "image", "green squares on the edge of the grid"),
    ],
)
def test_no_goal_is_guessed(
    mission: str, things: tuple[tuple[int, int, int], ...], walls: str, field: str, said: str
) -> None:
    with pytest.raises(NoPlan, match=said) as caught:
        plan(_walled(*things, walls=walls), "lava_gap", mission, ("left", "right", "forward"))
    assert caught.value.field == field


@pytest.mark.parametrize("task", ["lava_gap", "go_to_object"])
def test_floor_tiles_are_walked_over(task: str) -> None:
    target = _RED if task == "lava_gap" else (4, 1, code("ball", "red"))
    floors = [(x, y, code("floor", "blue")) for x in (2, 3) for y in range(1, 5)]
    mission = "go to the red goal" if task == "lava_gap" else "go to the red ball"
    assert plan(_walled(target, *floors), task, mission, ACTIONS).best == ("forward",)
