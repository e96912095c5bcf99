"""The engine interface: an engine runs a checkpoint and turns a prompt into text or into token scores."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from teacher_server.prompting.preparation import PreparedPicture


def how_to_install(engine: str, system: str = sys.platform) -> str:
    """Returns what to do where `vllm` or `transformers` is not installed, as the end of a sentence."""
    if engine != "vllm":
        return f"pip install 'lvlm2p[{engine}]'"
    if system != "linux":
        return "vLLM has packages for Linux only; set `engine` to onnx, or transformers"
    return "pip install 'lvlm2p[vllm]', or set `engine` to onnx (on a CPU) or transformers"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with one image token for each picture, and the pictures in that order.

    Attributes:
        cached: `Generated.cached` of the call that this prompt continues; None: compute the whole prompt.
    """

    token_ids: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...]
    cached: Any = None

    def then(self, token_ids: Sequence[int], cached: Any = None) -> "Prompt":
        """Returns the prompt continued by these token ids, which hold no picture."""
        return Prompt((*self.token_ids, *token_ids), self.pictures, cached)


@dataclass(frozen=True)
class Decoding:
    """How to generate: at most `max_tokens` tokens, as JSON of `schema`; temperature 0 is greedy.

    The JSON is on one line, with one space after each comma and colon.
    """

    max_tokens: int
    schema: dict[str, Any]
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What a model generated, without the end token.

    Attributes:
        tokens: number of generated tokens, as far as the engine reports it.
        complete: False if `max_tokens` cut the text.
        token_ids: empty for a chat server, which reports none.
        least_logprob: log-probability (nats) of the least certain token, among the tokens that the schema
            allowed there, before the temperature; None if the engine does not report it.
        cached: the engine's handle of the computed prefix, for a prompt that continues from here.
    """

    text: str
    tokens: int
    complete: bool
    token_ids: tuple[int, ...] = ()
    cached: Any = field(default=None, compare=False, repr=False)
    least_logprob: float | None = field(default=None, compare=False)  # equal up to rounding


class EngineError(Exception):
    """The engine failed on one request."""


class EngineUnavailable(EngineError):
    """The engine does not answer now; the same request may succeed later."""


class EngineDead(EngineError):
    """The engine has ended and answers no further request."""


class EngineUnresponsive(EngineError):
    """The engine cannot be stopped; only ending this process frees what it holds."""


class CannotLoad(Exception):
    """The checkpoint cannot be loaded with these settings; the message says why and what to do."""


class ChatEngine(Protocol):
    """Runs a checkpoint.

    Requests may run concurrently; the engine batches them. Cancelling a request frees its place.
    """

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the checkpoint cannot be loaded with these settings.
        """

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Continues a prompt.

        Raises:
            EngineError: the engine failed.
        """

    async def score(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Returns the log-probability (nats) of each token as the next one, over the whole vocabulary.

        Raises:
            EngineError: the engine failed.
        """

    async def close(self) -> None:
        """Frees what `start` took or is taking; pending requests get EngineDead.

        Raises:
            EngineUnresponsive: the engine does not end.
        """


@runtime_checkable
class SupportsTakeOver(Protocol):
    """An engine that can load its weights into another engine's running process."""

    async def take_over(self, other: ChatEngine) -> bool:
        """Starts in the process of another engine that gets no more requests; the other one keeps nothing.

        Returns:
            False if the process cannot be taken over; then nothing has changed.

        Raises:
            CannotLoad: it failed halfway. Neither engine can be used; close this one.
        """


def check_seen(pictures: Iterable[PreparedPicture], tokens: int) -> None:
    """Checks that an engine processed pictures at the size at which they were prepared.

    Args:
        tokens: visual tokens that the engine made of the pictures.

    Raises:
        EngineError: the pictures have more or fewer visual tokens.
    """
    shown = list(pictures)
    if tokens != (expected := sum(picture.tokens for picture in shown)):
        sizes = ", ".join("{} x {}".format(*picture.image.size) for picture in shown)
        raise EngineError(
            f"the engine made {tokens} visual tokens of pictures of {sizes} pixels instead of {expected}: it"
            " rescales prepared pictures; check the checkpoint's picture processor files"
        )
