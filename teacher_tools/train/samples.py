"""An endless stream of labelled states: the planner's labels for the task families, made from a seed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from minigrid.minigrid_env import MiniGridEnv

from gridworld.environments import actions_of, in_full, make
from gridworld.pictures import Picture, UnreadablePicture, draw, tile_size
from gridworld.planner import NoPlan, Plan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS, EVALUATION_SEEDS, family_of, task_key
from gridworld.views import EMPTY, STEPS, View, view_of
from teacher_api.command_line import CannotStart
from teacher_tools.train.outside import Outside, outside

MAX_SAMPLES_PER_EPISODE = 6
"""More samples of one episode would be nearly alike."""
MAX_STEPS = 40
"""Steps of an episode, at most."""
EXPERT_SHARES = (0.0, 0.5, 0.9, 1.0)
"""An episode draws one: the probability that a step is the expert's. All other steps are random."""
_RELOCATED = 0.5
"""The share of states whose agent is moved to another free cell, with any heading."""
_HIDDEN = 0.4
"""The share of relocated agents that get, where possible, a cell with a hazard between it and the target."""
_FACING = 0.5
"""The share of those agents that face a hazard, where one is beside them."""
MAX_WITHOUT = 100
"""Consecutive episodes without a labelled state, after which sampling fails."""
_MAX_STARTS = 1000
"""Starts that are tried to find one with several targets."""
_SEVERAL_TARGETS = {"fetch": 0.4}
"""The share of a task's episodes that start with several targets; by chance it is one in twelve."""
_OUTSIDE = 1 / 16
"""The share of states that are replaced by something that no training covers."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled state, as conversations are made of it.

    Attributes:
        analysis: the answer of stage 1.
        probabilities: of the task's actions.
        optimal: the most probable actions.
        view: the grid of MiniGrid's cells that the picture shows, if any: a model from scratch learns to read
            them one by one.
        targets, hazards: cells; of each other cell, such a model need not know which of them it is.
        front: the cell that `front` in the analysis is about, if it has one.
        learned: whether the analysis is learned; not where the picture shows something else.
    """

    task: str
    mission: str
    analysis: Mapping[str, Any]
    probabilities: Mapping[str, float]
    optimal: tuple[str, ...]
    picture: Picture
    view: View | None = None
    targets: tuple[Cell, ...] = ()
    hazards: tuple[Cell, ...] = ()
    front: Cell | None = None
    learned: bool = True


@dataclass(frozen=True, eq=False)
class Sample:
    """A labelled state of MiniGrid's kind.

    Attributes:
        scene: what the analysis is about.
        probabilities: the planner's, over the task's useful actions; with `outside`, all alike.
        optimal: the most probable actions; with `outside`, none.
        outside: what the picture shows instead of the scene, so that the analysis is not learned.
    """

    scene: Scene
    probabilities: dict[str, float]
    optimal: tuple[str, ...]
    outside: Outside | None = None

    @property
    def labelled(self) -> Labelled:
        """The state as conversations are made of it."""
        scene, outside = self.scene, self.outside
        known = (scene.task, scene.mission, analysis_of(scene), self.probabilities, self.optimal)
        if outside is not None:
            return Labelled(*known, outside.picture, outside.view, learned=False)
        column, row = scene.view.front
        roles = tuple(scene.targets), tuple(scene.hazards)
        return Labelled(*known, draw(scene.view), scene.view, *roles, front=(row, column))


def analysis_of(scene: Scene) -> dict[str, Any]:
    """Returns the correct analysis of a scene; of several targets it describes the nearest."""
    here = scene.here
    target = min(scene.targets, key=lambda cell: abs(cell[0] - here[0]) + abs(cell[1] - here[1]))
    return {
        "agent": {"row": here[0], "column": here[1], "heading": scene.heading},
        "target": {"name": scene.sought, "row": target[0], "column": target[1]},
        "hazards": [list(cell) for cell in scene.hazards],
        "front": scene.front,
        "direction": scene.direction(target),
    }


class Sampler:
    """Makes blocks of samples, each determined by the seed and the block's number alone.

    Episodes start from seeds below EVALUATION_SEEDS, so that no episode of an evaluation is among them. A
    state that occurs both here and in an evaluation is kept.

    Args:
        env_ids: registered environments, used in turn.
        task: the task's key for environments that belong to no task family.
        label: the expert, which has no plan for some scenes.

    Raises:
        UnknownEnvironment: an id is not registered.
        UnknownTask: an environment belongs to no task family and `task` is None.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        seed: int,
        task: str | None = None,
        label: Callable[[Scene], Plan | None] | None = None,
    ) -> None:
        self._label = label or planned
        self._environments = [
            (task_key(env_id, None if family_of(env_id) else task), env_id, make(env_id))
            for env_id in env_ids
        ]
        self._seed = seed

    def block(self, number: int, size: int, largest: int | None = None) -> list[Sample]:
        """Returns `size` samples; the environments take turns.

        Args:
            largest: leave out grids of more cells a side, if there are others.

        Raises:
            CannotStart: an environment fails, or the planner finds no plan in any of its states.
        """
        rng = np.random.default_rng([self._seed, number])
        small = [each for each in self._environments if largest is None or _side(each[2]) <= largest]
        streams = [
            _states(env_id, env, task, rng, self._label) for task, env_id, env in small or self._environments
        ]
        return [next(streams[i % len(streams)]) for i in range(size)]


def _states(
    env_id: str, env: Any, task: str, rng: np.random.Generator, label: Callable[[Scene], Plan | None]
) -> Iterator[Sample]:
    """Yields labelled states of one episode after another."""
    unplannable = 0
    while True:
        try:
            scenes = _episode(env, task, rng, label)
        except Exception as error:  # an environment can raise anything
            raise CannotStart(f"`env`: the environment {env_id!r} failed: {in_full(error)}") from error
        unplannable += 1
        for i in rng.permutation(len(scenes))[:MAX_SAMPLES_PER_EPISODE]:
            scene = scenes[i]
            if rng.random() < _RELOCATED:
                scene = replace(scene, view=_relocated(scene, rng))
            if (plan := label(scene)) is not None:
                unplannable = 0
                sample = Sample(scene, plan.probabilities, plan.best)
                yield _outside(sample, rng) if rng.random() < _OUTSIDE else sample
        if unplannable == MAX_WITHOUT:
            raise CannotStart(
                f"`env`: the planner found no plan in {MAX_WITHOUT} episodes of {env_id} as the task {task}"
            )


def _side(env: MiniGridEnv) -> int:
    """Returns the cells of the longer side."""
    return int(max(env.width, env.height))


def _outside(sample: Sample, rng: np.random.Generator) -> Sample:
    """Returns a sample whose picture shows something else, which the planner has no answer for."""
    scene, shown = sample.scene, outside(sample.scene, rng)
    try:
        tile_size(shown.picture)
    except UnreadablePicture:
        return sample
    if shown.view is not None and planned(replace(scene, view=shown.view)) is not None:
        return sample
    even = dict.fromkeys(sample.probabilities, 1 / len(sample.probabilities))
    return Sample(scene, even, (), shown)


def _episode(
    env: Any, task: str, rng: np.random.Generator, label: Callable[[Scene], Plan | None]
) -> list[Scene]:
    """Plays an episode in which some steps are the expert's; returns its scenes."""
    scene = _start(env, task, rng)
    share = rng.choice(EXPERT_SHARES)
    names = actions_of(env)
    useful, scenes = [action for action in ALL_TASKS[task].useful if action in names], []
    for _ in range(MAX_STEPS):
        scenes.append(scene)
        advised = label(scene) if rng.random() < share else None
        action = str(rng.choice(advised.best if advised is not None else useful))
        _, _, terminated, truncated, _ = env.step(names.index(action))
        if terminated or truncated:
            break
        scene = Scene(task, env.mission, view_of(env))
    return scenes


def _start(env: Any, task: str, rng: np.random.Generator) -> Scene:
    """Resets the environment; returns the first scene."""
    several = rng.random() < _SEVERAL_TARGETS.get(task, 0)
    for _ in range(_MAX_STARTS):
        env.reset(seed=int(rng.integers(EVALUATION_SEEDS)))
        scene = Scene(task, env.mission, view_of(env))
        if len(scene.targets) > 1 or not several:
            break
    return scene


def _relocated(scene: Scene, rng: np.random.Generator) -> View:
    """Returns the view with the agent in a random free cell that it can reach: never outside its room."""
    view = scene.view
    reached, frontier = {scene.here}, [scene.here]
    while frontier:
        row, column = frontier.pop()
        beside = {(row + dy, column + dx) for dx, dy in STEPS} - reached
        free = sorted(cell for cell in beside if view.cells_HW[cell] == EMPTY)
        reached.update(free)
        frontier += free
    places = sorted(reached)
    heading = int(rng.integers(4))
    if rng.random() < _HIDDEN:
        lines = list(product(scene.hazards, scene.targets))
        places = [place for place in places if any(_between(place, *line) for line in lines)] or places
        row, column = places[rng.integers(len(places))]
        facing = [i for i, (dx, dy) in enumerate(STEPS) if (row + dy, column + dx) in scene.hazards]
        if facing and rng.random() < _FACING:
            heading = int(rng.choice(facing))
    else:
        row, column = places[rng.integers(len(places))]
    return replace(view, x=column, y=row, heading=heading)


def _between(first: Cell, middle: Cell, last: Cell) -> bool:
    """Returns whether three cells lie on a straight line, in this order."""
    along, across = (0, 1) if first[1] == last[1] else (1, 0)
    in_line = first[across] == middle[across] == last[across]
    return in_line and min(first[along], last[along]) < middle[along] < max(first[along], last[along])


def planned(scene: Scene) -> Plan | None:
    """Returns the planner's answer, or None where no plan exists, as for a target behind walls."""
    try:
        return plan(scene.view, scene.task, scene.mission, ALL_TASKS[scene.task].useful)
    except NoPlan:
        return None
