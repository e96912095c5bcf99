"""Measures Stable-Baselines3's PPO with a teacher and alone: LavaGapS6 and FrozenLake, seeds in turn.

    PYTHONPATH=examples python benchmarks/sb3.py

Both students of a task have the same settings and the same seeds. LavaGap is seen as the flat numbers of the
whole grid and taught by the planner; FrozenLake (`is_slippery=False`) is seen as its number and taught by its
optimal policy (`examples/value_iteration.py`). Every 2,048 timesteps, 20 episodes are evaluated with sampled
actions. The table has the timesteps until three evaluations in a row reach 0.9 ("-": never), and the
return of the last one.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from gridworld.tasks import ACTIONS
from student.experiments.statistics import samples_to
from student.labels.own_loop import TeacherLabels
from student.sb3 import TaughtPPO
from teacher_api.processes import served_teacher

_EVERY, _EPISODES, _REACHED = 2_048, 20, 0.9


@dataclass(frozen=True)
class _Task:
    """An environment with its teacher.

    Attributes:
        teacher: flags of `teacher serve`.
        question: what its questions have, beside the picture.
        lambda_timesteps: until lambda is 0.
    """

    env_id: str
    wrapper: Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]] | None
    env_settings: dict[str, Any]
    teacher: dict[str, Any]
    question: dict[str, Any]
    timesteps: int
    lambda_timesteps: int

    def environments(self, seed: int) -> Any:
        """Returns eight environments."""
        settings = {"render_mode": "rgb_array"} | self.env_settings
        return make_vec_env(self.env_id, 8, seed=seed, env_kwargs=settings, wrapper_class=self.wrapper)


def _flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    space = Box(0, 11, (6 * 6 * 3,), np.float32)
    seen = ImgObsWrapper(FullyObsWrapper(env))  # type: ignore[no-untyped-call]
    return TransformObservation(seen, lambda obs: obs.astype(np.float32).ravel(), space)


_TASKS = (
    _Task(
        "MiniGrid-LavaGapS6-v0",
        _flat,
        {},
        {},
        {
            "task": "lava_gap",
            "actions": ACTIONS,
            "mission": "avoid the lava and get to the green goal square",
        },
        timesteps=40_960,
        lambda_timesteps=20_480,
    ),
    _Task(
        "FrozenLake-v1",
        None,
        {"is_slippery": False},
        {"teacher": "value_iteration:FrozenLake"},
        {"task": "frozen_lake", "actions": ("left", "down", "right", "up")},
        timesteps=20_480,
        lambda_timesteps=10_240,
    ),
)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to SEEDS (default: 5)")
    arguments = parser.parse_args()
    print(f"{'':24}{'':8}{'seed':>5}{'timesteps':>11}{'return':>8}{'asked':>7}", flush=True)
    for task in _TASKS:
        with (
            TemporaryDirectory() as folder,
            served_teacher(Path(folder, "answers.sqlite3"), task.teacher) as url,
        ):
            for seed in range(1, arguments.seeds + 1):
                for name, address in (("alone", None), ("taught", url)):
                    reached, mean, asked = _measured(task, seed, address)
                    shown = "-" if reached is None else f"{reached:,}"
                    print(f"{task.env_id:24}{name:8}{seed:5}{shown:>11}{mean:8.2f}{asked:7}", flush=True)


def _measured(task: _Task, seed: int, url: str | None) -> tuple[int | None, float, int]:
    """Trains one student; returns the timesteps to 0.9, the last return, and the questions asked."""
    settings: dict[str, Any] = {
        "n_steps": 64,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "seed": seed,
        "device": "cpu",
    }
    envs, held_out = task.environments(seed), task.environments(seed + 1_000)
    with TeacherLabels(url, **task.question) if url else nullcontext() as labels:
        model: PPO
        if labels is None:
            model = PPO("MlpPolicy", envs, **settings)
        else:
            settings |= {"teacher": labels, "lambda_timesteps": task.lambda_timesteps}
            model = TaughtPPO("MlpPolicy", envs, **settings)
        timesteps, returns = [], []
        while model.num_timesteps < task.timesteps:
            model.learn(_EVERY, reset_num_timesteps=False)
            mean, _ = evaluate_policy(model, held_out, _EPISODES, deterministic=False)
            timesteps.append(model.num_timesteps)
            returns.append(float(np.mean(mean)))
        return samples_to(_REACHED, timesteps, returns), returns[-1], labels.asked if labels else 0


if __name__ == "__main__":
    main()
