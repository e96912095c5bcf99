"""The service as one ASGI application: its parts put together, and its life span."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from teacher_server.answers.store import AnswerStore
from teacher_server.http.authentication import ADMINISTRATION, QUESTIONS, KeyGuard, KeyRing
from teacher_server.http.limits import Admission
from teacher_server.http.request_context import Reception
from teacher_server.http.responses import on_http_error, on_invalid, on_not_ready
from teacher_server.http.routes import TAGS, router
from teacher_server.playground.api_docs import add_docs
from teacher_server.playground.routes import add_page
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.quotas import Share
from teacher_server.service.state import State
from teacher_server.service.swap import Swapper
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings
from teacher_server.teachers.registry import choose_teacher


def create_app(settings: Settings) -> FastAPI:
    """The service; `app.state.teaching` is its `State`.

    Raises:
        BadKeyFile: the file of a key holds none.
        CannotTeach: there cannot be a teacher as the settings ask for it.
        StoreError: the answer store cannot be used.
    """
    keys, admin_keys = KeyRing(settings.api_key_file), KeyRing(settings.admin_key_file)
    teacher = choose_teacher(settings)
    metrics = Metrics()
    store = None
    if settings.store:
        evicted = metrics.store_evicted.inc
        store = AnswerStore(settings.store, max_mib=settings.store_max_mib, on_evicted=evicted)
    # Ends the process: whatever watches over it is to start another
    host = Host(teacher, settings, store, metrics, on_end=lambda: signal.raise_signal(signal.SIGTERM))
    app = FastAPIOffline(
        title="A teacher",
        description="Asks a teacher what it would do in a picture of a grid world. Requests may bear"
        " X-Timeout-S (seconds that the client will wait), X-Client (its name, by which room is shared) and"
        " X-Request-ID (which the answer and the log repeat).",
        docs_url=None,  # see `add_docs`
        redoc_url=None,
        openapi_tags=TAGS,
        servers=[{"url": ".", "description": "this teacher"}],  # holds behind a proxy's path prefix too
        lifespan=_lifespan,
    )
    service = Service(host, store, metrics, settings)
    swapper, watchdog = Swapper(host, metrics), Watchdog(host, metrics)
    app.state.teaching = State(settings, host, store, metrics, service, swapper, watchdog, keyless=keys.empty)
    app.include_router(router)
    add_page(app)
    add_docs(app)
    bodies = Share(int(settings.max_pending_mib * 2**20), "bytes")
    metrics.pending_bytes.set_function(lambda: bodies.taken)
    metrics.ready.set_function(lambda: host.ready)
    limit = int(settings.max_body_mib * 2**20)
    # The last one added is the first to see a request
    app.add_middleware(Admission, questions=service.share, body_bytes=bodies, limit=limit)
    app.add_middleware(KeyGuard, keys=admin_keys, paths=ADMINISTRATION, flag="--admin-key-file", closed=True)
    app.add_middleware(KeyGuard, keys=keys, paths=QUESTIONS, flag="--api-key-file")
    app.add_middleware(Reception, metrics=metrics, log=settings.log_requests)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(NotReady, on_not_ready)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    teaching: State = app.state.teaching
    teaching.host.start()
    watching = asyncio.create_task(teaching.watchdog.run())
    yield
    watching.cancel()
    teaching.service.close()
    await teaching.host.close()
    if teaching.store is not None:
        await teaching.store.close()
