"""Labelled states of any Gymnasium environment, from an expert that sees the environment itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from worlds.general import actions_of, make

_TAKEN = 0.5
"""The share of an episode's states that become samples."""
_SCATTERED = 0.5
"""The share of these that the expert puts the environment into, if it can."""


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
        self._environments = []
        for env_id, task in tasks:
            env = make(env_id)
            names = actions_of(env)
            if lacking := [action for action in useful[task] if action not in names]:
                raise CannotStart(
                    f"`env`: {env_id} has no action {lacking[0]!r}, which the task {task} has; its actions"
                    f" are {', '.join(names)}"
                )
            self._environments.append((env_id, env, task, tuple(useful[task])))

    def block(self, number: int, size: int, largest: int | None = None) -> list[Labelled]:
        """Returns `size` samples; the environments take turns.

        Args:
            largest: has no effect.

        Raises:
            CannotStart: an environment or the expert fails, or the expert has no advice.
        """
        rng = np.random.default_rng([self._seed, number])
        streams = [self._states(*each, rng) for each in self._environments]
        return [next(streams[i % len(streams)]) for i in range(size)]

    def _states(
        self, env_id: str, env: Any, task: str, useful: tuple[str, ...], rng: np.random.Generator
    ) -> Iterator[Labelled]:
        """Yields labelled states of one episode after another."""
        without = 0
        while without < MAX_WITHOUT:
            without += 1
            try:
                samples = self._episode(env, task, useful, rng)
            except Exception as error:  # an environment and an expert can raise anything
                raise CannotStart(f"`env` {env_id} or its `expert` failed: {in_full(error)}") from error
            for sample in samples:
                without = 0
                yield sample
        raise CannotStart(f"`expert`: it had no advice in {MAX_WITHOUT} episodes of {env_id}")

    def _episode(
        self, env: Any, task: str, useful: tuple[str, ...], rng: np.random.Generator
    ) -> list[Labelled]:
        """Plays an episode in which some steps are the expert's; returns its samples."""
        names, scatter = actions_of(env), getattr(self._expert, "scatter", None)
        env.reset(seed=int(rng.integers(EVALUATION_SEEDS)))
        share, samples = rng.choice(EXPERT_SHARES), list[Labelled]()
        for _ in range(MAX_STEPS):
            taken = rng.random() < _TAKEN
            if taken and scatter is not None and rng.random() < _SCATTERED:
                scatter(env.unwrapped, rng)
            advice = self._expert(env.unwrapped)
            if taken and advice is not None and (sample := _sample(env, task, useful, advice)):
                samples.append(sample)
            action = str(rng.choice(useful))
            if advice is not None and rng.random() < share:
                action = max(advice.probabilities, key=lambda name: advice.probabilities[name])
            _, _, terminated, truncated, _ = env.step(names.index(action))
            if terminated or truncated or len(samples) == MAX_SAMPLES_PER_EPISODE:
                break
        return samples


def _sample(env: Any, task: str, useful: tuple[str, ...], advice: Advice) -> Labelled | None:
    """Returns the labelled state; None if the expert advises none of the task's actions."""
    weights = {action: float(advice.probabilities.get(action, 0.0)) for action in useful}
    total = sum(weights.values())
    if total <= 0:
        return None
    probabilities = {action: weight / total for action, weight in weights.items()}
    highest = max(probabilities.values())
    best = tuple(action for action, p in probabilities.items() if p > highest - 1e-6)
    mission = getattr(env.unwrapped, "mission", "")
    picture = np.asarray(env.render(), np.uint8)
    return Labelled(
        task,
        mission if isinstance(mission, str) else "",
        advice.analysis,
        probabilities,
        best,
        picture,
        advice.view,
        advice.targets,
        advice.hazards,
    )
