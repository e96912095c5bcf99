"""The teacher's labels by state: each state is drawn and asked about once, ever."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_key
from student.algorithms.distillation import Labels
from student.environments import Layout, Row, Vocabulary, keys_of
from student.labels.asking import THREADS, TOGETHER, Asker, Outcome, Reply
from student.labels.failures import Failures
from teacher_api.client import TeacherClient, TeacherError
from teacher_api.schemas import Answer, ErrorBody, Question

LateLabels = Literal["wait", "go-on"]

_UNASKED, _CHOSEN, _FAILED, _GIVEN = range(4)
"""A state's way. Chosen: to be asked about, or asked; failed: the teacher gave no answer, for good."""
_FAILURES = 64
"""Failed questions, and not one answered, after which a teacher is of no use."""
_TELL_EVERY_S = 1.0


class UselessTeacher(TeacherError):
    """A teacher that cannot help in this environment."""


class TeacherChanged(TeacherError):
    """The teacher behind the address is not the one that the run learns from."""


class LabelTable:
    """What a teacher said about every state that was met, kept in the order in which they were first met.

    A question that failed is kept too, as a state without a label, and is not asked again. Asking goes on
    in the background; the table itself is one thread's, and changes only in its methods.
    """

    def __init__(
        self,
        layout: Layout,
        vocabulary: Vocabulary,
        client: TeacherClient,
        *,
        task: str | None = None,
        identity: str | None = None,
        allow_change: bool = False,
        late: LateLabels = "wait",
        budget: int | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_wait: Callable[[int], object] = lambda missing: None,
    ) -> None:
        """Asks the teacher who it is.

        Args:
            client: the table's from now on: `close` closes it.
            task: the task's key that the teacher is asked with; None: the family of the environment.
            identity: the teacher that the labels have to come from; None: whoever answers now.
            allow_change: go on with another teacher, whose labels then stand beside the first one's.
            late: whether `look_up` waits for labels that have not come yet.
            budget: states that may be asked about, ever; None: all.
            waiting: entered while an answer is waited for, and nothing is half done.
            on_wait: told now and then how many labels are still waited for.

        Raises:
            UnknownTask: the environment is of no family, or of another one than `task`.
            TeacherChanged: the teacher is another one than `identity`.
            UselessTeacher: the teacher does not know the task.
            TeacherUnavailable: the teacher did not answer.
        """
        self._layout, self._vocabulary, self._client = layout, vocabulary, client
        self._allow_change, self._waiting, self._on_wait = allow_change, waiting, on_wait
        self._late, self._budget = late, budget
        self._task = task_key(layout.env_id, task)
        self._rows: dict[bytes, int] = {}
        self._obs_MK = np.zeros((1024, layout.length), np.uint8)
        self._probs_MA = np.zeros((1024, len(layout.actions)), np.float32)
        self._status_M = np.full(1024, _UNASKED, np.uint8)
        self._seen: list[int] = []
        self._chosen_at: int | None = None
        self._asker = Asker(self._ask)
        self._unsent: list[int] = []
        """Chosen, and not under way: restored, or the request met an error."""
        self._error: Exception | None = None
        self.asked = 0
        """Questions that the teacher had to answer or failed to."""
        self.store_hits = 0
        """Questions that the teacher's store answered."""
        self.failures = Failures()
        """The states that the teacher gave no answer for, by reason."""
        self.info = client.teacher()
        self.identity = identity or self.info.identity
        self._check_identity(self.info.identity)
        if self._task not in self.info.tasks:
            known = ", ".join(self.info.tasks)
            raise UselessTeacher(f"the teacher at {client.url} knows {known}, and not {self._task}")
        record, size = self.info.trained_on, (layout.width, layout.height)
        if record is not None and (why := record.lacks(layout.env_id, self._task, size)):
            told = f"note: the teacher at {client.url} may answer {layout.env_id} wrongly: {why}"
            print(told, file=sys.stderr, flush=True)

    @property
    def states(self) -> int:
        """States met so far."""
        return len(self._rows)

    @property
    def failed(self) -> int:
        """States that the teacher gave no answer for."""
        return len(self.failures)

    @property
    def come(self) -> float:
        """The share of the states to be asked about that have their outcome: all met, or those chosen."""
        size = len(self._rows)
        wanted = size if self._budget is None else int((self._status_M[:size] != _UNASKED).sum())
        return (self.asked + self.store_hits) / wanted if wanted else 1.0

    @property
    def useless(self) -> bool:
        """Whether the teacher gives no answer most of the time; False until there are enough to tell."""
        answered = self.asked + self.store_hits
        return answered >= _FAILURES and 2 * self.failed > answered

    def see(self, obs_NK: NDArray[np.uint8]) -> None:
        """Notes N states that the student is about to act on; without a budget, asks about the new ones.

        Waits for nothing and raises nothing. `look_up` is then quick about the same states in this order.
        """
        rows = self._rows_of(obs_NK)
        self._seen += rows
        if self._budget is None:
            self._choose_all(np.array(rows, np.intp))

    def look_up(
        self,
        obs_BK: NDArray[np.uint8],
        scores_B: NDArray[np.floating] | None = None,
        frames_left: int | None = None,
        frames: int = 1,
    ) -> Labels:
        """The labels of B states, in any order; those not asked about yet are asked about.

        Args:
            scores_B: with a budget, how much a label is worth here, at least 0; a state's score is the
                sum over its rows. None: 1, so that states count as often as they stand there.
            frames_left: with a budget, frames that it has still to last for, from the first of those in
                which the states were met. None: all of it may be spent now.
            frames: in which the states were met.

        Raises:
            TeacherUnavailable, TeacherChanged, UselessTeacher: what was answered until then is kept.
        """
        rows_B = self._take_seen(obs_BK)
        self._send_again()
        if self._budget is None:
            self._choose_all(rows_B)
        else:
            self._spend(rows_B, np.ones(len(rows_B)) if scores_B is None else scores_B, frames_left, frames)
        self._asker.flush()
        self._take_replies()
        while True:
            self._raise_errors()
            if self._late == "go-on" or not (self._status_M[rows_B] == _CHOSEN).any():
                break
            with self._waiting():
                self._asker.wait(_TELL_EVERY_S)
            self._take_replies()
            self._on_wait(int((self._status_M[np.unique(rows_B)] == _CHOSEN).sum()))
        return Labels(
            torch.from_numpy(self._probs_MA[rows_B]), torch.from_numpy(self._status_M[rows_B] == _GIVEN)
        )

    def stored(self) -> tuple[NDArray[np.uint8], Labels]:
        """All M states met, in the order in which they were first met, and which of them have labels.

        Nothing is copied but M flags: the states and probabilities are the table's own, to be read only.
        They may be used until the next `see` or `look_up`.
        """
        size = len(self._rows)
        labels = Labels(
            torch.from_numpy(self._probs_MA[:size]), torch.from_numpy(self._status_M[:size] == _GIVEN)
        )
        return self._obs_MK[:size], labels

    def close(self) -> None:
        """Asks nothing more and ends what is under way; what has come until then stays."""
        self._take_replies()
        self._client.close()
        self._asker.close()

    def state(self) -> dict[str, Any]:
        """All that was learnt from the teacher until now, for a checkpoint."""
        self._take_replies()
        size = len(self._rows)
        return {
            "keys": torch.from_numpy(self._obs_MK[:size].copy()),
            "probabilities": torch.from_numpy(self._probs_MA[:size].copy()),
            "status": torch.from_numpy(self._status_M[:size].copy()),
            "chosen_at": self._chosen_at,
            "asked": self.asked,
            "store_hits": self.store_hits,
            "failures": self.failures.state(),
            "identity": self.identity,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the labels of a checkpoint; what was asked and not answered then is asked again.

        The identity was checked when the table was made.
        """
        rows = self._rows_of(state["keys"].numpy())
        self._probs_MA[rows] = state["probabilities"].numpy()
        status = state["status"].numpy()
        self._status_M[rows] = status
        self._unsent = np.flatnonzero(status == _CHOSEN).tolist()
        self._chosen_at = state["chosen_at"]
        self.failures.restore(state.get("failures"), int((status == _FAILED).sum()))
        self.asked, self.store_hits = state["asked"], state["store_hits"]

    def _rows_of(self, obs_BK: NDArray[np.uint8]) -> list[int]:
        """The rows of B states; those not met before get the next ones."""
        keys = keys_of(obs_BK)
        try:
            return [self._rows[key] for key in keys]
        except KeyError:
            return [self._row(key) for key in keys]

    def _row(self, key: bytes) -> int:
        row = self._rows.setdefault(key, len(self._rows))
        if row == len(self._status_M):
            self._obs_MK, self._probs_MA, self._status_M = (
                np.concatenate([array, np.zeros_like(array)])
                for array in (self._obs_MK, self._probs_MA, self._status_M)
            )
        self._obs_MK[row] = np.frombuffer(key, np.uint8)
        return row

    def _take_seen(self, obs_BK: NDArray[np.uint8]) -> NDArray[np.intp]:
        """The rows of B states, as noted when they were seen if these are the same ones."""
        rows_B, self._seen = np.array(self._seen, np.intp), []
        if len(rows_B) != len(obs_BK) or not np.array_equal(self._obs_MK[rows_B], obs_BK):
            rows_B = np.array(self._rows_of(obs_BK), np.intp)
        return rows_B

    def _unasked(self, rows_B: NDArray[np.intp]) -> list[int]:
        """Those that nobody asked about, each once, in the order given."""
        return list(dict.fromkeys(rows_B[self._status_M[rows_B] == _UNASKED].tolist()))

    def _spend(
        self,
        rows_B: NDArray[np.intp],
        scores_B: NDArray[np.floating],
        frames_left: int | None,
        frames: int,
    ) -> None:
        """Chooses the states with the highest scores; the first met go first among equals.

        An update's allowance is the budget that is left, times its share of the frames that are, and at
        least 1.
        """
        if frames_left is not None and frames_left == self._chosen_at:
            return  # chosen before the run was broken off in this update
        self._chosen_at = frames_left
        assert self._budget is not None
        left = self._budget - int((self._status_M[: len(self._rows)] != _UNASKED).sum())
        share = min(frames / frames_left, 1.0) if frames_left else 1.0
        allowance = min(max(int(left * share), 1), left)
        unasked_B = self._status_M[rows_B] == _UNASKED
        rows_U, which = np.unique(rows_B[unasked_B], return_inverse=True)
        scores_U = np.bincount(which, scores_B[unasked_B], len(rows_U))
        best = np.argsort(-scores_U, kind="stable")[: max(allowance, 0)]
        self._choose(rows_U[best].tolist())

    def _choose_all(self, rows_B: NDArray[np.intp]) -> None:
        """Chooses those that nobody asked about; where nobody waits, no more than can be on their way.

        A student that waits for nothing is faster than its teacher: what is left out is asked about when it
        is met again, and does not make the labels of newer states late.
        """
        rows = self._unasked(rows_B)
        if self._late == "go-on":
            self._take_replies()
            rows = rows[: max(THREADS * TOGETHER - self._asker.under_way, 0)]
        self._choose(rows)

    def _choose(self, rows: Sequence[int]) -> None:
        if rows:
            self._status_M[rows] = _CHOSEN
            self._asker.send(rows)

    def _send_again(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._asker.send(unsent)

    def _ask(self, rows: Sequence[int]) -> list[Outcome]:
        """Runs in the asker's threads: states and words that were met do not change."""
        return list(self._client.ask_batch([self.question(self._obs_MK[row]) for row in rows]))

    def question(self, row: Row) -> Question:
        """What the teacher is asked about a state."""
        return Question.about(
            encode_png(draw(self._layout.view(row))),
            mission=self._vocabulary.decode(self._layout.words(row)),
            task=self._task,
            actions=self._layout.actions,
        )

    def _take_replies(self) -> None:
        """Keeps the answers that have come; the first error is kept for `_raise_errors`."""
        for reply in self._asker.replies():
            try:
                self._keep(reply)
            except Exception as error:
                self._error = self._error or error
                self._unsent += reply.rows

    def _keep(self, reply: Reply) -> None:
        if isinstance(reply.outcomes, Exception):
            raise reply.outcomes
        answers = [outcome for outcome in reply.outcomes if isinstance(outcome, Answer)]
        for answer in answers:
            self._check_identity(answer.teacher)
        for row, outcome in zip(reply.rows, reply.outcomes, strict=True):
            if isinstance(outcome, Answer) and outcome.probabilities is not None:
                self._probs_MA[row] = list(outcome.probabilities.values())
                self._status_M[row] = _GIVEN
            else:
                self._status_M[row] = _FAILED
                self.failures.add(row, outcome if isinstance(outcome, ErrorBody) else None)
        hits = sum(answer.stored for answer in answers)
        self.store_hits += hits
        self.asked += len(reply.outcomes) - hits

    def _raise_errors(self) -> None:
        """Raises what a request met, or that all failed: then their states are asked about again, if ever."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        answered = self.asked + self.store_hits
        enough = self.failed >= _FAILURES or not self._asker.under_way
        if self.failed and answered == self.failed and enough:
            failed, why = np.flatnonzero(self._status_M == _FAILED), self.failures
            self._status_M[failed] = _CHOSEN
            self._unsent += failed.tolist()
            self.asked, self.failures = 0, Failures()
            raise UselessTeacher(
                f"the teacher at {self._client.url} answered none of the first {len(failed)} questions:"
                f" {why}; the first: {why.example}"
            )

    def _check_identity(self, identity: str) -> None:
        if identity == self.identity:
            return
        if not self._allow_change:
            raise TeacherChanged(
                f"the run learns from the teacher {self.identity}, and {self._client.url} is now {identity};"
                " bring the first one back, or go on with the new one by --allow-teacher-change"
            )
        self.identity = identity
