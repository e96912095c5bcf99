"""The page at /: its files, and the routes that it uses besides /policy and /teacher."""

import asyncio
import io
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Scope

from gridworld.pictures import Picture, UnreadablePicture, encode_png, read, tile_size
from gridworld.planner import NoPlan, plan
from gridworld.tasks import ALL_TASKS
from teacher_api.schemas import ErrorBody, Question
from teacher_server.http.request_context import context_of, while_client_waits
from teacher_server.http.responses import answer_response, error_response
from teacher_server.pictures.decoding import BadPicture, decode, from_base64
from teacher_server.playground.scenes import BadMoment, Moment, environments_of, only_mission, replay
from teacher_server.playground.templates import check
from teacher_server.prompting.chat_templates import BadChatTemplate
from teacher_server.prompting.prompt_files import FOLLOWUPS, QUESTION, SYSTEM, TEMPLATES, BadPromptSet
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.state import ServiceState
from teacher_server.teachers.base import ModelTeacher, Teacher

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = " ".join(
    f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    for script in re.findall("<script>(.*?)</script>", (_PAGE / "index.html").read_text("utf-8"), re.DOTALL)
)
"""The digest of the script in the page."""
_HEADERS = {
    # No content from other origins, no other inline script, and no embedding in a frame
    "Content-Security-Policy": f"default-src 'self'; script-src 'self' {_SCRIPTS};"
    " img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
_MOST_EDITED = 4
"""Limit of simultaneous questions with edited templates, which bypass the quota of questions."""

_router = APIRouter(include_in_schema=False)


def add_page(app: FastAPI) -> None:
    """Adds the page at / and its routes under /playground, which use the app's `ServiceState`."""
    app.state.edited_semaphore = asyncio.Semaphore(_MOST_EDITED)
    app.include_router(_router)
    app.mount("/page", _PageFiles(directory=_PAGE))


class _PageFiles(StaticFiles):
    """Styles and scripts, which the browser revalidates so that page and service have the same version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


class _Picture(BaseModel):
    """A picture to show."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str


class _Edited(Question):
    """A question to ask with edited templates."""

    templates: Annotated[dict[str, str], Field(max_length=len(TEMPLATES))]


@_router.get("/")
async def page() -> Response:
    """Returns the page. Its contents come from routes that require the API key."""
    return FileResponse(_PAGE / "index.html", headers=_HEADERS)


@_router.get("/playground/state")
async def state(request: Request) -> Response:
    """Returns the teacher's identity, whether it is ready, and the counts of questions."""
    service = ServiceState.of(request)
    host = service.host
    # The reason is left to the log: it may name folders
    failure = host.failure and f"{host.failure.partition(':')[0]}; see the teacher's log"
    about = {"identity": host.teacher.identity, "ready": host.ready, "failure": failure}
    return JSONResponse(about | {"figures": service.metrics.counts()})


@_router.get("/playground/tasks")
async def tasks(request: Request) -> Response:
    """Returns the teacher's tasks with their environments."""
    teacher = ServiceState.of(request).host.teacher
    return JSONResponse(
        {
            task: {
                "objective": ALL_TASKS[task].objective if task in ALL_TASKS else None,
                "actions": actions,
                "mission": only_mission(task),
                **asdict(environments_of(task, teacher.hosting)),
            }
            for task, actions in teacher.tasks.items()
        }
    )


@_router.post("/playground/scene")
def scene(moment: Moment) -> Response:
    """Returns a moment of an episode and its picture."""
    try:
        found, picture = replay(moment)
    except BadMoment as error:
        return _refused(error.field, error)
    return JSONResponse(found.model_dump() | {"image": _base64(encode_png(picture))})


@_router.post("/playground/prepared")
def prepare(request: Request, body: _Picture) -> Response:
    """Returns a picture as the teacher sees it, and the size of its grid."""
    teacher = ServiceState.of(request).host.teacher
    try:
        picture = _decoded(request, body.image)
        prepared = teacher.model.prompts.preparation.prepare(picture) if teacher.model else None
    except (BadPicture, UnreadablePicture) as error:
        return _refused("image", error)
    image = prepared.image if prepared else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return JSONResponse(
        {
            "image": _base64(file.getvalue()),
            "width": image.width,
            "height": image.height,
            "tokens": prepared.tokens if prepared else None,
            "grid": _grid(picture, teacher),
        }
    )


@_router.post("/playground/planner")
def planner(request: Request, question: Question) -> Response:
    """Returns the optimal planner's answer, for comparison."""
    if question.task not in ALL_TASKS:
        return _refused(
            "task", f"the planner does not know {question.task!r}; it knows {', '.join(ALL_TASKS)}"
        )
    try:
        view = read(_decoded(request, question.image))
        planned = plan(view, question.task, question.mission, question.actions)
    except (BadPicture, UnreadablePicture) as error:
        return _refused("image", error)
    except NoPlan as error:
        return _refused(error.field, error)
    probabilities = planned.probabilities
    best = max(probabilities, key=probabilities.__getitem__)
    return JSONResponse({"probabilities": probabilities, "action": best, "analysis": planned.analysis})


@_router.get("/playground/prompts")
async def prompts(request: Request) -> Response:
    """Returns the teacher's prompt templates, in the order of their use; an empty list if it has none."""
    teacher = ServiceState.of(request).host.teacher.model
    if teacher is None:
        return JSONResponse({"name": None, "templates": []})
    used = (SYSTEM, QUESTION, FOLLOWUPS[teacher.description["reading"]["readout"]])
    sources = teacher.prompts.templates
    templates = [
        {"name": name, "source": sources[name], "variables": sorted(TEMPLATES[name])} for name in used
    ]
    return JSONResponse({"name": teacher.prompts.name, "templates": templates})


@_router.post("/playground/ask")
async def ask(request: Request, question: _Edited) -> Response:
    """Asks the teacher with edited templates. The answer is not stored."""
    state = ServiceState.of(request)
    semaphore: asyncio.Semaphore = request.app.state.edited_semaphore
    if semaphore.locked():
        reason = f"{_MOST_EDITED} edited questions are being answered already; ask again later"
        return error_response(ErrorBody(status=503, reason=reason, retry_after=1))
    with state.host.lease() as leased:
        if (teacher := leased.model) is None:
            return _refused("templates", "this teacher has no prompt templates")
        async with semaphore:
            try:
                edited = await asyncio.to_thread(_edited, teacher, question.templates)
            except BadPromptSet as error:
                return _refused(error.file or "templates", error)
            # A separate service: without the store and the metrics
            service = Service(_EditedTeacher(edited, teacher, state.host), None, Metrics(), state.settings)
            (outcome,) = await while_client_waits(
                request, service.answer([question], patience_s=context_of(request.scope).patience_s)
            )
    return answer_response(outcome)


@dataclass(frozen=True)
class _EditedTeacher:
    """A teacher source with the edited teacher, which uses the engine of the host's teacher."""

    edited: Teacher
    original: Teacher
    host: Host

    @contextmanager
    def lease(self) -> Iterator[Teacher]:
        yield self.edited

    def lose(self, _: Teacher, why: str) -> None:
        self.host.lose(self.original, why)


def _edited(teacher: ModelTeacher, sources: dict[str, str]) -> ModelTeacher:
    """Returns a teacher over the same model with these templates.

    Raises:
        BadPromptSet: The templates are not valid.
    """
    check(sources)
    try:
        return teacher.with_prompts(teacher.prompts.edited(sources))
    except BadChatTemplate as error:
        raise BadPromptSet(str(error)) from error


def _decoded(request: Request, image: str) -> Picture:
    return decode(from_base64(image), max_pixels=ServiceState.of(request).settings.max_pixels)


def _grid(picture: Picture, teacher: Teacher) -> dict[str, Any] | None:
    """Returns a grid's columns and rows and whether a margin numbers them; None if there is no grid."""
    try:
        tile = tile_size(picture)
    except UnreadablePicture:
        return None
    height, width = np.shape(picture)[:2]
    margin = teacher.model is not None and teacher.model.prompts.preparation.margin
    return {"columns": width // tile, "rows": height // tile, "margin": margin}


def _base64(file: bytes) -> str:
    return b64encode(file).decode("ascii")


def _refused(field: str, reason: object) -> Response:
    too_large = isinstance(reason, BadPicture) and reason.too_large
    return error_response(ErrorBody(status=413 if too_large else 422, field=field, reason=str(reason)))
