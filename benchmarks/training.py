"""How fast students train: ours, torch-ac's PPO and Stable-Baselines3's PPO in turn, on the same two cores.

Run it as `make bench-student`, or as `python benchmarks/training.py` where the extra `bench` is installed.
Each measurement is a process of its own. What counts is training by the clock, rollouts and updates, after a
warm-up; for ours the run's logs and checkpoints too. Start-up and evaluations do not count.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from student.runs import write_json
from student.settings import TrainSettings
from student.teachers import served_teacher
from student.trainer import train

try:
    import stable_baselines3 as sb3
    import torch_ac
    from stable_baselines3.common.env_util import make_vec_env
except ImportError as error:
    sys.exit(f"benchmarks/training.py: error: no module {error.name!r}: `make bench-student` installs it")

ENV_ID = "MiniGrid-LavaGapS6-v0"
WARM_UP = 2048
"""Frames before the measured ones."""
_CORES = 2

_OURS = TrainSettings(env=ENV_ID, evaluate_every=0, evaluation_episodes=1, progress=False)
_OURS_SETTINGS = _OURS.model_dump(mode="json", exclude={"teacher", "out", "resume", "frames"})
_TORCH_AC = {"num_frames_per_proc": 128, "epochs": 4, "batch_size": 256, "lr": 1e-3, "recurrence": 1}
_SB3 = {
    "n_steps": _OURS.rollout_steps,
    "n_epochs": _OURS.epochs,
    "batch_size": _OURS.minibatch_size,
    "learning_rate": _OURS.learning_rate,
    "ent_coef": _OURS.entropy_coefficient,
}
_PACKAGES = ("lvlm2p", "torch-ac", "stable-baselines3", "torch", "numpy", "gymnasium", "minigrid")


@dataclass(frozen=True)
class Trainer:
    """What is measured: `measure` takes a number of frames and returns frames/s."""

    name: str
    settings: dict[str, Any]
    measure: Callable[[int], float]


def main() -> None:
    """Measures, prints a table and writes the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--frames", type=int, default=16_384, help="frames of each measurement (default: 16384)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each trainer (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/student.json"), help="the figures")
    parser.add_argument(
        "--only", choices=_TRAINERS, help="measure one trainer once, here, and print frames/s"
    )
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    # One thread for every trainer. A second one gains ours a tenth on an idle machine and costs torch-ac a
    # fifth, whose environments want the other core; on a busy machine it makes all many times slower
    torch.set_num_threads(_OURS.threads)
    if arguments.only:
        print(_TRAINERS[arguments.only].measure(arguments.frames))
        return
    speeds: dict[str, list[float]] = {key: [] for key in _TRAINERS}
    for _ in range(arguments.rounds):
        for key, trainer in _TRAINERS.items():
            speeds[key].append(_in_a_process(key, arguments.frames))
            print(f"{trainer.name:36}{speeds[key][-1]:9.0f} frames/s", flush=True)
    _print_table(speeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, _report(arguments.frames, speeds))
    print(f"\nWritten: {arguments.out}")


def _in_a_process(key: str, frames: int) -> float:
    command = [sys.executable, __file__, "--only", key, "--frames", str(frames)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"benchmarks/training.py: error: {key} failed; what it said stands above")
    return float(done.stdout)


def _ours(frames: int) -> float:
    """With every label in the teacher's store: an earlier run with the same seed asked for them all."""
    with tempfile.TemporaryDirectory() as folder, served_teacher(Path(folder, "answers.sqlite3")) as url:
        _train(Path(folder, "first"), url, frames)
        speed, summary = _train(Path(folder, "second"), url, frames)
    assert summary["questions"] == 0, summary
    assert summary["store_hits"] > 0, summary
    return speed


def _ours_alone(frames: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _train(Path(folder), "none", frames)[0]


def _train(folder: Path, teacher: str, frames: int) -> tuple[float, dict[str, Any]]:
    """Our frames/s by the clock, logs and checkpoints included, and the run's summary."""
    settings = {"out": folder, "teacher": teacher, "frames": WARM_UP + frames}
    summary = train(_OURS.model_copy(update=settings))
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("policy_loss")
    begin, *_, end = (event for event in events if event.step >= WARM_UP)
    return (end.step - begin.step) / (end.wall_time - begin.wall_time), summary


def _torch_ac(processes: int, frames: int) -> float:
    torch.manual_seed(1)
    envs = [_stock_env() for _ in range(processes)]
    algorithm = torch_ac.PPOAlgo(envs, _ACModel(), preprocess_obss=_preprocess, **_TORCH_AC)

    def learn(frames: int) -> int:
        done = 0
        while done < frames:
            experiences, logs = algorithm.collect_experiences()
            algorithm.update_parameters(experiences)
            done += logs["num_frames"]
        return done

    return _frames_per_second(learn, frames)


def _sb3(frames: int) -> float:
    envs = make_vec_env(
        lambda: gymnasium.wrappers.FlattenObservation(ImgObsWrapper(_stock_env())), _OURS.environments, seed=1
    )
    model = sb3.PPO("MlpPolicy", envs, seed=1, device="cpu", **_SB3)

    def learn(frames: int) -> int:
        before = model.num_timesteps
        model.learn(frames, reset_num_timesteps=False)
        return int(model.num_timesteps) - before

    return _frames_per_second(learn, frames)


def _frames_per_second(learn: Callable[[int], int], frames: int) -> float:
    """`learn` trains for whole updates, as many frames or a few more, and returns how many."""
    learn(WARM_UP)
    began = time.perf_counter()
    return learn(frames) / (time.perf_counter() - began)


def _stock_env() -> gymnasium.Env[Any, Any]:
    return FullyObsWrapper(gymnasium.make(ENV_ID))


class _ACModel(nn.Module, torch_ac.ACModel):
    """The network that torch-ac is commonly used with; the package itself has none.

    It is made for images of 7x7 cells: on 6x6 its third convolution would have nothing left. A border
    of zeros, by the first one's padding, gives the image the same 64 features as one of 7x7.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.actor = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 7))
        self.critic = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, obs: torch_ac.DictList) -> tuple[torch.distributions.Categorical, Tensor]:
        features_BH = self.features(obs.image.permute(0, 3, 1, 2))
        policy = torch.distributions.Categorical(logits=self.actor(features_BH))
        return policy, self.critic(features_BH).squeeze(1)


def _preprocess(observations: Sequence[dict[str, Any]], device: object = None) -> torch_ac.DictList:
    images = np.stack([observation["image"] for observation in observations])
    return torch_ac.DictList({"image": torch.from_numpy(images).float()})


def _print_table(speeds: dict[str, list[float]]) -> None:
    print(f"\n{'medians':36}{'frames/s':>9}{'ours is':>10}{'ours alone is':>15}")
    for key, trainer in _TRAINERS.items():
        ours, alone = (_times(speeds[of], speeds[key]) for of in ("ours", "ours-alone"))
        print(f"{trainer.name:36}{statistics.median(speeds[key]):9.0f}{ours:9.2f}x{alone:14.2f}x")


def _times(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios: what else the machine does in a round weighs on both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _report(frames: int, speeds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "env": ENV_ID,
        "frames": frames,
        "warm_up": WARM_UP,
        "trainers": {
            key: {
                "name": trainer.name,
                "frames_per_second": statistics.median(speeds[key]),
                "rounds": speeds[key],
                "ours_is_times": _times(speeds["ours"], speeds[key]),
                "ours_alone_is_times": _times(speeds["ours-alone"], speeds[key]),
                "settings": trainer.settings,
            }
            for key, trainer in _TRAINERS.items()
        },
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in _PACKAGES},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "cores_used": _CORES, "threads": _OURS.threads},
    }


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    match = re.search(r"model name\s*: (.+)", text)
    return match.group(1) if match else platform.processor()


_TRAINERS = {
    "ours": Trainer("ours, every label stored", _OURS_SETTINGS, _ours),
    "ours-alone": Trainer("ours, without a teacher", _OURS_SETTINGS, _ours_alone),
    "torch-ac": Trainer("torch-ac, 3 environments", _TORCH_AC | {"processes": 3}, partial(_torch_ac, 3)),
    "torch-ac-16": Trainer(
        "torch-ac, 16 environments", _TORCH_AC | {"processes": 16}, partial(_torch_ac, 16)
    ),
    "sb3": Trainer("Stable-Baselines3, 16 environments", _SB3 | {"environments": _OURS.environments}, _sb3),
}
"""By their names for --only. torch-ac's environments are processes: 3 in the paper's code, 16 by custom."""

if __name__ == "__main__":
    main()
