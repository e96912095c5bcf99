"""Compares /policy with two requests to stock `vllm serve`, and /policy/batch with the bare engine.

Run it as `python -m benchmarks.two_stages` where vLLM is installed. Without --model it makes a checkpoint
with fewer than a million random parameters: its times are vLLM's overhead, as its tokens cost little. Random
weights generate until the schema stops them, one or two letters a token, so the schema's strings and lists
are shortened: an analysis then has about as many tokens as a prompt set's example, 100 to 130.

1. The median time of one question: ours with both read-outs, and stock, in alternate rounds. Stock gets
   requests over its OpenAI API as a user would send them: the conversation with JSON output for the analysis,
   then the same conversation, the analysis and the second question with JSON output for the probabilities.
   Our grammar constrains the JSON, so that both generate the same white space.
2. Questions/s of /policy/batch with --batch questions, and of as many prompts given to the engine directly,
   in turn. Stores are off.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import BIN, has_gpu, running, start_teacher, wait_for
from teacher_api.schemas import Question
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.engines.base import Decoding, Prompt
from teacher_server.engines.constraints import grammar_of
from teacher_server.pictures.decoding import decode, from_base64
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import PromptSet, load_prompt_set
from teacher_server.settings import EngineSettings, Readout
from teacher_tools.bench.measuring import BenchPlan, Load, Round, measure
from teacher_tools.bench.openai import OpenAITarget
from teacher_tools.bench.progress import BenchProgress
from teacher_tools.bench.questions import distinct_questions
from teacher_tools.bench.statistics import point_statistics, ratios_of
from teacher_tools.bench.targets import Target, TeacherTarget
from tools.random_checkpoint import make_checkpoint, shortened
from tools.stock_vllm import stock_flags

_WARM_UP = 8
"""Uncounted questions before each round: two of each task."""
_ROUNDS = 6
_STOCK = "vllm serve, asked twice"


def main() -> None:
    """Measures, prints a table, and writes the results to --out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a checkpoint's folder (default: a tiny one, which is made)"
    )
    parser.add_argument("--prompts", default="minigrid", help="a prompt set (default: minigrid)")
    parser.add_argument("--dtype", default="float32" if not has_gpu() else "auto")
    parser.add_argument("--questions", type=int, default=60, help="questions one by one (default: 60)")
    parser.add_argument("--batch", type=int, default=64, help="questions in a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="batches of each kind (default: 7)")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    parser.add_argument(
        "--graphs", action="store_true", help="compile the model, as on a GPU; default: eager"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/two_stages.json"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            arguments.model = make_checkpoint(Path(folder) / "tiny")
            arguments.prompts = str(shortened(load_prompt_set(arguments.prompts), Path(folder) / "prompts"))
        prompts = load_prompt_set(arguments.prompts)
        results = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "one question": _one_question(arguments, prompts),
            "batch": _batches(arguments, prompts),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")


def _one_question(arguments: argparse.Namespace, prompts: PromptSet) -> dict[str, Any]:
    readouts: tuple[Readout, Readout] = ("labels", "numbers")
    plan = BenchPlan(
        loads=[Load("concurrency", 1)],
        questions=math.ceil(arguments.questions / _ROUNDS),
        warm_up=_WARM_UP,
        rounds=_ROUNDS,
        warm=False,
        seed=0,
    )
    rounds: list[Round] = []
    with ExitStack() as stack:
        # Started side by side, since loading one takes as long as all measurements
        starting = {f"/policy, {name}": _start_teacher(stack, arguments, name) for name in readouts}
        stock = stack.enter_context(_stock_server(arguments, prompts))
        targets: dict[str, Target] = {
            way: TeacherTarget(url(), {}, timeout_s=300) for way, url in starting.items()
        }
        targets[_STOCK] = OpenAITarget(stock, prompts, timeout_s=300, constrain=_by_grammar)
        progress = BenchProgress(plan.rounds_per_teacher * len(targets), several=True)
        asked = distinct_questions(plan.different * len(targets))
        asyncio.run(measure(plan, targets, asked, rounds, progress))
    windows = {way: [each.window for each in rounds if each.target == way] for way in targets}
    results = {}
    print(
        f"\n{'one question':<26} {'median ms':>10} {'p95 ms':>8} {'of stock':>25} {'tokens':>7} {'asked':>6}"
    )
    for way, of_way in windows.items():
        found, ratios = point_statistics(of_way, math.inf, planned=False), ratios_of(of_way, windows[_STOCK])
        if found.latency_ms is None or ratios is None:
            raise SystemExit(f"{way}: too few questions were answered: {found.errors}")
        tokens, of_stock = sum(found.tokens.values()), ratios.p50
        results[way] = {
            "median_ms": found.latency_ms.p50,
            "p95_ms": found.latency_ms.p95,
            "of_stock": asdict(of_stock),
            "tokens": tokens,
            "questions": found.answered,
        }
        interval = f"{of_stock.value:.2f} ({of_stock.low:.2f} to {of_stock.high:.2f})"
        print(
            f"{way:<26} {found.latency_ms.p50:>10.1f} {found.latency_ms.p95:>8.1f} {interval:>25}"
            f" {tokens:>7.0f} {found.answered:>6}"
        )
    return results


def _by_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the field with which stock vLLM constrains its output to our grammar."""
    return {"structured_outputs": {"grammar": grammar_of(schema)}}


def _batches(arguments: argparse.Namespace, prompts: PromptSet) -> dict[str, Any]:
    from teacher_server.engines.vllm.engine import VllmEngine  # noqa: PLC0415  (vLLM takes seconds to import)

    checkpoint = read_checkpoint(arguments.model)
    chat = checkpoint.chat_format
    conversations = [_conversation(prompts, task) for task in prompts.tasks]
    most = max(len(conversation.pictures) for conversation in conversations) + 1
    settings = EngineSettings(
        model=arguments.model,
        dtype=arguments.dtype,
        eager=not arguments.graphs,
        kv_cache_gib=arguments.kv_cache_gib,
        max_model_len=arguments.max_model_len,
    )
    engine = VllmEngine(checkpoint, settings, pictures=most, max_pixels=1120 * 1120)
    label_ids = {a: checkpoint.tokenizer.encode(label).ids[0] for a, label in prompts.labels.items()}

    def prepared(question: Question) -> tuple[Prompt, tuple[int, ...], list[int]]:
        conversation = _conversation(prompts, question.task, question)
        opening, followup = chat.stages(conversation)
        picture = _prepared(prompts, question)
        prompt = Prompt(opening, (*conversation.pictures, picture))
        return prompt, followup, [label_ids[action] for action in question.actions]

    decoding = Decoding(max_tokens=prompts.analysis_max_tokens, schema=prompts.schema)

    async def answer(prompt: Prompt, followup: tuple[int, ...], labels: list[int]) -> bool:
        generated = await engine.generate(prompt, decoding)
        if generated.complete:
            await engine.score(prompt.then((*generated.token_ids, *followup), generated.cached), labels)
        return generated.complete

    async def measure(url: str) -> dict[str, list[float]]:
        await engine.start()
        rates: dict[str, list[float]] = {"/policy/batch": [], "bare engine": []}
        questions = iter(distinct_questions(2 * arguments.batch * (arguments.rounds + 1), seed=1))
        async with httpx.AsyncClient(timeout=600) as http:
            for round_ in range(arguments.rounds + 1):
                ours, theirs = ([next(questions) for _ in range(arguments.batch)] for _ in range(2))
                body = [question.model_dump(mode="json") for question in ours]
                began = time.perf_counter()
                await http.post(f"{url}/policy/batch", json=body)
                served_s = time.perf_counter() - began
                ready = [prepared(question) for question in theirs]
                began = time.perf_counter()
                await asyncio.gather(*(answer(*one) for one in ready))
                bare_s = time.perf_counter() - began
                if round_ > 0:  # the first warms up
                    rates["/policy/batch"].append(arguments.batch / served_s)
                    rates["bare engine"].append(arguments.batch / bare_s)
        await engine.close()
        return rates

    with ExitStack() as stack:
        url = _start_teacher(stack, arguments, "labels")()
        rates = asyncio.run(measure(url))
    shares = [o / b for o, b in zip(rates["/policy/batch"], rates["bare engine"], strict=True)]
    print(f"\nbatches of {arguments.batch}, questions/s (median of {arguments.rounds})")
    for way, values in rates.items():
        print(f"{way:<26} {statistics.median(values):>10.1f}")
    print(
        f"{'served of bare':<26} {statistics.median(shares):>10.2f} ({min(shares):.2f} to {max(shares):.2f})"
    )
    return {way: statistics.median(values) for way, values in rates.items()} | {
        "served of bare": statistics.median(shares),
        "by round": shares,
    }


def _conversation(prompts: PromptSet, task: str, question: Question | None = None) -> Any:
    mission = question.mission if question else ""
    return prompts.conversation(
        task=task, mission=mission, actions=prompts.tasks[task], readout=prompts.readout
    )


def _prepared(prompts: PromptSet, question: Question) -> PreparedPicture:
    return prompts.preparation.prepare(decode(from_base64(question.image), max_pixels=10**8))


def _start_teacher(stack: ExitStack, arguments: argparse.Namespace, readout: Readout) -> Callable[[], str]:
    flags = ["--model", str(arguments.model), "--prompts", arguments.prompts, "--readout", readout]
    flags += ["--dtype", arguments.dtype, "--max-model-len", str(arguments.max_model_len)]
    flags += ["--kv-cache-gib", str(arguments.kv_cache_gib)]
    # Random weights put little mass on labels, and their numbers rarely sum to 1
    flags += ["--min-label-mass", "0", "--sum-tolerance", "1"]
    return start_teacher(stack, *flags, *([] if arguments.graphs else ["--eager"]))


@contextmanager
def _stock_server(arguments: argparse.Namespace, prompts: PromptSet) -> Iterator[str]:
    pictures = max(len(_conversation(prompts, task).pictures) for task in prompts.tasks) + 1
    flags = stock_flags(
        arguments.model,
        pictures=pictures,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        kv_cache_gib=arguments.kv_cache_gib,
    )
    flags += ["--port", "18765", "--generation-config", "vllm"]
    flags += [] if arguments.graphs else ["--enforce-eager"]
    with running([str(BIN / "vllm"), *flags]) as process:
        url = "http://127.0.0.1:18765"
        wait_for(f"{url}/health", process)
        yield url


if __name__ == "__main__":
    main()
