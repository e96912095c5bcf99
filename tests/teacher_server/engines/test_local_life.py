"""The engines of this process on a tiny checkpoint: start, cancellation, failures and close."""

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_server.checkpoints.checkpoint import Checkpoint, read_checkpoint
from teacher_server.engines.base import CannotLoad, Decoding, EngineDead, EngineError, Generated, Prompt
from tests import engines
from tests.engines import ENDLESS, LOCAL, SCHEMA, WHOLE, engine_of, prompt_of, settings, started
from tools.random_checkpoint import make_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("xgrammar")

from safetensors.torch import load_file, save_file  # noqa: E402

from teacher_server.engines.transformers.engine import TransformersEngine  # noqa: E402
from teacher_server.engines.transformers.runner import Runner  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(params=LOCAL)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
    return str(request.param)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[Prompt]:
    return engines.prompts_of(checkpoint)


def test_cancelled_requests_free_the_engine(checkpoint: Checkpoint, kind: str, prompts: list[Prompt]) -> None:
    async def scenario() -> tuple[float, float]:
        async with started(checkpoint, kind, max_num_seqs=20, max_model_len=30_000) as engine:
            tasks = [asyncio.create_task(engine.generate(prompts[i % 6], ENDLESS)) for i in range(20)]
            waiting = [asyncio.create_task(engine.generate(prompts[0], ENDLESS)) for _ in range(20)]
            await asyncio.sleep(1)
            assert not any(task.done() for task in tasks + waiting)
            for task in tasks + waiting:
                task.cancel()
            began = time.monotonic()
            scores = await engine.score(prompts[0], [1, 2])
            took = time.monotonic() - began
            assert all(
                isinstance(e, asyncio.CancelledError)
                for e in await asyncio.gather(*tasks, return_exceptions=True)
            )
            return scores[0], took

    score, took = asyncio.run(scenario())
    assert score < 0
    # Generating all tokens would take many minutes
    assert took < 30


def test_a_cancelled_request_leaves_the_others_of_its_batch(
    checkpoint: Checkpoint, kind: str, prompts: list[Prompt]
) -> None:
    async def scenario() -> tuple[list[Generated], list[Generated]]:
        async with started(checkpoint, kind) as engine:
            alone = [await engine.generate(prompt, WHOLE) for prompt in prompts]
            tasks = [asyncio.create_task(engine.generate(prompt, WHOLE)) for prompt in prompts]
            long = [
                asyncio.create_task(engine.generate(prompt, Decoding(1000, ENDLESS.schema)))
                for prompt in prompts[:2]
            ]
            await asyncio.sleep(0.02)
            for task in long:
                task.cancel()
            return alone, await asyncio.gather(*tasks)

    alone, together = asyncio.run(scenario())
    assert alone == together


def test_bad_requests_fail_alone(checkpoint: Checkpoint, kind: str, prompts: list[Prompt]) -> None:
    two_places = Prompt(prompts[2].token_ids, prompts[2].pictures[:1])
    long = prompt_of(checkpoint, "long " * 3000)

    async def scenario() -> list[tuple[Any, str | None]]:
        async with started(checkpoint, kind) as engine:
            works: list[tuple[Coroutine[Any, Any, Any], str | None]] = [
                (engine.generate(prompts[1], WHOLE), None),
                (engine.generate(two_places, WHOLE), "1 pictures for 2 image tokens"),
                (engine.generate(prompts[1], Decoding(9, {"type": "no such type"})), "schema"),
                (engine.generate(prompts[0], Decoding(2048, SCHEMA)), "`max_model_len` is 2048"),
                (engine.generate(long, WHOLE), "`max_model_len` is 2048"),
                (engine.generate(prompts[2], WHOLE), None),
                (engine.score(prompts[1], [5, 6]), None),
                (engine.score(prompts[1], [5, 10**6]), "no token has the id 1000000"),
                (engine.score(prompts[1], [-1]), "no token has the id -1"),
                (engine.score(two_places, [5]), "1 pictures for 2 image tokens"),
                (engine.score(Prompt((), ()), [5]), "0 tokens"),
                (engine.score(prompts[2], []), None),
            ]
            outcomes = await asyncio.gather(*(work for work, _ in works), return_exceptions=True)
            return [(outcome, message) for outcome, (_, message) in zip(outcomes, works, strict=True)]

    for outcome, message in asyncio.run(scenario()):
        if message is None:
            assert not isinstance(outcome, Exception)
        else:
            assert isinstance(outcome, EngineError)
            assert not isinstance(outcome, EngineDead)
            assert message in str(outcome)


def test_a_failed_batch_is_answered_and_the_next_one_runs(
    checkpoint: Checkpoint, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("a kernel broke"), torch.OutOfMemoryError("CUDA out of memory")])
    forward = Runner.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return forward(*args, **kwargs)

    async def scenario() -> None:
        async with started(checkpoint) as engine:
            monkeypatch.setattr(Runner, "forward", failing)
            with pytest.raises(EngineError, match="a kernel broke"):
                await engine.score(prompts[0], [1])
            with pytest.raises(EngineError, match=r"out of memory.*lower `max_num_seqs`"):
                await engine.generate(prompts[0], Decoding(9, SCHEMA))
            assert len(await engine.score(prompts[0], [1])) == 1

    asyncio.run(scenario())


def _overflow(kind: str, patch: pytest.MonkeyPatch) -> None:
    """Makes the first scores of each forward pass no numbers."""
    if kind == "onnx":
        from teacher_server.engines.onnx.model import OnnxModel  # noqa: PLC0415

        scores = OnnxModel.scores

        def overflowing_too(*given: Any) -> Any:
            found_BV = scores(*given)
            found_BV[0] = np.nan
            return found_BV

        patch.setattr(OnnxModel, "scores", overflowing_too)
        return
    forward = Runner.forward

    def overflowing(*args: Any, **kwargs: Any) -> Any:
        logits_BV, cache = forward(*args, **kwargs)
        logits_BV[0] = torch.nan
        return logits_BV, cache

    patch.setattr(Runner, "forward", overflowing)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_an_error(
    checkpoint: Checkpoint,
    kind: str,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    async def scenario() -> None:
        async with started(checkpoint, kind) as engine:
            _overflow(kind, monkeypatch)
            for asked in (
                engine.score(prompts[0], [1]),
                engine.generate(prompts[0], Decoding(9, SCHEMA, temperature)),
            ):
                with pytest.raises(EngineError, match="not numbers"):
                    await asked

    asyncio.run(scenario())


def test_before_the_start_and_after_the_close_it_is_dead(
    checkpoint: Checkpoint, kind: str, prompts: list[Prompt]
) -> None:
    async def scenario() -> None:
        engine = engine_of(kind, checkpoint, max_model_len=30_000)
        with pytest.raises(EngineDead):
            await engine.score(prompts[0], [1])
        await engine.close()
        await engine.start()
        tasks = [asyncio.create_task(engine.generate(prompts[0], ENDLESS)) for _ in range(12)]
        await asyncio.sleep(0.3)
        await engine.close()
        assert all(isinstance(e, EngineDead) for e in await asyncio.gather(*tasks, return_exceptions=True))
        with pytest.raises(EngineDead):
            await engine.generate(prompts[0], ENDLESS)
        await engine.close()

    asyncio.run(scenario())


def test_it_calculates_in_as_many_threads_as_are_asked_for(
    checkpoint: Checkpoint, prompts: list[Prompt]
) -> None:
    own = torch.get_num_threads()
    forward = Runner.forward
    found = []

    async def scenario(**changes: Any) -> None:
        async with started(checkpoint, **changes) as engine:
            await engine.score(prompts[0], [1])

    def looking(*args: Any, **kwargs: Any) -> Any:
        found.append(torch.get_num_threads())
        return forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "forward", looking)
        try:
            asyncio.run(scenario())
            asyncio.run(scenario(threads=own + 2))
        finally:
            torch.set_num_threads(own)
    assert found == [own, own + 2]


def test_dummy_weights_need_a_config_only(tmp_path: Path, kind: str, prompts: list[Prompt]) -> None:
    made = read_checkpoint(make_checkpoint(tmp_path, weights=False), weights=False)

    async def scores(seed: int) -> tuple[float, ...]:
        async with started(made, kind, load_format="dummy", seed=seed) as engine:
            return await engine.score(prompts[2], range(50))

    state = torch.random.get_rng_state()
    first = asyncio.run(scores(1))
    assert asyncio.run(scores(1)) == first
    assert asyncio.run(scores(2)) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_weights_have_the_type_asked_for(tmp_path: Path, prompts: list[Prompt]) -> None:
    made = read_checkpoint(make_checkpoint(tmp_path, config_changes={"torch_dtype": "bfloat16"}))

    async def scores(dtype: str) -> tuple[float, ...]:
        async with started(made, dtype=dtype) as engine:
            assert (await engine.generate(prompts[2], WHOLE)).complete
            return await engine.score(prompts[2], range(50))

    own, rounded, exact = (asyncio.run(scores(dtype)) for dtype in ("auto", "bfloat16", "float32"))
    assert own == rounded
    assert own != exact


def _refusal(checkpoint: Checkpoint, **changes: Any) -> str:
    with pytest.raises(CannotLoad) as refused:
        asyncio.run(TransformersEngine(checkpoint, settings(**changes)).start())
    return str(refused.value)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", ""])
def test_a_device_that_is_none_is_refused(checkpoint: Checkpoint, device: str) -> None:
    assert "it must be auto, cpu, cuda or cuda:N" in _refusal(checkpoint, device=device)


def test_a_gpu_that_is_not_there_is_refused(checkpoint: Checkpoint) -> None:
    expected = "GPUs, from cuda:0" if torch.cuda.is_available() else "finds no CUDA GPU"
    assert expected in _refusal(checkpoint, device="cuda:77")


def test_a_broken_checkpoint_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = read_checkpoint(make_checkpoint(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    lost = {name: value for name, value in weights.items() if name != "model.norm.weight"}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of its weights" in _refusal(made)
    (tmp_path / "model.safetensors").unlink()
    assert "cannot be loaded" in _refusal(made)
