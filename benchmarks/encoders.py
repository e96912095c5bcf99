"""Measures how many of the planner's labels the network needs, with and without its mission marks.

A mark says whether the mission names a cell's kind and colour. Without marks, the same network gets missions
whose words have other ids, so that only the words' embeddings carry the mission. Each network learns from the
same labelled states, half of whose actions are random, and then plays held-out episodes. Run it as
`python benchmarks/encoders.py`; it takes minutes.
"""

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.planner import plan
from gridworld.tasks import TASKS, task_of
from gridworld.views import NAMES
from student.algorithms.distillation import Labels, kl_to_teacher
from student.algorithms.networks import GridNetwork
from student.algorithms.rollout import act
from student.runs.policies import evaluate
from worlds.minigrid import MinigridEnvironment, MinigridWorld, Vocabulary, layout_of

_STEPS, _BATCH, _EPISODES = 1500, 128, 200


def main() -> None:
    """Prints the agreement on held-out states and the success, a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[500, 1500, 4000], help="labels to learn from"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{'environment':36}{'labels':>7}  {'':14}{'agreement':>10}{'success':>9}")
    for env_id in (task.env_id for task in TASKS.values()):
        vocabulary, obs_MK, probs_MA = _labelled(env_id, max(arguments.labels) + 1000)
        for size in arguments.labels:
            for marked in (True, False):
                results = [
                    _learn(env_id, vocabulary, obs_MK, probs_MA, size, marked, seed)
                    for seed in range(arguments.seeds)
                ]
                agreement, success = np.mean(results, 0)
                kind = "with marks" if marked else "without"
                print(f"{env_id:36}{size:7}  {kind:14}{agreement:10.3f}{success:9.3f}", flush=True)


def _labelled(env_id: str, size: int) -> tuple[Vocabulary, NDArray[np.uint8], NDArray[np.float32]]:
    """Returns states and the planner's probabilities."""
    layout, vocabulary, task = layout_of(env_id), Vocabulary(), task_of(env_id).key
    rng = np.random.default_rng(0)
    env = MinigridEnvironment(layout, vocabulary, lambda episode: episode)
    rows: list[Any] = []
    probs: list[list[float]] = []
    ended = True
    while len(rows) < size:
        if ended:
            observation = env.reset()
        row = np.frombuffer(observation, np.uint8)
        planned = plan(layout.view(row), task, vocabulary.decode(layout.words(row)), layout.actions)
        rows.append(row)
        probs.append(list(planned.probabilities.values()))
        action = rng.integers(3) if rng.random() < 0.5 else rng.choice(len(layout.actions), p=probs[-1])
        observation, _, terminated, truncated = env.step(int(action))
        ended = terminated or truncated
    return vocabulary, np.stack(rows), np.array(probs, np.float32)


def _learn(
    env_id: str,
    vocabulary: Vocabulary,
    obs_MK: NDArray[np.uint8],
    probs_MA: NDArray[np.float32],
    size: int,
    marked: bool,
    seed: int,
) -> tuple[float, float]:
    """Returns the agreement on the last 1,000 states, and the success with sampled actions."""
    torch.manual_seed(seed)
    layout = layout_of(env_id)
    network = GridNetwork(layout)
    torch.nn.init.normal_(network.words, std=0.1)  # breaks the symmetry of the words, which start equal

    def seen(obs_BK: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if marked:
            return obs_BK
        renamed_BK = obs_BK.copy()
        words_BW = renamed_BK[:, -layout.most_words :]
        words_BW[words_BW > 0] += len(NAMES)
        return renamed_BK

    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    obs, probs = torch.from_numpy(seen(obs_MK)), torch.from_numpy(probs_MA)
    for _ in range(_STEPS):
        rows = torch.randint(size, (_BATCH,))
        labels = Labels(probs[rows], torch.ones(_BATCH, dtype=torch.bool))
        optimiser.zero_grad()
        kl_to_teacher(network(obs[rows])[0].log_softmax(1), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    chosen_B = act(network, obs[-1000:].numpy())[0].argmax(1)
    best_B = probs_MA[-1000:].max(1)
    agreement = (probs_MA[-1000:][np.arange(1000), chosen_B] >= best_B - 1e-6).mean()
    played = evaluate(
        lambda obs_BK: act(network, seen(obs_BK))[0],
        MinigridWorld(layout, Vocabulary(vocabulary.words)),
        _EPISODES,
        np.random.default_rng(seed),
    )
    return float(agreement), played.success


if __name__ == "__main__":
    main()
