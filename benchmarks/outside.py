"""Asks a running teacher about what compact checkpoints do not know: how sure it is, and how often right.

    python benchmarks/outside.py http://127.0.0.1:8000

Rows: larger grids of a known task (LavaGap at 10 x 10, FourRooms), tasks that it does not know, asked as
lava_gap (MultiRoom, DoorKey), exchanged colours and noise. A row's states have the agent in random places. An
action is right if the planner, which sees the grid itself, takes it too; in noise nothing is right.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import gymnasium
import numpy as np

from gridworld.environments import make
from gridworld.pictures import Picture, draw, encode_png
from gridworld.planner import NoPlan, plan
from gridworld.tasks import ALL_TASKS
from gridworld.views import view_of
from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from teacher_tools.train.outside import OTHER_COLOURS

_ASKED = "lava_gap"
_Change = Callable[[Picture, np.random.Generator], Picture]


def _unchanged(picture: Picture, rng: np.random.Generator) -> Picture:
    return picture


def _recoloured(picture: Picture, rng: np.random.Generator) -> Picture:
    return np.ascontiguousarray(picture[..., list(rng.choice(OTHER_COLOURS))])


def _noise(picture: Picture, rng: np.random.Generator) -> Picture:
    return rng.integers(256, size=picture.shape, dtype=np.uint8)


_ROWS: dict[str, tuple[str, str, _Change]] = {
    "LavaGap 10 x 10": ("MiniGrid-LavaGapS10-v0", "lava_gap", _unchanged),
    "FourRooms": ("MiniGrid-FourRooms-v0", "lava_gap", _unchanged),
    "MultiRoom": ("MiniGrid-MultiRoom-N4-S5-v0", "multi_room", _unchanged),
    "DoorKey 8 x 8": ("MiniGrid-DoorKey-8x8-v0", "door_key", _unchanged),
    "exchanged colours": ("MiniGrid-LavaGapS6-v0", "lava_gap", _recoloured),
    "noise": ("MiniGrid-LavaGapS6-v0", "", _noise),
}
"""Name -> the environment, the task by whose rules an action is right, and what becomes of the picture."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="the teacher's address")
    parser.add_argument("--states", type=int, default=200, help="states of each row (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the states (default: 0)")
    arguments = parser.parse_args()
    gymnasium.register(
        "MiniGrid-LavaGapS10-v0", "minigrid.envs:LavaGapEnv", kwargs={"size": 10}, disable_env_checker=True
    )
    print(f"{'':18}{'answered':>9}{'largest probability':>21}{'right':>7}")
    with TeacherClient(arguments.url, deadline_s=600) as client:
        for name, (env_id, task, change) in _ROWS.items():
            states = _states(make(env_id), task, change, np.random.default_rng(arguments.seed))
            asked = list(islice(states, arguments.states))
            outcomes = client.ask_batch([question for question, _ in asked])
            sure, right = [], []
            for outcome, (_, best) in zip(outcomes, asked, strict=True):
                if isinstance(outcome, Answer):
                    sure.append(max((outcome.probabilities or {}).values()))
                    right.append(float(outcome.action in best))
            answered = f"{name:18}{len(sure) / len(asked):9.2f}"
            print(answered + (f"{np.mean(sure):21.2f}{np.mean(right):7.2f}" if sure else ""), flush=True)


def _states(
    env: Any, task: str, change: _Change, rng: np.random.Generator
) -> Iterator[tuple[Question, tuple[str, ...]]]:
    """Yields questions, each with the actions that are right."""
    useful = ALL_TASKS[_ASKED].useful
    while True:
        env.reset(seed=int(rng.integers(2**31, 2**32)))
        env.place_agent()
        view, best = view_of(env), tuple[str, ...]()
        if task:
            try:
                best = plan(view, task, env.mission, ALL_TASKS[task].useful).best
            except NoPlan:
                continue
        picture = encode_png(change(draw(view), rng))
        yield Question.about(picture, mission=env.mission, task=_ASKED, actions=useful), best


if __name__ == "__main__":
    main()
