"""The typed client that students, tools and tests ask a teacher with."""

import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity
from pydantic import BaseModel, TypeAdapter, ValidationError

from teacher_api.command_line import CommandFailed
from teacher_api.keys import is_key, read_key
from teacher_api.schemas import (
    Answer,
    Answered,
    BatchAnswer,
    ErrorAnswer,
    ErrorBody,
    Failed,
    Question,
    TeacherInfo,
)
from teacher_api.terminal import Waiting, say

_RETRYABLE = frozenset({429, 503, 504})
_READ_TIMEOUT_S = 300.0
"""Above the service's own deadline for a question, which answers 504."""
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=15)
_BATCH = TypeAdapter(list[Question])

_HEADERS = {"Content-Type": "application/json"}

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


class TeacherError(CommandFailed):
    """A teacher could not be asked."""

    exit_code = 3


class TeacherUnavailable(TeacherError):
    """The teacher did not answer for as long as the deadline allows; the message says why not."""


class Interrupted(TeacherError):
    """The `stop` event was set while waiting for the teacher."""


class QuestionRefused(TeacherError):
    """The teacher will not answer this question, however often it is asked; `error` says why."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(f"{error.status}: {error.reason}")
        self.error = error


class _TryAgain(Exception):
    """What failed may succeed later, at the earliest after `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TeacherClient:
    """Asks a teacher over one pool of connections, trying again until a deadline.

    Tried again, with exponential backoff and full jitter, on top of the time that the teacher asks
    for: no connection, a lost one, time-outs, 429, 503 and 504. All else fails at once. The deadline
    counts for each request on its own. Threads may share a client.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_s: float = 600.0,
        batch_size: int = 64,
        stop: threading.Event | None = None,
        key: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: the teacher's address, such as http://127.0.0.1:8000.
            deadline_s: seconds that one request is tried for.
            batch_size: questions in one request.
            stop: when it is set, waiting ends with `Interrupted`; `close` sets it.
            key: what the teacher's --api-key-file holds; None: it asks for none.
            say: writes a line where the teacher is waited for; None: it is waited for in silence.

        Raises:
            ValueError: the url is no http or https address, or the key cannot be one.
        """
        if key is not None and not is_key(key):
            raise ValueError("the teacher's key is no line of printable ASCII characters")
        self.url = checked_url(url)
        self._deadline_s, self._batch_size = deadline_s, batch_size
        self._stop = stop or threading.Event()
        self._waiting = Waiting(f"the teacher at {self.url}", say=say)
        # trust_env: a teacher is asked directly, whatever proxy the shell is set to
        self._http = httpx.Client(base_url=self.url, trust_env=False)
        self._keyed = key is not None
        # Its own name, so that a service that is short of room tells it from others on this machine
        self._headers = _HEADERS | {"X-Client": f"client-{secrets.token_hex(4)}"}
        if self._keyed:
            self._headers["Authorization"] = f"Bearer {key}"
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; other threads' requests end with `Interrupted`."""
        self._stop.set()
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def teacher(self) -> TeacherInfo:
        """Who answers.

        Raises:
            TeacherUnavailable: not within the deadline.
            Interrupted: `stop` was set.
            TeacherError: what answers is not a teacher, or wants another key.
        """
        return self._retried(lambda left_s: self._request(TeacherInfo, "GET", "/teacher", left_s), slow=False)

    def ask(self, question: Question) -> Answer:
        """What the teacher would do.

        Raises:
            QuestionRefused: the question is wrong, or its answer could not be read.
            TeacherUnavailable: not within the deadline.
            Interrupted: `stop` was set.
            TeacherError: what answers is not a teacher.
        """
        body = question.model_dump_json().encode()
        return self._retried(lambda left_s: self._request(Answer, "POST", "/policy", left_s, body))

    def ask_batch(self, questions: Sequence[Question]) -> list[Answer | ErrorBody]:
        """What the teacher would do in each, in order, or why this one has no answer.

        Only what failed for the moment is asked again. Questions that still fail at the deadline
        come back as their errors if others of the same request were answered.

        Raises:
            TeacherUnavailable: no question of a request was answered within the deadline.
            Interrupted: `stop` was set.
            TeacherError: what answers is not a teacher.
        """
        outcomes: list[Answer | ErrorBody] = []
        for start in range(0, len(questions), self._batch_size):
            outcomes += self._ask_some(questions[start : start + self._batch_size])
        return outcomes

    def _ask_some(self, questions: Sequence[Question]) -> list[Answer | ErrorBody]:
        outcomes: list[Answer | ErrorBody | None] = [None] * len(questions)

        def ask_what_is_left(left_s: float) -> None:
            left = [i for i, outcome in enumerate(outcomes) if outcome is None or _may_pass(outcome)]
            body = _BATCH.dump_json([questions[i] for i in left])
            items = self._request(BatchAnswer, "POST", "/policy/batch", left_s, body).answers
            if len(items) != len(left):
                raise TeacherError(f"{self.url} gave {len(items)} answers to {len(left)} questions")
            for i, item in zip(left, items, strict=True):
                outcomes[i] = item.answer if isinstance(item, Answered) else item.error
            if any(isinstance(item, Answered) for item in items):
                self._waiting.came()
            errors = [item.error for item in items if isinstance(item, Failed) and _may_pass(item.error)]
            if errors:
                retry_after = max(error.retry_after or 0.0 for error in errors)
                raise _TryAgain(f"{errors[0].status}: {errors[0].reason}", retry_after)

        try:
            self._retried(ask_what_is_left)
        except TeacherUnavailable:
            if not any(isinstance(outcome, Answer) for outcome in outcomes):
                raise
        return [outcome for outcome in outcomes if outcome is not None]

    def _retried(self, attempt: Callable[[float], _T], *, slow: bool = True) -> _T:
        """The attempt's result; it is told how many seconds are left each time.

        Args:
            slow: an answer may take its time.
        """
        began = time.monotonic()

        def try_once() -> _T:
            if self._stop.is_set():
                raise Interrupted(f"stopped while waiting for {self.url}")
            return attempt(began + self._deadline_s - time.monotonic())

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            self._waiting.failed(str(error))
            wanted = _BACKOFF(state) + (error.retry_after if isinstance(error, _TryAgain) else 0.0)
            return max(0.0, min(wanted, began + self._deadline_s - time.monotonic()))

        try:
            with self._waiting.for_it(self._deadline_s, slow=slow):
                result = tenacity.Retrying(
                    retry=tenacity.retry_if_exception_type(_TryAgain),
                    wait=wait,
                    stop=tenacity.stop_after_delay(self._deadline_s),
                    sleep=tenacity.sleep_using_event(self._stop),
                    reraise=True,
                )(try_once)
            self._waiting.came()
            return result
        except QuestionRefused:
            self._waiting.came()
            raise
        except _TryAgain as error:
            took = time.monotonic() - began
            raise TeacherUnavailable(f"{self.url} gave no answer for {took:.0f} s; last: {error}") from error

    def _request(
        self, model: type[_Model], method: str, path: str, left_s: float, body: bytes | None = None
    ) -> _Model:
        timeout = httpx.Timeout(min(max(left_s, 1.0), _READ_TIMEOUT_S), connect=10.0)
        told: dict[str, Any] = {"trace": self._on_event}
        headers = self._headers | {"X-Request-ID": secrets.token_hex(8), "X-Timeout-S": f"{timeout.read:.3f}"}
        try:
            reply = self._http.request(
                method, path, content=body, headers=headers, timeout=timeout, extensions=told
            )
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _TryAgain(in_words(error)) from error
        except httpx.HTTPError as error:
            raise TeacherError(f"{self.url} cannot be asked: {error}") from error
        if reply.status_code == httpx.codes.OK:
            try:
                return model.model_validate_json(reply.content)
            except ValidationError as error:
                raise TeacherError(f"{self.url} does not answer as a teacher does: {error}") from error
        if reply.status_code == httpx.codes.UNAUTHORIZED:
            wants = "another key than the one it was given" if self._keyed else "a key"
            raise TeacherError(f"{self.url} wants {wants}: give a file that holds it with --teacher-key-file")
        try:
            refusal = ErrorAnswer.model_validate_json(reply.content).error
        except ValidationError:
            refusal = None
        reason = f"{reply.status_code}: {refusal.reason if refusal else reply.reason_phrase}"
        # A 502 without a teacher's error in it is a gateway's, which has lost its teacher for now
        if reply.status_code in _RETRYABLE or (reply.status_code == httpx.codes.BAD_GATEWAY and not refusal):
            raise _TryAgain(reason, _seconds(reply.headers.get("Retry-After", "")))
        if refusal:
            raise QuestionRefused(refusal)
        raise TeacherError(f"{self.url} does not answer as a teacher does: {reason}")

    def _on_event(self, event: str, info: dict[str, Any]) -> None:
        """Keeps the sockets in use: closing one does not wake the thread that reads from it."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._sockets = [each for each in self._sockets if each.fileno() >= 0]
                self._sockets.append(info["return_value"].get_extra_info("socket"))


def connect(url: str, *, key_file: Path | None, wait_s: float, batch_size: int = 64) -> TeacherClient:
    """The client of a command: it says on stderr when it waits for the teacher, and how long at most.

    Raises:
        BadKeyFile: the file of the teacher's key holds none.
        ValueError: the url is no http or https address.
    """
    return TeacherClient(url, deadline_s=wait_s, batch_size=batch_size, key=read_key(key_file), say=say)


def in_words(error: Exception) -> str:
    """What a connection met: "connection refused", or httpx's name for it."""
    said = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    kind = type(error).__name__
    return said if said and isinstance(error, httpx.ConnectError) else f"{kind}: {said}".removesuffix(": ")


def _may_pass(outcome: Answer | ErrorBody) -> bool:
    return isinstance(outcome, ErrorBody) and outcome.status in _RETRYABLE


def _seconds(retry_after: str) -> float:
    """0 for a date, which HTTP allows too."""
    return float(retry_after) if retry_after.isdecimal() else 0.0


def checked_url(url: str) -> str:
    """A teacher's address, without a slash at its end.

    Raises:
        ValueError: it is no http or https address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address of a teacher: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no address of a teacher; write it as http://HOST:PORT")
    return url.rstrip("/")
