"""How fast the planner answers: CPU time to read pictures and to plan, in states of held-out episodes.

`python -m benchmarks.planner --episodes 10` prints a row for each task; `--env ID` for one environment.
"""

import argparse
import time

import numpy as np

from gridworld.environments import actions_of, make
from gridworld.pictures import draw, read
from gridworld.planner import NoPlan, plan
from gridworld.tasks import ALL_TASKS, EVALUATION_SEEDS, task_of
from gridworld.views import view_of


def measured(env_id: str, episodes: int) -> tuple[int, float, float]:
    """Returns the states met, and the milliseconds for reading and for planning one of them.

    Half of the steps are the planner's, the others are random, so that states off the best path occur.
    """
    env, task, rng = make(env_id), task_of(env_id), np.random.default_rng(0)
    names = actions_of(env)
    states, reading, planning = 0, 0.0, 0.0
    for episode in range(episodes):
        env.reset(seed=EVALUATION_SEEDS + episode)
        ended = False
        while not ended:
            picture = draw(view_of(env))
            began = time.process_time()
            view = read(picture)
            read_at = time.process_time()
            try:
                choices = plan(view, task.key, env.mission, task.useful).best
            except NoPlan:
                choices = task.useful
            planning += time.process_time() - read_at
            reading += read_at - began
            states += 1
            action = rng.choice(choices if rng.random() < 0.5 else task.useful)
            _, _, terminated, truncated, _ = env.step(names.index(str(action)))
            ended = terminated or truncated
    return states, 1000 * reading / states, 1000 * planning / states


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", nargs="+", default=[task.env_id for task in ALL_TASKS.values()])
    parser.add_argument("--episodes", type=int, default=10)
    given = parser.parse_args()
    print(f"{'environment':36}{'states':>8}{'read, ms':>10}{'plan, ms':>10}{'answers/s':>11}")
    for env_id in given.env:
        states, reading, planning = measured(env_id, given.episodes)
        print(
            f"{env_id:36}{states:8}{reading:10.2f}{planning:10.2f}{1000 / (reading + planning):11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
