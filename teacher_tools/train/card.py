"""The model card and the record of training: what a forged checkpoint was taught, and how far it came."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gridworld.environments import make
from gridworld.planner import PLANNER_VERSION
from gridworld.tasks import EVALUATION_SEEDS, task_of
from gridworld.views import view_of
from teacher_api.schemas import TrainedGrids, TrainedOn
from teacher_server.prompting.prompt_set import PromptSet, prompt_set_names
from teacher_tools.train.settings import ForgeSettings

_LOOKS = 4
"""Episodes whose grids are looked at: some environments draw the size."""
_FIGURES = {
    "tile": "cells whose kind, colour, heading, row and column can all be read off their visual token",
    "place": "words that speak of a cell from which its row and column can be read half way",
    "role": "targets and hazards that can be told apart by their visual tokens half way",
    "value": "values of the analysis",
    "whole": "analyses without a wrong value",
    "action": "answers whose most probable action is optimal",
}

_CARD = """\
---
library_name: transformers
license: {license}
pipeline_tag: image-text-to-text
---
# A MiniGrid teacher, {how}

A Qwen2.5-VL checkpoint, made by `teacher train` of lvlm2p. Stock vLLM and transformers load it.

    teacher serve --teacher prompted --engine transformers --model DIR --prompts {prompts}

## Data

{samples:,} samples, made from seed {seed} in

{environments}

States come from episodes in which none, some or all steps are the planner's; in half of them the agent
is then put into another free cell. The analysis follows from the state; the action's labels are the
probabilities of the planner, version {planner}.

All episodes start from seeds below {held_out}: those from there on are for evaluation. A small grid has few
states, so that some of an evaluation's will have been met.

## How far it came

Of the last {last:,} samples, pictures and then conversations, before it was taught them; each token with
the right ones before it:

| share of | |
|---|---|
{figures}

How it answers by itself, `teacher score` tells.

## Limits

It knows the tasks and the texts of the prompt set `{prompts}`, the read-out by labels, and grids like those
above. Other sizes, other texts and other pictures it was not taught.

## Made with

```json
{settings}
```

On {device}, in {seconds:,.0f} s. Digest of all files that can change an answer: `{digest}`
"""


def trained_on(prompts: str, read: PromptSet, env_ids: Sequence[str]) -> TrainedOn:
    """The record of what is taught: the prompt set, by name or folder and digest, and the environments."""
    environments = {}
    for env_id in env_ids:
        env, sizes = make(env_id), set()
        for seed in range(_LOOKS):
            env.reset(seed=seed)
            rows, columns = view_of(env).cells_HW.shape
            sizes.add((columns, rows))
        environments[env_id] = TrainedGrids(task=task_of(env_id).key, sizes=tuple(sorted(sizes)))
    named = prompts if prompts in prompt_set_names() else str(Path(prompts).resolve())
    return TrainedOn(prompts=named, prompts_digest=read.digest, environments=environments)


def card(
    settings: ForgeSettings, metrics: Sequence[Mapping[str, Any]], digest: str, device: str, last: int
) -> str:
    """The card in Markdown.

    Args:
        metrics: the lines of metrics.jsonl.
        digest: of the checkpoint, as `teacher check` tells it.
        device: what it was trained on.
        last: samples that a line of metrics is about.
    """
    figures = {name: value for line in metrics for name, value in line.items()}
    shares = [f"| {what} | {figures[name]:.4f} |" for name, what in _FIGURES.items() if name in figures]
    return _CARD.format(
        how=f"LoRA of rank {settings.lora_rank} on {settings.base}" if settings.base else "from scratch",
        license="other" if settings.base else "mit",  # that of the base
        prompts=settings.prompts,
        samples=figures.get("samples", 0),
        seed=settings.seed,
        environments="\n".join(f"- {env_id}" for env_id in settings.env),
        planner=PLANNER_VERSION,
        held_out=EVALUATION_SEEDS,
        last=last,
        figures="\n".join(shares),
        settings=json.dumps(settings.of_the_result(), indent=2),
        device=device,
        seconds=figures.get("seconds", 0),
        digest=digest,
    )
