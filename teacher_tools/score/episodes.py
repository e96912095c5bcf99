"""Held-out episodes played by a teacher and by chance, and the held-out states of every score."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from gridworld import environments
from gridworld.environments import failure, make
from gridworld.episodes import Evaluation, play
from gridworld.planner import NoPlan, plan
from gridworld.scenes import Scene
from gridworld.tasks import ACTIONS, ALL_TASKS, EVALUATION_SEEDS
from gridworld.views import view_of
from teacher_api.command_line import CannotStart
from teacher_api.schemas import Answer
from teacher_tools.score.answers import CachedAnswers, Outcome
from teacher_tools.score.results import Failure, Mean, PolicyResult, Share

_FIRST_STATE_SEED = EVALUATION_SEEDS + 2**29
"""Seeds of the episodes that states are taken from; no policy plays these episodes."""
_MAX_WITHOUT_NEW_STATE = 100
"""Consecutive episodes without a new state, after which an environment is taken to have no more."""


class SceneEnvironment:
    """One environment that returns scenes and records episodes without success.

    Args:
        seed_of: returns the seed of each episode, by its number.
        failures: receives each episode that ends without success.
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
        """Starts the next episode; returns its first scene.

        Raises:
            CannotStart: the environment failed.
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
        """Returns the next scene, the reward, terminated and truncated.

        Args:
            action: its number among MiniGrid's.

        Raises:
            CannotStart: the environment failed.
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
    """A scene and its optimal actions."""

    scene: Scene
    optimal: tuple[str, ...]


def actions_of(env_id: str) -> tuple[str, ...]:
    """Returns the names of an environment's actions."""
    return environments.actions_of(make(env_id))


def held_out_states(env_id: str, task: str, count: int, seed: int) -> list[State]:
    """Returns different states of held-out episodes: the same ones for every teacher.

    Each step of these episodes is the planner's with probability 1/2, else a random useful action, so that
    states on and beside the optimal path occur. States without a plan are left out. An environment with
    fewer than `count` states returns all of them.
    """
    rng = np.random.default_rng(seed)
    useful = [action for action in ALL_TASKS[task].useful if action in actions_of(env_id)]
    environment = SceneEnvironment(env_id, task, lambda episode: _FIRST_STATE_SEED + episode)
    found: dict[Hashable, State] = {}
    without_new = 0
    while without_new < _MAX_WITHOUT_NEW_STATE:
        without_new += 1
        scene, ended = environment.reset(), False
        while not ended:
            try:
                optimal = plan(scene.view, task, scene.mission, useful).best
            except NoPlan:
                optimal = ()
            if optimal and scene.key not in found:
                found[scene.key] = State(scene, optimal)
                without_new = 0
                if len(found) == count:
                    return list(found.values())
            choices = optimal if optimal and rng.random() < 0.5 else useful
            action = ACTIONS.index(str(rng.choice(choices)))
            scene, _, terminated, truncated = environment.step(action)
            ended = terminated or truncated
    return list(found.values())


def play_teacher(
    answers: CachedAnswers, env_id: str, task: str, *, sampled: bool, episodes: int, seed: int, together: int
) -> PolicyResult:
    """Plays held-out episodes by a teacher's answers.

    A step without an answer takes a random useful action, so that a teacher that never answers plays like
    chance.

    Args:
        sampled: draw actions from the probabilities; False: take the most probable one.
        together: environments that are played at once.
    """
    rng = np.random.default_rng(seed)
    without_answer = 0

    def action_of(outcome: Outcome) -> str:
        nonlocal without_answer
        if not isinstance(outcome, Answer) or outcome.probabilities is None:
            without_answer += 1
            return str(rng.choice(ALL_TASKS[task].useful))
        if not sampled:
            return str(outcome.action)
        probs_A = np.array(list(outcome.probabilities.values()))
        return str(rng.choice(list(outcome.probabilities), p=probs_A / probs_A.sum()))

    def choose(scenes: list[Scene]) -> list[int]:
        return [ACTIONS.index(action_of(outcome)) for outcome in answers.about(scenes)]

    failures: list[Failure] = []
    result = play(partial(SceneEnvironment, env_id, task, failures=failures), choose, episodes, together)
    by_seed = sorted(failures, key=lambda failure: failure.seed)
    more = {"steps_without_answer": without_answer, "failures": by_seed}
    return _policy_result(result).model_copy(update=more)


def play_chance(env_id: str, task: str, *, episodes: int, seed: int) -> PolicyResult:
    """Plays the same episodes with uniformly random useful actions."""
    rng = np.random.default_rng(seed)
    useful = [ACTIONS.index(action) for action in ALL_TASKS[task].useful]

    def choose(scenes: list[Scene]) -> list[int]:
        return [int(action) for action in rng.choice(useful, len(scenes))]

    return _policy_result(play(partial(SceneEnvironment, env_id, task), choose, episodes))


def _policy_result(result: Evaluation) -> PolicyResult:
    success, mean_return = Share.among(result.returns_E > 0), Mean.over(result.returns_E)
    assert success is not None
    assert mean_return is not None
    return PolicyResult(success=success, mean_return=mean_return, length=float(result.lengths_E.mean()))
