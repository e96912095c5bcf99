"""A moment of an episode, found again from its environment, seed and actions: nothing is kept in between."""

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
_NO_ONES = ("MiniGrid-", "BabyAI-")


class BadMoment(ValueError):
    """There is no such moment; `field` names what in the question makes it so."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _known_action(action: str) -> str:
    if action not in ACTIONS:
        raise ValueError(f"none of MiniGrid's actions: {', '.join(ACTIONS)}")
    return action


class Moment(BaseModel):
    """An episode up to where it is to be seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_id: Annotated[str, Field(max_length=128)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    actions: Annotated[
        tuple[Annotated[str, AfterValidator(_known_action)], ...], Field(max_length=_MOST_STEPS)
    ] = ()


class Scene(BaseModel):
    """What there is to see at a moment; `picture` is kept apart since it is no JSON."""

    mission: str
    step: int
    max_steps: int
    episode_return: float
    end: End | None
    actions: tuple[str, ...] = Field(description="those that the environment has")


def replay(moment: Moment) -> tuple[Scene, Picture]:
    """Plays the episode and draws where it has come to.

    Raises:
        BadMoment: the environment is unknown or fails, has no such action, or the episode ended earlier.
    """
    if ":" in moment.env_id:  # would import a module of the caller's choice
        raise BadMoment("env_id", f"{moment.env_id!r} names a module; only registered ids are taken here")
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
                raise BadMoment("actions", f"the episode ended after {step} actions; leave the others out")
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
    """The environments to see a task in: a family's, or else all that come with MiniGrid."""
    if task in ALL_TASKS:
        return ALL_TASKS[task].env_ids
    return tuple(sorted(env_id for env_id in gymnasium.registry if env_id.startswith(_NO_ONES)))


@dataclass(frozen=True)
class Places:
    """Where a task can be seen: environments, those whose like was in no training, the first to show."""

    env_ids: tuple[str, ...]
    untrained: tuple[str, ...]
    first: str


def places(task: str, hosting: Mapping[str, Any]) -> Places:
    """Where to see a task of a teacher, first where it was trained or else where a family's figures are from.

    Args:
        hosting: the teacher's, with the record of what its checkpoint was trained on, where there is one.
    """
    env_ids = sizes(task)
    usual = ALL_TASKS[task].env_id if task in ALL_TASKS else env_ids[0]
    if "trained_on" not in hosting:
        return Places(env_ids, (), usual)
    record = TrainedOn.model_validate(hosting["trained_on"])
    trained = [
        env_id
        for env_id, grids in record.environments.items()
        if grids.task == task and env_id in gymnasium.registry  # modules are not imported
    ]
    env_ids = tuple(dict.fromkeys((*env_ids, *trained)))
    # Of a family alone: all of MiniGrid's environments take too long to make
    alike = [
        env_id for env_id in env_ids if task in ALL_TASKS and not record.lacks(env_id, task, _size_of(env_id))
    ]
    first = usual if usual in alike else (trained or alike or [usual])[0]
    return Places(env_ids, tuple(each for each in env_ids if each not in {*trained, *alike}), first)


@lru_cache
def _size_of(env_id: str) -> tuple[int, int]:
    """Columns and rows."""
    env = make(env_id)
    return env.width, env.height


@lru_cache
def only_mission(task: str) -> str | None:
    """The mission of a family that always has the same one; None for others, and for a task of no family."""
    if task not in ALL_TASKS:
        return None
    space = make(ALL_TASKS[task].env_id).observation_space["mission"]  # type: ignore[index]
    return None if space.ordered_placeholders else str(space.mission_func())


def _end(total: float, terminated: bool, truncated: bool) -> End | None:
    """Success is a return above 0, in the families as elsewhere here."""
    if terminated:
        return "success" if total > 0 else "failure"
    return "time_out" if truncated else None
