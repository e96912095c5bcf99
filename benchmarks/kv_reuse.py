"""Measures what stage 2 saves in transformers by reusing the keys and values of stage 1.

One engine in this process, with one thread, answers stage 1 of the same questions in each round. Stage 2 runs
with and without the cached keys and values, in random order: one question after another, and all at once.
Prints medians, their ratios and the largest difference of a probability. Run it as
`python -m benchmarks.kv_reuse`; it loads `checkpoints/compact`.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.engines.base import Decoding, Prompt
from teacher_server.engines.transformers.engine import TransformersEngine
from teacher_server.pictures.decoding import decode, from_base64
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_server.settings import EngineSettings
from teacher_tools.bench.questions import distinct_questions

_COMPACT = Path(__file__).parents[1] / "checkpoints" / "compact"

_Scores = list[tuple[float, ...]]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=128, help="(default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with and without reuse (default: 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asyncio.run(_measure(arguments.questions, arguments.rounds))


async def _measure(count: int, rounds: int) -> None:
    checkpoint, prompts = read_checkpoint(_COMPACT), load_prompt_set("compact")
    chat, decoding = checkpoint.chat_format, Decoding(prompts.analysis_max_tokens, prompts.schema)
    label_ids = {a: checkpoint.tokenizer.encode(label).ids[0] for a, label in prompts.labels.items()}
    engine = TransformersEngine(checkpoint, EngineSettings(device="cpu"))
    await engine.start()
    asked: list[tuple[Prompt, tuple[int, ...], list[int]]] = []
    for question in distinct_questions(count):
        conversation = prompts.conversation(
            task=question.task, mission=question.mission, actions=question.actions, readout="labels"
        )
        picture = prompts.preparation.prepare(decode(from_base64(question.image), max_pixels=10**6))
        opening, followup = chat.stages(conversation)
        labels = [label_ids[action] for action in question.actions]
        asked.append((Prompt(opening, (*conversation.pictures, picture)), followup, labels))

    async def after_stage_1(prompt: Prompt, followup: tuple[int, ...], *, anew: bool) -> Prompt:
        generated = await engine.generate(prompt, decoding)
        stage_2 = prompt.then((*generated.token_ids, *followup), generated.cached)
        return replace(stage_2, cached=None) if anew else stage_2

    times: dict[tuple[str, bool], list[float]] = {}
    scores: dict[tuple[str, bool], _Scores] = {}

    async def timed(what: str, anew: bool, work: Callable[[], Awaitable[_Scores]]) -> None:
        began = time.perf_counter()
        scores[what, anew] = await work()
        times.setdefault((what, anew), []).append((time.perf_counter() - began) / count)

    for round_ in range(rounds):
        for anew in random.Random(round_).sample((True, False), 2):
            stage_2 = await asyncio.gather(*(after_stage_1(p, f, anew=anew) for p, f, _ in asked))
            works = [(prompt, labels) for prompt, (_, _, labels) in zip(stage_2, asked, strict=True)]

            async def alone(works: list[tuple[Prompt, list[int]]] = works) -> _Scores:
                return [await engine.score(*work) for work in works]

            async def at_once(works: list[tuple[Prompt, list[int]]] = works) -> _Scores:
                return list(await asyncio.gather(*(engine.score(*work) for work in works)))

            await timed("one after the other", anew, alone)
            await timed("all at once", anew, at_once)
    await engine.close()

    print(f"stage 2 of {count} questions: milliseconds a question, medians of {rounds} rounds")
    for what in ("one after the other", "all at once"):
        anew_s, reused_s = (times[what, way] for way in (True, False))
        ratio = statistics.median(g / a for g, a in zip(reused_s, anew_s, strict=True))
        print(
            f"{what:<20} anew {statistics.median(anew_s) * 1000:7.1f}"
            f"   reused {statistics.median(reused_s) * 1000:7.1f}   ratio {ratio:.2f}"
        )
    expected = scores["one after the other", True]
    largest = max(
        np.abs(np.exp(one) - np.exp(other)).max()
        for what in ("one after the other", "all at once")
        for one, other in zip(scores[what, False], expected, strict=True)
    )
    print(f"largest difference of a probability: {largest:.1e}")


if __name__ == "__main__":
    main()
