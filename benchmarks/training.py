"""Measures the training speed of our trainer, torch-ac and Stable-Baselines3 with PPO and A2C, on two cores.

Run it as `make bench-student`, or as `python benchmarks/training.py` where the extra `bench` is installed.
All train the same network with the settings of the preset `fast`; the other two use stock MiniGrid with its
FullyObsWrapper. Our trainer learns from stored labels of the teacher, with and without replay, and without a
teacher. Each measurement is a process of its own. The time includes rollouts and updates after a warm-up, and
for our trainer also logs and checkpoints. Start-up and evaluations are not included.
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
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from gridworld.views import EMPTY, N_COLOURS, N_STATES
from student.algorithms.networks import GridNetwork
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.files import write_json
from teacher_api.processes import served_teacher
from worlds.minigrid import Vocabulary, layout_of

try:
    import stable_baselines3 as sb3
    import torch_ac
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError as error:
    sys.exit(f"benchmarks/training.py: error: no module {error.name!r}: `make bench-student` installs it")

ENV_ID = "MiniGrid-LavaGapS6-v0"
WARM_UP = 2048
"""Frames before the measured ones."""
_CORES = 2

_OURS = {
    algo: TrainSettings(
        env=ENV_ID,
        algo=algo,
        preset="fast",
        replay_ratio=0,
        lambda_schedule="constant",
        evaluate_every=0,
        evaluation_episodes=1,
        progress=False,
    )
    for algo in ("ppo", "a2c")
}
_PACKAGES = ("lvlm2p", "torch-ac", "stable-baselines3", "torch", "numpy", "gymnasium", "minigrid")


@dataclass(frozen=True)
class Trainer:
    """A trainer; `measure` takes a number of frames and returns frames/s."""

    name: str
    algo: str
    settings: dict[str, Any]
    measure: Callable[[int], float]


def main() -> None:
    """Measures, prints a table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--frames", type=int, default=40_960, help="frames of each measurement (default: 40960)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each trainer (default: 2)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench/student.json"), help="a JSON file for the results"
    )
    parser.add_argument(
        "--only", choices=_TRAINERS, help="measure one trainer once in this process, and print frames/s"
    )
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    # One thread for every trainer. On an idle machine a second thread makes ours a tenth faster, and torch-ac
    # a fifth slower, as its environments need the other core; on a busy machine it makes all much slower
    torch.set_num_threads(1)
    if arguments.only:
        print(_TRAINERS[arguments.only].measure(arguments.frames))
        return
    speeds: dict[str, list[float]] = {key: [] for key in _TRAINERS}
    for _ in range(arguments.rounds):
        for key, trainer in _TRAINERS.items():
            speeds[key].append(_in_a_process(key, arguments.frames))
            print(f"{trainer.algo} {trainer.name:44}{speeds[key][-1]:9.0f} frames/s", flush=True)
    _print_table(speeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, _report(arguments.frames, speeds))
    print(f"\nWritten: {arguments.out}")


def _in_a_process(key: str, frames: int) -> float:
    command = [sys.executable, __file__, "--only", key, "--frames", str(frames)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, encoding="utf-8")
    if done.returncode:
        sys.exit(f"benchmarks/training.py: error: {key} failed; its output is above")
    return float(done.stdout)


def _ours(algo: str, frames: int, **changes: object) -> float:
    """Trains with every label in the teacher's store, from an earlier run with the same seed."""
    with tempfile.TemporaryDirectory() as folder, served_teacher(Path(folder, "answers.sqlite3")) as url:
        _train(algo, Path(folder, "first"), url, frames, changes)
        speed, summary = _train(algo, Path(folder, "second"), url, frames, changes)
    assert summary["questions"] == 0, summary
    assert summary["store_hits"] > 0, summary
    return speed


def _ours_alone(algo: str, frames: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _train(algo, Path(folder), "none", frames, {})[0]


def _train(
    algo: str, folder: Path, teacher: str, frames: int, changes: dict[str, object]
) -> tuple[float, dict[str, Any]]:
    """Returns frames/s, including logs and checkpoints, and the run's summary."""
    settings = {"out": folder, "teacher": teacher, "frames": WARM_UP + frames, **changes}
    summary = train(_OURS[algo].model_copy(update=settings))
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("policy_loss")
    begin, *_, end = (event for event in events if event.step >= WARM_UP)
    return (end.step - begin.step) / (end.wall_time - begin.wall_time), summary


def _torch_ac(algo: str, processes: int, frames: int) -> float:
    torch.manual_seed(1)
    envs = [_stock_env() for _ in range(processes)]
    kind = {"ppo": torch_ac.PPOAlgo, "a2c": torch_ac.A2CAlgo}[algo]
    algorithm = kind(envs, _Model(), preprocess_obss=_preprocess, **_torch_ac_settings(algo))

    def learn(frames: int) -> int:
        done = 0
        while done < frames:
            experiences, logs = algorithm.collect_experiences()
            algorithm.update_parameters(experiences)
            done += logs["num_frames"]
        return done

    return _frames_per_second(learn, frames)


def _torch_ac_settings(algo: str) -> dict[str, Any]:
    ours = _OURS[algo]
    shared = {
        "lr": ours.learning_rate,
        "entropy_coef": ours.entropy_coefficient,
        "recurrence": 1,
    }
    if algo == "a2c":
        return shared | {"num_frames_per_proc": ours.rollout_steps, "rmsprop_eps": ours.optimiser_epsilon}
    # 128 steps are the default of torch-ac, and ours with 3 environments: the preset `paper`
    return shared | {"num_frames_per_proc": 128, "epochs": ours.epochs, "batch_size": ours.minibatch_size}


def _sb3(algo: str, frames: int) -> float:
    envs = make_vec_env(
        lambda: gymnasium.wrappers.FlattenObservation(ImgObsWrapper(_stock_env())),  # type: ignore[no-untyped-call]
        _OURS[algo].environments,
        seed=1,
    )
    policy = {"net_arch": [], "features_extractor_class": _Features}
    kind = {"ppo": sb3.PPO, "a2c": sb3.A2C}[algo]
    model = kind("MlpPolicy", envs, seed=1, device="cpu", policy_kwargs=policy, **_sb3_settings(algo))

    def learn(frames: int) -> int:
        before = int(model.num_timesteps)
        model.learn(frames, reset_num_timesteps=False)
        return int(model.num_timesteps) - before

    return _frames_per_second(learn, frames)


def _sb3_settings(algo: str) -> dict[str, Any]:
    ours = _OURS[algo]
    shared = {
        "n_steps": ours.rollout_steps,
        "learning_rate": ours.learning_rate,
        "gae_lambda": ours.gae_lambda,
        "ent_coef": ours.entropy_coefficient,
    }
    return shared | ({"n_epochs": ours.epochs, "batch_size": ours.minibatch_size} if algo == "ppo" else {})


def _frames_per_second(learn: Callable[[int], int], frames: int) -> float:
    """Returns frames/s; `learn` trains in whole updates and returns the frames that it trained."""
    learn(WARM_UP)
    began = time.perf_counter()
    return learn(frames) / (time.perf_counter() - began)


def _stock_env() -> gymnasium.Env[Any, Any]:
    return FullyObsWrapper(gymnasium.make(ENV_ID))  # type: ignore[no-untyped-call]


_LAYOUT = layout_of(ENV_ID)
_MISSION = (
    Vocabulary().encode(_stock_env().reset()[0]["mission"]).ljust(_LAYOUT.most_words, b"\0")
)  # the only one
_AGENT = OBJECT_TO_IDX["agent"]


def _rows(images_BWHC: Tensor) -> Tensor:
    """Converts images of FullyObsWrapper to our observations: uint8 [B, K]."""
    kinds, colours, states = images_BWHC.long().transpose(1, 2).flatten(1, 2).unbind(2)
    cells_BC = (kinds * N_COLOURS + colours) * N_STATES + states
    here_B1 = (kinds == _AGENT).int().argmax(1, keepdim=True)
    pose = (here_B1 % _LAYOUT.width, here_B1 // _LAYOUT.width, states.gather(1, here_B1))
    words_BW = torch.tensor(list(_MISSION)).expand(len(cells_BC), -1)
    return torch.cat([cells_BC.scatter(1, here_B1, EMPTY), *pose, words_BW], 1).to(torch.uint8)


class _Model(nn.Module, torch_ac.ACModel):  # type: ignore[misc]
    """Our network for torch-ac."""

    def __init__(self) -> None:
        super().__init__()
        self.network = GridNetwork(_LAYOUT)

    def forward(self, obs: torch_ac.DictList) -> tuple[torch.distributions.Categorical, Tensor]:
        logits_BA, values_B = self.network(_rows(obs.image))
        return torch.distributions.Categorical(logits=logits_BA), values_B


class _Features(BaseFeaturesExtractor):
    """Our network without its heads, which Stable-Baselines3 adds."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        network = GridNetwork(_LAYOUT)
        super().__init__(space, network.actor.in_features)
        del network.actor, network.critic
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        images_BWHC = observations.view(-1, _LAYOUT.width, _LAYOUT.height, 3)
        return self.network.features(self.network.perceive(_rows(images_BWHC)))


def _preprocess(observations: Sequence[dict[str, Any]], device: object = None) -> torch_ac.DictList:
    images = np.stack([observation["image"] for observation in observations])
    return torch_ac.DictList({"image": torch.from_numpy(images)})


def _print_table(speeds: dict[str, list[float]]) -> None:
    for algo in _OURS:
        print(f"\n{algo.upper() + ', medians':44}{'frames/s':>9}{'ours is':>10}{'ours alone is':>15}")
        for key, trainer in _TRAINERS.items():
            if trainer.algo == algo:
                ours, alone = (_times(speeds[f"{of}-{algo}"], speeds[key]) for of in ("ours", "ours-alone"))
                print(f"{trainer.name:44}{statistics.median(speeds[key]):9.0f}{ours:9.2f}x{alone:14.2f}x")


def _times(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median of the rounds' ratios, since other load on the machine affects both in a round."""
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
                "ours_is_times": _times(speeds[f"ours-{trainer.algo}"], speeds[key]),
                "ours_alone_is_times": _times(speeds[f"ours-alone-{trainer.algo}"], speeds[key]),
                "settings": trainer.settings,
            }
            for key, trainer in _TRAINERS.items()
        },
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in _PACKAGES},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "cores_used": _CORES, "threads": 1},
    }


def _cpu() -> str:
    """Returns the processor's name, or what the system reports instead."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"model name\s*: (.+)", text)
    return match.group(1) if match else platform.processor()


def _trainers(algo: str) -> dict[str, Trainer]:
    ours = _OURS[algo]
    settings = ours.model_dump(mode="json", exclude={"teacher", "out", "resume", "frames"})
    torch_ac_settings, sb3_settings = _torch_ac_settings(algo), _sb3_settings(algo)
    several = f"{ours.environments} environments"
    replay = TrainSettings(algo=algo, preset="fast").replay_ratio
    return {
        f"ours-{algo}": Trainer("ours, all labels stored", algo, settings, partial(_ours, algo)),
        f"ours-replay-{algo}": Trainer(
            f"ours, replaying {replay:.0f} labels a frame",
            algo,
            settings | {"replay_ratio": replay},
            partial(_ours, algo, replay_ratio=replay),
        ),
        f"ours-alone-{algo}": Trainer("ours, without a teacher", algo, settings, partial(_ours_alone, algo)),
        f"torch-ac-{algo}": Trainer(
            "torch-ac, 3 environments, each a process",
            algo,
            torch_ac_settings | {"processes": 3},
            partial(_torch_ac, algo, 3),
        ),
        f"sb3-{algo}": Trainer(
            f"Stable-Baselines3, {several}",
            algo,
            sb3_settings | {"environments": ours.environments},
            partial(_sb3, algo),
        ),
    }


_TRAINERS = _trainers("ppo") | _trainers("a2c")
"""By the names that --only takes."""

if __name__ == "__main__":
    main()
