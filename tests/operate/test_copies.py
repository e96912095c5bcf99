"""Copies of a checkpoint in real vLLM: both stages of a question go to the same copy, for its cache."""

import importlib.util
from pathlib import Path

import httpx
import pytest

from teacher_tools.bench.questions import distinct_questions
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted, checkpoint, short_prompts, start_prompted
from tests.waiting import metric

__all__ = ["checkpoint", "short_prompts", "start_prompted"]

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]


def test_stage_2_finds_all_of_stage_1(start_prompted: StartPrompted, short_prompts: Path) -> None:
    teacher = start_prompted(
        *(*VLLM_FLAGS, "--data-parallel-size", "2"),
        *("--prompts", str(short_prompts), "--readout", "labels", "--min-label-mass", "0"),
        store="none",
    )
    # Pictures of one size, so that all prompts have one length
    questions = [q for q in distinct_questions(100, seed=2) if q.task == "fetch"][:24]
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")

    def count(stage: str, some: slice) -> tuple[float, float]:
        """Returns tokens looked up and found a question, for questions one after another."""
        before = [metric(teacher, name) for name in names]
        for question in questions[some]:
            asked = question.model_copy(update={"stage": stage}).model_dump(mode="json")
            httpx.post(f"{teacher.url}/policy", json=asked, timeout=300).raise_for_status()
        spread = len(questions[some])
        queries, hits = ((metric(teacher, n) - was) / spread for n, was in zip(names, before, strict=True))
        return queries, hits

    count("both", slice(4))  # so that each copy has cached the examples
    queries_1, hits_1 = count("analysis", slice(4, 14))
    queries, hits = count("both", slice(14, 24))
    print(f"\nprefix cache: stage 1 {hits_1 / queries_1:.3f}, both {hits / queries:.3f}")
    assert hits - hits_1 > queries_1
    teacher.end()
