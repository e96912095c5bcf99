"""Equivalent views of a prompt set: how they are declared, and the pictures that are made of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gridworld.environments import make
from gridworld.pictures import UnreadablePicture, draw
from gridworld.symmetry import mirrored, turned
from gridworld.views import view_of
from teacher_server.prompting.equivalent_views import QUESTION_VIEW, EquivalentView
from teacher_server.prompting.preparation import Preparation
from teacher_server.prompting.prompt_set import SETS, BadPromptSet, load_prompt_set

pytestmark = pytest.mark.unit


def _picture(tile: int = 28) -> np.ndarray:
    env = make("MiniGrid-Fetch-6x6-N2-v0")
    env.reset(seed=1)
    return draw(view_of(env), tile)


def test_a_grid_is_moved_and_drawn_again_at_its_own_tile_size() -> None:
    env = make("MiniGrid-Fetch-6x6-N2-v0")
    env.reset(seed=1)
    view, picture = view_of(env), _picture(20)
    seen = EquivalentView(mirrored=True, turned=90).picture(picture, pixels=False)
    np.testing.assert_array_equal(seen, draw(turned(mirrored(view), 1), 20))
    assert EquivalentView(tile=56).picture(picture, pixels=False) is picture


def test_pixels_move_only_where_the_set_says_so() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
    view = EquivalentView(mirrored=True, turned=270)
    with pytest.raises(UnreadablePicture):
        view.picture(picture, pixels=False)
    np.testing.assert_array_equal(view.picture(picture, pixels=True), picture.transpose(1, 0, 2))
    np.testing.assert_array_equal(
        EquivalentView(turned=90).picture(picture, pixels=True)[0, -1], picture[0, 0]
    )


def test_actions_are_exchanged_only_in_a_mirror() -> None:
    mirror = EquivalentView(mirrored=True)
    assert mirror.asked(("left", "right", "forward")) == ("left", "right", "forward")
    assert mirror.asked(("forward", "left")) == ("forward", "right")
    assert [mirror.renamed(action) for action in ("left", "right", "done")] == ["right", "left", "done"]
    assert EquivalentView(turned=90).renamed("left") == "left"
    assert EquivalentView(tile=56).preparation(Preparation(28, True)) == Preparation(56, True)


@pytest.mark.parametrize("name", ["compact", "minigrid", "minigrid-zero-shot"])
def test_the_sets_declare_views_of_every_task(name: str) -> None:
    prompts = load_prompt_set(name)
    for task, views in prompts.first_views(4).items():
        assert views[0] == QUESTION_VIEW
        assert prompts.first_views(2)[task] == views[:2]


def _with_views(tmp_path: Path, content: str | None) -> str:
    folder = tmp_path / "mine"
    shutil.copytree(SETS / "compact", folder)
    (folder / "views.toml").unlink()
    if content is not None:
        (folder / "views.toml").write_text(content)
    return str(folder)


def test_the_digest_is_without_the_views(tmp_path: Path) -> None:
    without = load_prompt_set(_with_views(tmp_path, None))
    assert without.digest == load_prompt_set("compact").digest
    assert without.first_views(1)["fetch"] == (QUESTION_VIEW,)
    with pytest.raises(
        BadPromptSet, match="has 1 of lava_gap: set `views` to 1, or declare more in its views"
    ):
        without.first_views(2)


def test_views_of_other_tasks_are_ignored(tmp_path: Path) -> None:
    prompts = load_prompt_set(_with_views(tmp_path, "[views]\nsokoban = [{ turned = 90 }]"))
    assert set(prompts.first_views(1)) == set(prompts.tasks)
    with pytest.raises(BadPromptSet, match="has 1 of lava_gap"):
        prompts.first_views(2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[views]\nlava_gap = [{ turned = 45 }]", "turned"),
        ("[views]\nlava_gap = [{ shifted = 1 }]", "shifted"),
        ("[views]\nlava_gap = [{ turned = 0 }]", "views.lava_gap: two views are the same"),
        ("[views]\nlava_gap = [{ turned = 90 }, { turned = 90 }]", "views.lava_gap: two views are the same"),
        ("[views", "is not TOML"),
    ],
)
def test_views_that_cannot_be_used(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(BadPromptSet, match=told) as caught:
        load_prompt_set(_with_views(tmp_path, content))
    assert caught.value.file == "views.toml"
