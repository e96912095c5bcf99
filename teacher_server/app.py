"""The service as one ASGI application."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from teacher_server.answers.location import is_address, needs_postgres, with_password
from teacher_server.answers.sqlite import SqliteStore
from teacher_server.answers.store import AnswerStore
from teacher_server.http.authentication import ADMINISTRATION, QUESTIONS, ApiKeys, AuthenticationMiddleware
from teacher_server.http.limits import LimitsMiddleware
from teacher_server.http.request_context import RequestContextMiddleware
from teacher_server.http.responses import on_http_error, on_invalid, on_not_ready
from teacher_server.http.routes import TAGS, router
from teacher_server.playground.api_docs import add_docs
from teacher_server.playground.routes import add_page
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.quotas import Quota
from teacher_server.service.state import ServiceState
from teacher_server.service.swap import Swapper
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings
from teacher_server.teachers.registry import choose_teacher

_DESCRIPTION = """\
Asks a vision-language model, the teacher, what to do in a picture of a grid world. `POST /policy` answers one
question and `POST /policy/batch` many.

Every error has the body of `ErrorAnswer`: a status, a reason and, where a part of the request is wrong, its
`field`.

Optional request headers:

- `Authorization: Bearer KEY`: the API key, if the service requires one.
- `X-Timeout-S`: seconds that the client will wait; a question without an answer by then fails with 504.
- `X-Client`: the client's name. Clients share the service's limits by name; a key's name takes precedence.
- `X-Request-ID`: an id for the request, which the response and the log repeat.
"""


def end_process() -> None:
    """Ends the process, so that its supervisor starts another."""
    signal.raise_signal(signal.SIGTERM)


def create_app(settings: Settings, on_end: Callable[[], None] = end_process) -> FastAPI:
    """Returns the service; `app.state.service` is its `ServiceState`.

    Args:
        on_end: Called when no teacher will answer any more.

    Raises:
        BadKeyFile: A key file holds no key.
        CannotTeach: The settings ask for a teacher that is not possible.
        StoreError: The answer store cannot be used.
    """
    keys, admin_keys = ApiKeys(settings.api_key_file), ApiKeys(settings.admin_key_file)
    teacher = choose_teacher(settings)
    metrics = Metrics()
    store = _store(settings, metrics)
    host = Host(teacher, settings, store, metrics, on_end=on_end)
    app = FastAPIOffline(
        title="LVLM2P teacher",
        description=_DESCRIPTION,
        docs_url=None,  # see `add_docs`
        redoc_url=None,
        openapi_tags=TAGS,
        servers=[
            {"url": ".", "description": "this teacher"}
        ],  # relative: valid behind a proxy's path prefix too
        lifespan=_lifespan,
    )
    service = Service(host, store, metrics, settings)
    swapper, watchdog = Swapper(host, metrics), Watchdog(host, metrics)
    app.state.service = ServiceState(
        settings, host, store, metrics, service, swapper, watchdog, keyless=keys.empty
    )
    app.include_router(router)
    add_page(app)
    add_docs(app)
    bodies = Quota(int(settings.max_pending_mib * 2**20), "bytes")
    metrics.pending_bytes.set_function(lambda: bodies.taken)
    metrics.ready.set_function(lambda: host.ready)
    limit = int(settings.max_body_mib * 2**20)
    # The last one added sees a request first
    app.add_middleware(LimitsMiddleware, questions=service.quota, body_bytes=bodies, limit=limit)
    app.add_middleware(
        AuthenticationMiddleware,
        keys=admin_keys,
        paths=ADMINISTRATION,
        setting="admin_key_file",
        closed=True,
    )
    app.add_middleware(AuthenticationMiddleware, keys=keys, paths=QUESTIONS, setting="api_key_file")
    app.add_middleware(RequestContextMiddleware, metrics=metrics, log=settings.log_requests)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(NotReady, on_not_ready)
    return app


def _store(settings: Settings, metrics: Metrics) -> AnswerStore | None:
    """Returns the answer store that the settings name.

    Raises:
        StoreError: it cannot be used.
    """
    if not settings.store:
        return None
    if not is_address(settings.store):
        evicted = metrics.store_evicted.inc
        return SqliteStore(Path(settings.store), max_mib=settings.store_max_mib, on_evicted=evicted)
    try:
        from teacher_server.answers.postgres.store import PostgresStore  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise needs_postgres(error) from error
    address = with_password(settings.store, settings.store_password_file)
    return PostgresStore(address, memory_mib=settings.store_memory_mib)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServiceState = app.state.service
    state.host.start()
    watching = asyncio.create_task(state.watchdog.run())
    yield
    watching.cancel()
    state.service.close()
    await state.host.close()
    if state.store is not None:
        await state.store.close()
