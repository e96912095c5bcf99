"""The teacher as a policy in held-out episodes, and chance in the same ones."""

from functools import partial

import numpy as np

from gridworld.episodes import Evaluation, play
from gridworld.scenes import Scene
from gridworld.tasks import ACTIONS, ALL_TASKS
from teacher_api.schemas import Answer
from teacher_tools.score.asking import Asked, Outcome
from teacher_tools.score.figures import Failure, Mean, Played, Share
from teacher_tools.score.world import World


def play_teacher(
    asked: Asked, env_id: str, task: str, *, sampled: bool, episodes: int, seed: int, together: int
) -> Played:
    """Plays the teacher's answers.

    A step without an answer is drawn from the useful actions, so that a teacher which never answers plays
    as chance does.

    Args:
        sampled: actions are drawn from the probabilities; else the most probable one is taken.
        together: environments played at once.
    """
    rng = np.random.default_rng(seed)
    without_answer = 0

    def action_of(outcome: Outcome) -> str:
        nonlocal without_answer
        if not isinstance(outcome, Answer) or outcome.probabilities is None:
            without_answer += 1
            return str(rng.choice(ALL_TASKS[task].useful))
        if not sampled:
            return str(outcome.action)
        probs_A = np.array(list(outcome.probabilities.values()))
        return str(rng.choice(list(outcome.probabilities), p=probs_A / probs_A.sum()))

    def choose(scenes: list[Scene]) -> list[int]:
        return [ACTIONS.index(action_of(outcome)) for outcome in asked.about(scenes)]

    failures: list[Failure] = []
    result = play(partial(World, env_id, task, failures=failures), choose, episodes, together)
    by_seed = sorted(failures, key=lambda failure: failure.seed)
    more = {"steps_without_answer": without_answer, "failures": by_seed}
    return _played(result).model_copy(update=more)


def play_chance(env_id: str, task: str, *, episodes: int, seed: int) -> Played:
    """Plays actions drawn from the useful ones alike."""
    rng = np.random.default_rng(seed)
    useful = [ACTIONS.index(action) for action in ALL_TASKS[task].useful]

    def choose(scenes: list[Scene]) -> list[int]:
        return [int(action) for action in rng.choice(useful, len(scenes))]

    return _played(play(partial(World, env_id, task), choose, episodes))


def _played(result: Evaluation) -> Played:
    success, mean_return = Share.among(result.returns_E > 0), Mean.over(result.returns_E)
    assert success is not None
    assert mean_return is not None
    return Played(success=success, mean_return=mean_return, length=float(result.lengths_E.mean()))
