"""The teacher's labels: a row for each state that the student met, and one question for each row, ever."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.tasks import task_key
from student.algorithms.distillation import Labels
from student.labels.asking import THREADS, TOGETHER, Asker, Outcome, Reply
from student.labels.failures import Failures
from student.states import StateIndex
from teacher_api.client import TeacherClient, TeacherError
from teacher_api.schemas import Answer, ErrorBody, Question, TeacherInfo
from teacher_api.terminal import say
from worlds.world import Observation, States

LateLabels = Literal["wait", "go-on"]

_UNASKED, _CHOSEN, _FAILED, _GIVEN = range(4)
"""A row's status. Chosen: the question is to be sent or was sent; failed: the teacher refused it for good."""
_FAILURES = 64
"""After this many failed questions without an answer the teacher is useless."""
_SHOW_EVERY_S = 1.0


class UselessTeacher(TeacherError):
    """The teacher cannot help in this environment."""


class TeacherChanged(TeacherError):
    """The teacher at the address is not the one that the run learns from."""


def check_task(info: TeacherInfo, url: str, task: str) -> None:
    """Raises UselessTeacher if the teacher does not know a task."""
    if task not in info.tasks:
        raise UselessTeacher(f"the teacher at {url} knows {', '.join(info.tasks)}, and not {task}")


class LabelTable:
    """Labels by row, in the order in which states were first met.

    `rows_of` gives each state its row, once; `ask` sends the questions of rows while the student goes on;
    `labels_of` returns the labels of rows. A question that failed leaves a row without a label and is not
    asked again. Questions are sent in the background, but the table itself belongs to one thread and changes
    only in its methods.
    """

    info: TeacherInfo
    """The teacher's description of itself; set by `start`."""

    def __init__(
        self,
        world: States,
        client: TeacherClient,
        *,
        task: str | None = None,
        allow_change: bool = False,
        late: LateLabels = "wait",
        budget: int | None = None,
        selective: bool = False,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_wait: Callable[[int], object] = lambda missing: None,
    ) -> None:
        """Sends no request yet; see `start`.

        Args:
            client: owned by the table: `close` closes it.
            task: the task key in each question; None: the key of the environment's family.
            allow_change: accept another teacher, whose labels then stand beside those of the first.
            late: whether `labels_of` waits for labels that have not arrived.
            budget: most states that may ever be asked about; None: all.
            selective: whether `labels_of` will be told which rows may be asked about.
            waiting: entered while `labels_of` waits, when no work is half done.
            on_wait: called about once a second with the number of labels that are missing.

        Raises:
            UnknownTask: the environment belongs to no family and `task` is None, or to another than `task`.
        """
        self._world, self._client = world, client
        self._allow_change, self._waiting, self._on_wait = allow_change, waiting, on_wait
        self._late, self._budget = late, budget
        self._selective = selective or budget is not None
        self._task = task_key(world.env_id, task)
        self._index = StateIndex()
        self._obs_MK = np.zeros((1024, world.length), np.uint8)
        self._probs_MA = np.zeros((1024, len(world.actions)), np.float32)
        self._status_M = np.full(1024, _UNASKED, np.uint8)
        self._met = 0
        """The rows that were asked about, or could have been: those before this one."""
        self._chosen_at: int | None = None
        self._asker = Asker(self._ask)
        self._unsent: list[int] = []
        """Chosen rows that are not in flight: restored, or their request met an error."""
        self._error: Exception | None = None
        self.identity: str | None = None
        """The teacher that the labels come from; None before `start` and `restore`."""
        self.asked = 0
        """Questions that the teacher answered or failed to answer itself."""
        self.store_hits = 0
        """Questions that the teacher's store answered."""
        self.failures = Failures()

    def start(self) -> None:
        """Asks the teacher who it is, and checks that it can label this environment.

        Raises:
            TeacherUnavailable: the teacher did not answer.
            TeacherChanged: the restored labels come from another teacher.
            UselessTeacher: the teacher does not know the task.
        """
        self.info, url, env_id = self._client.teacher(), self._client.url, self._world.env_id
        self._check_identity(self.info.identity)
        check_task(self.info, url, self._task)
        record = self.info.trained_on
        if record is not None and (why := record.lacks(env_id, self._task, self._world.size)):
            say(f"note: the teacher at {url} may answer {env_id} wrongly: {why}")

    @property
    def states(self) -> int:
        """States that the teacher was, or with a budget could be, asked about."""
        return self._met

    @property
    def failed(self) -> int:
        """States that the teacher gave no answer for."""
        return len(self.failures)

    @property
    def answered(self) -> float:
        """The share of the wanted labels, all or those that were chosen, that were answered or failed."""
        wanted = int((self._status_M != _UNASKED).sum()) if self._selective else self._met
        return (self.asked + self.store_hits) / wanted if wanted else 1.0

    @property
    def useless(self) -> bool:
        """Whether the teacher fails to answer most questions; False until there are enough to tell."""
        answered = self.asked + self.store_hits
        return answered >= _FAILURES and 2 * self.failed > answered

    def rows_of(self, obs_NK: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Returns the row of each of N states [N]; a new state gets the next row."""
        before = len(self._index)
        rows_N = self._index.rows_of(obs_NK)
        while len(self._index) > len(self._status_M):
            self._obs_MK, self._probs_MA, self._status_M = (
                np.concatenate([array, np.zeros_like(array)])
                for array in (self._obs_MK, self._probs_MA, self._status_M)
            )
        if len(self._index) > before:
            self._obs_MK[rows_N] = obs_NK
        return rows_N

    def ask(self, rows_N: NDArray[np.intp]) -> None:
        """Sends the questions of N rows that were not sent yet; with a budget `labels_of` chooses instead.

        Does not wait and raises nothing.
        """
        self._meet(rows_N)
        if self._budget is None:
            self._choose_all(rows_N)

    def labels_of(
        self,
        rows_B: NDArray[np.intp],
        scores_B: NDArray[np.floating] | None = None,
        frames_left: int | None = None,
        frames: int = 1,
        *,
        wanted_B: NDArray[np.bool_] | None = None,
    ) -> Labels:
        """Returns the labels of B rows, after asking about those that were not asked about.

        Args:
            wanted_B: without a budget, the rows that may be asked about; None: all.
            scores_B: with a budget, the value of a label of each row, at least 0; a state's score is the sum
                over its rows. None: 1 for each.
            frames_left: with a budget, the frames that it has to last for, counted from the first frame in
                which these states were met. None: all of the budget may be spent now.
            frames: the frames in which these states were met.

        Raises:
            TeacherUnavailable, TeacherChanged, UselessTeacher: answers that arrived before are kept.
        """
        self._send_again()
        self._meet(rows_B)
        if self._budget is None:
            self._choose_all(rows_B if wanted_B is None else rows_B[wanted_B])
        else:
            self._spend(rows_B, np.ones(len(rows_B)) if scores_B is None else scores_B, frames_left, frames)
        self._asker.flush()
        self._take_replies()
        while True:
            self._raise_errors()
            if self._late == "go-on" or not (self._status_M[rows_B] == _CHOSEN).any():
                break
            with self._waiting():
                self._asker.wait(_SHOW_EVERY_S)
            self._take_replies()
            self._on_wait(int((self._status_M[np.unique(rows_B)] == _CHOSEN).sum()))
        return Labels(
            torch.from_numpy(self._probs_MA[rows_B]), torch.from_numpy(self._status_M[rows_B] == _GIVEN)
        )

    def stored(self) -> tuple[NDArray[np.uint8], Labels]:
        """Returns all M states numbered so far by row, uint8 [M, K], and their labels [M, A].

        The arrays are the table's own: read them only, and only until the next call of another method.
        """
        size = len(self._index)
        labels = Labels(
            torch.from_numpy(self._probs_MA[:size]), torch.from_numpy(self._status_M[:size] == _GIVEN)
        )
        return self._obs_MK[:size], labels

    def _meet(self, rows_N: NDArray[np.intp]) -> None:
        self._met = max(self._met, int(rows_N.max(initial=-1)) + 1)

    def close(self) -> None:
        """Stops asking and ends the requests in flight; answers that arrived are kept."""
        self._take_replies()
        self._client.close()
        self._asker.close()

    def state(self) -> dict[str, Any]:
        """Returns all labels and counts for a checkpoint."""
        self._take_replies()
        size = len(self._index)
        return {
            "keys": torch.from_numpy(self._obs_MK[:size].copy()),
            "probabilities": torch.from_numpy(self._probs_MA[:size].copy()),
            "status": torch.from_numpy(self._status_M[:size].copy()),
            "met": self._met,
            "chosen_at": self._chosen_at,
            "asked": self.asked,
            "store_hits": self.store_hits,
            "failures": self.failures.state(),
            "identity": self.identity,
            "pictures": self._pictures() if self._world.keeps_pictures else {},
        }

    def _pictures(self) -> dict[int, torch.Tensor]:
        """Returns the pictures of the rows without a label, as the bytes of PNG files."""
        size = len(self._index)
        pictures = {}
        for row in np.flatnonzero(self._status_M[:size] != _GIVEN).tolist():
            with suppress(KeyError):  # met while no question was to be asked
                picture = self._world.picture(self._obs_MK[row])
                pictures[row] = torch.frombuffer(bytearray(picture), dtype=torch.uint8)
        return pictures

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the labels of a checkpoint, before `start`; unanswered questions are asked again."""
        rows_M = self.rows_of(state["keys"].numpy())
        self._probs_MA[rows_M] = state["probabilities"].numpy()
        status_M = state["status"].numpy()
        self._status_M[rows_M] = status_M
        for row, picture in state.get("pictures", {}).items():
            self._world.keep(self._obs_MK[row], picture.numpy().tobytes())
        for row in np.flatnonzero(status_M == _GIVEN).tolist():
            self._world.keep(self._obs_MK[row], None)
        self._unsent = np.flatnonzero(status_M == _CHOSEN).tolist()
        self._met = state.get("met", len(status_M))
        self._chosen_at = state["chosen_at"]
        self.failures.restore(state.get("failures"), int((status_M == _FAILED).sum()))
        self.asked, self.store_hits = state["asked"], state["store_hits"]
        self.identity = state["identity"]

    def question(self, obs_K: Observation) -> Question:
        """Returns the question about a state."""
        return Question.about(
            self._world.picture(obs_K),
            mission=self._world.mission(obs_K),
            task=self._task,
            actions=self._world.actions,
        )

    def _spend(
        self,
        rows_B: NDArray[np.intp],
        scores_B: NDArray[np.floating],
        frames_left: int | None,
        frames: int,
    ) -> None:
        """Chooses the states with the highest scores; among equal scores the first met.

        An update may spend the budget that is left times its share of the frames that are left, and at least
        one question.
        """
        if frames_left is not None and frames_left == self._chosen_at:
            return  # chosen already, before the run was interrupted in this update
        self._chosen_at = frames_left
        assert self._budget is not None
        left = self._budget - int((self._status_M[: len(self._index)] != _UNASKED).sum())
        share = min(frames / frames_left, 1.0) if frames_left else 1.0
        allowance = min(max(int(left * share), 1), left)
        unasked_B = self._status_M[rows_B] == _UNASKED
        rows_U, which = np.unique(rows_B[unasked_B], return_inverse=True)
        scores_U = np.bincount(which, scores_B[unasked_B], len(rows_U))
        best = np.argsort(-scores_U, kind="stable")[: max(allowance, 0)]
        self._choose(rows_U[best].tolist())

    def _choose_all(self, rows_B: NDArray[np.intp]) -> None:
        """Chooses the rows that were not asked about, each once, in this order.

        With `late` "go-on", only as many as can be in flight: such a student is faster than its teacher, and
        a queue would make the labels of newer states late. The other states are asked about when they are met
        again.
        """
        rows = list(dict.fromkeys(rows_B[self._status_M[rows_B] == _UNASKED].tolist()))
        if self._late == "go-on":
            self._take_replies()
            rows = rows[: max(THREADS * TOGETHER - self._asker.in_flight, 0)]
        self._choose(rows)

    def _choose(self, rows: Sequence[int]) -> None:
        if rows:
            self._status_M[rows] = _CHOSEN
            self._asker.send(rows)

    def _send_again(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._asker.send(unsent)

    def _ask(self, rows: Sequence[int]) -> list[Outcome]:
        """Runs in the asker's threads: the observations and words of known rows do not change."""
        return list(self._client.ask_batch([self.question(self._obs_MK[row]) for row in rows]))

    def _take_replies(self) -> None:
        """Stores the answers that arrived; keeps the first error for `_raise_errors`."""
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
                self._world.keep(self._obs_MK[row], None)
            else:
                self._status_M[row] = _FAILED
                self.failures.add(row, outcome if isinstance(outcome, ErrorBody) else None)
        hits = sum(answer.stored for answer in answers)
        self.store_hits += hits
        self.asked += len(reply.outcomes) - hits

    def _raise_errors(self) -> None:
        """Raises the error of a request, or that every question failed; their rows are asked again later."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        answered = self.asked + self.store_hits
        enough = self.failed >= _FAILURES or not self._asker.in_flight
        if self.failed and answered == self.failed and enough:
            failed, why = np.flatnonzero(self._status_M == _FAILED), self.failures
            self._status_M[failed] = _CHOSEN
            self._unsent += failed.tolist()
            self.asked, self.failures = 0, Failures()
            raise UselessTeacher(
                f"the teacher at {self._client.url} answered none of the first {len(failed)} questions:"
                f" {why}; for example: {why.example}"
            )

    def _check_identity(self, identity: str) -> None:
        if self.identity not in (None, identity) and not self._allow_change:
            raise TeacherChanged(
                f"the run learns from the teacher {self.identity}, and {self._client.url} is now {identity}:"
                " bring the first teacher back, or set `allow_teacher_change` to learn from the new one too"
            )
        self.identity = identity
