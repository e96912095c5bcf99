"""A teacher's answers about scenes: many questions in a request, and each question once."""

import time
from collections.abc import Callable, Hashable, Sequence

from gridworld.pictures import draw, encode_png
from gridworld.scenes import Scene
from teacher_api.client import TeacherClient, TeacherError
from teacher_api.schemas import Answer, ErrorBody, Question

Outcome = Answer | ErrorBody


class TeacherChanged(TeacherError):
    """The address answers with another teacher than the scored one."""


class CachedAnswers:
    """A teacher's answers about the scenes of one environment, with one question for each scene.

    Args:
        actions: the environment's, which the teacher chooses from.
        identity: the identity that the answers must have.
        on_answers: called when more outcomes have arrived.
    """

    def __init__(
        self,
        client: TeacherClient,
        actions: Sequence[str],
        identity: str,
        on_answers: Callable[[], object] = lambda: None,
    ) -> None:
        self._client, self.actions, self._identity = client, tuple(actions), identity
        self._on_answers = on_answers
        self._outcomes: dict[Hashable, Outcome] = {}
        self.seconds = 0.0
        """Time spent waiting for answers."""

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes of all questions so far."""
        return list(self._outcomes.values())

    def about(self, scenes: Sequence[Scene]) -> list[Outcome]:
        """Returns the answer about each scene, in order, or the reason why there is none.

        Raises:
            TeacherChanged: another teacher answered.
            TeacherError: the teacher cannot be reached any more.
        """
        keys = [scene.key for scene in scenes]
        new = {key: scene for key, scene in zip(keys, scenes, strict=True) if key not in self._outcomes}
        questions = [self._question(scene) for scene in new.values()]
        began = time.perf_counter()
        outcomes = self._client.ask_batch(questions)
        self.seconds += time.perf_counter() - began
        for outcome in outcomes:
            if isinstance(outcome, Answer) and outcome.teacher != self._identity:
                raise TeacherChanged(
                    f"{self._client.url} changed from {self._identity} to {outcome.teacher}: score one"
                    " teacher at a time"
                )
        self._outcomes |= zip(new, outcomes, strict=True)
        self._on_answers()
        return [self._outcomes[key] for key in keys]

    def _question(self, scene: Scene) -> Question:
        return Question.about(
            encode_png(draw(scene.view)), mission=scene.mission, task=scene.task, actions=self.actions
        )
