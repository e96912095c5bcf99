"""The model card and the training record: what a checkpoint was trained on, and its metrics at the end."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gridworld.environments import make
from gridworld.planner import PLANNER_VERSION
from gridworld.tasks import EVALUATION_SEEDS
from gridworld.views import view_of
from teacher_api.schemas import TrainedGrids, TrainedOn
from teacher_server.prompting.prompt_set import PromptSet, prompt_set_names
from teacher_tools.train.settings import PLANNER, TrainingSettings
from worlds.minigrid import MinigridWorld
from worlds.registry import world_of

_EPISODES_FOR_SIZES = 4
"""Episodes whose grid sizes are recorded: some environments draw the size at random."""
_METRICS = {
    "tile": "cells whose kind, colour, heading, row and column can all be read from their visual token",
    "place": "words about a cell from which its row and column can be read half way through the model",
    "role": "targets and hazards that can be told apart by their visual tokens half way through the model",
    "value": "values of the analysis",
    "whole": "analyses without a wrong value",
    "action": "answers whose most probable action is optimal",
}

_PLANNER = f"""\
the planner, version {PLANNER_VERSION}. In half of the states
the agent is moved to another free cell. One picture in sixteen shows something else, such as noise, exchanged
colours, or no target; there, all actions are equally probable."""

_CARD = """\
---
library_name: transformers
license: {license}
pipeline_tag: image-text-to-text
---
# A teacher, {origin}

A {family} checkpoint, trained by `teacher train` of lvlm2p. Stock vLLM and transformers load it.

    teacher serve --teacher prompted --model DIR --prompts {prompts}    # on a CPU: --engine onnx

## Training data

{samples} samples, made with seed {seed} from

{environments}

States come from episodes in which none, some or all steps are the expert's. The state determines the
analysis. The labels of the action are the probabilities of {expert}

All episodes start from seeds below {held_out}; the seeds from there on are reserved for evaluation. A small
grid has few states, so some states of an evaluation occur in training too.

## Metrics at the end of training

Means over the last {last:,} samples of each phase, pictures and then conversations, measured before the model
was trained on them; each token is predicted from the right ones before it:

| share of | |
|---|---|
{metrics}

`teacher score` measures how the checkpoint answers by itself.

## Limits

The checkpoint knows the tasks and the texts of the prompt set `{prompts}`, both read-outs, and grids like
those above. It was not trained on other grid sizes, texts or pictures.

## Settings

```json
{settings}
```

Trained on {device} in {seconds:,.0f} s. Digest of all files that can change an answer: `{digest}`
"""


def trained_on(prompts: str, prompt_set: PromptSet, tasks: Mapping[str, str]) -> TrainedOn:
    """Returns the training record.

    Args:
        prompts: the prompt set's name or folder.
        tasks: the environments, each with its task's key.
    """
    environments = {
        env_id: TrainedGrids(task=task, sizes=tuple(sorted(_sizes(env_id)))) for env_id, task in tasks.items()
    }
    named = prompts if prompts in prompt_set_names() else str(Path(prompts).resolve())
    return TrainedOn(
        prompts=named,
        prompts_digest=prompt_set.digest,
        readouts=("labels", "numbers"),
        environments=environments,
    )


def _sizes(env_id: str) -> set[tuple[int, int]]:
    """Returns columns and rows of the grids of an environment of MiniGrid's kind; no others have any."""
    sizes = set[tuple[int, int]]()
    if isinstance(world_of(env_id), MinigridWorld):
        env = make(env_id)
        for seed in range(_EPISODES_FOR_SIZES):
            env.reset(seed=seed)
            rows, columns = view_of(env).cells_HW.shape
            sizes.add((columns, rows))
    return sizes


def card(
    settings: TrainingSettings,
    metrics: Sequence[Mapping[str, Any]],
    *,
    family: str,
    digest: str,
    samples: int,
    seconds: float,
    device: str,
    last: int,
) -> str:
    """Returns the model card in Markdown.

    Args:
        metrics: the lines of metrics.jsonl.
        family: of the checkpoint's architecture.
        digest: of the checkpoint, as `teacher check` prints it.
        samples: the samples learned from.
        seconds: the time spent on them.
        device: where the model was trained.
        last: the samples that a line of metrics averages.
    """
    latest = {name: value for line in metrics for name, value in line.items()}
    planned = sum(settings.steps) * settings.batch_size
    shares = [f"| {what} | {latest[name]:.4f} |" for name, what in _METRICS.items() if name in latest]
    return _CARD.format(
        origin=f"LoRA of rank {settings.lora_rank} on {settings.base}" if settings.base else "from scratch",
        family=family,
        license="other" if settings.base else "mit",  # "other": the base's own license
        prompts=settings.prompts,
        samples=f"{samples:,}" if samples >= planned else f"{samples:,} of {planned:,} planned",
        seed=settings.seed,
        environments="\n".join(f"- {env_id}" for env_id in settings.env),
        expert=_PLANNER if settings.expert == PLANNER else f"the expert `{settings.expert}`.",
        held_out=EVALUATION_SEEDS,
        last=last,
        metrics="\n".join(shares),
        settings=json.dumps(settings.stored(), indent=2),
        device=device,
        seconds=seconds,
        digest=digest,
    )
