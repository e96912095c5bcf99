"""Runs a checkpoint in ONNX Runtime: the fastest engine on a CPU, in this process, in float32."""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import Decoding, EngineDead, Generated, Prompt
from teacher_server.engines.batching import Batches, Request, Take
from teacher_server.engines.onnx.model import OnnxModel
from teacher_server.engines.onnx.runner import Runner
from teacher_server.settings import EngineSettings

_SMALL = 2**28
"""Bytes of weights up to which each thread works on requests of its own; threads share a larger model's
arithmetic instead, which memory limits."""


class OnnxEngine:
    """A `ChatEngine` on the CPU.

    A request joins the others at their next token. What prompts have in common up to the question's picture
    is computed once.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self._checkpoint, self._settings = checkpoint, settings
        self._batches: Batches | None = None

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the weights cannot be read, or the checkpoint needs what this engine does not compute.
        """
        self._batches = await asyncio.to_thread(self._load)

    def _load(self) -> Batches:
        checkpoint, settings = self._checkpoint, self._settings
        threads = settings.threads or torch.get_num_threads()
        workers = threads if checkpoint.weight_bytes("float32") <= _SMALL else 1
        model = OnnxModel(checkpoint, settings, threads // workers)
        free = [
            Runner(
                model,
                checkpoint,
                places=-(-settings.max_num_seqs // workers),
                longest=settings.max_model_len,
                prefix_bytes=checkpoint.prefix_cache_bytes(settings, "onnx") // workers,
            )
            for _ in range(workers)
        ]

        def run(requests: list[Request], take: Take) -> None:
            runner = free.pop()
            try:
                runner.run(requests, take)
            finally:
                free.append(runner)

        return Batches(run, 1, threads=workers)

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Continues a prompt. Cancelling this call frees its place at the next token.

        Raises:
            EngineError: the engine failed on this request; EngineDead: the engine is closed.
        """
        generated: Generated = await self._answer(Request(prompt, decoding))
        return generated

    async def score(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Returns the log-probabilities (nats) of these tokens as the next one, in one step.

        Raises:
            EngineError: the engine failed on this request; EngineDead: the engine is closed.
        """
        scores: tuple[float, ...] = await self._answer(Request(prompt, token_ids=tuple(token_ids)))
        return scores

    async def close(self) -> None:
        """Stops at the next token; pending requests get EngineDead.

        Raises:
            EngineUnresponsive: the next token does not come.
        """
        if self._batches is not None:
            batches, self._batches = self._batches, None
            await batches.close()

    async def _answer(self, request: Request) -> Any:
        if self._batches is None:
            raise EngineDead("the engine is not started, or is closed")
        return await self._batches.answer(request)
