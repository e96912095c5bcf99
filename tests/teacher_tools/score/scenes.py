"""Scenes and answers about them, for the tests of scoring."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gridworld.pictures import read
from gridworld.scenes import Scene
from teacher_api.schemas import Answer, StageReport, Stages
from teacher_server.prompting.prompt_set import SETS


def examples() -> list[tuple[Scene, dict[str, Any]]]:
    """Returns the examples of the set `minigrid`: the scene of each picture, and a correct analysis."""
    found = []
    for file in sorted(SETS.glob("minigrid/examples/*/*.json")):
        example = json.loads(file.read_text())
        with Image.open(file.with_suffix(".png")) as image:
            view = read(np.asarray(image.convert("RGB")))
        found.append((Scene(Path(file).parent.name, example["mission"], view), example["analysis"]))
    return found


def answer(probabilities: Mapping[str, float], analysis: str = "", **stage: Any) -> Answer:
    """Returns a teacher's answer; `stage` replaces fields in the report of stage 2."""
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


def brief_prompts(folder: Path) -> Path:
    """Copies `minigrid-zero-shot` with a schema of short analyses: random weights use all tokens they may."""
    copy = Path(shutil.copytree(SETS / "minigrid-zero-shot", folder))
    small = {"type": "integer", "minimum": 0, "maximum": 4}
    cell = {"row": small, "column": small}
    heading = {"enum": ["up", "down", "left", "right"]}
    schema = {
        "agent": _object(**cell, heading=heading),
        "target": _object(name={"enum": ["goal", "door"]}, **cell),
        "hazards": {"type": "array", "items": {"type": "array"}, "maxItems": 0},
    }
    (copy / "analysis.schema.json").write_text(json.dumps(_object(**schema)))
    return copy


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
