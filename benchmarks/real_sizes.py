"""Measures the time of a question at the dimensions of the 3B and 7B checkpoints, with random weights.

Run it as `python -m benchmarks.real_sizes` on a machine with a GPU where vLLM or transformers is installed.
The checkpoints are configurations without weights; each engine fills them with random ones. Times depend on
the number of tokens rather than their content: the analysis has about --analysis-tokens. The lower bound
beside each time is that of an H100 in bfloat16, which reads the weights once for each decoded token.

    python -m benchmarks.real_sizes --sizes tiny --engines vllm transformers --questions 10      anywhere
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import has_gpu, start_teacher
from teacher_api.schemas import Question
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.prompting.prompt_set import SETS
from teacher_tools.bench.questions import distinct_questions
from tools.random_checkpoint import make_checkpoint

_H100_BYTES_S = 3.35e12
_WARM_UP = 5


def main() -> None:
    """Measures, prints a table, and writes the results to --out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["3b", "7b"], choices=["tiny", "3b", "7b"])
    parser.add_argument("--engines", nargs="+", default=["vllm"], choices=["vllm", "transformers"])
    parser.add_argument("--readouts", nargs="+", default=["labels", "numbers"], choices=["labels", "numbers"])
    parser.add_argument("--questions", type=int, default=50, help="questions one by one")
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[64], help="questions in a batch, with distinct pictures"
    )
    parser.add_argument("--analysis-tokens", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/real_sizes.json"))
    arguments = parser.parse_args()
    results = []
    heading = ("size", "engine", "read-out", "tokens", "start s", "median ms", "p95 ms", "floor ms")
    rates = [f"{count} q/s" for count in arguments.at_once]
    print(("{:>6} {:>13} {:>9}" + " {:>9}" * (5 + len(rates))).format(*heading, *rates))
    with tempfile.TemporaryDirectory() as folder:
        prompts = _prompt_set(Path(folder), arguments.analysis_tokens)
        for size in arguments.sizes:
            model = make_checkpoint(Path(folder) / size, size=size, weights=False)
            for engine in arguments.engines:
                for readout in arguments.readouts:
                    found = _measure(model, engine, readout, prompts, arguments.questions, arguments.at_once)
                    results.append({"size": size, "engine": engine, "readout": readout} | found)
                    print(
                        f"{size:>6} {engine:>13} {readout:>9} {found['tokens']:>9.0f}"
                        f" {found['start_s']:>9.1f} {found['median_ms']:>9.1f} {found['p95_ms']:>9.1f}"
                        f" {found['floor_ms']:>9.1f}"
                        + "".join(f" {rate:>9.1f}" for rate in found["questions_s"].values()),
                        flush=True,
                    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")


def _measure(
    model: Path, engine: str, readout: str, prompts: Path, count: int, at_once: Sequence[int]
) -> dict[str, Any]:
    flags = ["--model", str(model), "--engine", engine, "--readout", readout, "--prompts", str(prompts)]
    flags += ["--load-format", "dummy", "--min-label-mass", "0", "--sum-tolerance", "1"]
    if not has_gpu():
        flags += ["--dtype", "float32", "--eager", "--kv-cache-gib", "1"]
    questions = iter(distinct_questions(_WARM_UP + count + sum(at_once)))
    with ExitStack() as stack:
        began = time.perf_counter()
        url = start_teacher(stack, *flags)()
        start_s = time.perf_counter() - began
        http = stack.enter_context(httpx.Client(base_url=url, timeout=1200))
        asked = [_ask(http, question) for question in islice(questions, _WARM_UP + count)][_WARM_UP:]
        rates = {}
        for together in at_once:
            batch = [question.model_dump(mode="json") for question in islice(questions, together)]
            began = time.perf_counter()
            http.post("/policy/batch", json=batch).raise_for_status()
            rates[together] = together / (time.perf_counter() - began)
    milliseconds = [took * 1000 for took, _ in asked]
    # A failed question has no token count; with these settings it failed because all numbers were 0
    tokens = _mean([n for _, n in asked if n])
    checkpoint = read_checkpoint(model, weights=False)
    return {
        "tokens": tokens,
        "start_s": start_s,
        "median_ms": statistics.median(milliseconds),
        "p95_ms": statistics.quantiles(milliseconds, n=20)[-1],
        "floor_ms": tokens * checkpoint.weight_bytes("bfloat16") / _H100_BYTES_S * 1000,
        "questions_s": rates,
        "questions": count,
        "unanswered": sum(not n for _, n in asked),
    }


def _ask(http: httpx.Client, question: Question) -> tuple[float, int]:
    """Returns the seconds and the generated tokens."""
    began = time.perf_counter()
    reply = http.post("/policy", json=question.model_dump(mode="json"))
    took = time.perf_counter() - began
    if reply.status_code != 200:
        return took, 0
    stages = reply.json()["stages"]
    return took, stages["analysis"]["tokens"] + stages["action"]["tokens"]


def _mean(values: Sequence[int]) -> float:
    return statistics.mean(values) if values else 0.0


def _prompt_set(folder: Path, tokens: int) -> Path:
    """Copies the zero-shot set with a schema that fixes the length of the analysis."""
    copy = shutil.copytree(SETS / "minigrid-zero-shot", folder / "prompts")
    text = {"type": "string", "minLength": 4 * tokens, "maxLength": 4 * tokens}
    schema = {
        "type": "object",
        "properties": {"analysis": text},
        "required": ["analysis"],
        "additionalProperties": False,
    }
    (copy / "analysis.schema.json").write_text(json.dumps(schema), encoding="utf-8")
    text_of_set = (copy / "set.toml").read_text(encoding="utf-8")
    text_of_set = re.sub(r"analysis_max_tokens = \d+", f"analysis_max_tokens = {5 * tokens}", text_of_set)
    (copy / "set.toml").write_text(text_of_set, encoding="utf-8")
    return copy


if __name__ == "__main__":
    main()
