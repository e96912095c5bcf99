"""The outcome of a question: an answer as JSON text, or an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError

from teacher_api.schemas import Answer, ErrorBody, Question, Stages
from teacher_api.validation import in_words
from teacher_server.teachers.base import TeacherAnswer, UnreadableAnswer


@dataclass(frozen=True)
class AnswerJson:
    """An `Answer` as JSON text, which is written once, for the store and for all responses.

    The text is changed without being parsed. That needs `stored` and `milliseconds` to be the last two fields
    of `Answer`. A JSON string cannot hold the text `,"stored":`, since a string's quotation marks are
    escaped.

    Attributes:
        stored: Whether the answer comes from the store.
    """

    text: str
    stored: bool = False

    @classmethod
    def from_store(cls, text: str) -> Self | None:
        """Returns an answer with `stored` true and no `milliseconds`; None if the text is not an answer's."""
        start, found, _ = text.rpartition(',"stored":')
        return cls(f'{start},"stored":true,"milliseconds":{{}}}}', stored=True) if found else None

    def with_total(self, milliseconds: float) -> Self:
        """Returns the answer with `total` as the last entry of `milliseconds`."""
        start = self.text.removesuffix("}}")
        comma = "" if start.endswith("{") else ","
        return type(self)(f'{start}{comma}"total":{milliseconds}}}}}', self.stored)


Outcome = AnswerJson | ErrorBody


def wire_answer(
    given: TeacherAnswer, question: Question, teacher: str, milliseconds: dict[str, float]
) -> Answer:
    """Returns a teacher's answer as it is sent.

    Args:
        teacher: The teacher's identity.
        milliseconds: The time of each part so far.

    Raises:
        UnreadableAnswer: The answer is no distribution over the actions of the question.
    """
    raw = given.action.text if given.action else given.analysis.text
    probabilities = given.probabilities if question.stage == "both" else None
    if question.stage == "both" and tuple(probabilities or ()) != question.actions:
        raise UnreadableAnswer(f"the answer is not about the actions {', '.join(question.actions)}", raw)
    try:
        return Answer(
            probabilities=probabilities,
            action=max(probabilities, key=probabilities.__getitem__) if probabilities else None,
            confidence=given.confidence if probabilities else None,
            analysis=given.analysis.text,
            stages=Stages(analysis=given.analysis, action=given.action),
            teacher=teacher,
            stored=False,
            milliseconds=milliseconds,
        )
    except ValidationError as error:
        raise UnreadableAnswer(in_words(error), raw) from error


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Returns the number of questions that were answered, came from the store, and failed, for the log."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, AnswerJson)]
    stored = sum(answer.stored for answer in answers)
    return {"answered": len(answers), "stored": stored, "failed": len(outcomes) - len(answers)}
