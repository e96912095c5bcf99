"""The animation of `student evaluate --gif`: what its images show."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gridworld.pictures import draw
from gridworld.tasks import EVALUATION_SEEDS
from student.runs.animation import animate
from worlds.minigrid import MinigridEnvironment, MinigridWorld, Vocabulary, layout_of
from worlds.world import stacked

pytestmark = pytest.mark.unit

_PROBABILITIES = (0.1, 0.05, 0.7, 0.15, 0.0, 0.0, 0.0)
_CHOSEN = (213, 94, 0)


def _forward(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.tile(np.array(_PROBABILITIES, np.float32), (len(obs_BK), 1)))


def test_images_show_the_state_and_a_bar_as_long_as_the_probability_of_the_action(tmp_path: Path) -> None:
    layout, vocabulary = layout_of("MiniGrid-LavaGapS5-v0"), Vocabulary()
    animate(_forward, MinigridWorld(layout, vocabulary), 2, tmp_path / "new" / "student.gif")
    env = MinigridEnvironment(layout, vocabulary, lambda episode: EVALUATION_SEEDS + episode)
    picture = draw(layout.view(stacked([env.reset()])[0]), 448 // 5)
    with Image.open(tmp_path / "new" / "student.gif") as animation:
        image = np.array(animation.convert("RGB")).astype(int)
        animation.seek(animation.n_frames - 1)
        last = np.array(animation.convert("RGB")).astype(int)
    height, width, _ = picture.shape
    assert np.abs(image[:height, :width] - picture).mean() <= 1  # a GIF has few colours
    bars = image[:, width + 96 : width + 96 + 111]
    chosen = (np.abs(bars - _CHOSEN).max(2) <= 8).sum(1).max()
    assert abs(chosen - 110 * 0.7) <= 2
    # The episode has ended: no action is taken
    assert not (np.abs(last[:, width:] - _CHOSEN).max(2) <= 8).any()


def test_all_images_have_one_size_whatever_the_missions_are(tmp_path: Path) -> None:
    layout, vocabulary = layout_of("tests.student.custom_environments:Custom-Painted-v0"), Vocabulary()
    animate(_forward, MinigridWorld(layout, vocabulary), 1, tmp_path / "student.gif")
    with Image.open(tmp_path / "student.gif") as animation:
        assert animation.size == (448 // 7 * 7 + 300, 22 * (2 + 1 + 6 + 1 + 7 + 1))
