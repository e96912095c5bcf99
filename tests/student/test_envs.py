"""Environments against MiniGrid itself."""

import gymnasium
import numpy as np
import pytest
from minigrid.wrappers import FullyObsWrapper

from gridworld.tasks import ALL_TASKS, EVALUATION_SEEDS, UnknownEnvironment
from gridworld.views import NAMES, uncode
from student.envs import (
    WORDS,
    Environment,
    Environments,
    Row,
    UnknownWord,
    Vocabulary,
    check,
    layout_of,
    rows_of,
)

pytestmark = pytest.mark.unit

SMALL = [task.env_ids[0] for task in ALL_TASKS.values()]
OTHERS = [
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",  # 12 x 6
    "MiniGrid-ObstructedMaze-1Dlhb-v0",  # 11 x 6, with a box, a ball, a key and a locked door
    "BabyAI-GoToObjS4-v0",
    "tests.student.rooms:Rooms-Painted-v0",  # 7 x 4, things change in place and the mission too
]
"""Of no family."""


@pytest.mark.parametrize(
    "env_id", [*(env_id for task in ALL_TASKS.values() for env_id in task.env_ids), *OTHERS]
)
def test_observations_are_those_of_minigrids_full_view(env_id: str) -> None:
    layout, vocabulary = layout_of(env_id), Vocabulary()
    ours = Environment(layout, vocabulary, lambda episode: 70 + episode)
    theirs = FullyObsWrapper(gymnasium.make(env_id))
    rng = np.random.default_rng(0)
    for episode in range(3):
        row = _row(ours.reset())
        seen, _ = theirs.reset(seed=70 + episode)
        ended = False
        while not ended:
            world = theirs.unwrapped
            encoded = np.array([uncode(int(cell)) for cell in row[: layout.cells]])
            encoded = encoded.reshape(layout.height, layout.width, 3).swapaxes(0, 1)
            x, y, heading = row[layout.cells : layout.cells + 3]
            assert (x, y) == tuple(world.agent_pos)
            assert heading == seen["direction"]
            encoded[x, y] = (10, 0, heading)  # where MiniGrid writes the agent over the cell
            np.testing.assert_array_equal(encoded, seen["image"])
            assert vocabulary.decode(layout.words(row)) == seen["mission"]
            action = int(rng.integers(len(layout.actions)))
            observation, reward, terminated, truncated = ours.step(action)
            row = _row(observation)
            seen, *theirs_step, _ = theirs.step(action)
            assert [reward, terminated, truncated] == theirs_step
            ended = terminated or truncated


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("MiniGrid-Nowhere-v0", "unknown environment 'MiniGrid-Nowhere-v0': Environment `MiniGrid-Nowhere`"),
        ("MiniGrid-LavaGapS5", "'MiniGrid-LavaGapS5': No registered env"),
        ("nowhere.to.be.found:Maze-v0", "'nowhere.to.be.found:Maze-v0': No module named 'nowhere'"),
        ("json:Maze-v0", "unknown environment 'json:Maze-v0'"),
        ("CartPole-v1", "'CartPole-v1' is not of MiniGrid's kind"),
        ("tests.student.rooms:Rooms-Broken-v0", "unknown environment .*: the roof is leaking"),
        ("tests.student.rooms:Rooms-Eight-Actions-v0", r"has the actions Discrete\(8\)"),
        ("tests.student.rooms:Rooms-Limited-v0", "registered with wrappers or max_episode_steps"),
        ("tests.student.rooms:Rooms-Talkative-v0", "cannot be observed: UnknownWord: .* has 17 words"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_in_one_line(env_id: str, said: str) -> None:
    with pytest.raises(UnknownEnvironment, match=said) as refused:
        check(env_id)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("env_id", SMALL)
def test_an_ended_episode_is_followed_by_the_next_in_the_same_step(env_id: str) -> None:
    layout, vocabulary = layout_of(env_id), Vocabulary()
    envs = Environments(layout, vocabulary, 3, seed=5)
    single = [Environment(layout, vocabulary, env._seed_of) for env in envs._envs]
    rows_NK = envs.reset()
    for env, row in zip(single, rows_NK, strict=True):
        np.testing.assert_array_equal(_row(env.reset()), row)
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(300):
        actions_N = rng.integers(len(layout.actions), size=3)
        step = envs.step(actions_N)
        for n, env in enumerate(single):
            last, reward, terminated, truncated = env.step(int(actions_N[n]))
            np.testing.assert_array_equal(step.last_NK[n], _row(last))
            assert step.rewards_N[n] == pytest.approx(reward)
            assert (step.terminated_N[n], step.truncated_N[n]) == (terminated, truncated)
            if terminated or truncated:
                ended += 1
                last = env.reset()
            np.testing.assert_array_equal(step.obs_NK[n], _row(last))
    assert ended > 0


@pytest.mark.parametrize("env_id", [*SMALL, *OTHERS])
def test_a_restored_environment_goes_on_as_if_it_had_not_stopped(env_id: str) -> None:
    layout, vocabulary, rng = layout_of(env_id), Vocabulary(), np.random.default_rng(2)
    envs = Environments(layout, vocabulary, 4, seed=9)
    envs.reset()
    for _ in range(37):
        step = envs.step(rng.integers(len(layout.actions), size=4))
    again = Environments(layout, Vocabulary(vocabulary.words), 4, seed=9)
    np.testing.assert_array_equal(again.restore(envs.states), step.obs_NK)
    for _ in range(60):
        actions_N = rng.integers(len(layout.actions), size=4)
        one, other = envs.step(actions_N), again.step(actions_N)
        np.testing.assert_array_equal(one.obs_NK, other.obs_NK)
        np.testing.assert_array_equal(one.rewards_N, other.rewards_N)
        assert one.ended == other.ended


def test_every_training_episode_has_another_seed_and_none_is_for_evaluation() -> None:
    envs = Environments(layout_of(SMALL[0]), Vocabulary(), 8, seed=3)
    seeds = {env._seed_of(episode) for env in envs._envs for episode in range(200)}
    assert len(seeds) == 8 * 200
    assert max(seeds) < EVALUATION_SEEDS


def test_missions_are_encoded_word_by_word_and_come_back() -> None:
    vocabulary = Vocabulary(["get", "a"])
    encoded = vocabulary.encode("go get a green key")
    assert len(encoded) == WORDS
    new = len(NAMES)
    green, key = 1 + NAMES.index("green"), 1 + NAMES.index("key")
    assert list(encoded[:6]) == [new + 3, new + 1, new + 2, green, key, 0]
    assert vocabulary.decode(encoded) == "go get a green key"
    assert Vocabulary(vocabulary.words).encode("go get a green key") == encoded


def test_a_mission_that_is_too_long_is_refused() -> None:
    with pytest.raises(UnknownWord, match="has 17 words"):
        Vocabulary().encode(" ".join(["go"] * 17))


def _row(observation: bytes) -> Row:
    return rows_of([observation])[0]
