"""The base of the engines that run a checkpoint in this process, in threads of their own."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import Decoding, EngineDead, Generated, Prompt
from teacher_server.engines.batching import Batches, Request
from teacher_server.engines.offline import set_offline
from teacher_server.settings import EngineSettings


class LocalEngine(ABC):
    """A `ChatEngine` of which a subclass loads the checkpoint and answers batches of requests.

    Each request samples with its own generator: other requests of the batch change its tokens only through
    rounding.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self._batches: Batches | None = None

    @abstractmethod
    def load(self) -> Batches:
        """Loads the checkpoint, in a thread, and returns what answers requests with it.

        Raises:
            CannotLoad: the checkpoint cannot be loaded with these settings.
        """

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the checkpoint cannot be loaded with these settings.
        """
        set_offline()
        self._batches = await asyncio.to_thread(self.load)

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Continues a prompt. Cancelling this call ends its part of the batch at the next token.

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
            del batches
            torch.cuda.empty_cache()

    async def _answer(self, request: Request) -> Any:
        if self._batches is None:
            raise EngineDead("the engine is not started, or is closed")
        return await self._batches.answer(request)
