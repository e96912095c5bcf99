"""Many different questions about real pictures, for the suites and benchmarks that need them."""

import random

import gymnasium
import minigrid  # noqa: F401  (registers the environments)

from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_of
from gridworld.views import view_of
from teacher_server.schemas import Question

_ENV_IDS = (
    "MiniGrid-LavaGapS7-v0",
    "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
    "MiniGrid-Fetch-6x6-N2-v0",
    "MiniGrid-GoToDoor-6x6-v0",
)


def distinct_questions(count: int, seed: int = 0) -> list[Question]:
    """Questions about different pictures of the four tasks, in turn, the agent anywhere."""
    rng = random.Random(seed)
    seen: set[bytes] = set()
    questions: list[Question] = []
    envs = [gymnasium.make(env_id).unwrapped for env_id in _ENV_IDS]
    while len(questions) < count:
        env_id, env = _ENV_IDS[len(questions) % len(_ENV_IDS)], envs[len(questions) % len(_ENV_IDS)]
        env.reset(seed=rng.randrange(10**6))
        env.place_agent()  # type: ignore[attr-defined]
        picture = encode_png(draw(view_of(env)))
        if picture not in seen:
            seen.add(picture)
            task = task_of(env_id)
            mission: str = env.mission  # type: ignore[attr-defined]
            questions.append(Question.about(picture, mission=mission, task=task.key, actions=task.useful))
    return questions
