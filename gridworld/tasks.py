"""The paper's four task families: their keys, sizes, useful actions and what counts as success."""

from dataclasses import dataclass

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""MiniGrid's seven actions, in the order of its action numbers."""


@dataclass(frozen=True)
class Task:
    """One family of environments.

    An episode is a success when its return is above 0: in all four families only reaching the
    objective pays, and failing pays 0 or -1.
    """

    key: str
    objective: str
    useful: tuple[str, ...]
    env_ids: tuple[str, ...]


_MOVES = ("left", "right", "forward")

TASKS = {
    task.key: task
    for task in (
        Task(
            key="lava_gap",
            objective="Reach the green goal square; lava ends the episode.",
            useful=_MOVES,
            env_ids=tuple(f"MiniGrid-LavaGapS{n}-v0" for n in (5, 6, 7)),
        ),
        Task(
            key="dynamic_obstacles",
            objective="Reach the green goal square; moving into a wall or a ball ends the episode.",
            useful=_MOVES,
            env_ids=tuple(
                f"MiniGrid-Dynamic-Obstacles-{size}-v0"
                for size in ("5x5", "Random-5x5", "6x6", "Random-6x6", "8x8", "16x16")
            ),
        ),
        Task(
            key="fetch",
            objective="Pick up the object that the mission names; picking up another one ends the episode.",
            useful=(*_MOVES, "pickup"),
            env_ids=tuple(f"MiniGrid-Fetch-{size}-v0" for size in ("5x5-N2", "6x6-N2", "8x8-N3")),
        ),
        Task(
            key="go_to_door",
            objective="Stand beside the door that the mission names and choose done; done or toggle"
            " anywhere else ends the episode.",
            useful=(*_MOVES, "done"),
            env_ids=tuple(f"MiniGrid-GoToDoor-{size}-v0" for size in ("5x5", "6x6", "8x8")),
        ),
    )
}


class UnknownEnvironment(ValueError):
    """An environment id that belongs to none of the task families."""


def task_of(env_id: str) -> Task:
    """The family that a registered MiniGrid id belongs to.

    Raises:
        UnknownEnvironment: the id is none of the families' registered ids.
    """
    for task in TASKS.values():
        if env_id in task.env_ids:
            return task
    known = ", ".join(env_id for task in TASKS.values() for env_id in task.env_ids)
    raise UnknownEnvironment(f"unknown environment {env_id!r}; choose one of: {known}")
