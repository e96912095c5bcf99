"""What is taught: endless states of the task families with the planner's labels, from a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from gridworld.environments import actions_of, in_full, make
from gridworld.planner import NoPlan, Plan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS, EVALUATION_SEEDS, family_of, task_key
from gridworld.views import EMPTY, STEPS, View, view_of
from teacher_api.command_line import CannotStart

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
_HOPELESS = 100
"""Episodes in a row in which the planner knows nothing to do, after which there is nothing to teach."""
_STARTS = 1000
"""Starts, at most, among which one with several targets is looked for."""
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
        env_ids: registered environments, taken in turn.
        task: the task's key, for those that are of no family.

    Raises:
        UnknownEnvironment: there is none of an id.
        UnknownTask: one is of no family, and there is no `task`.
    """

    def __init__(self, env_ids: Sequence[str], seed: int, task: str | None = None) -> None:
        self._worlds = [
            (task_key(env_id, None if family_of(env_id) else task), env_id, make(env_id))
            for env_id in env_ids
        ]
        self._seed = seed

    def block(self, number: int, size: int) -> list[Sample]:
        """Samples of all environments in turn, as many of each as of the others but for one.

        Raises:
            CannotStart: an environment fails, or has nothing for the planner to do.
        """
        rng = np.random.default_rng([self._seed, number])
        streams = [_states(env_id, env, task, rng) for task, env_id, env in self._worlds]
        return [next(streams[i % len(streams)]) for i in range(size)]


def _states(env_id: str, env: Any, task: str, rng: np.random.Generator) -> Iterator[Sample]:
    """Labelled states of one episode after the other."""
    hopeless = 0
    while True:
        try:
            scenes = _episode(env, task, rng)
        except Exception as error:  # an environment can raise anything
            raise CannotStart(f"--env: the environment {env_id!r} failed: {in_full(error)}") from error
        hopeless += 1
        for at in rng.permutation(len(scenes))[:_FROM_ONE_EPISODE]:
            scene = scenes[at]
            if rng.random() < _PLACED:
                scene = replace(scene, view=_placed(scene, rng))
            if (told := _planned(scene)) is not None:
                hopeless = 0
                yield Sample(scene, told.probabilities, told.best)
        if hopeless == _HOPELESS:
            raise CannotStart(f"--env: the planner knows nothing to do in {env_id} as the task {task}")


def _episode(env: Any, task: str, rng: np.random.Generator) -> list[Scene]:
    """The scenes of an episode in which some of the steps are the planner's."""
    scene = _start(env, task, rng)
    share = rng.choice(_PLANNER_SHARES)
    names = actions_of(env)
    useful, scenes = [action for action in ALL_TASKS[task].useful if action in names], []
    for _ in range(_LONGEST):
        scenes.append(scene)
        told = _planned(scene) if rng.random() < share else None
        action = str(rng.choice(told.best if told is not None else useful))
        _, _, terminated, truncated, _ = env.step(names.index(action))
        if terminated or truncated:
            break
        scene = Scene(task, env.mission, view_of(env))
    return scenes


def _start(env: Any, task: str, rng: np.random.Generator) -> Scene:
    """An episode's first scene."""
    several = rng.random() < _SEVERAL.get(task, 0)
    for _ in range(_STARTS):
        env.reset(seed=int(rng.integers(EVALUATION_SEEDS)))
        scene = Scene(task, env.mission, view_of(env))
        if len(scene.targets) > 1 or not several:
            break
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
