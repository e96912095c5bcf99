"""Stable-Baselines3's PPO on MiniGrid's LavaGap, with a teacher or without: the lines marked # teacher.

`teacher serve --port 8000`, and `python examples/sb3_lava_gap.py http://127.0.0.1:8000`; without the address
it learns alone.
"""

import sys

import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from student.labels.own_loop import TeacherLabels  # teacher
from student.sb3 import TaughtPPO  # teacher


def flat(env):
    """The whole grid as numbers."""
    space = Box(0, 11, (6 * 6 * 3,), np.float32)
    seen = ImgObsWrapper(FullyObsWrapper(env))
    return TransformObservation(seen, lambda obs: obs.astype(np.float32).ravel(), space)


def environments(seed: int):
    drawn = {"render_mode": "rgb_array"}
    return make_vec_env("MiniGrid-LavaGapS6-v0", 8, seed=seed, env_kwargs=drawn, wrapper_class=flat)


settings = {"n_steps": 64, "batch_size": 128, "learning_rate": 2e-3, "seed": 1, "device": "cpu"}
if len(sys.argv) > 1:
    actions = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
    mission = "avoid the lava and get to the green goal square"
    teacher = TeacherLabels(sys.argv[1], task="lava_gap", actions=actions, mission=mission)  # teacher
    taught = {"teacher": teacher, "lambda_timesteps": 40_000}  # teacher
    model = TaughtPPO("MlpPolicy", environments(1), **taught, **settings)  # teacher
else:
    model = PPO("MlpPolicy", environments(1), **settings)
for _ in range(10):
    model.learn(4_096, reset_num_timesteps=False)
    mean, _ = evaluate_policy(model, environments(2), 40, deterministic=False)
    print(f"{model.num_timesteps:6} timesteps: return {mean:.2f}")
