"""The task families against MiniGrid's registry and its environments."""

import gymnasium
import pytest
from minigrid.core.actions import Actions

from gridworld.tasks import ACTIONS, ALL_TASKS, TASKS, UnknownEnvironment, UnknownTask, task_key, task_of

pytestmark = pytest.mark.unit

_CLASSES = {
    "lava_gap": "LavaGapEnv",
    "dynamic_obstacles": "DynamicObstaclesEnv",
    "fetch": "FetchEnv",
    "go_to_door": "GoToDoorEnv",
    "go_to_object": "GoToObjectEnv",
    "door_key": "DoorKeyEnv",
    "unlock": "UnlockEnv",
    "unlock_pickup": "UnlockPickupEnv",
    "key_corridor": "KeyCorridorEnv",
    "multi_room": "MultiRoomEnv",
    "put_near": "PutNearEnv",
    "red_blue_doors": "RedBlueDoorEnv",
}


def test_the_families_are_the_papers_four_and_others() -> None:
    assert list(TASKS) == ["lava_gap", "dynamic_obstacles", "fetch", "go_to_door"]
    assert list(ALL_TASKS) == list(_CLASSES)
    assert all(task.key == key and task.env_id in task.env_ids for key, task in ALL_TASKS.items())


@pytest.mark.parametrize("key", ALL_TASKS)
def test_every_id_that_minigrid_registers_for_a_family_is_known(key: str) -> None:
    entry_point = f"minigrid.envs:{_CLASSES[key]}"
    registered = {env_id for env_id, spec in gymnasium.registry.items() if spec.entry_point == entry_point}
    assert set(ALL_TASKS[key].env_ids) == registered
    assert all(task_of(env_id) is ALL_TASKS[key] for env_id in registered)


@pytest.mark.parametrize(
    "env_id", ["MiniGrid-LockedRoom-v0", "BabyAI-GoToDoor-v0", "LavaGapS5", "minigrid-lavagaps5-v0", ""]
)
def test_an_unknown_id_is_named_beside_the_known_ones(env_id: str) -> None:
    with pytest.raises(UnknownEnvironment) as caught:
        task_of(env_id)
    assert repr(env_id) in str(caught.value)
    assert all(known in str(caught.value) for task in ALL_TASKS.values() for known in task.env_ids)


def test_actions_have_minigrids_names_in_the_order_of_its_numbers() -> None:
    assert tuple(action.name for action in sorted(Actions)) == ACTIONS


@pytest.mark.parametrize("env_id", [env_id for task in ALL_TASKS.values() for env_id in task.env_ids])
def test_the_environment_takes_every_useful_action(env_id: str) -> None:
    useful = task_of(env_id).useful
    assert len(set(useful)) == len(useful)
    with gymnasium.make(env_id) as env:
        assert all(env.action_space.contains(int(Actions[name])) for name in useful)


@pytest.mark.parametrize(
    ("env_id", "task", "key"),
    [
        ("MiniGrid-Fetch-8x8-N3-v0", None, "fetch"),
        ("MiniGrid-Fetch-8x8-N3-v0", "fetch", "fetch"),
        ("MiniGrid-GoToObject-8x8-N2-v0", None, "go_to_object"),
        ("minigrid:MiniGrid-Fetch-8x8-N3-v0", None, "fetch"),
        ("MiniGrid-LockedRoom-v0", "rooms", "rooms"),
        ("MiniGrid-FourRooms-v0", None, "lava_gap"),
        ("MiniGrid-FourRooms-v0", "lava_gap", "lava_gap"),
        ("MiniGrid-Empty-6x6-v0", None, "lava_gap"),
        ("MiniGrid-Empty-6x6-v0", "empty", "empty"),
    ],
)
def test_a_family_has_its_task_and_other_environments_the_given_one(
    env_id: str, task: str | None, key: str
) -> None:
    assert task_key(env_id, task) == key


@pytest.mark.parametrize(
    ("env_id", "task", "said"),
    [
        ("MiniGrid-Fetch-8x8-N3-v0", "empty", "`task`: MiniGrid-Fetch-8x8-N3-v0 belongs to the task fetch"),
        ("MiniGrid-LockedRoom-v0", None, "`task` is missing: MiniGrid-LockedRoom-v0"),
    ],
)
def test_no_task_or_another_one_is_refused(env_id: str, task: str | None, said: str) -> None:
    with pytest.raises(UnknownTask, match=said):
        task_key(env_id, task)
