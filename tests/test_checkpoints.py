"""The checkpoints of the tests are reproducible, and their answers depend on the question."""

from pathlib import Path

import gymnasium
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gridworld.pictures import draw
from gridworld.views import view_of
from teacher_server.checkpoints.checkpoint import read_checkpoint
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.unit

_LABELS = ("left", "right", "forward", "pick", "pickup", "drop", "toggle", "done", *"ABCDEFG")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


def test_the_same_seed_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again, other = make_checkpoint(tmp_path / "again"), make_checkpoint(tmp_path / "other", seed=1)
    for path in made.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert read_checkpoint(other).digest() != read_checkpoint(again).digest()


def test_other_shapes_can_be_made(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 3, "tie_word_embeddings": False, "vision_config": {"depth": 1}}
    dimensions = read_checkpoint(make_checkpoint(tmp_path, config_changes=changes)).dimensions
    assert (dimensions.text.num_hidden_layers, dimensions.vision.depth, dimensions.tied) == (3, 1, False)


def test_words_digits_and_signs_are_tokens(made: Path) -> None:
    tokenizer = read_checkpoint(made).tokenizer
    for label in _LABELS:
        (token_id,) = tokenizer.encode(label, add_special_tokens=False).ids
        assert (
            tokenizer.encode(f"<|im_start|>assistant\n{label}", add_special_tokens=False).ids[-1] == token_id
        )
    assert tokenizer.encode("2026", add_special_tokens=False).tokens == ["2", "0", "2", "6"]
    text = '{"agent": {"row": 3}} naïve 🙂'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def _picture(seed: int) -> Image.Image:
    with gymnasium.make("MiniGrid-DoorKey-8x8-v0") as env:
        env.reset(seed=seed)
        return Image.fromarray(draw(view_of(env), 28))


def test_answers_depend_on_the_picture_and_on_the_text(made: Path) -> None:
    """Both change the answer by far more than rounding does."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(made)
    processor = Qwen2VLImageProcessorPil.from_pretrained(made)
    tokenizer = read_checkpoint(made).tokenizer
    label_ids = [tokenizer.token_to_id(label) for label in _LABELS]

    def score(picture: Image.Image, text: str) -> torch.Tensor:
        pixels = processor(picture, return_tensors="pt")
        seen = "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4)
        asked = (
            f"<|im_start|>user\n<|vision_start|>{seen}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([tokenizer.encode(asked, add_special_tokens=False).ids])
        kinds = (ids == model.config.image_token_id).long()
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=kinds, **pixels).logits[0, -1]
        return torch.log_softmax(logits, -1)[label_ids]

    texts = ("What now?", "get to the green goal", "use the key to open the door")
    by_picture = torch.stack([score(_picture(seed), texts[0]) for seed in range(4)])
    by_text = torch.stack([score(_picture(0), text) for text in texts])
    for scores in (by_picture, by_text):
        assert torch.isfinite(scores).all()
        assert scores.std(0).min() > 0.01
        assert scores.std(0).max() > 0.1
