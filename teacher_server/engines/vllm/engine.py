"""Runs a checkpoint under vLLM, in processes that batch requests and cache prefixes."""

import asyncio
import itertools
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import (
    CannotLoad,
    ChatEngine,
    Decoding,
    EngineDead,
    EngineError,
    Generated,
    Prompt,
    check_seen,
)
from teacher_server.engines.constraints import grammar_of
from teacher_server.engines.exceptions import words_of
from teacher_server.engines.offline import set_offline
from teacher_server.engines.vllm.plugin import VARIABLE, cause_of
from teacher_server.engines.vllm.processes import Processes
from teacher_server.prompting.preparation import least_pixels
from teacher_server.settings import EngineSettings

_GIB = 2**30
_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
_POLL_S = 0.2
_PADDING = -9999.0


class VllmEngine:
    """A `ChatEngine` in which prompts with the same beginning share its computation, pictures included.

    Args:
        pictures: most pictures in one prompt.
        max_pixels: pixels of the largest picture.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: EngineSettings, *, pictures: int, max_pixels: int
    ) -> None:
        self._checkpoint = checkpoint
        side = math.isqrt(max_pixels)
        least = least_pixels(checkpoint.dimensions.vision.token_side)
        self._arguments: dict[str, Any] = {
            "model": str(checkpoint.folder),
            "trust_remote_code": False,
            "generation_config": "vllm",  # not the checkpoint's own sampling settings
            # vLLM's own "auto" would serve float32 weights in 16 bits
            "dtype": checkpoint.served_dtype(settings, "vllm"),
            "load_format": "dummy" if settings.load_format == "dummy" else "safetensors",
            "seed": settings.seed,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * _GIB) if settings.kv_cache_gib else None,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "data_parallel_size": settings.data_parallel_size,
            "enforce_eager": settings.eager,
            "enable_prefix_caching": True,
            # Bounds the picture that vLLM profiles memory with, by default one of 16,384 tokens
            "limit_mm_per_prompt": {"image": {"count": pictures, "width": side, "height": side}, "video": 0},
            # Replaces the checkpoint's pixel bounds, which would rescale prepared pictures
            "mm_processor_kwargs": {"size": {"shortest_edge": least, "longest_edge": max_pixels}},
            "structured_outputs_config": {"backend": "xgrammar"},
            "disable_log_stats": False,
        }
        # A grammar accepts special tokens inside strings, where <|image_pad|> would ask for a missing picture
        tokenizer = checkpoint.tokenizer
        specials = {tokenizer.token_to_id(token) for token in checkpoint.special_tokens}
        self._forbidden = dict.fromkeys(specials - {checkpoint.end_token_id}, -100.0)
        self._engine: AsyncLLM | None = None
        self._processes = Processes(())
        self._others: set[BaseProcess] = set()
        self._loading: asyncio.Future[tuple[AsyncLLM, Processes]] | None = None
        self._numbers = itertools.count()
        self._in_flight = [0] * settings.data_parallel_size
        """Number of requests that each copy of the checkpoint works on."""

    async def start(self) -> None:
        """Loads the checkpoint, which takes seconds to minutes.

        Raises:
            CannotLoad: vLLM refuses the checkpoint, or one of its processes ended.
        """
        set_offline()
        self._others = set(multiprocessing.active_children())
        self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            # A thread cannot be cancelled: `close` ends what it loads
            self._engine, self._processes = await asyncio.shield(self._loading)
            self._loading = None
        except Exception as error:
            raise CannotLoad(
                f"vLLM cannot serve {self._checkpoint.folder}: {words_of(error)}; see its log"
            ) from error

    def _load(self) -> tuple[AsyncLLM, Processes]:
        # Forking a server with threads can leave locks in the child that no thread of it releases
        method = os.environ.get(_METHOD, "spawn")
        with (
            tempfile.NamedTemporaryFile("r", prefix="vllm-failures-") as failures,
            _environment({VARIABLE: failures.name, _METHOD: method}),
        ):
            try:
                arguments = AsyncEngineArgs(**self._arguments)  # a new one: vLLM fills it in at start-up
                return AsyncLLM.from_engine_args(arguments), self._started()
            except Exception as error:
                raise CannotLoad(cause_of(error, failures.read().splitlines())) from error

    def _started(self) -> Processes:
        """Returns the processes that vLLM has started for this engine, with their descendants."""
        mine = set(multiprocessing.active_children()) - self._others
        return Processes(process.pid for process in mine if process.pid is not None)

    async def take_over(self, other: ChatEngine) -> bool:
        """Loads the weights into another engine's process and clears its caches.

        This works if the checkpoints differ only in their weights and do not tie the output layer to the
        embedding: vLLM's CPU build keeps a copy of a tied output layer and would continue to use the old one.

        Returns:
            False if it does not work; then nothing has changed.

        Raises:
            CannotLoad: vLLM failed halfway. Neither engine can be used; close this one.
        """
        if not (isinstance(other, VllmEngine) and other._engine and self._fits_into(other)):
            return False
        engine, self._numbers = other._engine, other._numbers
        self._engine, other._engine = engine, None
        self._processes, other._processes = other._processes, Processes(())
        try:
            await engine.pause_generation(mode="wait")
            await engine.collective_rpc(
                "reload_weights", kwargs={"weights_path": str(self._checkpoint.folder)}
            )
            await engine.reset_mm_cache()
            await engine.reset_encoder_cache()
            if not await engine.reset_prefix_cache():
                raise CannotLoad("vLLM does not clear its prefix cache")
            await engine.resume_generation()
        except Exception as error:
            raise CannotLoad(
                f"vLLM cannot load the weights of {self._checkpoint.folder}: {words_of(error)}"
            ) from error
        return True

    def _fits_into(self, other: "VllmEngine") -> bool:
        mine, others = self._checkpoint, other._checkpoint
        return (
            {**self._arguments, "model": None} == {**other._arguments, "model": None}
            and self._arguments["data_parallel_size"] == 1
            and self._arguments["load_format"] != "dummy"
            and not mine.dimensions.tied
            and "quantization_config" not in mine.config
            and mine.differs_in_weights_alone(others)
        )

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Continues a prompt. Cancelling this call frees its place in the engine.

        Raises:
            EngineError: the engine failed on this request; EngineDead: the engine has ended.
        """
        copy = self._copy(prompt)
        output = await self._run(
            prompt,
            SamplingParams(
                max_tokens=decoding.max_tokens,
                temperature=decoding.temperature,
                seed=decoding.seed,
                structured_outputs=StructuredOutputsParams(grammar=grammar_of(decoding.schema)),
                logit_bias=self._forbidden,
                logprobs=0,  # of the generated tokens alone; vLLM applies the grammar before it computes them
                stop_token_ids=[self._checkpoint.end_token_id],
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
            copy,
        )
        token_ids = tuple(output.token_ids)
        if token_ids and token_ids[-1] == self._checkpoint.end_token_id:
            token_ids = token_ids[:-1]
        complete = output.finish_reason == "stop"
        least = min(map(_chosen_logprob, output.token_ids, output.logprobs or ()), default=None)
        return Generated(output.text, len(token_ids), complete, token_ids, cached=copy, least_logprob=least)

    async def score(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Returns the log-probabilities (nats) of these tokens as the next one, in one unconstrained step.

        Raises:
            EngineError: the engine failed on this request; EngineDead: the engine has ended.
        """
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(token_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(prompt, parameters, self._copy(prompt))
        if not output.logprobs:
            raise EngineError("vLLM returned no log-probabilities")
        return tuple(output.logprobs[0][token].logprob for token in token_ids)

    async def close(self) -> None:
        """Ends the engine's processes, whatever they do; pending requests get EngineDead.

        Raises:
            EngineUnresponsive: a killed process does not end.
        """
        loading, self._loading = self._loading, None
        if loading is not None:
            await self._abort(loading)
        engine, self._engine = self._engine, None
        processes, self._processes = self._processes, Processes(())
        if engine is not None:
            engine.output_processor.propagate_error(EngineDeadError())
            await asyncio.to_thread(engine.shutdown)
        # A killed process leaves its own processes and shared memory behind
        await asyncio.to_thread(processes.end)

    async def _abort(self, loading: "asyncio.Future[tuple[AsyncLLM, Processes]]") -> None:
        """Ends the processes of an engine that is loading, which makes the loading fail."""
        while not (await asyncio.wait([loading], timeout=_POLL_S))[0]:
            await asyncio.to_thread(self._started().end)
        with suppress(Exception):
            self._engine, self._processes = loading.result()

    def _copy(self, prompt: Prompt) -> int:
        """Returns the number of the copy that has cached the prompt's beginning, or of the least busy one."""
        copies = range(len(self._in_flight))
        return prompt.cached if prompt.cached in copies else min(copies, key=self._in_flight.__getitem__)

    async def _run(self, prompt: Prompt, parameters: SamplingParams, copy: int) -> CompletionOutput:
        self._in_flight[copy] += 1
        try:
            # A picture that fell out of vLLM's cache meanwhile is reported as an error: send it again once
            for _ in range(2):
                output = await self._attempt(prompt, parameters, copy)
                if output.finish_reason not in ("error", "abort"):
                    return output
        finally:
            self._in_flight[copy] -= 1
        raise EngineError("vLLM aborted this request twice")

    async def _attempt(self, prompt: Prompt, parameters: SamplingParams, copy: int) -> CompletionOutput:
        if self._engine is None:
            raise EngineDead("the engine is not started")
        inputs = TokensPrompt(
            prompt_token_ids=list(prompt.token_ids),
            multi_modal_data={"image": [picture.image for picture in prompt.pictures]},
            # Named by the digest of its pixels, so that a cache entry belongs to exactly these pixels
            multi_modal_uuids={"image": [picture.digest for picture in prompt.pictures]},
        )
        name = f"question-{next(self._numbers)}"
        pinned = copy if len(self._in_flight) > 1 else None
        try:
            async for output in self._engine.generate(inputs, parameters, name, data_parallel_rank=pinned):
                if output.finished:
                    seen = (output.prompt_token_ids or []).count(self._checkpoint.image_token_id)
                    check_seen(prompt.pictures, seen)
                    return output.outputs[0]
        except EngineError:
            raise
        except EngineDeadError as error:
            raise EngineDead("vLLM's process has ended; see its log") from error
        except Exception as error:
            raise EngineError(f"vLLM failed on this request: {words_of(error.__cause__ or error)}") from error
        raise EngineError("vLLM ended this request without an answer")


def _chosen_logprob(token: int, logprobs: Mapping[int, Logprob]) -> float:
    """Returns the log-probability (nats) of a generated token.

    vLLM 0.32 pads the list with token 0 where a request of the same batch scores named tokens. If token 0 was
    generated, the padding hides its log-probability: it counts as certain.
    """
    logprob: float = logprobs[token].logprob
    return 0.0 if logprob <= _PADDING else logprob


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for processes that start within the context, and restores them after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
