"""Environments as a teacher gets to see them, and the held-out states that every teacher is asked about."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gridworld import environments
from gridworld.environments import failure, make
from gridworld.planner import NoPlan, plan
from gridworld.scenes import Scene
from gridworld.tasks import ACTIONS, ALL_TASKS, EVALUATION_SEEDS
from gridworld.views import view_of
from teacher_api.command_line import CannotStart
from teacher_tools.score.figures import Failure

_FIRST_SEED = EVALUATION_SEEDS + 2**29
"""Of the episodes that states are taken from: no policy plays them."""
_NOTHING_NEW = 100
"""Episodes without a new state after which all are taken to have been met."""


class World:
    """One environment; `seed_of` gives the seed of each of its episodes.

    Args:
        failures: gets each episode that ends without success.
    """

    def __init__(
        self, env_id: str, task: str, seed_of: Callable[[int], int], failures: list[Failure] | None = None
    ) -> None:
        self._env_id, self._env, self._task, self._seed_of = env_id, make(env_id), task, seed_of
        self._numbers = {ACTIONS.index(name): i for i, name in enumerate(environments.actions_of(self._env))}
        self._failures = failures
        self._episode, self._seed = -1, 0
        self._actions: list[str] = []
        self.total = 0.0
        self.length = 0

    def reset(self) -> Scene:
        """Starts the next episode.

        Raises:
            CannotStart: the environment fails there.
        """
        self._episode += 1
        self.total, self.length = 0.0, 0
        self._seed, self._actions = self._seed_of(self._episode), []
        try:
            self._env.reset(seed=self._seed)
            return self._scene()
        except Exception as error:  # an environment can raise anything
            raise self._failed(error) from error

    def step(self, action: int) -> tuple[Scene, float, bool, bool]:
        """What is seen next, reward, terminated, truncated.

        Args:
            action: by its number among MiniGrid's.

        Raises:
            CannotStart: the environment fails there.
        """
        self.length += 1
        self._actions.append(ACTIONS[action])
        try:
            _, reward, terminated, truncated, _ = self._env.step(self._numbers[action])
            self.total += float(reward)
            scene = self._scene()
        except Exception as error:
            raise self._failed(error) from error
        if (terminated or truncated) and self.total <= 0 and self._failures is not None:
            end: Literal["failure", "time_out"] = "failure" if terminated else "time_out"
            self._failures.append(
                Failure(seed=self._seed, actions=self._actions, episode_return=self.total, end=end)
            )
        return scene, float(reward), terminated, truncated

    def _failed(self, error: Exception) -> CannotStart:
        return CannotStart(failure(self._env_id, self._seed, self.length, error))

    def _scene(self) -> Scene:
        return Scene(self._task, self._env.mission, view_of(self._env))


@dataclass(frozen=True)
class State:
    """A scene, and what is optimal in it."""

    scene: Scene
    optimal: tuple[str, ...]


def actions_of(env_id: str) -> tuple[str, ...]:
    """The names of an environment's actions."""
    return environments.actions_of(make(env_id))


def held_out_states(env_id: str, task: str, count: int, seed: int) -> list[State]:
    """Different states of held-out episodes, the same ones for every teacher.

    In those episodes every other step, by chance, is the planner's, and the rest are drawn from the useful
    actions: so there are states on the best way and states beside it. Where nothing can be planned is left
    out. There are fewer than `count` where an environment has no more.
    """
    rng = np.random.default_rng(seed)
    useful = [action for action in ALL_TASKS[task].useful if action in actions_of(env_id)]
    world = World(env_id, task, lambda episode: _FIRST_SEED + episode)
    found: dict[Hashable, State] = {}
    nothing_new = 0
    while nothing_new < _NOTHING_NEW:
        nothing_new += 1
        scene, ended = world.reset(), False
        while not ended:
            try:
                optimal = plan(scene.view, task, scene.mission, useful).best
            except NoPlan:
                optimal = ()
            if optimal and scene.key not in found:
                found[scene.key] = State(scene, optimal)
                nothing_new = 0
                if len(found) == count:
                    return list(found.values())
            choices = optimal if optimal and rng.random() < 0.5 else useful
            action = ACTIONS.index(str(rng.choice(choices)))
            scene, _, terminated, truncated = world.step(action)
            ended = terminated or truncated
    return list(found.values())
