"""The teacher's labels by state: each state is drawn and asked about once, ever."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_of
from student.distillation import Labels
from student.envs import Layout, Row, Vocabulary
from teacher_server.client import TeacherClient, TeacherError
from teacher_server.schemas import Answer, ErrorBody, Question

_TOGETHER = 64
"""Questions in one request."""


class UselessTeacher(TeacherError):
    """A teacher that cannot help in this environment."""


class TeacherChanged(TeacherError):
    """The teacher behind the address is not the one that the run learns from."""


class LabelTable:
    """What a teacher said about every state that was met, kept by the state itself.

    A question that failed is kept too, as a state without a label, and is not asked again.
    """

    def __init__(
        self,
        layout: Layout,
        vocabulary: Vocabulary,
        client: TeacherClient,
        *,
        identity: str | None = None,
        allow_change: bool = False,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Asks the teacher who it is.

        Args:
            identity: the teacher that the labels have to come from; None: whoever answers now.
            allow_change: go on with another teacher, whose labels then stand beside the first one's.
            waiting: entered while an answer is waited for, and nothing is half done.

        Raises:
            TeacherChanged: the teacher is another one than `identity`.
            UselessTeacher: the teacher does not know the task.
            TeacherUnavailable: the teacher did not answer.
        """
        self._layout, self._vocabulary, self._client = layout, vocabulary, client
        self._allow_change, self._waiting = allow_change, waiting
        self._task = task_of(layout.env_id).key
        self._rows: dict[bytes, int] = {}
        self._probs_MA = np.zeros((1024, len(layout.actions)), np.float32)
        self._given_M = np.zeros(1024, np.bool_)
        self.asked = 0
        """Questions that the teacher had to answer or failed to."""
        self.store_hits = 0
        """Questions that the teacher's store answered."""
        self.info = client.teacher()
        self.identity = identity or self.info.identity
        self._check_identity(self.info.identity)
        if self._task not in self.info.tasks:
            known = ", ".join(self.info.tasks)
            raise UselessTeacher(f"the teacher at {client.url} knows {known}, and not {self._task}")

    @property
    def failed(self) -> int:
        """States that the teacher gave no answer for."""
        return len(self._rows) - int(self._given_M[: len(self._rows)].sum())

    @property
    def states(self) -> int:
        """States met so far."""
        return len(self._rows)

    def look_up(self, obs_BK: NDArray[np.uint8]) -> Labels:
        """The labels of B states; those not met before are asked for first, each once.

        Raises:
            TeacherUnavailable, TeacherChanged, UselessTeacher: what was answered until then is kept.
        """
        keys = [row.tobytes() for row in obs_BK]
        new = {key: row for key, row in zip(keys, obs_BK, strict=True) if key not in self._rows}
        new_rows = list(new.values())
        for start in range(0, len(new_rows), _TOGETHER):
            self._ask(new_rows[start : start + _TOGETHER])
        rows_B = np.array([self._rows[key] for key in keys])
        return Labels(torch.from_numpy(self._probs_MA[rows_B]), torch.from_numpy(self._given_M[rows_B]))

    def stored(self) -> tuple[NDArray[np.uint8], Labels]:
        """All states met, [M, K], and their labels."""
        size = len(self._rows)
        obs_MK = np.frombuffer(b"".join(self._rows), np.uint8).reshape(size, self._layout.length)
        return obs_MK, Labels(torch.from_numpy(self._probs_MA[:size]), torch.from_numpy(self._given_M[:size]))

    def _ask(self, rows: Sequence[Row]) -> None:
        questions = [self.question(row) for row in rows]
        with self._waiting():
            outcomes = self._client.ask_batch(questions)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        for answer in answers:
            self._check_identity(answer.teacher)
        if not answers and not self._given_M.any():
            failure = next(outcome for outcome in outcomes if not isinstance(outcome, Answer))
            raise UselessTeacher(
                f"the teacher at {self._client.url} answered none of the first {len(rows)} questions:"
                f" {failure.status}: {failure.reason}"
            )
        for row, outcome in zip(rows, outcomes, strict=True):
            self._keep(row.tobytes(), _probabilities(outcome))
        hits = sum(answer.stored for answer in answers)
        self.store_hits += hits
        self.asked += len(outcomes) - hits

    def question(self, row: Row) -> Question:
        """What the teacher is asked about a state."""
        return Question.about(
            encode_png(draw(self._layout.view(row))),
            mission=self._vocabulary.decode(self._layout.words(row)),
            task=self._task,
            actions=self._layout.actions,
        )

    def _keep(self, key: bytes, probabilities: Sequence[float] | None) -> None:
        i = len(self._rows)
        if i == len(self._given_M):
            self._probs_MA = np.concatenate([self._probs_MA, np.zeros_like(self._probs_MA)])
            self._given_M = np.concatenate([self._given_M, np.zeros_like(self._given_M)])
        self._rows[key] = i
        if probabilities is not None:
            self._probs_MA[i], self._given_M[i] = probabilities, True

    def _check_identity(self, identity: str) -> None:
        if identity == self.identity:
            return
        if not self._allow_change:
            raise TeacherChanged(
                f"the run learns from the teacher {self.identity}, and {self._client.url} is now {identity};"
                " bring the first one back, or go on with the new one by --allow-teacher-change"
            )
        self.identity = identity

    def state(self) -> dict[str, Any]:
        """All that was learnt from the teacher, for a checkpoint."""
        size = len(self._rows)
        keys = np.frombuffer(b"".join(self._rows), np.uint8).reshape(size, self._layout.length)
        return {
            "keys": torch.from_numpy(keys.copy()),
            "probabilities": torch.from_numpy(self._probs_MA[:size].copy()),
            "given": torch.from_numpy(self._given_M[:size].copy()),
            "asked": self.asked,
            "store_hits": self.store_hits,
            "identity": self.identity,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the labels of a checkpoint; its identity was checked when the table was made."""
        rows, given = state["probabilities"].tolist(), state["given"].tolist()
        for key, row, has in zip(state["keys"].numpy(), rows, given, strict=True):
            self._keep(key.tobytes(), row if has else None)
        self.asked, self.store_hits = state["asked"], state["store_hits"]


def _probabilities(outcome: Answer | ErrorBody) -> list[float] | None:
    if isinstance(outcome, ErrorBody) or outcome.probabilities is None:
        return None
    return list(outcome.probabilities.values())
