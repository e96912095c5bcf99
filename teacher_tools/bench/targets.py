"""The targets of a measurement: teachers over HTTP, and the timings that their answers report."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

import httpx
from pydantic import ValidationError

from teacher_api.schemas import Answer, Question
from teacher_tools.bench.loops import Reply, Request

_KEEP_S = 4.0
"""Below the 5 s after which a teacher closes an idle connection, so that none is used while it closes."""


class Target(Protocol):
    """A server that is measured, with a connection pool of its own."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Describes the server in the report: `address` and more."""

    def prepare(self, question: Question) -> Request:
        """Returns a request; all work that can precede the sending is done here."""

    async def close(self) -> None: ...


class HttpTarget:
    """An unlimited connection pool without proxies, which reports failures as words."""

    def __init__(self, url: str, timeout_s: float, key: str | None = None) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_S)
        self._client = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, headers=headers, limits=limits, trust_env=False
        )

    async def post(self, path: str, body: bytes) -> tuple[str, float, bytes]:
        """Returns the status or the failure, the time of the reply (`time.perf_counter`), and its body."""
        try:
            response = await self._client.post(path, content=body)
        except httpx.TimeoutException:
            return "timeout", time.perf_counter(), b""
        except httpx.TransportError:
            return "no connection", time.perf_counter(), b""
        return str(response.status_code), time.perf_counter(), response.content

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


class TeacherTarget(HttpTarget):
    """A teacher's POST /policy."""

    def __init__(
        self, url: str, about: Mapping[str, Any], *, timeout_s: float, key: str | None = None
    ) -> None:
        super().__init__(url, timeout_s, key)
        self.about = {"address": url, **about}

    def prepare(self, question: Question) -> Request:
        """Returns a request with the question as its serialised body."""
        body = question.model_dump_json().encode()

        async def send() -> Reply:
            status, ended, content = await self.post("/policy", body)
            return _parsed(content, ended) if status == "200" else Reply(status, ended)

        return send


def _parsed(content: bytes, ended: float) -> Reply:
    try:
        answer = Answer.model_validate_json(content)
    except ValidationError:
        return Reply("not a teacher's answer", ended)
    if answer.stored:  # its stages were timed when the answer was first given
        return Reply("200", ended, stored=True, parts_ms=answer.milliseconds)
    reports = {"analysis": answer.stages.analysis, "action": answer.stages.action}
    stages = {name: report for name, report in reports.items() if report is not None}
    return Reply(
        "200",
        ended,
        parts_ms=answer.milliseconds | {name: report.milliseconds for name, report in stages.items()},
        tokens={name: report.tokens for name, report in stages.items()},
    )
