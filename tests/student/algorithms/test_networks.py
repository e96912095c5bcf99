"""The network sees what the agent sees, and can tell apart what it has to."""

import numpy as np
import pytest
import torch

from gridworld.tasks import ALL_TASKS
from gridworld.views import EMPTY, STEPS, code
from student.algorithms.networks import GridNetwork, _egocentric
from worlds.minigrid import Layout, MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "env_id", [*(task.env_ids[0] for task in ALL_TASKS.values()), "MiniGrid-RedBlueDoors-6x6-v0"]
)
def test_every_cell_is_seen_once_from_wherever_the_agent_can_stand(env_id: str) -> None:
    layout = layout_of(env_id)
    seen_PE = _egocentric(layout)
    side = int(seen_PE.shape[1] ** 0.5)
    for y in range(1, layout.height - 1):
        for x in range(1, layout.width - 1):
            for heading, (dx, dy) in enumerate(STEPS):
                seen_E = seen_PE[(y * layout.width + x) * 4 + heading]
                assert sorted(seen_E[seen_E < layout.cells]) == list(range(layout.cells))
                seen = seen_E.reshape(side, side)
                assert seen[side // 2, side // 2] == y * layout.width + x
                assert seen[side // 2 - 1, side // 2] == (y + dy) * layout.width + x + dx  # ahead is up


def test_turning_the_world_and_the_agent_together_changes_nothing() -> None:
    """The view from a pose is that from the pose turned by 90 degrees in the grid turned by 90 degrees."""
    torch.manual_seed(0)
    layout = Layout("square", 6, 6, ("left", "right", "forward"))
    network = GridNetwork(layout)
    rng = np.random.default_rng(0)
    cells_HW = rng.integers(18, 180, (6, 6)).astype(np.uint8)
    x, y, heading = 2, 3, 1
    turned_HW = np.rot90(cells_HW, k=-1)  # clockwise
    rows = [
        np.concatenate([cells_HW.ravel(), [x, y, heading], np.zeros(16)]),
        np.concatenate([turned_HW.ravel(), [5 - y, x, (heading + 1) % 4], np.zeros(16)]),
    ]
    logits_BA, values_B = network(torch.from_numpy(np.array(rows, np.uint8)))
    torch.testing.assert_close(logits_BA[0], logits_BA[1])
    torch.testing.assert_close(values_B[0], values_B[1])


def test_what_is_carried_is_seen_in_the_agents_own_cell() -> None:
    layout, vocabulary = layout_of("MiniGrid-DoorKey-5x5-v0"), Vocabulary()
    network = GridNetwork(layout)
    row = Environments(MinigridWorld(layout, vocabulary), 1, 3).reset()[0]
    carrying, key = row.copy(), code("key", "yellow")
    carrying[layout.cells + 3] = key
    before, after = (
        network.perceive(torch.from_numpy(np.stack([row, carrying])))[:, : -layout.most_words] // 4
    )
    middle = len(before) // 2
    assert (int(before[middle]), int(after[middle])) == (EMPTY, key)
    assert torch.equal(before[:middle], after[:middle])
    assert torch.equal(before[middle + 1 :], after[middle + 1 :])


def test_what_the_mission_names_is_seen_as_the_same_whatever_it_is_called() -> None:
    """A red door looked for among others, and a blue one: the same cells with the two colours exchanged."""
    torch.manual_seed(0)
    layout, vocabulary = layout_of("MiniGrid-GoToDoor-6x6-v0"), Vocabulary()
    network = GridNetwork(layout)
    row = Environments(MinigridWorld(layout, vocabulary), 1, 3).reset()[0]
    cells = row[: layout.cells]
    cells[:] = code("wall", "grey")
    cells[7], cells[9], cells[20] = code("door", "red", 1), code("door", "blue", 1), code("ball", "red")
    row[layout.cells :][:3] = 2, 2, 0

    def marks(mission: str) -> dict[int, int]:
        asked_K = layout.observation(layout.view(row), vocabulary.encode(mission))
        seen = network.perceive(torch.from_numpy(asked_K[None]))[0, : -layout.most_words]
        return {int(cell) // 4: int(cell) % 4 for cell in seen}

    colour, kind, both, neither = 2, 1, 3, 0
    red, blue, ball = code("door", "red", 1), code("door", "blue", 1), code("ball", "red")
    named = marks("go to the red door")
    assert (named[red], named[blue], named[ball], named[code("wall", "grey")]) == (
        both,
        kind,
        colour,
        neither,
    )
    named = marks("go to the blue door")
    assert (named[red], named[blue], named[ball]) == (kind, both, neither)
    assert set(marks("do something wonderful").values()) == {neither}


def test_the_mission_changes_what_is_done_with_the_same_cells() -> None:
    torch.manual_seed(0)
    layout, vocabulary = layout_of("MiniGrid-Fetch-6x6-N2-v0"), Vocabulary()
    network = GridNetwork(layout)
    row = Environments(MinigridWorld(layout, vocabulary), 1, 1).reset()[0]
    other = layout.observation(layout.view(row), vocabulary.encode("go fetch a purple ball"))
    logits_BA, _ = network(torch.from_numpy(np.stack([row, other])))
    assert not torch.allclose(logits_BA[0], logits_BA[1])
