"""What the ONNX engine alone does: its graphs for other checkpoints, many requests, failures, refusals."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_server.checkpoints.checkpoint import Checkpoint, read_checkpoint
from teacher_server.engines.base import CannotLoad, Decoding, Prompt
from tests import engines
from tests.engines import SCHEMA, WHOLE, engine_of, picture_of, prompt_of, started
from tools.random_checkpoint import make_checkpoint

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

from teacher_server.engines.onnx.model import OnnxModel

pytestmark = pytest.mark.integration

_WIDE = {
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
}
_VISION = {"depth": 3, "fullatt_block_indexes": [0, 2], "out_hidden_size": 96, "window_size": 56}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[Prompt]:
    return engines.prompts_of(checkpoint)


async def _scores(checkpoint: Checkpoint, kind: str, prompts: list[Prompt], **changes: Any) -> list[Any]:
    async with started(checkpoint, kind, **changes) as engine:
        return await asyncio.gather(*(engine.score(prompt, range(300)) for prompt in prompts))


def _changed(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> Checkpoint:
    base = make_checkpoint(folder / "base", weights=False)
    own = read_checkpoint(base, weights=False).config["vision_config"]
    changes = {**text, "vision_config": own | vision}
    return read_checkpoint(make_checkpoint(folder / "changed", config_changes=changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoints_of_other_dimensions(tmp_path: Path, dtype: str) -> None:
    made = _changed(tmp_path, {**_WIDE, "torch_dtype": dtype}, _VISION)
    asked = engines.prompts_of(made)
    exact = asyncio.run(_scores(made, "transformers", asked, dtype="float32"))
    np.testing.assert_allclose(asyncio.run(_scores(made, "onnx", asked)), exact, rtol=0, atol=1e-4)


def test_many_requests_join_and_leave_a_worker(checkpoint: Checkpoint) -> None:
    """With one worker of 3 places; prompts of which some need more room than there is at the start."""
    asked = [
        prompt_of(checkpoint, "word " * (i % 7) * (i % 5) ** 4, picture_of(i % 9), f"What is at {i}?")
        for i in range(40)
    ]
    assert max(len(prompt.token_ids) for prompt in asked) > 512

    async def scenario() -> None:
        async with started(checkpoint, "onnx", max_num_seqs=3, threads=1) as engine:
            alone = [await engine.generate(prompt, Decoding(4 + i, SCHEMA)) for i, prompt in enumerate(asked)]
            both = [
                asyncio.gather(engine.generate(prompt, Decoding(4 + i, SCHEMA)), engine.score(prompt, [i]))
                for i, prompt in enumerate(asked)
            ]
            together = await asyncio.gather(*both)
        assert [generated for generated, _ in together] == alone
        assert len({generated.text for generated in alone}) > 10

    asyncio.run(scenario())


def test_what_comes_before_the_picture_is_computed_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    scores = OnnxModel.scores

    def counting(self: OnnxModel, embeddings_BSH: Any, *given: Any) -> Any:
        computed.append(embeddings_BSH.shape[1])
        return scores(self, embeddings_BSH, *given)

    monkeypatch.setattr(OnnxModel, "scores", counting)
    asked = [
        prompt_of(checkpoint, "The rules. " * 9, picture_of(0), " An example.", picture_of(i))
        for i in range(1, 5)
    ]
    found = asyncio.run(_scores(checkpoint, "onnx", asked, threads=1))
    assert len(computed) == len(asked) + 1
    assert computed[0] > 50
    assert max(computed[1:]) == min(computed[1:]) < computed[0]
    expected = asyncio.run(_scores(checkpoint, "transformers", asked))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_failed_step_is_answered_and_the_next_one_runs(
    checkpoint: Checkpoint, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = OnnxModel.scores
    broken = [True]

    def failing(self: OnnxModel, embeddings_BSH: Any, *given: Any) -> Any:
        if len(embeddings_BSH) > 1 and broken:
            broken.clear()
            raise RuntimeError("a kernel broke")
        return scores(self, embeddings_BSH, *given)

    async def scenario() -> None:
        async with started(checkpoint, "onnx", threads=1) as engine:
            expected = await engine.generate(prompts[1], WHOLE)
            monkeypatch.setattr(OnnxModel, "scores", failing)
            both = [engine.generate(prompts[1], WHOLE) for _ in range(2)]
            failed = await asyncio.gather(*both, return_exceptions=True)
            assert [str(each) for each in failed] == ["the engine failed: a kernel broke"] * 2
            assert await engine.generate(prompts[1], WHOLE) == expected

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "vision", "message"),
    [
        ({"hidden_act": "gelu"}, {}, "hidden_act is 'gelu'"),
        ({}, {"hidden_act": "quick_gelu"}, "vision_config: hidden_act is 'quick_gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mrope_section": [8, 12, 12]}}, {}, "'yarn'"),
        (
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
            {},
            "use_sliding_window is true",
        ),
    ],
)
def test_what_it_does_not_compute_is_refused(
    tmp_path: Path, text: dict[str, Any], vision: dict[str, Any], message: str
) -> None:
    made = _changed(tmp_path, text, vision)
    with pytest.raises(CannotLoad, match=r"set `engine` to transformers") as refused:
        asyncio.run(engine_of("onnx", made).start())
    assert message in str(refused.value)


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    made = read_checkpoint(make_checkpoint(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CannotLoad, match="the weights cannot be read"):
        asyncio.run(engine_of("onnx", made).start())
