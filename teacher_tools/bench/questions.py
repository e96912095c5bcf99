"""Many different questions about real pictures of the tasks, for measurements and tests."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from minigrid.minigrid_env import MiniGridEnv

from gridworld.environments import make
from gridworld.pictures import draw, encode_png
from gridworld.planner import NoPlan, plan
from gridworld.tasks import ALL_TASKS, TASKS
from gridworld.views import View, view_of
from teacher_api.schemas import Question

_ENV_IDS = {
    "lava_gap": "MiniGrid-LavaGapS7-v0",
    "dynamic_obstacles": "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
    "fetch": "MiniGrid-Fetch-6x6-N2-v0",
    "go_to_door": "MiniGrid-GoToDoor-6x6-v0",
    "go_to_object": "MiniGrid-GoToObject-6x6-N2-v0",
}

_TRIES = 300
"""Consecutive tries without a new picture, after which a task is exhausted: LavaGap has about 1,200."""


def questions(tasks: Sequence[str] = tuple(TASKS), seed: int = 0) -> Iterator[Question]:
    """Yields questions about different pictures, with the agent anywhere where it can complete the task.

    The tasks take turns; a task without new pictures drops out.

    Args:
        tasks: keys of task families; by default the paper's four.
        seed: determines the questions and their order.
    """
    rng = random.Random(seed)
    seen: set[bytes] = set()
    envs = {task: make(_ENV_IDS[task]) for task in tasks}
    while envs:
        for task, env in list(envs.items()):
            picture = _new_picture(env, task, rng, seen)
            if picture is None:
                del envs[task]
            else:
                yield Question.about(picture, mission=env.mission, task=task, actions=ALL_TASKS[task].useful)


def distinct_questions(count: int, seed: int = 0) -> list[Question]:
    """Returns a number of questions about different pictures of the paper's four tasks, in turn."""
    return list(islice(questions(seed=seed), count))


def _new_picture(env: MiniGridEnv, task: str, rng: random.Random, seen: set[bytes]) -> bytes | None:
    """Returns a PNG that is not in `seen`, and adds it; the environment stays in the pictured state."""
    for _ in range(_TRIES):
        env.reset(seed=rng.randrange(10**6))
        env.place_agent()  # type: ignore[no-untyped-call]
        view = view_of(env)
        picture = encode_png(draw(view))
        if picture not in seen and _solvable(view, task, env.mission):
            seen.add(picture)
            return picture
    return None


def _solvable(view: View, task: str, mission: str) -> bool:
    """Returns False where the agent stands outside GoToDoor's room, for example."""
    try:
        plan(view, task, mission, ALL_TASKS[task].useful)
    except NoPlan:
        return False
    return True
