"""Environments against MiniGrid itself."""

from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.wrappers import FullyObsWrapper

from gridworld.pictures import Picture, draw, read
from gridworld.tasks import ACTIONS, ALL_TASKS, EVALUATION_SEEDS, UnknownEnvironment
from gridworld.views import EMPTY, NAMES, STEPS, code, uncode
from worlds.minigrid import (
    MANY_WORDS,
    WORDS,
    MinigridEnvironment,
    MinigridWorld,
    UnknownWord,
    Vocabulary,
    layout_of,
    make,
)
from worlds.registry import check
from worlds.world import EnvironmentFailed, Environments, Observation, is_repeatable, stacked

pytestmark = pytest.mark.unit

SMALL = [task.env_ids[0] for task in ALL_TASKS.values()]
OTHERS = [
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",  # 12 x 6
    "MiniGrid-ObstructedMaze-1Dlhb-v0",  # 11 x 6, with a box, a ball, a key and a locked door
    "BabyAI-GoToObjS4-v0",
    "tests.student.custom_environments:Custom-Painted-v0",  # 7 x 4, changes in place, as its mission does
]
"""Of no family."""


@pytest.mark.parametrize(
    "env_id", [*(env_id for task in ALL_TASKS.values() for env_id in task.env_ids[:3]), *OTHERS]
)
def test_observations_are_those_of_minigrids_full_view(env_id: str) -> None:
    layout, vocabulary = layout_of(env_id), Vocabulary()
    ours = MinigridEnvironment(layout, vocabulary, lambda episode: 70 + episode)
    theirs = FullyObsWrapper(gymnasium.make(env_id))
    rng = np.random.default_rng(0)
    for episode in range(3):
        row = _row(ours.reset())
        seen, _ = theirs.reset(seed=70 + episode)
        ended, steps = False, 0
        while not ended and steps < 200:
            steps += 1
            world = theirs.unwrapped
            encoded = np.array([uncode(int(cell)) for cell in row[: layout.cells]])
            encoded = encoded.reshape(layout.height, layout.width, 3).swapaxes(0, 1)
            x, y, heading = row[layout.cells : layout.cells + 3]
            assert (x, y) == tuple(world.agent_pos)
            assert heading == seen["direction"]
            encoded[x, y] = (10, 0, heading)  # where MiniGrid writes the agent over the cell
            np.testing.assert_array_equal(encoded, seen["image"])
            assert vocabulary.decode(layout.words(row)) == seen["mission"]
            if layout.carries:
                carried = world.carrying and uncode(row[layout.cells + 3])
                assert carried == (world.carrying and world.carrying.encode())
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
        ("tests.student.custom_environments:Custom-Broken-v0", "unknown environment .*: the roof is leaking"),
        ("tests.student.custom_environments:Custom-EightActions-v0", r"has the actions Discrete\(8\)"),
        (
            "tests.student.custom_environments:Custom-Compass-v0",
            "has the actions up, down, left, right; they have to be MiniGrid's, or some of them: left, right,"
            " forward, pickup, drop, toggle, done",
        ),
        (
            "tests.student.custom_environments:Custom-Gaps-v0",
            r"actions Discrete\(2\), and names for left, right; its `act",
        ),
        (
            "tests.student.custom_environments:Custom-Unnamed-v0",
            r"the actions Discrete\(2\), and names for none",
        ),
        (
            "tests.student.custom_environments:Custom-Icy-v0",
            "cannot be observed: a blue ice is none of MiniGrid's",
        ),
        (
            "tests.student.custom_environments:Custom-Orange-v0",
            "cannot be observed: an orange ball is none of MiniGrid's",
        ),
        (
            "tests.student.custom_environments:Custom-Starry-v0",
            "observed: Star, a yellow ball, has its own render()",
        ),
        (
            "tests.student.custom_environments:Custom-Talkative-v0",
            "cannot be observed: UnknownWord: .* has 129 words",
        ),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_in_one_line(env_id: str, said: str) -> None:
    with pytest.raises(UnknownEnvironment, match=said) as refused:
        check(env_id)
    assert "\n" not in str(refused.value)


def test_actions_in_another_order_are_known_by_their_names() -> None:
    """`right` is 0, `forward` 1 and `left` 2 there."""
    layout = layout_of("tests.student.custom_environments:Custom-Swapped-v0")
    assert layout.actions == ("right", "forward", "left")
    env = MinigridEnvironment(layout, Vocabulary(), lambda episode: episode)
    assert layout.view(_row(env.reset())).heading == 0
    for name, pose in (("right", (1, 1, 1)), ("left", (1, 1, 0)), ("forward", (2, 1, 0))):
        view = layout.view(_row(env.step(layout.actions.index(name))[0]))
        assert (view.x, view.y, view.heading) == pose


@pytest.mark.parametrize(
    "env_id", ["Custom-Seen-v0", "Custom-Human-v0", "Custom-Coins-v0", "Custom-TwoGoals-v0"]
)
def test_an_unusual_environment_that_can_be_drawn_is_accepted(env_id: str) -> None:
    """One in a wrapper of observations, one that would open a window, objects and colours of its own."""
    layout = layout_of(f"tests.student.custom_environments:{env_id}")
    env = MinigridEnvironment(layout, Vocabulary(), lambda episode: episode)
    view = layout.view(_row(env.reset()))
    env.step(2)
    np.testing.assert_array_equal(draw(view, 8), _drawn_at_the_start(env_id))


def test_what_is_carried_is_observed_where_things_are_carried_about() -> None:
    for env_id, carries, words in (
        ("MiniGrid-Fetch-5x5-N2-v0", False, WORDS),
        ("MiniGrid-GoToObject-6x6-N2-v0", False, WORDS),
        ("MiniGrid-MultiRoom-N2-S4-v0", False, WORDS),
        ("MiniGrid-DoorKey-5x5-v0", True, WORDS),
        ("BabyAI-PickupLoc-v0", True, MANY_WORDS),
        ("tests.student.custom_environments:Custom-Swapped-v0", False, MANY_WORDS),  # without pickup
    ):
        layout = layout_of(env_id)
        assert layout.carries == carries
        assert layout.length == layout.cells + 3 + carries + words
    env = MinigridEnvironment(layout_of("MiniGrid-DoorKey-5x5-v0"), Vocabulary(), lambda episode: episode)
    before = env._layout.view(_row(env.reset()))
    world = env._env
    x, y = next((x, y) for x in range(5) for y in range(5) if _kind(world.grid.get(x, y)) == "key")
    world.agent_pos, world.agent_dir = next(
        ((x - dx, y - dy), heading)
        for heading, (dx, dy) in enumerate(STEPS)
        if world.grid.get(x - dx, y - dy) is None
    )
    after = env._layout.view(_row(env.step(ACTIONS.index("pickup"))[0]))
    assert (before.carried, after.carried) == (None, code("key", "yellow"))
    assert after.cells_HW[y, x] == EMPTY
    picture = env.picture()
    assert read(picture) == after
    assert (picture[:28, :28] != draw(before)[:28, :28]).any()


def _kind(thing: Any) -> str | None:
    return thing and str(thing.type)


def test_the_wrappers_and_the_time_limit_of_an_environment_are_honoured() -> None:
    name = "tests.student.custom_environments:Custom-{}-v0"
    limited = MinigridEnvironment(layout_of(name.format("Limited")), Vocabulary(), lambda episode: episode)
    limited.reset()
    assert [limited.step(0)[2:] for _ in range(5)] == [*[(False, False)] * 4, (False, True)]
    layout = layout_of(name.format("Wrapped"))  # takes another action with probability 0.1
    wrapped = MinigridEnvironment(layout, Vocabulary(), lambda episode: episode)
    wrapped.reset()
    turned = [layout.view(_row(wrapped.step(0)[0])).heading for _ in range(60)]
    as_chosen = [later == (earlier - 1) % 4 for earlier, later in pairwise(turned)]
    assert 0.6 < np.mean(as_chosen) < 1
    assert is_repeatable(MinigridWorld(layout, Vocabulary()))


def test_an_environment_may_look_at_its_own_observation() -> None:
    for env_id, actions in (
        ("Custom-Looking-v0", (2, 2)),
        ("Custom-LookingReward-v0", (2, 2, 2, 1, 2, 2, 2)),
    ):
        layout = layout_of(f"tests.student.custom_environments:{env_id}")
        env = MinigridEnvironment(layout, Vocabulary(), lambda episode: episode)
        env.reset()
        rewards = [env.step(action)[1] for action in actions]
        assert max(rewards) == 1
    assert make(SMALL[0]).gen_obs() == {}, "MiniGrid's own do without the partial view"


@pytest.mark.parametrize(
    ("env_id", "after", "said"),
    [
        (
            "Custom-Failing-v0",
            20,
            "in step 21 of the episode with seed 70: RecursionError: rejection sampling failed",
        ),
        (
            "Custom-Growing-v0",
            150,
            "at the start of the episode with seed 72: its grid has 8 x 8 cells, and had 6 x 6",
        ),
        (
            "Custom-Turning-v0",
            70,
            "at the start of the episode with seed 71: its grid has 5 x 9 cells, and had 9 x 5",
        ),
    ],
)
def test_an_environment_that_fails_or_changes_its_size_is_named(env_id: str, after: int, said: str) -> None:
    layout = layout_of(f"tests.student.custom_environments:{env_id}")
    env = MinigridEnvironment(layout, Vocabulary(), lambda episode: 70 + episode)
    with pytest.raises(EnvironmentFailed, match=said) as caught:
        _turn_about(env, after + 1)
    assert f"'tests.student.custom_environments:{env_id}' failed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_babyais_rejected_layouts_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    env = MinigridEnvironment(layout_of("BabyAI-PickupLoc-v0"), Vocabulary(), lambda episode: episode)
    for _ in range(20):
        env.reset()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("env_id", SMALL)
def test_an_ended_episode_is_followed_by_the_next_in_the_same_step(env_id: str) -> None:
    layout, vocabulary = layout_of(env_id), Vocabulary()
    envs = Environments(MinigridWorld(layout, vocabulary), 3, seed=5)
    single = [MinigridEnvironment(layout, vocabulary, env._seed_of) for env in envs._envs]
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
    envs = Environments(MinigridWorld(layout, vocabulary), 4, seed=9)
    envs.reset()
    for _ in range(37):
        step = envs.step(rng.integers(len(layout.actions), size=4))
    again = Environments(MinigridWorld(layout, Vocabulary(vocabulary.words)), 4, seed=9)
    np.testing.assert_array_equal(again.restore(envs.states), step.obs_NK)
    for _ in range(60):
        actions_N = rng.integers(len(layout.actions), size=4)
        one, other = envs.step(actions_N), again.step(actions_N)
        np.testing.assert_array_equal(one.obs_NK, other.obs_NK)
        np.testing.assert_array_equal(one.rewards_N, other.rewards_N)
        assert one.ended == other.ended


def test_every_training_episode_has_another_seed_and_none_is_for_evaluation() -> None:
    envs = Environments(MinigridWorld(layout_of(SMALL[0]), Vocabulary()), 8, seed=3)
    seeds = {env._seed_of(episode) for env in envs._envs for episode in range(200)}
    assert len(seeds) == 8 * 200
    assert max(seeds) < EVALUATION_SEEDS


def test_missions_are_encoded_word_by_word_and_come_back() -> None:
    vocabulary = Vocabulary(["get", "a"])
    encoded = vocabulary.encode("go get a green key")
    new = len(NAMES)
    green, key = 1 + NAMES.index("green"), 1 + NAMES.index("key")
    assert list(encoded) == [new + 3, new + 1, new + 2, green, key]
    assert vocabulary.decode(encoded) == "go get a green key"
    assert Vocabulary(vocabulary.words).encode("go get a green key") == encoded


def test_a_mission_that_is_too_long_is_refused() -> None:
    layout, vocabulary = layout_of("MiniGrid-LockedRoom-v0"), Vocabulary()
    cells, pose = bytes(layout.cells), (1, 1, 0)
    longest = " ".join(["go"] * MANY_WORDS)
    obs = layout.encoded(cells, pose, None, vocabulary.encode(longest))
    assert vocabulary.decode(layout.words(_row(obs))) == longest
    with pytest.raises(UnknownWord, match=f"has {MANY_WORDS + 1} words"):
        layout.encoded(cells, pose, None, vocabulary.encode(longest + " go"))
    with pytest.raises(UnknownWord, match="a vocabulary holds 255"):
        vocabulary.encode(" ".join(map(str, range(256))))


def _turn_about(env: MinigridEnvironment, steps: int) -> None:
    """Episodes of turning to the left."""
    env.reset()
    for _ in range(steps):
        _, _, terminated, truncated = env.step(0)
        if terminated or truncated:
            env.reset()


def _drawn_at_the_start(env_id: str) -> Picture:
    """MiniGrid's own picture of an environment's first state."""
    spec = gymnasium.spec(env_id)
    spec.kwargs.pop("render_mode", None)
    env: Any = gymnasium.make(spec).unwrapped
    env.reset(seed=0)
    frame: Picture = env.get_frame(highlight=False, tile_size=8)
    return frame


def _row(observation: bytes) -> Observation:
    return stacked([observation])[0]
