"""Moments of an episode, replayed from the environment, the seed and the actions; nothing is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import gymnasium
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gridworld.environments import actions_of, in_full, make
from gridworld.pictures import Picture, draw
from gridworld.tasks import ACTIONS, ALL_TASKS, UnknownEnvironment
from gridworld.views import view_of
from teacher_api.schemas import TrainedOn

End = Literal["success", "failure", "time_out"]

_MOST_STEPS = 4096
_PREFIXES = ("MiniGrid-", "BabyAI-")


class BadMoment(ValueError):
    """There is no such moment; `field` names the part of the request that is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _known_action(action: str) -> str:
    if action not in ACTIONS:
        raise ValueError(f"must be one of MiniGrid's actions: {', '.join(ACTIONS)}")
    return action


class Moment(BaseModel):
    """A moment of an episode: the environment, the seed and the actions so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_id: Annotated[str, Field(max_length=128)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    actions: Annotated[
        tuple[Annotated[str, AfterValidator(_known_action)], ...], Field(max_length=_MOST_STEPS)
    ] = ()


class Scene(BaseModel):
    """What a moment shows, but for its picture."""

    mission: str
    step: int
    max_steps: int
    episode_return: float
    end: End | None
    actions: tuple[str, ...] = Field(description="the actions of the environment")


def replay(moment: Moment) -> tuple[Scene, Picture]:
    """Replays an episode and draws its last state.

    Raises:
        BadMoment: The environment is unknown or fails, an action is unknown, or the episode ended earlier.
    """
    if ":" in moment.env_id:  # would import a module of the client's choice
        raise BadMoment("env_id", f"{moment.env_id!r} names a module; only registered ids are accepted")
    try:
        env = make(moment.env_id)
    except UnknownEnvironment as error:
        raise BadMoment("env_id", str(error)) from error
    has = actions_of(env)
    total, end = 0.0, None
    try:
        env.reset(seed=moment.seed)
        for step, action in enumerate(moment.actions):
            if end is not None:
                raise BadMoment("actions", f"the episode ended after {step} actions; send no more than these")
            if action not in has:
                raise BadMoment("actions", f"{moment.env_id} has no action {action}; it has {', '.join(has)}")
            _, reward, terminated, truncated, _ = env.step(has.index(action))
            total += float(reward)
            end = _end(total, terminated, truncated)
        scene = Scene(
            mission=env.mission,
            step=len(moment.actions),
            max_steps=env.max_steps,
            episode_return=total,
            end=end,
            actions=has,
        )
        return scene, draw(view_of(env))
    except BadMoment:
        raise
    except Exception as error:  # an environment can raise anything
        raise BadMoment("env_id", f"{moment.env_id} fails: {in_full(error)}") from error


def sizes(task: str) -> tuple[str, ...]:
    """Returns the environments of a task's family, or all of MiniGrid's for a task without a family."""
    if task in ALL_TASKS:
        return ALL_TASKS[task].env_ids
    return tuple(sorted(env_id for env_id in gymnasium.registry if env_id.startswith(_PREFIXES)))


@dataclass(frozen=True)
class Environments:
    """The environments of a task.

    Attributes:
        untrained: Those whose grids the checkpoint was not trained on, where that is known.
        first: The environment that the page opens with.
    """

    env_ids: tuple[str, ...]
    untrained: tuple[str, ...]
    first: str


def environments_of(task: str, hosting: Mapping[str, Any]) -> Environments:
    """Returns the environments of a teacher's task.

    The first environment is one that the checkpoint was trained on, or else the one of the family's results.

    Args:
        hosting: The teacher's `hosting`, with the training record of its checkpoint if there is one.
    """
    env_ids = sizes(task)
    usual = ALL_TASKS[task].env_id if task in ALL_TASKS else env_ids[0]
    if "trained_on" not in hosting:
        return Environments(env_ids, (), usual)
    record = TrainedOn.model_validate(hosting["trained_on"])
    trained = [
        env_id
        for env_id, grids in record.environments.items()
        if grids.task == task
        and env_id in gymnasium.registry  # ids with a module are left out: nothing is imported
    ]
    env_ids = tuple(dict.fromkeys((*env_ids, *trained)))
    # Only for a family: making all of MiniGrid's environments takes too long
    alike = [
        env_id for env_id in env_ids if task in ALL_TASKS and not record.lacks(env_id, task, _size_of(env_id))
    ]
    first = usual if usual in alike else (trained or alike or [usual])[0]
    return Environments(env_ids, tuple(each for each in env_ids if each not in {*trained, *alike}), first)


@lru_cache
def _size_of(env_id: str) -> tuple[int, int]:
    """Returns the columns and rows of an environment's grid."""
    env = make(env_id)
    return env.width, env.height


@lru_cache
def only_mission(task: str) -> str | None:
    """Returns the mission of a family with only one mission; None for any other task."""
    if task not in ALL_TASKS:
        return None
    space = make(ALL_TASKS[task].env_id).observation_space["mission"]
    return None if space.ordered_placeholders else str(space.mission_func())


def _end(total: float, terminated: bool, truncated: bool) -> End | None:
    """Returns the end of an episode; it is a success when the return is above 0."""
    if terminated:
        return "success" if total > 0 else "failure"
    return "time_out" if truncated else None
