"""Helpers of engine tests: checkpoints, chat prompts with pictures, and local engines on the CPU."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import numpy as np

from gridworld.pictures import draw
from gridworld.views import view_of
from teacher_server.checkpoints.architectures import QWEN2_5, Architecture
from teacher_server.checkpoints.checkpoint import Checkpoint, read_checkpoint
from teacher_server.engines.base import ChatEngine, Decoding, Prompt
from teacher_server.prompting.preparation import Preparation, PreparedPicture
from teacher_server.settings import EngineSettings
from tools.random_checkpoint import make_checkpoint

T = TypeVar("T")

LOCAL = ["transformers", "onnx"]
"""The engines that run in this process."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "front": {"enum": ["wall", "lava", "door", "nothing"]},
        "cell": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 24},
            "minItems": 2,
            "maxItems": 2,
        },
        "carrying": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 40},
    },
    "required": ["front", "cell", "carrying", "note"],
    "additionalProperties": False,
}
WHOLE = Decoding(96, SCHEMA)
"""Greedy, with enough tokens for the schema."""
ENDLESS = Decoding(20_000, {"type": "string", "minLength": 20_000})
"""Takes minutes to generate."""


def checkpoint_with_habits(folder: Path, architecture: Architecture = QWEN2_5) -> Checkpoint:
    """A tiny checkpoint whose generation_config.json sets more than Qwen's; it must have no effect."""
    make_checkpoint(folder, architecture=architecture)
    generation = json.loads((folder / "generation_config.json").read_text())
    habits = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001}
    (folder / "generation_config.json").write_text(json.dumps(generation | habits))
    return read_checkpoint(folder)


def picture_of(seed: int = 0, env_id: str = "MiniGrid-LavaGapS6-v0") -> PreparedPicture:
    """A picture of a first state."""
    with gymnasium.make(env_id) as env:
        env.reset(seed=seed)
        return Preparation(tile=28).prepare(draw(view_of(env), 16))


def prompt_of(checkpoint: Checkpoint, *parts: str | PreparedPicture) -> Prompt:
    """A user's turn of texts and pictures, before the assistant's turn; pictures get the sides that fit."""
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    said = "".join(part if isinstance(part, str) else place for part in parts)
    text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
    fit = Preparation(side=checkpoint.dimensions.vision.token_side).prepare
    pictures = [fit(np.asarray(part.image)) for part in parts if isinstance(part, PreparedPicture)]
    return Prompt(tuple(ids), tuple(pictures))


def prompts_of(checkpoint: Checkpoint) -> list[Prompt]:
    """Prompts of different lengths, with zero to three pictures of different sizes in different places."""
    env_ids = ["MiniGrid-LavaGapS5-v0", "MiniGrid-LavaGapS6-v0", "MiniGrid-Fetch-8x8-N3-v0"]
    a, b, c = (picture_of(env_id=env_id) for env_id in env_ids)
    parts: list[tuple[str | PreparedPicture, ...]] = [
        ("What next?",),
        (a, "get to the green goal square"),
        ("Look at this: ", b, " and then at this: ", c, " What is in front of the agent?"),
        ("mission " * 40, picture_of(1)),
        (c, a, b, "Which one has a key?"),
        ("left, right or forward? " * 3,),
    ]
    return [prompt_of(checkpoint, *of_one) for of_one in parts]


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(**{"device": "cpu", "max_num_seqs": 8, "max_model_len": 2048, **changes})


def engine_of(kind: str, checkpoint: Checkpoint, **changes: Any) -> ChatEngine:
    """Returns an engine, not started."""
    # Only where they are used: neither transformers nor ONNX Runtime is everywhere
    if kind == "onnx":
        from teacher_server.engines.onnx.engine import OnnxEngine  # noqa: PLC0415

        return OnnxEngine(checkpoint, settings(**changes))
    from teacher_server.engines.transformers.engine import TransformersEngine  # noqa: PLC0415

    return TransformersEngine(checkpoint, settings(**changes))


@asynccontextmanager
async def started(
    checkpoint: Checkpoint, kind: str = "transformers", **changes: Any
) -> AsyncIterator[ChatEngine]:
    """Yields an engine, and closes it after the block."""
    engine = engine_of(kind, checkpoint, **changes)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class SharedEngine:
    """An engine for many tests, in its own event loop."""

    def __init__(self, checkpoint: Checkpoint, kind: str = "transformers") -> None:
        self._loop = asyncio.new_event_loop()
        self._started = started(checkpoint, kind)
        self.engine = self.run(self._started.__aenter__())

    def run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(work)

    def all(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Sends all prompts at once, so that the engine batches them."""

        async def gathered() -> list[T]:
            return await asyncio.gather(*works)

        return self.run(gathered())

    def one_by_one(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        return [self.run(work) for work in works]

    def close(self) -> None:
        self.run(self._started.__aexit__(None, None, None))
        self._loop.close()
