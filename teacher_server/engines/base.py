"""What an engine is: it runs a checkpoint, and turns a prompt into text or into scores of tokens."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from teacher_server.prompting.preparation import PreparedPicture, visual_tokens

# Before any library that would look at them is loaded: nothing here ever asks a hub or reports usage
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    VLLM_NO_USAGE_STATS="1",
    # Whoever starts a teacher reads its address from stdout, and no more: a full pipe would stop vLLM
    VLLM_LOGGING_STREAM="ext://sys.stderr",
    DO_NOT_TRACK="1",
)


def how_to_install(engine: str, system: str = sys.platform) -> str:
    """What to do where `vllm` or `transformers` is not installed, to end a sentence with."""
    if engine != "vllm":
        return f"pip install 'lvlm2p[{engine}]'"
    if system != "linux":
        return "vLLM has packages for Linux alone; choose --engine transformers"
    return "pip install 'lvlm2p[vllm]', or choose --engine transformers"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with one image token for each picture, and the pictures in that order.

    `kept` is what an engine has kept of the work on the beginning; without it, it works anew.
    """

    token_ids: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...]
    kept: Any = None

    def then(self, token_ids: Sequence[int], kept: Any = None) -> "Prompt":
        """The prompt that goes on with these ids, which hold no picture."""
        return Prompt((*self.token_ids, *token_ids), self.pictures, kept)


@dataclass(frozen=True)
class Decoding:
    """How to generate: at most `max_tokens`, as JSON of `schema`, greedily at temperature 0.

    JSON comes on one line, with one space after each comma and colon.
    """

    max_tokens: int
    schema: dict[str, Any]
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What was generated, without the token that ended it; `complete` is False where max_tokens cut it.

    `kept` is for a prompt that goes on from there.
    """

    token_ids: tuple[int, ...]
    text: str
    complete: bool
    kept: Any = field(default=None, compare=False, repr=False)


class EngineError(Exception):
    """The engine failed on one request."""


class EngineAway(EngineError):
    """The engine cannot be asked now; the same request may be answered later."""


class EngineDead(EngineError):
    """The engine is gone and answers no more."""


class EngineHangs(EngineError):
    """The engine cannot even be ended: only the end of this process may do that."""


class CannotLoad(Exception):
    """The checkpoint cannot be loaded as asked; the message says why and what to do."""


class ChatEngine(Protocol):
    """Runs a checkpoint.

    Many requests at once are welcome: the engine batches them. Cancelling one frees its place.
    """

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: it cannot be loaded as asked.
        """

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Goes on with a prompt.

        Raises:
            EngineError: the engine failed.
        """

    async def score(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[float, ...]:
        """The natural logarithm of the probability of each token to come next, of the whole vocabulary.

        Raises:
            EngineError: the engine failed.
        """

    async def close(self) -> None:
        """Frees what `start` took, or is taking; what is not answered yet gets EngineDead.

        Raises:
            EngineHangs: it does not end.
        """


@runtime_checkable
class TakesOver(Protocol):
    """An engine that can load its weights into another one's running process."""

    async def take_over(self, other: ChatEngine) -> bool:
        """Starts in the place of another engine that nobody asks any more, and that has nothing left then.

        Returns:
            False where that cannot be: then nothing was touched.

        Raises:
            CannotLoad: it failed on the way. Neither engine can be asked; this one is to be closed.
        """


def check_seen(pictures: Iterable[PreparedPicture], tokens: int) -> None:
    """Makes sure that an engine saw pictures in the size in which they were prepared.

    Args:
        tokens: visual tokens that the engine made of the pictures.

    Raises:
        EngineError: they are more or fewer than the pictures have.
    """
    shown = list(pictures)
    if tokens != (expected := sum(map(visual_tokens, shown))):
        sizes = ", ".join("{} x {}".format(*picture.image.size) for picture in shown)
        raise EngineError(
            f"the engine made {tokens} visual tokens of pictures of {sizes} pixels, and not {expected}: it"
            " scales prepared pictures; see the picture processor's files of the checkpoint"
        )
