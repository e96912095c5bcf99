"""The typed client of a teacher's HTTP API, with retries."""

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

from teacher_api import validation
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
"""Longer than the service's own deadline, after which it answers 504."""
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=15)
_BATCH = TypeAdapter(list[Question])

_HEADERS = {"Content-Type": "application/json"}

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


class TeacherError(CommandFailed):
    """A teacher cannot be used."""

    exit_code = 3


class TeacherUnavailable(TeacherError):
    """The teacher did not answer before the deadline; the message has the last reason."""


class Interrupted(TeacherError):
    """The `stop` event was set while the client waited for the teacher."""


class QuestionRefused(TeacherError):
    """The teacher refused the question, and would refuse it again.

    Attributes:
        error: the error in place of the answer.
    """

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(f"{error.status}: {error.reason}")
        self.error = error


class _TryAgain(Exception):
    """A failure that may pass, at the earliest after `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TeacherClient:
    """Sends questions to a teacher, and retries until a deadline.

    Connection errors, time-outs and the statuses 429, 503 and 504 are retried, with exponential backoff and
    full jitter, added to the Retry-After of the teacher. Other errors are raised at once. Each request has
    a deadline of its own. Threads may share a client.
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
        """Opens no connection yet.

        Args:
            url: the teacher's address, such as http://127.0.0.1:8000.
            deadline_s: seconds after which the retries of a request end.
            batch_size: the most questions in one request.
            stop: an event that ends waiting with `Interrupted`; `close` sets it.
            key: an API key of the teacher; None: the teacher needs none.
            say: prints a line about waiting for the teacher; None: nothing is printed.

        Raises:
            ValueError: the url is no http or https address, or the key is not printable ASCII.
        """
        if key is not None and not is_key(key):
            raise ValueError("the teacher's key has to be one line of printable ASCII characters")
        self.url = checked_url(url)
        self._deadline_s, self._batch_size = deadline_s, batch_size
        self._stop = stop or threading.Event()
        self._waiting = Waiting(f"the teacher at {self.url}", say=say)
        # Without the proxies of the environment: the teacher is local
        self._http = httpx.Client(base_url=self.url, trust_env=False)
        self._keyed = key is not None
        # An id of its own: an overloaded service shares its limits among clients, several on one machine too
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
                with suppress(OSError):  # closed already
                    connection.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def teacher(self) -> TeacherInfo:
        """Returns the identity of the teacher, its description and its tasks.

        Raises:
            TeacherUnavailable: there was no answer before the deadline.
            Interrupted: `stop` was set.
            TeacherError: the server is no teacher, or needs another key.
        """
        return self._retried(lambda left_s: self._request(TeacherInfo, "GET", "/teacher", left_s), slow=False)

    def ask(self, question: Question) -> Answer:
        """Returns the teacher's answer.

        Raises:
            QuestionRefused: the question is wrong, or the teacher's output could not be read.
            TeacherUnavailable: there was no answer before the deadline.
            Interrupted: `stop` was set.
            TeacherError: the server is no teacher, or needs another key.
        """
        body = question.model_dump_json().encode()
        return self._retried(lambda left_s: self._request(Answer, "POST", "/policy", left_s, body))

    def ask_batch(self, questions: Sequence[Question]) -> list[Answer | ErrorBody]:
        """Returns an answer or an error for each question, in order.

        Only questions with an error that may pass are retried. Those that still fail at the deadline get
        their error if another question of the same request has an answer.

        Raises:
            TeacherUnavailable: no question of a request was answered before the deadline.
            Interrupted: `stop` was set.
            TeacherError: the server is no teacher, or needs another key.
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
        """Returns the attempt's result, after retries.

        Args:
            attempt: called with the seconds that are left.
            slow: an answer may take long, so that waiting for it is reported later.
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
        extensions: dict[str, Any] = {"trace": self._on_event}
        headers = self._headers | {"X-Request-ID": secrets.token_hex(8), "X-Timeout-S": f"{timeout.read:.3f}"}
        try:
            reply = self._http.request(
                method, path, content=body, headers=headers, timeout=timeout, extensions=extensions
            )
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _TryAgain(in_words(error)) from error
        except httpx.HTTPError as error:
            raise TeacherError(f"the request to {self.url} failed: {error}") from error
        if reply.status_code == httpx.codes.OK:
            try:
                return model.model_validate_json(reply.content)
            except ValidationError as error:
                raise TeacherError(
                    f"{self.url} does not reply as a teacher: {validation.in_words(error)}"
                ) from error
        if reply.status_code == httpx.codes.UNAUTHORIZED:
            needs = "another key than the one sent" if self._keyed else "a key"
            raise TeacherError(f"{self.url} needs {needs}: name a file that holds it in `teacher_key_file`")
        try:
            refusal = ErrorAnswer.model_validate_json(reply.content).error
        except ValidationError:
            refusal = None
        reason = f"{reply.status_code}: {refusal.reason if refusal else reply.reason_phrase}"
        # Without a teacher's error they come from a gateway that has no teacher, or has lost the one it asked
        of_a_gateway = reply.status_code in (500, 502) and not refusal
        if reply.status_code in _RETRYABLE or of_a_gateway:
            raise _TryAgain(reason, _seconds(reply.headers.get("Retry-After", "")))
        if refusal:
            raise QuestionRefused(refusal)
        raise TeacherError(f"{self.url} does not reply as a teacher: {reason}")

    def _on_event(self, event: str, info: dict[str, Any]) -> None:
        """Notes the sockets: only their shutdown wakes a thread that reads from one."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._sockets = [each for each in self._sockets if each.fileno() >= 0]
                self._sockets.append(info["return_value"].get_extra_info("socket"))


def connect(url: str, *, key_file: Path | None, wait_s: float, batch_size: int = 64) -> TeacherClient:
    """Returns a client for a command, which reports on stderr when it waits for the teacher.

    Args:
        wait_s: the client's deadline_s.

    Raises:
        BadKeyFile: the file of the teacher's key cannot be used.
        ValueError: the url is no http or https address.
    """
    return TeacherClient(url, deadline_s=wait_s, batch_size=batch_size, key=read_key(key_file), say=say)


def in_words(error: Exception) -> str:
    """Returns an error of a connection in words: "Connection refused", or httpx's name of the error."""
    said = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    kind = type(error).__name__
    return said if said and isinstance(error, httpx.ConnectError) else f"{kind}: {said}".removesuffix(": ")


def _may_pass(outcome: Answer | ErrorBody) -> bool:
    return isinstance(outcome, ErrorBody) and outcome.status in _RETRYABLE


def _seconds(retry_after: str) -> float:
    """Returns the seconds of a Retry-After header; 0 for a date."""
    return float(retry_after) if retry_after.isdecimal() else 0.0


def checked_url(url: str) -> str:
    """Returns a teacher's address without a slash at its end.

    Raises:
        ValueError: the address is no http or https address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address of a teacher: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no address of a teacher; write it as http://HOST:PORT")
    return url.rstrip("/")
