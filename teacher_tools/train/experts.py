"""Experts: what training states are labelled by, where it is not the planner."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gridworld.environments import in_full
from gridworld.planner import Plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS
from gridworld.views import View
from teacher_api.command_line import CannotStart
from teacher_tools.train.settings import BABYAI, VALUE_ITERATION
from worlds.general import actions_of
from worlds.minigrid import MinigridWorld
from worlds.registry import world_of
from worlds.tables import action_values, optimal_policy
from worlds.toy_text import toy_scene


@dataclass(frozen=True, eq=False)
class Advice:
    """What an expert says about the present state of an environment.

    Attributes:
        probabilities: of the environment's actions, by name; those that are left out have 0. They are
            normalised over the actions that the task names.
        analysis: what a teacher is to answer in stage 1, as the prompt set's schema asks for it.
        view: the state in MiniGrid's cells, if its pictures show cells; a model from scratch then learns to
            read them one by one.
        targets, hazards: cells of the view.
    """

    probabilities: Mapping[str, float]
    analysis: Mapping[str, Any]
    view: View | None = None
    targets: tuple[Cell, ...] = ()
    hazards: tuple[Cell, ...] = ()


class Expert(Protocol):
    """What `teacher train --expert package.module:Name` needs: `Name` is it, or a class that makes it.

    It may have a method `scatter(env, rng)` too, which puts an environment into a random state; half of the
    samples are then such states. An expert that remembers the episode may have a method `took(action)`, which
    is called with the number of each action that was taken.
    """

    def __call__(self, env: Any, /) -> Advice | None:
        """Returns the advice in the environment's present state, or None to leave the state out.

        Args:
            env: the Gymnasium environment, without wrappers.
        """


class ValueIteration:
    """The optimal actions of FrozenLake, CliffWalking and Taxi, and of environments derived from them."""

    def __init__(self) -> None:
        self._table: Any = None
        self._values_SA: NDArray[np.float64] = np.zeros((0, 0))

    def __call__(self, env: Any, /) -> Advice:
        """Returns the optimal actions, with equal probabilities.

        Raises:
            ValueError: the environment is another one.
        """
        scene = toy_scene(env)
        if env.P is not self._table:
            self._table, self._values_SA = env.P, action_values(env.P)
        policy = optimal_policy(self._values_SA[int(env.s)]).tolist()
        named = dict(zip(actions_of(env), policy, strict=True))
        return Advice(named, scene.analysis(), scene.view(), (scene.target,), scene.hazards)

    def scatter(self, env: Any, rng: np.random.Generator) -> None:
        """Puts an environment into a random state that does not end the episode."""
        going_on = [
            state for state, actions in env.P.items() if not all(ended for *_, ended in actions[0])
        ] or list(env.P)
        env.s, env.lastaction = int(rng.choice(going_on)), int(rng.integers(env.action_space.n))


class StudentExpert:
    """A trained student of MiniGrid's kind: its policy labels scenes, also those that it was not trained on.

    Args:
        folder: the student's run.
        env_ids: the environments that scenes come from.

    Raises:
        CannotStart: the folder holds no student, or one that cannot play in one of the environments.
    """

    def __init__(self, folder: Path, env_ids: Sequence[str]) -> None:
        from student.runs.trained import load_trained  # noqa: PLC0415

        trained = load_trained(folder)
        if not isinstance(trained.world, MinigridWorld):
            raise CannotStart(f"`expert` {folder}: {trained.settings.env} is not of MiniGrid's kind")
        for env_id in env_ids:
            if not trained.world.fits(world_of(env_id)):
                raise CannotStart(
                    f"`expert` {folder} was trained in {trained.settings.env}, and cannot play {env_id}: the"
                    " grids differ in size, or the actions in name"
                )
        self._world, self._network = trained.world, trained.network

    def __call__(self, scene: Scene) -> Plan:
        """Returns the policy in a scene, over the task's useful actions."""
        from student.algorithms.rollout import act  # noqa: PLC0415

        layout = self._world.layout
        obs_K = layout.observation(scene.view, self._world.vocabulary.encode(scene.mission))
        log_probs_A = act(self._network, obs_K[None])[0][0]
        useful = [action for action in ALL_TASKS[scene.task].useful if action in layout.actions]
        weights = np.exp(log_probs_A[[layout.actions.index(action) for action in useful]]).astype(np.float64)
        return Plan(dict(zip(useful, (weights / weights.sum()).tolist(), strict=True)), "")


def expert_of(name: str) -> Expert:
    """Returns an expert by its name: `value-iteration`, `babyai-bot`, or package.module:Name.

    Raises:
        CannotStart: there is no such expert, or it cannot be made.
    """
    if name == VALUE_ITERATION:
        return ValueIteration()
    if name == BABYAI:
        name = "teacher_tools.train.babyai:BabyAIExpert"
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
        expert = found() if inspect.isclass(found) else found
    except Exception as error:  # a user's module can raise anything
        raise CannotStart(f"`expert` {name} cannot be made: {in_full(error)}") from error
    if not callable(expert):
        raise CannotStart(
            f"`expert` {name} cannot be called: it has to take an environment, and return Advice"
        )
    made: Expert = expert
    return made
