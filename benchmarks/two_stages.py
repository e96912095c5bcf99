"""One /policy question beside stock `vllm serve` asked twice, and batches beside the bare engine.

Run it as `python -m benchmarks.two_stages` where vLLM is installed. Without --model it makes a checkpoint
of under a million parameters with random weights: its times are vLLM's overhead, its tokens cost little.
Random weights write until the schema stops them, a letter or two a token: its strings and lists are
shortened, so that an analysis has about as many tokens as a worked example's, 100 to 130.

1. Median time of one question, ours with both read-outs and stock in turn, about the same pictures.
   Stock is asked over its OpenAI API as a user would: the conversation with JSON output for the analysis,
   then the same conversation, the analysis and the second question with JSON output for the probabilities;
   held to JSON by our grammar, so that it writes no other blanks than we do.
2. Questions/s of /policy/batch at --batch questions, and of the same prompts given to the engine directly, in
   turn. Stores are off.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import BIN, has_gpu, running, start_teacher, wait_for
from teacher_server.chat import ChatFormat
from teacher_server.checkpoint import read_checkpoint
from teacher_server.engines import Decoding, PreparedPicture, Prompt
from teacher_server.engines.constraints import grammar_of
from teacher_server.images import decode, from_base64
from teacher_server.prompts import Message, PromptSet, load_prompt_set
from teacher_server.readout import numbers_schema
from teacher_server.schemas import Question
from teacher_server.settings import EngineSettings, Readout
from tests.checkpoints import make_checkpoint
from tests.prompt_sets import shortened
from tests.questions import distinct_questions

_WARM_UP = 8
"""Questions before any is timed."""


def main() -> None:
    """Measures and prints; --out has the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint's folder (default: a tiny one, made now)")
    parser.add_argument("--prompts", default="minigrid", help="a prompt set (default: minigrid)")
    parser.add_argument("--dtype", default="float32" if not has_gpu() else "auto")
    parser.add_argument("--questions", type=int, default=60, help="timed one by one (default: 60)")
    parser.add_argument("--batch", type=int, default=64, help="questions in a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="batches each way (default: 7)")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    parser.add_argument("--graphs", action="store_true", help="compile, as on a GPU; default: eager")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/two_stages.json"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            arguments.model = make_checkpoint(Path(folder) / "tiny")
            arguments.prompts = str(shortened(load_prompt_set(arguments.prompts), Path(folder) / "prompts"))
        prompts = load_prompt_set(arguments.prompts)
        figures = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "one question": _one_question(arguments, prompts),
            "batch": _batches(arguments, prompts),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {arguments.out}")


def _one_question(arguments: argparse.Namespace, prompts: PromptSet) -> dict[str, Any]:
    names: tuple[Readout, Readout] = ("labels", "numbers")
    with ExitStack() as stack:
        # Started together: loading takes each of them as long as all the measuring
        starting = [_start_teacher(stack, arguments, name) for name in names]
        stock = _Stock(stack.enter_context(_stock_server(arguments, prompts)), arguments.model, prompts)
        http = stack.enter_context(httpx.Client(timeout=300))
        ways: dict[str, Callable[[Question], tuple[bool, int]]] = {
            f"/policy, {name}": _asker(http, url()) for name, url in zip(names, starting, strict=True)
        }
        ways["vllm serve, asked twice"] = stock.ask
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        tokens: dict[str, list[int]] = {way: [] for way in ways}
        # Each server sees each picture once: nothing of a question but its opening can be in its caches
        for i, question in enumerate(distinct_questions(arguments.questions + _WARM_UP)):
            for way, ask in ways.items():
                began = time.perf_counter()
                complete, generated = ask(question)
                took = time.perf_counter() - began
                if i >= _WARM_UP and complete:
                    seconds[way].append(took)
                    tokens[way].append(generated)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    base = median["vllm serve, asked twice"]
    figures = {}
    print(
        f"\n{'one question':<26} {'median ms':>10} {'p95 ms':>8} {'of stock':>9} {'tokens':>7} {'asked':>6}"
    )
    for way, values in seconds.items():
        p95 = statistics.quantiles(values, n=20)[-1]
        figures[way] = {
            "median_ms": median[way] * 1000,
            "p95_ms": p95 * 1000,
            "of_stock": median[way] / base,
            "tokens": statistics.mean(tokens[way]),
            "questions": len(values),
        }
        print(
            f"{way:<26} {median[way] * 1000:>10.1f} {p95 * 1000:>8.1f} {median[way] / base:>9.2f}"
            f" {statistics.mean(tokens[way]):>7.0f} {len(values):>6}"
        )
    return figures


def _batches(arguments: argparse.Namespace, prompts: PromptSet) -> dict[str, Any]:
    from teacher_server.engines.vllm import VllmEngine  # noqa: PLC0415  (vLLM takes seconds to import)

    checkpoint = read_checkpoint(arguments.model)
    chat = ChatFormat(checkpoint)
    conversations = [_conversation(prompts, task) for task in prompts.tasks]
    most = max(len(conversation.pictures) for conversation in conversations) + 1
    settings = EngineSettings(
        model=arguments.model,
        dtype=arguments.dtype,
        eager=not arguments.graphs,
        kv_cache_gib=arguments.kv_cache_gib,
        max_model_len=arguments.max_model_len,
    )
    engine = VllmEngine(checkpoint, settings, pictures=most, side=1120)
    label_ids = {a: checkpoint.tokenizer.encode(label).ids[0] for a, label in prompts.labels.items()}

    def prepared(question: Question) -> tuple[Prompt, tuple[int, ...], list[int]]:
        conversation = _conversation(prompts, question.task, question)
        opening, followup = chat.stages(conversation)
        picture = _prepared(prompts, question)
        prompt = Prompt(opening, (*conversation.pictures, picture))
        return prompt, followup, [label_ids[action] for action in question.actions]

    decoding = Decoding(max_tokens=prompts.analysis_max_tokens, schema=prompts.schema)

    async def answer(prompt: Prompt, followup: tuple[int, ...], labels: list[int]) -> bool:
        said = await engine.generate(prompt, decoding)
        if said.complete:
            await engine.score(prompt.then((*said.token_ids, *followup)), labels)
        return said.complete

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


def _asker(http: httpx.Client, url: str) -> Callable[[Question], tuple[bool, int]]:
    def ask(question: Question) -> tuple[bool, int]:
        """Whether both stages were asked, and the tokens generated."""
        reply = http.post(f"{url}/policy", json=question.model_dump(mode="json"))
        if reply.status_code != 200:
            return False, 0
        stages = reply.json()["stages"]
        return True, stages["analysis"]["tokens"] + stages["action"]["tokens"]

    return ask


class _Stock:
    """The two-stage conversation over stock vLLM's OpenAI API."""

    def __init__(self, url: str, model: Path, prompts: PromptSet) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)
        self._model, self._prompts = str(model), prompts

    def ask(self, question: Question) -> tuple[bool, int]:
        """Whether both stages were asked, and the tokens generated."""
        prompts, actions = self._prompts, prompts_actions(self._prompts, question)
        conversation = prompts.conversation(
            task=question.task, mission=question.mission, actions=actions, readout="numbers"
        )
        pictures = iter([*conversation.pictures, _prepared(prompts, question)])
        messages = [_openai(m, pictures) for m in [*conversation.opening, conversation.question]]
        analysis, finish, tokens = self._complete(messages, prompts.schema, prompts.analysis_max_tokens)
        if finish != "stop":
            return False, 0
        messages += [{"role": "assistant", "content": analysis}, _openai(conversation.followup, pictures)]
        _, finish, more = self._complete(messages, numbers_schema(actions), prompts.numbers_max_tokens)
        return finish == "stop", tokens + more

    def _complete(
        self, messages: list[dict[str, Any]], schema: dict[str, Any], max_tokens: int
    ) -> tuple[str, str, int]:
        body = {
            "model": self._model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
            "structured_outputs": {"grammar": grammar_of(schema)},
        }
        reply = self._http.post("/v1/chat/completions", json=body).raise_for_status().json()
        choice = reply["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], reply["usage"]["completion_tokens"]


def prompts_actions(prompts: PromptSet, question: Question) -> tuple[str, ...]:
    """The actions asked that the task has a use for."""
    return tuple(action for action in question.actions if action in prompts.tasks[question.task])


def _openai(message: Message, pictures: Iterator[PreparedPicture]) -> dict[str, Any]:
    """A message with its pictures in it, as OpenAI's API takes them."""
    return {
        "role": message["role"],
        "content": [
            {"type": "image_url", "image_url": {"url": _data_url(next(pictures))}}
            if part["type"] == "image"
            else part
            for part in message["content"]
        ],
    }


def _data_url(picture: PreparedPicture) -> str:
    file = io.BytesIO()
    picture.image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _start_teacher(stack: ExitStack, arguments: argparse.Namespace, readout: Readout) -> Callable[[], str]:
    flags = ["--model", str(arguments.model), "--prompts", arguments.prompts, "--readout", readout]
    flags += ["--dtype", arguments.dtype, "--max-model-len", str(arguments.max_model_len)]
    flags += ["--kv-cache-gib", str(arguments.kv_cache_gib)]
    # Random weights put little mass on labels and write numbers that sum to 1 only by chance
    flags += ["--min-label-mass", "0", "--sum-tolerance", "1"]
    return start_teacher(stack, *flags, *([] if arguments.graphs else ["--eager"]))


@contextmanager
def _stock_server(arguments: argparse.Namespace, prompts: PromptSet) -> Iterator[str]:
    pictures = max(len(_conversation(prompts, task).pictures) for task in prompts.tasks) + 1
    limit = {"image": {"count": pictures, "width": 1120, "height": 1120}, "video": 0}
    command = [str(BIN / "vllm"), "serve", str(arguments.model), "--port", "18765"]
    command += ["--dtype", arguments.dtype, "--max-model-len", str(arguments.max_model_len)]
    command += ["--generation-config", "vllm", "--limit-mm-per-prompt", json.dumps(limit)]
    command += ["--kv-cache-memory-bytes", str(int(arguments.kv_cache_gib * 2**30))]
    command += ["--structured-outputs-config", json.dumps({"backend": "xgrammar"})]
    command += [] if arguments.graphs else ["--enforce-eager"]
    with running(command) as process:
        url = "http://127.0.0.1:18765"
        wait_for(f"{url}/health", process)
        yield url


if __name__ == "__main__":
    main()
