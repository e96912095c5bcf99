"""A checkpoint in real vLLM over HTTP: valid answers or stated failures, and the hits of the prefix cache."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from teacher_api.schemas import Answer, Answered, BatchAnswer, ErrorAnswer, ErrorBody, Question
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import TeacherProcess
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted
from tests.waiting import metric

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_LABELS = pytest.mark.parametrize("teacher", ["labels"], indirect=True)
_COUNT = 25
_BLOCK = 128
"""Tokens in a cache block of vLLM on a CPU."""
_FAULTS = {"truncated", "schema", "sum"}
"""Faults of random weights, which end no text and write numbers with any sum."""


@pytest.fixture(scope="module")
def teacher(start_prompted: StartPrompted, request: pytest.FixtureRequest) -> Iterator[TeacherProcess]:
    """A teacher with low thresholds: random weights give labels little mass and numbers any sum."""
    started = start_prompted(
        *(*VLLM_FLAGS, "--readout", request.param, "--min-label-mass", "0", "--sum-tolerance", "0.5")
    )
    yield started
    started.end()


@pytest.mark.parametrize("teacher", ["labels", "numbers"], indirect=True)
def test_every_question_is_answered_or_fails_with_its_reason(teacher: TeacherProcess) -> None:
    questions = distinct_questions(2 * _COUNT)
    in_a_batch = _ask_batch(teacher, questions[:_COUNT])
    with httpx.Client(limits=httpx.Limits(max_connections=64), timeout=120) as http:

        def ask(question: Question) -> Answer | ErrorBody:
            reply = http.post(f"{teacher.url}/policy", json=question.model_dump(mode="json"))
            if reply.status_code == 200:
                return Answer.model_validate_json(reply.content)
            return ErrorAnswer.model_validate_json(reply.content).error

        with ThreadPoolExecutor(64) as threads:
            one_by_one = list(threads.map(ask, questions[_COUNT:]))

    outcomes = in_a_batch + one_by_one
    for question, outcome in zip(questions, outcomes, strict=True):
        if isinstance(outcome, Answer):
            assert outcome.probabilities is not None
            assert tuple(outcome.probabilities) == question.actions
            assert math.fsum(outcome.probabilities.values()) == pytest.approx(1)
            assert not outcome.stored
        else:
            assert outcome.status == 502, outcome
            assert outcome.raw, outcome
    answered = sum(isinstance(outcome, Answer) for outcome in outcomes)
    print(f"\n{answered} of {len(outcomes)} answered;", _reasons(outcomes))
    assert answered > 0

    failed = len(outcomes) - answered
    assert metric(teacher, "teacher_failures_total", status="502") == failed
    in_metrics = sum(metric(teacher, "teacher_unreadable_total", fault=fault) for fault in _FAULTS)
    assert in_metrics >= failed  # the trial questions of the start count too


@_LABELS
def test_failures_are_not_stored(teacher: TeacherProcess) -> None:
    questions = distinct_questions(32, seed=1)
    first, second = _ask_batch(teacher, questions), _ask_batch(teacher, questions)
    for before, after in zip(first, second, strict=True):
        if isinstance(before, Answer):
            assert isinstance(after, Answer)
            assert after.stored
            assert after.probabilities == before.probabilities
        else:
            # Asked again; in another batch, rounding may change the answer
            assert isinstance(after, ErrorBody) or not after.stored


@_LABELS
def test_stage_2_computes_little_that_stage_1_has_computed(teacher: TeacherProcess) -> None:
    # Pictures of one size, so that all prompts have one length
    questions = [q for q in distinct_questions(160, seed=2) if q.task == "fetch"]
    analysed, asked = questions[:20], questions[20:40]

    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")

    def count(batch: Sequence[Question]) -> tuple[float, float, int]:
        """Returns tokens looked up, tokens found, and questions that reached stage 2."""
        before = [metric(teacher, name) for name in names]
        outcomes = _ask_batch(teacher, batch)
        queries, hits = (metric(teacher, name) - was for name, was in zip(names, before, strict=True))
        return queries, hits, sum(isinstance(o, Answer) or o.reason.startswith("action") for o in outcomes)

    queries_1, hits_1, _ = count([q.model_copy(update={"stage": "analysis"}) for q in analysed])
    queries, hits, came = count(asked)
    assert came > 0
    # Stage 1 costs what stage 1 alone did, except for the missions' lengths
    queries_2, hits_2 = queries - queries_1, hits - hits_1
    prompt_1 = queries_1 / len(analysed)
    print(
        f"\nprefix cache: stage 1 {hits_1 / queries_1:.3f} of {prompt_1:.0f} tokens a question,"
        f" stage 2 {hits_2 / queries_2:.3f} of {queries_2 / came:.0f}, both {hits / queries:.3f}"
    )
    # All of stage 1's prompt is found, except for a part of the last block
    assert hits_2 > came * (prompt_1 - 2 * _BLOCK)


def _ask_batch(teacher: TeacherProcess, questions: Sequence[Question]) -> list[Answer | ErrorBody]:
    body = [question.model_dump(mode="json") for question in questions]
    reply = httpx.post(f"{teacher.url}/policy/batch", json=body, timeout=300)
    outcomes = BatchAnswer.model_validate_json(reply.content).answers
    return [o.answer if isinstance(o, Answered) else o.error for o in outcomes]


def _reasons(outcomes: Sequence[Answer | ErrorBody]) -> dict[str, int]:
    reasons = (o.reason.split(" 0.")[0].split(" 1.")[0] for o in outcomes if isinstance(o, ErrorBody))
    return dict(Counter(reason[:60] for reason in reasons))
