"""Task families: keys, objectives, useful actions and environments; the seeds of held-out episodes."""

from dataclasses import dataclass
from typing import Literal

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""MiniGrid's seven actions, in the order of its action numbers."""

Fault = Literal["mirrored", "shifted", "blind"]
"""Systematic faults of the planner: see gridworld.faults."""

EVALUATION_SEEDS = 2**31
"""Evaluation episodes have this seed and higher ones; training seeds are lower."""


@dataclass(frozen=True)
class Task:
    """A family of environments with one objective.

    An episode is a success if its return is above 0: in every family only the objective gives a positive
    reward, and failure gives 0 or -1.
    """

    key: str
    objective: str
    useful: tuple[str, ...]
    env_ids: tuple[str, ...]
    env_id: str
    """The environment of the family that results are given for, unless they name another."""
    also: tuple[str, ...] = ()
    """Environments with the same objective, which another task may be named for."""
    carries: bool = False
    """Whether things are carried about on the way, so that the carried thing is part of a state."""


_MOVES = ("left", "right", "forward")
_ROOMS = tuple(
    f"MiniGrid-{name}-v0"
    for name in (
        *(f"Empty-{size}" for size in ("5x5", "Random-5x5", "6x6", "Random-6x6", "8x8", "16x16")),
        *(
            f"{kind}Crossing{size}"
            for kind in ("Simple", "Lava")
            for size in ("S9N1", "S9N2", "S9N3", "S11N5")
        ),
        "DistShift1",
        "DistShift2",
        "FourRooms",
    )
)

TASKS = {
    task.key: task
    for task in (
        Task(
            key="lava_gap",
            objective="Reach the green goal square; lava ends the episode.",
            useful=_MOVES,
            env_ids=tuple(f"MiniGrid-LavaGapS{n}-v0" for n in (5, 6, 7)),
            env_id="MiniGrid-LavaGapS6-v0",
            also=_ROOMS,
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
"""The paper's four families: the default of measurements."""

ALL_TASKS = TASKS | {
    task.key: task
    for task in (
        Task(
            key="go_to_object",
            objective="Stand beside the object that the mission names, not diagonally, and choose done; done"
            " elsewhere, or toggle, ends the episode.",
            useful=(*_MOVES, "done"),
            env_ids=tuple(f"MiniGrid-GoToObject-{size}-v0" for size in ("6x6-N2", "8x8-N2")),
            env_id="MiniGrid-GoToObject-6x6-N2-v0",
        ),
        Task(
            key="door_key",
            objective="Pick up the key, open the locked door, and reach the green goal square behind it.",
            useful=(*_MOVES, "pickup", "toggle"),
            env_ids=tuple(f"MiniGrid-DoorKey-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16")),
            env_id="MiniGrid-DoorKey-6x6-v0",
            carries=True,
        ),
        Task(
            key="unlock",
            objective="Pick up the key and open the locked door.",
            useful=(*_MOVES, "pickup", "toggle"),
            env_ids=("MiniGrid-Unlock-v0",),
            env_id="MiniGrid-Unlock-v0",
            carries=True,
        ),
        Task(
            key="unlock_pickup",
            objective="Open the locked door with the key, put the key down, and pick up the box that the"
            " mission names.",
            useful=(*_MOVES, "pickup", "drop", "toggle"),
            env_ids=("MiniGrid-UnlockPickup-v0",),
            env_id="MiniGrid-UnlockPickup-v0",
            also=("MiniGrid-BlockedUnlockPickup-v0",),
            carries=True,
        ),
        Task(
            key="key_corridor",
            objective="Find the key, open the locked door, put the key down, and pick up the object that the"
            " mission names.",
            useful=(*_MOVES, "pickup", "drop", "toggle"),
            env_ids=tuple(
                f"MiniGrid-KeyCorridor{size}-v0" for size in ("S3R1", "S3R2", "S3R3", "S4R3", "S5R3", "S6R3")
            ),
            env_id="MiniGrid-KeyCorridorS3R3-v0",
            carries=True,
        ),
        Task(
            key="multi_room",
            objective="Open the doors from room to room and reach the green goal square.",
            useful=(*_MOVES, "toggle"),
            env_ids=tuple(
                f"MiniGrid-MultiRoom-{size}" for size in ("N2-S4-v0", "N4-S5-v0", "N4-S5-v1", "N6-v0")
            ),
            env_id="MiniGrid-MultiRoom-N2-S4-v0",
        ),
        Task(
            key="put_near",
            objective="Pick up the object that the mission names first and put it down within one cell of the"
            " second; picking up another one, or putting it down elsewhere, ends the episode.",
            useful=(*_MOVES, "pickup", "drop"),
            env_ids=tuple(f"MiniGrid-PutNear-{size}-v0" for size in ("6x6-N2", "8x8-N3")),
            env_id="MiniGrid-PutNear-6x6-N2-v0",
            carries=True,
        ),
        Task(
            key="red_blue_doors",
            objective="Open the red door, then the blue door; opening the blue one first ends the episode.",
            useful=(*_MOVES, "toggle"),
            env_ids=tuple(f"MiniGrid-RedBlueDoors-{size}-v0" for size in ("6x6", "8x8")),
            env_id="MiniGrid-RedBlueDoors-6x6-v0",
        ),
    )
}
"""All families that the planner knows: the paper's four, and others of MiniGrid's."""


class UnknownEnvironment(ValueError):
    """An environment id is unknown, or its environment cannot be used."""


class UnknownTask(ValueError):
    """An environment has no known task, or has another one than the one given."""


def family_of(env_id: str) -> Task | None:
    """Returns the family of a registered id, or None; a `module:` before the id is ignored."""
    name = env_id.rpartition(":")[2]
    return next((task for task in ALL_TASKS.values() if name in task.env_ids + task.also), None)


def task_key(env_id: str, task: str | None) -> str:
    """Returns the key of the task that questions about an environment name.

    Args:
        task: the key that the user gave; None: that of the environment's family.

    Raises:
        UnknownTask: the environment is of no family and no key is given, or its family has another key.
    """
    family = family_of(env_id)
    if family is None and task is None:
        raise UnknownTask(
            f"`task` is missing: {env_id} belongs to no known task ({', '.join(ALL_TASKS)});"
            " name one of the teacher's tasks"
        )
    if family is None or (task is not None and env_id.rpartition(":")[2] in family.also):
        return str(task)
    if task not in (None, family.key):
        raise UnknownTask(f"`task`: {env_id} belongs to the task {family.key}, not {task}")
    return family.key


def task_of(env_id: str) -> Task:
    """Returns the family of a registered MiniGrid id.

    Raises:
        UnknownEnvironment: the id belongs to no family.
    """
    task = family_of(env_id)
    if task is not None:
        return task
    known = ", ".join(env_id for task in ALL_TASKS.values() for env_id in task.env_ids)
    raise UnknownEnvironment(f"unknown environment {env_id!r}; choose one of: {known}")
