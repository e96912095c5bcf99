"""Scenes and answers about them, for the tests of scoring."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gridworld.pictures import read
from gridworld.scenes import Scene
from teacher_server.prompts import SETS
from teacher_server.schemas import Answer, StageReport, Stages


def examples() -> list[tuple[Scene, dict[str, Any]]]:
    """The prompt sets' worked examples: what their pictures show, and a perfect analysis."""
    found = []
    for file in sorted(SETS.glob("*/examples/*/*.json")):
        told = json.loads(file.read_text())
        with Image.open(file.with_suffix(".png")) as image:
            view = read(np.asarray(image.convert("RGB")))
        found.append((Scene(Path(file).parent.name, told["mission"], view), told["analysis"]))
    return found


def answer(probabilities: Mapping[str, float], analysis: str = "", **stage: Any) -> Answer:
    """An answer as a teacher gives it; `stage` is laid over the report of stage 2."""
    report = StageReport.model_validate({"text": "", "milliseconds": 2.0, "tokens": 1} | stage)
    return Answer(
        probabilities=dict(probabilities),
        action=max(probabilities, key=probabilities.__getitem__),
        analysis=analysis,
        stages=Stages(analysis=StageReport(text=analysis, milliseconds=10.0, tokens=100), action=report),
        teacher="prompted-0",
        stored=False,
        milliseconds={},
    )
