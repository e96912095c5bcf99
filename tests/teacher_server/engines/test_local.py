"""What the engines of this process answer on a tiny checkpoint, compared with transformers and themselves."""

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridworld.pictures import draw
from gridworld.views import EMPTY, View, code
from teacher_server.checkpoints.architectures import QWEN2, QWEN2_5, QWEN3, Architecture
from teacher_server.checkpoints.checkpoint import Checkpoint, read_checkpoint
from teacher_server.engines.base import Decoding, Generated, Prompt
from teacher_server.prompting.preparation import Preparation, PreparedPicture
from tests import engines
from tests.engines import LOCAL, SCHEMA, WHOLE, SharedEngine, picture_of, started
from tests.teacher_server.checkpoints.breaking import set_fields

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
xgrammar = pytest.importorskip("xgrammar")

from teacher_server.engines.constraints import grammar_of  # noqa: E402
from teacher_server.engines.transformers.runner import Runner  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(
    scope="module",
    params=[*((engine, QWEN2_5) for engine in LOCAL), ("transformers", QWEN2), ("transformers", QWEN3)],
    ids=lambda served: f"{served[0]}-{served[1].family}",
)
def served(request: pytest.FixtureRequest) -> tuple[str, Architecture]:
    """An engine, and an architecture that it serves."""
    kind, architecture = request.param
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    return kind, architecture


@pytest.fixture(scope="module")
def kind(served: tuple[str, Architecture]) -> str:
    return served[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, served: tuple[str, Architecture]) -> Checkpoint:
    return engines.checkpoint_with_habits(tmp_path_factory.mktemp("checkpoint"), served[1])


@pytest.fixture(scope="module")
def shared(checkpoint: Checkpoint, kind: str) -> Iterator[SharedEngine]:
    shared = SharedEngine(checkpoint, kind)
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def prompt_of(checkpoint: Checkpoint) -> Callable[..., Prompt]:
    return partial(engines.prompt_of, checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[Prompt]:
    return engines.prompts_of(checkpoint)


class _Plain:
    """Runs one prompt with transformers' own processor, positions and generation."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.model = (
            getattr(transformers, checkpoint.dimensions.architecture.name)
            .from_pretrained(checkpoint.folder, dtype=torch.float32, attn_implementation="eager")
            .eval()
        )
        # The checkpoint's own config would fill the gaps even of one given to `generate`
        self.model.generation_config = transformers.GenerationConfig(
            do_sample=False, eos_token_id=checkpoint.end_token_id, pad_token_id=checkpoint.end_token_id
        )
        self._processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(checkpoint.folder)

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        ids = torch.tensor([prompt.token_ids])
        if not prompt.pictures:
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        seen = self._processor(images=[picture.image for picture in prompt.pictures], return_tensors="pt")
        counts = iter((seen["image_grid_thw"].prod(1) // 4).tolist())
        image = self._checkpoint.image_token_id
        ids = torch.tensor(
            [[t for token in prompt.token_ids for t in [token] * (next(counts) if token == image else 1)]]
        )
        kinds = (ids == image).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen}

    def logprobs(self, prompt: Prompt) -> Any:
        with torch.no_grad():
            logits_1LV = self.model(**self.inputs(prompt)).logits
        return torch.log_softmax(logits_1LV[0, -1].double(), -1)

    def generate(self, prompt: Prompt, decoding: Decoding) -> tuple[list[int], float]:
        """Returns the token ids, and the log-probability of the least certain one under the grammar."""
        output = self.model.generate(
            **self.inputs(prompt),
            max_new_tokens=decoding.max_tokens,
            logits_processor=self._held(decoding),
            return_dict_in_generate=True,
            output_scores=True,
        )
        token_ids = output.sequences[0, -len(output.scores) :].tolist()
        logprobs = [
            float(scores_1V[0].log_softmax(-1)[i])
            for scores_1V, i in zip(output.scores, token_ids, strict=True)
        ]
        return token_ids, min(logprobs)

    def _held(self, decoding: Decoding) -> Any:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=self._checkpoint.tokenizer)
        end = self._checkpoint.end_token_id
        size = self.model.lm_head.out_features
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=[end])
        grammar = xgrammar.GrammarCompiler(info).compile_grammar(grammar_of(decoding.schema))
        special = [self._checkpoint.tokenizer.token_to_id(token) for token in self._checkpoint.special_tokens]
        never = transformers.SuppressTokensLogitsProcessor([token for token in special if token != end])
        return [xgrammar.contrib.hf.LogitsProcessor(grammar), never]


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> _Plain:
    return _Plain(checkpoint)


def test_scores_are_those_of_plain_transformers(
    shared: SharedEngine, plain: _Plain, prompts: list[Prompt]
) -> None:
    everything = range(plain.model.lm_head.out_features)
    for prompt in prompts:
        scores = shared.run(shared.engine.score(prompt, everything))
        np.testing.assert_allclose(scores, plain.logprobs(prompt), rtol=0, atol=1e-4)
        assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "own", [{"min_pixels": 448 * 448}, {"max_pixels": 3136}, {"size": {"min_pixels": 1}, "min_pixels": None}]
)
def test_a_checkpoints_own_pixel_bounds_have_no_effect(
    checkpoint: Checkpoint,
    shared: SharedEngine,
    kind: str,
    prompts: list[Prompt],
    own: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "bounded"))
    set_fields("preprocessor_config.json", **own)(folder)
    bounded = SharedEngine(read_checkpoint(folder), kind)
    for prompt in prompts:
        scores = [each.run(each.engine.score(prompt, range(100))) for each in (shared, bounded)]
        assert scores[0] == scores[1]
    bounded.close()


def test_scores_in_a_batch_are_those_of_each_alone(shared: SharedEngine, prompts: list[Prompt]) -> None:
    def asked() -> list[Coroutine[Any, Any, tuple[float, ...]]]:
        return [shared.engine.score(prompt, range(100, 600)) for prompt in prompts * 2]

    np.testing.assert_allclose(shared.all(asked()), shared.one_by_one(asked()), rtol=0, atol=1e-4)


def test_text_is_what_plain_transformers_generates(
    shared: SharedEngine, plain: _Plain, prompts: list[Prompt], checkpoint: Checkpoint
) -> None:
    for prompt in prompts:
        ours = shared.run(shared.engine.generate(prompt, WHOLE))
        theirs, least_logprob = plain.generate(prompt, WHOLE)
        assert [*ours.token_ids, *([checkpoint.end_token_id] if ours.complete else [])] == theirs
        assert ours.least_logprob == pytest.approx(least_logprob, abs=1e-4)
        assert least_logprob < -0.01


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_in_a_batch_is_that_of_each_alone(
    shared: SharedEngine, prompts: list[Prompt], temperature: float
) -> None:
    def asked() -> list[Coroutine[Any, Any, Generated]]:
        schemas = [SCHEMA, engines.ENDLESS.schema, {"enum": ["left", "right"]}]
        return [
            shared.engine.generate(prompt, Decoding(5 + 13 * i, schemas[i % 3], temperature, seed=i))
            for i, prompt in enumerate(prompts * 2)
        ]

    together = shared.all(asked())
    assert together == shared.one_by_one(asked())
    assert len({generated.text for generated in together}) > 6


def test_text_fits_its_schema(
    shared: SharedEngine, prompt_of: Callable[..., Prompt], checkpoint: Checkpoint
) -> None:
    prompts = [prompt_of(f"{i}: what do you see?", picture_of(i)) for i in range(32)]
    for temperature in (0.0, 1.0):
        asked = [
            shared.engine.generate(prompt, Decoding(96, SCHEMA, temperature, seed=i))
            for i, prompt in enumerate(prompts)
        ]
        seen = set()
        for generated in shared.all(asked):
            assert generated.complete
            # Not strict: xgrammar accepts a tab in a string
            found = json.loads(generated.text, strict=False)
            assert list(found) == SCHEMA["required"]
            assert found["front"] in SCHEMA["properties"]["front"]["enum"]
            assert len(found["cell"]) == 2
            assert all(isinstance(n, int) and 0 <= n <= 24 for n in found["cell"])
            assert isinstance(found["carrying"], bool)
            assert len(found["note"]) <= 40
            assert "\n" not in generated.text
            assert generated.text.startswith(f'{{"front": "{found["front"]}", "cell": [{found["cell"][0]}, ')
            assert (
                checkpoint.tokenizer.decode(list(generated.token_ids), skip_special_tokens=False)
                == generated.text
            )
            special = {checkpoint.tokenizer.token_to_id(token) for token in checkpoint.special_tokens}
            assert not special & set(generated.token_ids)
            seen.add(generated.text)
        assert len(seen) > 8


def test_sampling_repeats_with_its_seed_and_differs_without(
    shared: SharedEngine, prompts: list[Prompt]
) -> None:
    def texts(temperature: float) -> list[str]:
        asked = [
            shared.engine.generate(prompts[1], Decoding(96, SCHEMA, temperature, seed)) for seed in range(6)
        ]
        return [generated.text for generated in shared.all(asked)]

    first = texts(1.0)
    assert texts(1.0) == first
    assert len(set(first)) > 1
    assert len(set(texts(0.0))) == 1
    assert set(texts(1e-6)) == set(texts(0.0))


def test_sampling_follows_the_probabilities(
    shared: SharedEngine, prompts: list[Prompt], checkpoint: Checkpoint
) -> None:
    digits = ["3", "5", "7"]
    ids = [token for digit in digits for token in checkpoint.tokenizer.encode(digit).ids]
    scores = np.array(shared.run(shared.engine.score(prompts[1], ids)))
    for temperature in (1.0, 3.0):
        expected = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
        asked = [
            shared.engine.generate(prompts[1], Decoding(9, {"enum": [3, 5, 7]}, temperature, seed))
            for seed in range(600)
        ]
        texts = [generated.text for generated in shared.all(asked)]
        shares = [texts.count(digit) / len(texts) for digit in digits]
        np.testing.assert_allclose(shares, expected, rtol=0, atol=0.07)


@pytest.mark.parametrize("most", [1, 7])
def test_max_tokens_cuts(shared: SharedEngine, prompts: list[Prompt], most: int) -> None:
    cut = shared.run(shared.engine.generate(prompts[2], Decoding(most, SCHEMA)))
    whole = shared.run(shared.engine.generate(prompts[2], WHOLE))
    assert not cut.complete
    assert len(cut.token_ids) == most
    assert whole.complete
    assert whole.token_ids[:most] == cut.token_ids
    assert whole.text.startswith(cut.text)


def test_the_end_counts_as_a_token(shared: SharedEngine, prompts: list[Prompt]) -> None:
    whole = shared.run(shared.engine.generate(prompts[2], WHOLE))
    length = len(whole.token_ids)
    assert shared.run(shared.engine.generate(prompts[2], Decoding(length + 1, SCHEMA))) == whole
    cut = shared.run(shared.engine.generate(prompts[2], Decoding(length, SCHEMA)))
    assert (cut.token_ids, cut.complete) == (whole.token_ids, False)


def test_one_different_tile_makes_different_scores(
    shared: SharedEngine, prompt_of: Callable[..., Prompt]
) -> None:
    scores = []
    for x in range(1, 4):
        cells_HW = np.full((6, 6), EMPTY, np.uint8)
        cells_HW[2, x] = code("goal", "green")
        picture = Preparation().prepare(draw(View(cells_HW, 4, 4, 0)))
        scores.append(shared.run(shared.engine.score(prompt_of(picture, "Where is the goal?"), range(1200))))
    for other in scores[1:]:
        assert np.abs(np.subtract(scores[0], other)).max() > 0.01


def test_it_matters_which_picture_comes_first(shared: SharedEngine, prompt_of: Callable[..., Prompt]) -> None:
    one, other = picture_of(0), picture_of(1)
    both = [prompt_of(one, "then", other), prompt_of(other, "then", one)]
    there, back = shared.all([shared.engine.score(prompt, range(1200)) for prompt in both])
    assert np.abs(np.subtract(there, back)).max() > 0.01


def test_more_pictures_than_are_remembered(
    checkpoint: Checkpoint, kind: str, plain: _Plain, prompt_of: Callable[..., Prompt]
) -> None:
    many = [_noise(seed) for seed in range(150)]
    asked = [prompt_of(many[i], "or", many[i + 75]) for i in range(75)]

    async def scores() -> list[tuple[float, ...]]:
        async with started(checkpoint, kind, max_num_seqs=4) as engine:
            first = await asyncio.gather(*(engine.score(prompt, range(99)) for prompt in asked))
            again = [await engine.score(prompt, range(99)) for prompt in asked[:3]]
            np.testing.assert_allclose(first[:3], again, rtol=0, atol=1e-4)
            return first

    for prompt, row in zip(asked[::20], asyncio.run(scores())[::20], strict=True):
        np.testing.assert_allclose(row, plain.logprobs(prompt)[:99], rtol=0, atol=1e-4)


def _noise(seed: int) -> PreparedPicture:
    return Preparation().prepare(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8))


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of columns of each forward pass."""
    computed: list[int] = []
    forward = Runner.forward

    def counting(self: Any, **given: Any) -> Any:
        computed.append(given["inputs_embeds"].shape[1])
        return forward(self, **given)

    monkeypatch.setattr(Runner, "forward", counting)
    with suppress(ImportError):
        from teacher_server.engines.onnx.model import OnnxModel  # noqa: PLC0415

        scores = OnnxModel.scores

        def counting_too(self: Any, embeddings_BSH: Any, *given: Any) -> Any:
            computed.append(embeddings_BSH.shape[1])
            return scores(self, embeddings_BSH, *given)

        monkeypatch.setattr(OnnxModel, "scores", counting_too)
    return computed


def _followups(shared: SharedEngine, prompts: list[Prompt]) -> list[Prompt]:
    """Returns prompts that continue generated text by 2 to 7 tokens, one without its cached prefix."""
    said = shared.all([shared.engine.generate(prompt, WHOLE) for prompt in prompts])
    assert all(generated.complete for generated in said)
    return [
        prompt.then((*generated.token_ids, *range(60, 62 + i)), generated.cached)
        for i, (prompt, generated) in enumerate(zip(prompts, said, strict=True))
    ]


def _anew(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(prompt, cached=None) for prompt in prompts]


def test_what_goes_on_computes_only_what_is_new_and_scores_alike(
    shared: SharedEngine, prompts: list[Prompt], columns: list[int]
) -> None:
    followups = _followups(shared, prompts)
    columns.clear()
    asked = [shared.engine.score(prompt, range(600)) for prompt in followups]
    alone = shared.one_by_one(asked)
    assert columns == [2, 3, 4, 5, 6, 7]  # only the new tokens: no picture, no generated token
    columns.clear()
    together = shared.all([shared.engine.score(prompt, range(600)) for prompt in followups])
    assert max(columns) == 7
    anew = shared.one_by_one([shared.engine.score(prompt, range(600)) for prompt in _anew(followups)])
    np.testing.assert_allclose(alone, anew, rtol=0, atol=1e-4)
    np.testing.assert_allclose(together, anew, rtol=0, atol=1e-4)


def test_text_that_goes_on_is_that_of_the_whole_prompt(shared: SharedEngine, prompts: list[Prompt]) -> None:
    followups = _followups(shared, prompts)
    further = shared.all([shared.engine.generate(prompt, WHOLE) for prompt in followups])
    assert further == shared.one_by_one(
        [shared.engine.generate(prompt, WHOLE) for prompt in _anew(followups)]
    )


def test_what_was_kept_of_another_conversation_is_not_gone_on_from(
    shared: SharedEngine, prompts: list[Prompt]
) -> None:
    one, other = (followup for followup in _followups(shared, prompts)[3:5])
    mixed = replace(one, cached=other.cached)
    scores = shared.all([shared.engine.score(prompt, range(600)) for prompt in (mixed, one)])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-4)


def test_what_is_kept_is_bounded_and_goes_with_its_conversation(
    checkpoint: Checkpoint, kind: str, prompts: list[Prompt]
) -> None:
    async def scores(**changes: Any) -> tuple[list[int], list[tuple[float, ...]]]:
        async with started(checkpoint, kind, **changes) as engine:
            said = [await engine.generate(prompt, WHOLE) for prompt in prompts]
            followups = [p.then((*g.token_ids, 60), g.cached) for p, g in zip(prompts, said, strict=True)]
            kept = [g.cached.keys_values if g.cached else None for g in said]
            held = [0 if each is None else each.nbytes for each in kept]
            return held, await asyncio.gather(*(engine.score(prompt, range(99)) for prompt in followups))

    held, expected = asyncio.run(scores())
    assert all(held)
    room = sum(held[-2:]) / 2**30
    bounded, alike = asyncio.run(scores(kv_cache_gib=room))
    assert bounded == [0, 0, 0, 0, *held[-2:]]
    np.testing.assert_allclose(alike, expected, rtol=0, atol=1e-4)
    none, alike = asyncio.run(scores(kv_cache_gib=1e-9))
    assert not any(none)
    np.testing.assert_allclose(alike, expected, rtol=0, atol=1e-4)
