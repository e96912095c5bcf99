"""Prepared pictures: sizes, tiles, margins and digests; Qwen's own processors do not change them."""

import hashlib
import io
import math
import subprocess
import sys
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gridworld.pictures import UnreadablePicture, draw
from gridworld.views import view_of
from teacher_server.engines.base import EngineError, check_seen
from teacher_server.prompting import preparation
from teacher_server.prompting.preparation import Preparation, least_pixels
from tools.random_checkpoint import PREPROCESSOR

Pixels = NDArray[np.uint8]

_SIZES = [(64, 64), (224, 224), (41, 97), (100, 300), (1, 1), (3, 150), (13, 2600), (2000, 31), (1400, 1100)]
"""(height, width)"""


def _frame(env_id: str = "MiniGrid-LavaGapS6-v0", tile: int = 28) -> Pixels:
    with gymnasium.make(env_id) as env:
        env.reset(seed=1)
        return draw(view_of(env), tile)


def _noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def _pixels(picture: Pixels, **how: Any) -> Pixels:
    return np.asarray(Preparation(**how).prepare(picture).image)


@pytest.fixture
def without_qwen_vl_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_qwen_fetch_image", lambda: None)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("height", "width", "max_pixels", "fitted"),
    [
        (224, 224, 10**6, (224, 224)),
        (223, 237, 10**6, (224, 224)),
        (240, 237, 10**6, (252, 224)),
        (42, 70, 10**6, (56, 56)),  # halves are rounded to even: 1.5 -> 2, 2.5 -> 2
        (28, 28, 10**6, (56, 56)),  # at least four visual tokens
        (10, 1000, 10**6, (28, 1008)),
        (1000, 1000, 1280 * 784, (980, 980)),
        (500, 2000, 100 * 784, (140, 560)),
    ],
)
def test_sides_become_multiples_of_28(
    height: int, width: int, max_pixels: int, fitted: tuple[int, int]
) -> None:
    assert _pixels(_noise(height, width), max_pixels=max_pixels).shape == (*fitted, 3)


@pytest.mark.unit
@pytest.mark.parametrize(("height", "width"), _SIZES)
def test_without_qwen_vl_utils_the_bounds_hold_too(
    without_qwen_vl_utils: None, height: int, width: int
) -> None:
    for tokens in (100, 1280):
        fitted = _pixels(_noise(height, width), max_pixels=tokens * 784).shape
        assert fitted[0] % 28 == fitted[1] % 28 == 0
        if (height, width) != (3, 150):  # scaled up, its sides are rounded up
            assert least_pixels(28) <= math.prod(fitted[:2]) <= tokens * 784


@pytest.mark.unit
def test_a_picture_that_fits_keeps_its_pixels() -> None:
    picture = _frame()
    np.testing.assert_array_equal(_pixels(picture), picture)
    np.testing.assert_array_equal(_pixels(picture, tile=28), picture)


@pytest.mark.unit
@pytest.mark.parametrize("found", [8, 16, 28, 32])
def test_tiles_are_scaled_to_the_size_asked_for(found: int) -> None:
    picture = _frame(tile=found)
    bicubic = Image.fromarray(picture).resize((6 * 56, 6 * 56), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(_pixels(picture, tile=56), np.asarray(bicubic))


@pytest.mark.unit
@pytest.mark.parametrize("tile", [28, 56, 84])
def test_larger_visual_tokens_get_larger_tiles_and_as_many_tokens(tile: int) -> None:
    usual, larger = Preparation(tile, margin=True), Preparation(tile, margin=True, side=32)
    one, other = usual.prepare(_frame()), larger.prepare(_frame())
    assert one.grid == other.grid == (7 * tile // 28, 7 * tile // 28)
    assert other.image.size == (7 * tile // 28 * 32, 7 * tile // 28 * 32)
    bicubic = Image.fromarray(_frame()).resize((6 * tile // 28 * 32,) * 2, Image.Resampling.BICUBIC)
    side = tile // 28 * 32
    np.testing.assert_array_equal(np.asarray(other.image)[side:, side:], np.asarray(bicubic))
    assert [pixels / 32**2 for pixels in larger.bounds] == [pixels / 28**2 for pixels in usual.bounds]


@pytest.mark.unit
@pytest.mark.parametrize("found", [16, 28])
def test_the_margin_leaves_the_tiles_alone(found: int) -> None:
    picture = _frame(tile=found)
    framed = _pixels(picture, tile=28, margin=True)
    assert framed.shape == (7 * 28, 7 * 28, 3)
    np.testing.assert_array_equal(framed[28:, 28:], _pixels(picture, tile=28))
    assert (framed[:28, :28] == 255).all()


@pytest.mark.unit
def test_a_margin_alone_is_one_tile_wide() -> None:
    framed = _pixels(_frame("MiniGrid-Empty-6x6-v0", tile=56), margin=True)
    assert framed.shape == (7 * 56, 7 * 56, 3)
    np.testing.assert_array_equal(framed[56:, 56:], _frame("MiniGrid-Empty-6x6-v0", tile=56))


@pytest.mark.unit
@pytest.mark.parametrize("tile", [14, 28, 56])
def test_columns_and_rows_are_numbered_from_0(tile: int) -> None:
    strip = np.asarray(preparation._numbers(25, tile, across=True)).reshape(tile, 25, tile, 3).swapaxes(0, 1)
    column = np.asarray(preparation._numbers(25, tile, across=False)).reshape(25, tile, tile, 3)
    np.testing.assert_array_equal(strip, column)
    assert len({number.tobytes() for number in strip}) == 25
    for number in strip:
        assert (number == number[..., :1]).all()  # grey
        ys, xs = np.nonzero(number[..., 0] < 128)
        assert number.min() < 64
        assert xs.min() > 0
        assert xs.max() < tile - 1  # two digits fit
        assert abs((xs.min() + xs.max() + 1) / 2 - tile / 2) <= tile / 10
        assert abs((ys.min() + ys.max() + 1) / 2 - tile / 2) <= tile / 10


@pytest.mark.unit
def test_the_margin_numbers_this_pictures_columns_and_rows() -> None:
    picture = np.concatenate([_frame(), _frame()[:, 28:140]], axis=1)  # 6 rows, 10 columns
    framed = _pixels(picture, margin=True)
    numbers = np.asarray(preparation._numbers(10, 28, across=True))
    np.testing.assert_array_equal(framed[:28, 28:], numbers)
    np.testing.assert_array_equal(framed[28 * 6 :, :28], numbers[:, 28 * 5 : 28 * 6])


@pytest.mark.unit
@pytest.mark.parametrize("how", [{"tile": 28}, {"margin": True}])
def test_a_picture_without_tiles_is_unreadable_where_tiles_are_needed(how: dict[str, Any]) -> None:
    with pytest.raises(UnreadablePicture):
        Preparation(**how).prepare(_noise(224, 224))
    Preparation().prepare(_noise(224, 224))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("height", "width", "max_pixels"), [(10, 2001, 10**6), (2001, 10, 10**6), (2, 390, least_pixels(28))]
)
@pytest.mark.parametrize("qwen_vl_utils", [True, False])
def test_too_narrow_a_picture_is_unreadable(
    height: int, width: int, max_pixels: int, qwen_vl_utils: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not qwen_vl_utils:
        monkeypatch.setattr(preparation, "_qwen_fetch_image", lambda: None)
    with pytest.raises(UnreadablePicture, match=f"{width} x {height} pixels is too narrow"):
        Preparation(max_pixels=max_pixels).prepare(_noise(height, width))


@pytest.mark.unit
@pytest.mark.parametrize("wrong", [{"tile": 0}, {"tile": -28}, {"max_pixels": least_pixels(28) - 1}])
def test_a_preparation_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preparation(**wrong)


@pytest.mark.unit
def test_the_digest_is_of_size_and_pixels() -> None:
    picture = _noise(56, 112)
    digest = Preparation().prepare(picture).digest
    assert digest == hashlib.sha256(b"112 x 56\n" + picture.tobytes()).hexdigest()
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    assert Preparation().prepare(np.asarray(Image.open(file))).digest == digest
    changed = picture.copy()
    changed[-1, -1, 2] ^= 1
    assert Preparation().prepare(changed).digest != digest
    assert Preparation().prepare(picture.reshape(112, 56, 3)).digest != digest


@pytest.mark.unit
def test_another_number_of_visual_tokens_is_an_error() -> None:
    pictures = [Preparation().prepare(_noise(56, 112)), Preparation().prepare(_noise(196, 196))]
    check_seen(pictures, 8 + 49)
    with pytest.raises(EngineError, match="264 visual tokens of pictures of 112 x 56, 196 x 196 pixels"):
        check_seen(pictures, 8 + 256)


@pytest.mark.integration
def test_importing_it_loads_no_torch() -> None:
    check = (
        "import sys, teacher_server.prompting.preparation\n"
        "print({'torch', 'torchvision', 'qwen_vl_utils', 'transformers'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
        == "set()\n"
    )


@pytest.mark.vllm
@pytest.mark.parametrize(("height", "width"), _SIZES)
@pytest.mark.parametrize("tokens", [100, 1280])
@pytest.mark.parametrize("side", [28, 32])
def test_qwen_vl_utils_gives_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, tokens: int, side: int
) -> None:
    pytest.importorskip("qwen_vl_utils", reason="needs qwen-vl-utils and torchvision")
    assert preparation._qwen_fetch_image() is not None
    picture = _noise(height, width)
    theirs = Preparation(max_pixels=tokens * 784, side=side).prepare(picture)
    monkeypatch.setattr(preparation, "_qwen_fetch_image", lambda: None)
    ours = Preparation(max_pixels=tokens * 784, side=side).prepare(picture)
    np.testing.assert_array_equal(np.asarray(ours.image), np.asarray(theirs.image))
    assert ours.digest == theirs.digest


@pytest.fixture(scope="module")
def prepared() -> list[Image.Image]:
    """Pictures of a question, and the smallest and largest possible ones."""
    hows: list[dict[str, Any]] = [{}, {"tile": 28, "margin": True}, {"tile": 20, "margin": True}]
    pictures = [Preparation(**how).prepare(_frame(tile=16)).image for how in hows]
    return [*pictures, *(Preparation().prepare(_noise(*size)).image for size in _SIZES)]


def _processed(processor: Any, image: Image.Image) -> tuple[NDArray[np.float32], list[list[int]]]:
    outputs = processor(images=[image], return_tensors="pt")
    return outputs["pixel_values"].numpy(), outputs["image_grid_thw"].tolist()


@pytest.mark.integration
def test_the_processor_without_torchvision_leaves_the_size_alone(prepared: list[Image.Image]) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.Qwen2VLImageProcessorPil(**_settings())
    unresized = transformers.Qwen2VLImageProcessorPil(**_settings(), do_resize=False)
    for image in prepared:
        pixels, grid = _processed(processor, image)
        assert grid == [[1, image.height // 14, image.width // 14]]
        np.testing.assert_array_equal(pixels, _processed(unresized, image)[0])


@pytest.mark.vllm
def test_the_processor_with_torchvision_gives_the_same(prepared: list[Image.Image]) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision")
    transformers = pytest.importorskip("transformers")
    plain = transformers.Qwen2VLImageProcessorPil(**_settings())
    processor = transformers.Qwen2VLImageProcessor(**_settings())
    for image in prepared:
        (theirs, grid), (ours, our_grid) = _processed(processor, image), _processed(plain, image)
        assert grid == our_grid == [[1, image.height // 14, image.width // 14]]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def _settings() -> dict[str, Any]:
    named = ("image_processor_type", "processor_class")
    return {name: value for name, value in PREPROCESSOR.items() if name not in named}
