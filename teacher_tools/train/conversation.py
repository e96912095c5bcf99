"""What a model is taught to say: the conversations that the service will have, as token ids."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gridworld.pictures import draw
from gridworld.scenes import Cell, Scene
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.prompting.preparation import PreparedPicture, visual_tokens
from teacher_server.prompting.prompt_set import PromptSet
from teacher_tools.train.samples import Sample


@dataclass(frozen=True, eq=False)
class Lesson:
    """A conversation about one picture.

    Attributes:
        token_ids: of both stages up to the action's label, with an image token for each visual token.
        analysis: the places in it of what stage 1 is to say, the end of its turn included.
        values: those of them with a value's token, not one of the signs between values.
        meant: place -> the cell that is spoken of there: the target's at its name's words, and the one in
            front of the agent just before that is named.
        action: label token -> the planner's probability; what comes after the last of the token ids.
        optimal: the label tokens of the optimal actions.
    """

    sample: Sample
    picture: PreparedPicture
    token_ids: tuple[int, ...]
    analysis: range
    values: frozenset[int]
    meant: dict[int, Cell]
    action: dict[int, float]
    optimal: frozenset[int]


class LessonWriter:
    """Writes lessons by the code that serves: the prompt set's texts, the checkpoint's chat format.

    Args:
        checkpoint: may have no weights yet.
    """

    def __init__(self, checkpoint: Checkpoint, prompts: PromptSet) -> None:
        self._checkpoint, self._prompts = checkpoint, prompts
        self._chat = checkpoint.chat_format
        self._stages = lru_cache(maxsize=4096)(self._written)
        self._is_value = lru_cache(maxsize=None)(self._holds_no_sign)
        encode = checkpoint.tokenizer.encode
        self.label_ids = {
            action: encode(label, add_special_tokens=False).ids[0] for action, label in prompts.labels.items()
        }
        """Action -> the token of its label."""

    def lesson(self, sample: Sample) -> Lesson:
        """The conversation about a sample's picture."""
        scene = sample.scene
        before, after = self._stages(scene.task, scene.mission)
        picture = self._prompts.preparation.prepare(draw(scene.view))
        image = self._checkpoint.image_token_id
        seen = [i for token in before for i in [token] * (visual_tokens(picture) if token == image else 1)]
        analysis = analysis_of(scene)
        written = self._checkpoint.tokenizer.encode(json.dumps(analysis), add_special_tokens=False)
        said = written.ids
        end = len(seen) + len(said)
        return Lesson(
            sample=sample,
            picture=picture,
            token_ids=(*seen, *said, *after),
            analysis=range(len(seen), end + 1),
            values=frozenset(i for i, token in enumerate(said, len(seen)) if self._is_value(token)),
            meant=dict(_meant(scene, analysis, written.offsets, len(seen))),
            action={self.label_ids[action]: p for action, p in sample.probabilities.items()},
            optimal=frozenset(self.label_ids[action] for action in sample.optimal),
        )

    def _written(self, task: str, mission: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        actions = self._prompts.tasks[task]
        return self._chat.stages(
            self._prompts.conversation(task=task, mission=mission, actions=actions, readout="labels")
        )

    def _holds_no_sign(self, token: int) -> bool:
        text = self._checkpoint.tokenizer.decode([token])
        return bool(text.strip()) and not set(text) & set('{}[]":,')


def analysis_of(scene: Scene) -> dict[str, Any]:
    """What a perfect first stage says; the target is the nearest one, where there are several."""
    here = scene.here
    target = min(scene.targets, key=lambda cell: abs(cell[0] - here[0]) + abs(cell[1] - here[1]))
    return {
        "agent": {"row": here[0], "column": here[1], "heading": scene.heading},
        "target": {"name": scene.sought, "row": target[0], "column": target[1]},
        "hazards": [list(cell) for cell in scene.hazards],
        "front": scene.front,
        "direction": scene.direction(target),
    }


def _meant(
    scene: Scene, analysis: dict[str, Any], offsets: Sequence[tuple[int, int]], start: int
) -> Iterator[tuple[int, Cell]]:
    """What Lesson.meant is, of an analysis that starts at a place, with where its tokens begin and end."""
    text, (column, row), target = json.dumps(analysis), scene.view.front, analysis["target"]
    name = text.index(target["name"], text.index('"name": '))
    front = text.index('"front": "') + len('"front": "')
    for place, (first, end) in enumerate(offsets, start):
        if name < end <= name + len(target["name"]):
            yield place, (target["row"], target["column"])
        elif first < front <= end:
            yield place, (row, column)
