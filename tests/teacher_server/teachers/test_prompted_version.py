"""PROMPTED_VERSION has to change with how a conversation is made or an answer is read."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from teacher_server.prompting.prompt_set import SETS, load_prompt_set
from teacher_server.prompting.readout import from_label_scores, from_numbers, numbers_schema
from teacher_server.teachers.prompted import PROMPTED_VERSION

pytestmark = pytest.mark.unit

_SET = {
    "set.toml": """
        description = "for this test alone"
        tasks = ["lava_gap"]
        [picture]
        tile = 28
        margin = true
        max_pixels = 1003520
        [decoding]
        temperature = 0.0
        analysis_max_tokens = 99
        numbers_max_tokens = 99
        [readout]
        kind = "labels"
        label_temperature = 1.0
        min_label_mass = 0.5
        sum_tolerance = 0.05
        [labels]
        left = "l"
        right = "r"
        forward = "f"
        pickup = "p"
        drop = "d"
        toggle = "t"
        done = "x"
    """,
    "system.txt": "{{ rules }} {% for a in actions %}{{ a.name }}: {{ a.meaning }}; {% endfor %}",
    "question.txt": "{{ mission }} {{ picture }} what?",
    "action-labels.txt": "{% for a in actions %}{{ a.label }} {% endfor %}?",
    "action-numbers.txt": "{% for a in actions %}{{ a.name }} {% endfor %}?",
    "tasks/lava_gap.toml": 'rules = "go"\n[actions]\nleft = "a"\nright = "b"\nforward = "c"\n',
}


def test_conversations_and_readings_are_those_of_this_version(tmp_path: Path) -> None:
    for name, text in _SET.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(line.strip() for line in text.strip().splitlines()))
    shipped = SETS / "minigrid"
    shutil.copy(shipped / "analysis.schema.json", tmp_path)
    (tmp_path / "examples" / "lava_gap").mkdir(parents=True)
    for name in ("01.png", "01.json"):
        shutil.copy(shipped / "examples" / "lava_gap" / name, tmp_path / "examples" / "lava_gap")

    prompts = load_prompt_set(str(tmp_path))
    actions = ("forward", "left", "right")
    told: list[object] = [numbers_schema(actions)]
    for readout in ("labels", "numbers"):
        conversation = prompts.conversation(
            task="lava_gap", mission="get there", actions=actions, readout=readout
        )
        told += [*conversation.opening, conversation.question, conversation.followup]
        told += [picture.digest for picture in conversation.pictures]
    told.append(from_label_scores({"left": -0.25, "right": -2.0}, temperature=0.5, min_mass=0))
    told.append(from_numbers('{"left": 0.25, "right": 0.72}', ("left", "right"), tolerance=0.05))
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    assert (PROMPTED_VERSION, digest) == ("2", "8097d2bb5e981138"), (
        "the same model and prompt set would answer otherwise: raise PROMPTED_VERSION, and put it here"
    )
