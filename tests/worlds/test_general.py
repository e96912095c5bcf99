"""Worlds of any Gymnasium environment: encodings, names, pictures, success, and what is refused."""

from itertools import cycle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from gridworld.tasks import EVALUATION_SEEDS, UnknownEnvironment
from student.algorithms.networks import PictureNetwork, StateNetwork, VectorNetwork, network_of
from teacher_server.pictures.decoding import decode
from worlds.general import MOST_STEPS, Encoding, encoding_of, make
from worlds.registry import check, world_of
from worlds.world import EnvironmentFailed, Environments, EpisodeState, is_repeatable, stacked

pytestmark = pytest.mark.unit

_LAKE = "FrozenLake-v1@is_slippery=false"


class Walk(gymnasium.Env[Any, int]):
    """A corridor of five places with a reward of -1 a step, observed as a picture or as parts."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it
    action_space = spaces.Discrete(2)

    def __init__(self, observed: str = "picture", render_mode: str | None = None, fails_at: int = 99) -> None:
        self.render_mode, self._fails_at = render_mode, fails_at
        self.mission = "walk to the right"
        self.observation_space = {
            "picture": spaces.Box(0, 255, (8, 40, 3), np.uint8),
            "parts": spaces.Dict({"at": spaces.Discrete(5), "half": spaces.Box(0, 2, (1,), np.float32)}),
            "steps": spaces.Sequence(spaces.Discrete(5)),
        }[observed]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at = min(max(self.at + (1 if action else -1), 0), 4)
        if self.at == self._fails_at:
            raise RuntimeError("the floor is gone")
        return self._seen(), -1.0, self.at == 4, False, {}

    def render(self) -> Any:
        picture = np.zeros((8, 40, 3), np.uint8)
        picture[:, 8 * self.at : 8 * self.at + 8] = 255
        return picture

    def _seen(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"at": self.at, "half": np.array([self.at / 2], np.float32)}
        return self.render()


class Unseen(Walk):
    """It cannot be drawn, and takes no render mode."""

    def __init__(self) -> None:
        super().__init__("parts")

    def render(self) -> None:
        return None


class Forgetful(Walk):
    """It starts anywhere, whatever the seed is."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset()
        self.at = next(_starts)
        return self._seen(), {}


_starts = cycle(range(4))
gymnasium.register("Forgetful-v0", Forgetful)
gymnasium.register("Unseen-v0", Unseen)
gymnasium.register("Walk-v0", Walk, max_episode_steps=7, reward_threshold=-5)
_WALK = f"{__name__}:Walk-v0"


@pytest.mark.parametrize(
    ("env_id", "kind", "network"),
    [
        (_LAKE, "state", StateNetwork),
        ("CartPole-v1", "vector", VectorNetwork),
        ("Blackjack-v1", "vector", VectorNetwork),
        (_WALK, "picture", PictureNetwork),
        (f"{_WALK}@observed=parts", "vector", VectorNetwork),
    ],
)
def test_an_observation_is_bytes_from_which_its_network_reads_the_numbers(
    env_id: str, kind: str, network: type
) -> None:
    world = world_of(env_id)
    theirs = make(env_id)
    expected, _ = theirs.reset(seed=3)
    obs_NK = stacked([world.environment(lambda _: 3).reset()])
    assert obs_NK.shape == (1, world.length)
    net = network_of(world)
    assert type(net) is network
    seen = net.perceive(torch.from_numpy(obs_NK)).numpy()
    if kind == "state":
        assert seen.tolist() == [[expected]]
    elif kind == "picture":
        np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), expected)
    else:
        flat = spaces.flatten(theirs.observation_space, expected)
        assert seen.shape == (1, len(flat))
        assert np.isfinite(seen).all()
    for size in (0, 1, 5):
        logits, values = net(torch.from_numpy(obs_NK.copy()).expand(size, -1))
        assert logits.shape == (size, len(world.actions))
        assert values.shape == (size,)


def test_numbers_between_bounds_are_scaled_and_others_kept() -> None:
    net = VectorNetwork(Encoding("vector", (3,), (0.0, -np.inf, 4.0), (10.0, np.inf, 4.0)), actions=2)
    obs = np.array([[2.5, 7.0, 5.0]], np.float32).view(np.uint8)
    assert net.perceive(torch.from_numpy(obs)).tolist() == [[-0.5, 7.0, 5.0]]


@pytest.mark.parametrize(
    ("shape", "seen"), [((210, 160, 3), (3, 84, 84)), ((4, 84, 84), (4, 84, 84)), ((10, 10, 6), (6, 10, 10))]
)
def test_large_pictures_are_reduced_and_channels_come_first_or_last(
    shape: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    net = PictureNetwork(Encoding("picture", shape), actions=4)
    obs = torch.full((2, int(np.prod(shape))), 7, dtype=torch.uint8)
    assert net.perceive(obs).shape == (2, *seen)
    assert (net.perceive(obs) == 7).all()
    assert net(obs)[0].shape == (2, 4)


def test_actions_have_the_names_that_gymnasium_documents_or_their_numbers() -> None:
    assert world_of(_LAKE).actions == ("left", "down", "right", "up")
    assert world_of("CliffWalking-v1").actions == ("up", "right", "down", "left")
    assert world_of("Taxi-v4").actions[-2:] == ("pickup", "dropoff")
    assert world_of(_WALK).actions == ("action_0", "action_1")


@pytest.mark.parametrize(
    ("env_id", "given", "above"),
    [(_LAKE, None, 0.7), ("CliffWalking-v1", None, 0.0), (_WALK, None, -5.0), (_WALK, -4.5, -4.5)],
)
def test_success_is_a_return_above_the_threshold(env_id: str, given: float | None, above: float) -> None:
    assert world_of(env_id, given).success_above == above


def test_limits_are_honoured_and_a_success_counts_as_gain_in_place_of_the_rewards() -> None:
    world = world_of(_WALK)
    envs = Environments(world, 2, seed=1)
    envs.reset()
    steps = [envs.step(np.array([1, 0])) for _ in range(7)]
    assert [step.gains_N.tolist() for step in steps[:4]] == [[0, 0]] * 3 + [[1, 0]]
    assert all(step.rewards_N.tolist() == [-1, -1] for step in steps)
    assert steps[3].ended == [(-4.0, 4)]
    assert steps[6].truncated_N.tolist() == [False, True]
    assert steps[6].ended == [(-7.0, 7)]
    assert steps[6].gains_N.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("env_id", "steps"), [("CliffWalking-v1", MOST_STEPS), ("CliffWalking-v1@max_episode_steps=50", 50)]
)
def test_an_episode_ends_also_where_there_is_no_limit(env_id: str, steps: int) -> None:
    environment = world_of(env_id).environment(lambda episode: episode)
    environment.reset()
    up = 0
    ended = False
    while not ended:
        *_, terminated, truncated = environment.step(up)
        ended = terminated or truncated
    assert environment.length == steps
    assert truncated


def test_states_are_drawn_when_they_are_met_while_pictures_are_wanted() -> None:
    world = world_of(_WALK)
    env = world.environment(lambda _: 1)
    first = stacked([env.reset()])[0]
    with pytest.raises(KeyError):
        world.picture(first)
    world.draws = True
    env.reset()
    np.testing.assert_array_equal(decode(world.picture(first), max_pixels=10_000), env.picture())
    second = stacked([env.step(1)[0]])[0]
    assert world.picture(second) != world.picture(first)
    world.keep(first, None)
    env.reset()  # what was answered is not drawn again
    with pytest.raises(KeyError):
        world.picture(first)
    assert not world.copy().draws
    assert env.picture(side=400).shape == (80, 400, 3)
    assert world.mission(first) == "walk to the right"


@pytest.mark.parametrize("env_id", [_LAKE, "CartPole-v1", "Taxi-v4"])
def test_an_episode_is_replayed_from_its_seed_and_actions(env_id: str) -> None:
    world = world_of(env_id)
    env, again = (world.environment(lambda episode: EVALUATION_SEEDS + episode) for _ in range(2))
    obs = env.reset()
    for action in (0, 1, 1):
        obs, *_ = env.step(action)
    assert env.state == EpisodeState(0, [0, 1, 1])
    assert again.restore(env.state) == obs
    assert again.step(0) == env.step(0)


def test_an_environment_that_forgets_its_seed_is_found_out() -> None:
    assert is_repeatable(world_of(_LAKE))
    assert is_repeatable(world_of("FrozenLake-v1"))
    assert not is_repeatable(world_of(f"{__name__}:Forgetful-v0"))


def test_worlds_fit_where_observations_and_actions_are_alike() -> None:
    lake, slippery = world_of(_LAKE), world_of("FrozenLake-v1")
    assert lake.fits(slippery)
    assert not lake.fits(world_of("FrozenLake8x8-v1"))
    assert not lake.fits(world_of("MiniGrid-LavaGapS5-v0"))
    assert not world_of("MiniGrid-LavaGapS5-v0").fits(lake)


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Pendulum-v1", "has the action space Box"),
        ("Nowhere-v0", "unknown environment 'Nowhere-v0'"),
        ("FrozenLake-v1@slippery=true", "unexpected keyword argument 'slippery'"),
        (f"{_WALK}@observed=steps", "has the observation space Sequence"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(env_id: str, said: str) -> None:
    with pytest.raises(UnknownEnvironment, match=said) as refused:
        check(env_id)
    assert "\n" not in str(refused.value)


def test_an_error_of_the_environment_names_the_episode_and_the_step() -> None:
    env = world_of(f"{_WALK}@fails_at=2").environment(lambda _: 5)
    env.reset()
    env.step(1)
    with pytest.raises(
        EnvironmentFailed, match="in step 2 of the episode with seed 5: RuntimeError: the floor"
    ):
        env.step(1)


def test_an_environment_without_pictures_says_so() -> None:
    env = world_of("tests.worlds.test_general:Unseen-v0").environment(lambda _: 1)
    env.reset()
    with pytest.raises(EnvironmentFailed, match="no RGB picture"):
        env.picture()


def test_spaces_that_gymnasium_cannot_flatten_are_refused() -> None:
    with pytest.raises(ValueError, match="none of Discrete, Box"):
        encoding_of(spaces.Sequence(spaces.Discrete(3)))
