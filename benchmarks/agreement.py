"""Compares the answers of one checkpoint in two engines, or on two devices, question by question.

    python -m benchmarks.agreement --one "--engine onnx" --other "--engine transformers --device cpu"

Both teachers get the same distinct questions, one batch at a time, and have no store. Printed are how many
analyses are the same text, and the largest difference of a probability.
"""

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving import start_teacher
from teacher_api.client import TeacherClient
from teacher_api.processes import COMPACT
from teacher_api.schemas import Answer
from teacher_tools.bench.questions import distinct_questions


def main() -> None:
    """Asks both teachers and prints two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=COMPACT, help="a checkpoint (default: the included one)"
    )
    parser.add_argument("--prompts", default="compact", help="a prompt set (default: compact)")
    parser.add_argument("--one", required=True, metavar="FLAGS", help="of `teacher serve`")
    parser.add_argument("--other", required=True, metavar="FLAGS", help="of `teacher serve`")
    parser.add_argument("--questions", type=int, default=100, help="distinct questions (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    arguments = parser.parse_args()
    questions = distinct_questions(arguments.questions, arguments.seed)
    common = ("--model", str(arguments.model), "--prompts", arguments.prompts)
    answers: list[list[Answer]] = []
    with ExitStack() as stack:
        starting = [
            start_teacher(stack, *common, *shlex.split(flags)) for flags in (arguments.one, arguments.other)
        ]
        for url in starting:
            client = stack.enter_context(TeacherClient(url(), deadline_s=600))
            outcomes = client.ask_batch(questions)
            if failed := [each for each in outcomes if not isinstance(each, Answer)]:
                raise SystemExit(f"{url()}: {len(failed)} questions were not answered: {failed[0]}")
            answers.append([each for each in outcomes if isinstance(each, Answer)])
    pairs = list(zip(*answers, strict=True))
    same = sum(one.analysis == other.analysis for one, other in pairs)
    difference = max(_difference(one, other) for one, other in pairs)
    print(f"analyses that are the same: {same} of {len(pairs)}")
    print(f"largest difference of a probability: {difference:.2g}")


def _difference(one: Answer, other: Answer) -> float:
    assert one.probabilities is not None
    assert other.probabilities is not None
    return max(abs(p - other.probabilities[action]) for action, p in one.probabilities.items())


if __name__ == "__main__":
    main()
