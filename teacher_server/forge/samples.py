"""What is taught: endless states of the task families with the planner's labels, from a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from gridworld.environments import make
from gridworld.planner import NoPlan, Plan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ACTIONS, ALL_TASKS, EVALUATION_SEEDS, task_of
from gridworld.views import EMPTY, STEPS, View, view_of

_FROM_ONE_EPISODE = 6
"""Samples, at most: more would be much alike."""
_LONGEST = 40
"""Steps of an episode that is played for samples."""
_PLANNER_SHARES = (0.0, 0.5, 0.9, 1.0)
"""How likely steps are to be the planner's: an episode draws one; the other steps are drawn alike."""
_PLACED = 0.5
"""The share of states whose agent is put into another free cell, facing anywhere..."""
_HIDDEN = 0.4
"""... and of these the share that is put, if it can be, where a hazard stands between it and the target."""
_SEVERAL = {"fetch": 0.4}
"""The share of a task's episodes that start with more than one target: by chance, one in twelve has."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A scene, the planner's probabilities over its task's useful actions, and which of these are optimal."""

    scene: Scene
    probabilities: dict[str, float]
    optimal: tuple[str, ...]


class Sampler:
    """Blocks of samples, each a function of the seed and of its number alone.

    Episodes start from seeds below EVALUATION_SEEDS: none that a teacher or a student is evaluated on is
    among them. A state that both happen to meet is not left out.

    Args:
        env_ids: registered environments of the families, taken in turn.

    Raises:
        UnknownEnvironment: an id is none of theirs.
    """

    def __init__(self, env_ids: Sequence[str], seed: int) -> None:
        self._worlds = [(task_of(env_id).key, make(env_id)) for env_id in env_ids]
        self._seed = seed

    def block(self, number: int, size: int) -> list[Sample]:
        """Samples of all environments in turn, as many of each as of the others but for one."""
        rng = np.random.default_rng([self._seed, number])
        streams = [_states(env, task, rng) for task, env in self._worlds]
        return [next(streams[i % len(streams)]) for i in range(size)]


def _states(env: Any, task: str, rng: np.random.Generator) -> Iterator[Sample]:
    """Labelled states of one episode after the other."""
    while True:
        scenes = _episode(env, task, rng)
        for at in rng.permutation(len(scenes))[:_FROM_ONE_EPISODE]:
            scene = scenes[at]
            if rng.random() < _PLACED:
                scene = replace(scene, view=_placed(scene, rng))
            if (told := _planned(scene)) is not None:
                yield Sample(scene, told.probabilities, told.best)


def _episode(env: Any, task: str, rng: np.random.Generator) -> list[Scene]:
    """The scenes of an episode in which some of the steps are the planner's."""
    scene = _start(env, task, rng)
    share = rng.choice(_PLANNER_SHARES)
    useful, scenes = ALL_TASKS[task].useful, []
    for _ in range(_LONGEST):
        scenes.append(scene)
        told = _planned(scene) if rng.random() < share else None
        action = str(rng.choice(told.best if told is not None else useful))
        _, _, terminated, truncated, _ = env.step(ACTIONS.index(action))
        if terminated or truncated:
            break
        scene = Scene(task, env.mission, view_of(env))
    return scenes


def _start(env: Any, task: str, rng: np.random.Generator) -> Scene:
    """An episode's first scene."""
    several = rng.random() < _SEVERAL.get(task, 0)
    while True:
        env.reset(seed=int(rng.integers(EVALUATION_SEEDS)))
        scene = Scene(task, env.mission, view_of(env))
        if len(scene.targets) > 1 or not several:
            return scene


def _placed(scene: Scene, rng: np.random.Generator) -> View:
    """The view with the agent in a free cell that it could have gone to: none outside its room."""
    view = scene.view
    reached, further = {scene.here}, [scene.here]
    while further:
        row, column = further.pop()
        beside = {(row + dy, column + dx) for dx, dy in STEPS} - reached
        free = sorted(cell for cell in beside if view.cells_HW[cell] == EMPTY)
        reached.update(free)
        further += free
    places = sorted(reached)
    if rng.random() < _HIDDEN:
        lines = list(product(scene.hazards, scene.targets))
        places = [place for place in places if any(_between(place, *line) for line in lines)] or places
    row, column = places[rng.integers(len(places))]
    return replace(view, x=column, y=row, heading=int(rng.integers(4)))


def _between(first: Cell, middle: Cell, last: Cell) -> bool:
    """Whether three cells stand in a straight line, in this order."""
    along, across = (0, 1) if first[1] == last[1] else (1, 0)
    in_line = first[across] == middle[across] == last[across]
    return in_line and min(first[along], last[along]) < middle[along] < max(first[along], last[along])


def _planned(scene: Scene) -> Plan | None:
    """The planner's answer; None where nothing can be planned, as behind the walls of a room."""
    try:
        return plan(scene.view, scene.task, scene.mission, ALL_TASKS[scene.task].useful)
    except NoPlan:
        return None
