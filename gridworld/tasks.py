"""The task families, the paper's four first: keys, sizes, useful actions, what is success; held-out seeds."""

from dataclasses import dataclass

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""MiniGrid's seven actions, in the order of its action numbers."""

EVALUATION_SEEDS = 2**31
"""Episodes with this seed and above are for evaluation; training seeds lie below."""


@dataclass(frozen=True)
class Task:
    """One family of environments.

    An episode is a success when its return is above 0: in all families only reaching the
    objective pays, and failing pays 0 or -1.
    """

    key: str
    objective: str
    useful: tuple[str, ...]
    env_ids: tuple[str, ...]
    env_id: str
    """The one that figures are about unless they say otherwise."""


_MOVES = ("left", "right", "forward")

TASKS = {
    task.key: task
    for task in (
        Task(
            key="lava_gap",
            objective="Reach the green goal square; lava ends the episode.",
            useful=_MOVES,
            env_ids=tuple(f"MiniGrid-LavaGapS{n}-v0" for n in (5, 6, 7)),
            env_id="MiniGrid-LavaGapS6-v0",
        ),
        Task(
            key="dynamic_obstacles",
            objective="Reach the green goal square; moving into a wall or a ball ends the episode.",
            useful=_MOVES,
            env_ids=tuple(
                f"MiniGrid-Dynamic-Obstacles-{size}-v0"
                for size in ("5x5", "Random-5x5", "6x6", "Random-6x6", "8x8", "16x16")
            ),
            env_id="MiniGrid-Dynamic-Obstacles-6x6-v0",
        ),
        Task(
            key="fetch",
            objective="Pick up the object that the mission names; picking up another one ends the episode.",
            useful=(*_MOVES, "pickup"),
            env_ids=tuple(f"MiniGrid-Fetch-{size}-v0" for size in ("5x5-N2", "6x6-N2", "8x8-N3")),
            env_id="MiniGrid-Fetch-6x6-N2-v0",
        ),
        Task(
            key="go_to_door",
            objective="Stand beside the door that the mission names and choose done; done or toggle"
            " anywhere else ends the episode.",
            useful=(*_MOVES, "done"),
            env_ids=tuple(f"MiniGrid-GoToDoor-{size}-v0" for size in ("5x5", "6x6", "8x8")),
            env_id="MiniGrid-GoToDoor-6x6-v0",
        ),
    )
}
"""The paper's four: what figures are about, and what is taken where nothing else is asked for."""

ALL_TASKS = TASKS | {
    "go_to_object": Task(
        key="go_to_object",
        objective="Stand beside the object that the mission names, not diagonally, and choose done; done"
        " elsewhere, or toggle, ends the episode.",
        useful=(*_MOVES, "done"),
        env_ids=tuple(f"MiniGrid-GoToObject-{size}-v0" for size in ("6x6-N2", "8x8-N2")),
        env_id="MiniGrid-GoToObject-6x6-N2-v0",
    )
}
"""All that are known, to the planner too: the paper's four, and one beyond them to teach a teacher."""


class UnknownEnvironment(ValueError):
    """An environment id that nothing is known about, or that cannot be used."""


class UnknownTask(ValueError):
    """An environment and a task that do not make a pair."""


def family_of(env_id: str) -> Task | None:
    """The family that a registered id belongs to, if any; `module:` before the id changes nothing."""
    name = env_id.rpartition(":")[2]
    return next((task for task in ALL_TASKS.values() if name in task.env_ids), None)


def task_key(env_id: str, task: str | None) -> str:
    """The key of the task that a teacher is asked with about an environment.

    Args:
        task: the user's word for it; None: the family of the id.

    Raises:
        UnknownTask: the id is of no family and there is no word, or it is of another one.
    """
    family = family_of(env_id)
    if family is None and task is None:
        raise UnknownTask(
            f"--task is missing: {env_id} is none of the environments whose task is known"
            f" ({', '.join(ALL_TASKS)}); say which of the teacher's tasks it is"
        )
    if family is not None and task not in (None, family.key):
        raise UnknownTask(f"--task: {env_id} belongs to the task {family.key}, not {task}")
    return family.key if family is not None else str(task)


def task_of(env_id: str) -> Task:
    """The family that a registered MiniGrid id belongs to.

    Raises:
        UnknownEnvironment: the id is none of the families' registered ids.
    """
    task = family_of(env_id)
    if task is not None:
        return task
    known = ", ".join(env_id for task in ALL_TASKS.values() for env_id in task.env_ids)
    raise UnknownEnvironment(f"unknown environment {env_id!r}; choose one of: {known}")
