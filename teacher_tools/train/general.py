"""Labelled states of any environment, from an expert that sees the environment itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gridworld.environments import in_full
from gridworld.tasks import EVALUATION_SEEDS
from teacher_api.command_line import CannotStart
from teacher_tools.train.experts import Advice, Expert
from teacher_tools.train.samples import (
    EXPERT_SHARES,
    MAX_SAMPLES_PER_EPISODE,
    MAX_STEPS,
    MAX_WITHOUT,
    Labelled,
)
from worlds.registry import world_of
from worlds.world import Environment, World, stacked

_TAKEN = 0.5
"""The share of an episode's states that become samples."""
_SCATTERED = 0.5
"""The share of these that the expert puts the environment into, if it can."""


@dataclass(frozen=True)
class _Task:
    """An environment's world with its task's key and the actions that the prompt set names."""

    world: World
    task: str
    useful: tuple[str, ...]


class GeneralSampler:
    """Makes blocks of samples, each determined by the seed and the block's number alone.

    Episodes start from seeds below EVALUATION_SEEDS, so that no episode of an evaluation is among them.

    Args:
        tasks: environments, each with its task's key; they are used in turn.
        useful: task -> the actions that the prompt set names.

    Raises:
        UnknownEnvironment: an id is not registered.
        CannotStart: an environment lacks an action of its task.
    """

    def __init__(
        self, tasks: Sequence[tuple[str, str]], useful: Mapping[str, Sequence[str]], expert: Expert, seed: int
    ) -> None:
        self._expert, self._seed = expert, seed
        self._tasks = []
        for env_id, task in tasks:
            world = world_of(env_id)
            if lacking := [action for action in useful[task] if action not in world.actions]:
                raise CannotStart(
                    f"`env`: {env_id} has no action {lacking[0]!r}, which the task {task} has; its actions"
                    f" are {', '.join(world.actions)}"
                )
            self._tasks.append(_Task(world, task, tuple(useful[task])))

    def block(self, number: int, size: int, largest: int | None = None) -> list[Labelled]:
        """Returns `size` samples; the environments take turns.

        Args:
            largest: has no effect.

        Raises:
            CannotStart: an environment or the expert fails, or the expert has no advice.
        """
        rng = np.random.default_rng([self._seed, number])
        streams = [self._states(each, rng) for each in self._tasks]
        return [next(streams[i % len(streams)]) for i in range(size)]

    def _states(self, task: _Task, rng: np.random.Generator) -> Iterator[Labelled]:
        """Yields labelled states of one episode after another."""
        env_id, without, stream = task.world.env_id, 0, int(rng.integers(2**32))

        def seed_of(episode: int) -> int:
            return int(np.random.default_rng([stream, episode]).integers(EVALUATION_SEEDS))

        environment = task.world.environment(seed_of)
        while without < MAX_WITHOUT:
            without += 1
            try:
                samples = self._episode(environment, task, rng)
            except Exception as error:  # an environment and an expert can raise anything
                raise CannotStart(f"`env` {env_id} or its `expert` failed: {in_full(error)}") from error
            for sample in samples:
                without = 0
                yield sample
        raise CannotStart(f"`expert`: it had no advice in {MAX_WITHOUT} episodes of {env_id}")

    def _episode(self, environment: Environment, task: _Task, rng: np.random.Generator) -> list[Labelled]:
        """Plays an episode in which some steps are the expert's; returns its samples."""
        scatter, took = (getattr(self._expert, name, None) for name in ("scatter", "took"))
        obs = environment.reset()
        share, samples = rng.choice(EXPERT_SHARES), list[Labelled]()
        for _ in range(MAX_STEPS):
            taken = rng.random() < _TAKEN
            if taken and scatter is not None and rng.random() < _SCATTERED:
                scatter(environment.unwrapped, rng)
            advice = self._expert(environment.unwrapped)
            if taken and advice is not None:
                mission = task.world.mission(stacked([obs])[0])
                samples += _samples(environment, task, mission, advice)
            action = str(rng.choice(task.useful))
            if advice is not None and rng.random() < share:
                action = max(advice.probabilities, key=lambda name: advice.probabilities[name])
            number = task.world.actions.index(action)
            obs, _, terminated, truncated = environment.step(number)
            if took is not None:
                took(number)
            if terminated or truncated or len(samples) == MAX_SAMPLES_PER_EPISODE:
                break
        return samples


def _samples(environment: Environment, task: _Task, mission: str, advice: Advice) -> Iterator[Labelled]:
    """Yields the labelled state, unless the expert advises none of the task's actions."""
    weights = {action: float(advice.probabilities.get(action, 0.0)) for action in task.useful}
    total = sum(weights.values())
    if total <= 0:
        return
    probabilities = {action: weight / total for action, weight in weights.items()}
    highest = max(probabilities.values())
    yield Labelled(
        task.task,
        mission,
        advice.analysis,
        probabilities,
        tuple(action for action, p in probabilities.items() if p > highest - 1e-6),
        environment.picture(),
        advice.view,
        advice.targets,
        advice.hazards,
    )
