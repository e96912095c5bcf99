"""The model card: what a forged checkpoint was taught, how far it came, and what it cannot do."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gridworld.planner import PLANNER_VERSION
from gridworld.tasks import EVALUATION_SEEDS
from teacher_server.forge.settings import ForgeSettings

_FIGURES = {
    "tile": "cells of pictures whose kind, colour, heading, row and column are all read off the vision tower",
    "value": "values of the analysis, each after the right ones before it",
    "whole": "analyses without a wrong value",
    "action": "answers whose most probable action is optimal, after a right analysis",
}


def card(settings: ForgeSettings, metrics: Sequence[Mapping[str, Any]], digest: str, device: str) -> str:
    """The card in Markdown.

    Args:
        metrics: the lines of metrics.jsonl; the last one's shares are those of samples never seen before.
        digest: of the checkpoint, as `teacher check` tells it.
    """
    last = metrics[-1] if metrics else {}
    how = f"LoRA of rank {settings.lora_rank} on {settings.base}" if settings.base else "from scratch"
    rows = [f"| {what} | {last[name]:.4f} |" for name, what in _FIGURES.items() if name in last]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "license: mit",
            "pipeline_tag: image-text-to-text",
            "---",
            f"# A MiniGrid teacher, {how}",
            "",
            "Made by `teacher forge` of lvlm2p: a Qwen2.5-VL checkpoint that stock vLLM and transformers load.",
            "",
            f"    teacher serve --teacher prompted --model DIR --prompts {settings.prompts}",
            "",
            "## Data",
            "",
            f"Pictures of {', '.join(settings.env)}: {last.get('samples', 0):,} samples from seed"
            f" {settings.seed}. States come from episodes in which none, some or all steps are the planner's;"
            " in half of them the agent is then put into another free cell. The analysis follows from the state,"
            f" and the action's labels are the probabilities of the planner (version {PLANNER_VERSION}).",
            "",
            f"All episodes start from seeds below {EVALUATION_SEEDS}; teachers and students are evaluated on"
            " seeds from there on. A small grid has few states: some of an evaluation's will have been met.",
            "",
            "## How far it came",
            "",
            "Of its last samples, each asked once, in the middle of training, with right answers put before what"
            " it says:",
            "",
            "| share of | |",
            "|---|---|",
            *rows,
            "",
            "How it answers by itself, `teacher score` tells.",
            "",
            "## Limits",
            "",
            f"It knows the tasks and the texts of the prompt set `{settings.prompts}`, the read-out by labels,"
            " and grids like those above. Other sizes, other texts and other pictures it was not taught.",
            "",
            "## Made with",
            "",
            "```json",
            json.dumps(settings.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT), indent=2),
            "```",
            "",
            f"On {device}, in {last.get('seconds', 0):,.0f} s. Digest: `{digest}`.",
            "",
        ]
    )


_NOT_OF_THE_RESULT = {"out", "resume", "save_s", "progress", "device"}
