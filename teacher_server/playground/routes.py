"""The page at /: its files, and the calls that it makes besides /policy and /teacher."""

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
from teacher_server.http.request_context import caller_of, while_client_waits
from teacher_server.http.responses import error_response, respond
from teacher_server.pictures.decoding import BadPicture, decode, from_base64
from teacher_server.playground.scenes import BadMoment, Moment, only_mission, places, replay
from teacher_server.playground.templates import check
from teacher_server.prompting.chat_templates import BadChatTemplate
from teacher_server.prompting.preparation import visual_tokens
from teacher_server.prompting.prompt_files import FOLLOWUPS, QUESTION, SYSTEM, TEMPLATES, BadPromptSet
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.state import State
from teacher_server.teachers.base import ModelTeacher, Teacher

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = " ".join(
    f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    for script in re.findall("<script>(.*?)</script>", (_PAGE / "index.html").read_text("utf-8"), re.DOTALL)
)
"""The page's own script, by its digest."""
_HEADERS = {
    # Nothing from elsewhere, no other script in the page itself, and nobody may frame it
    "Content-Security-Policy": f"default-src 'self'; script-src 'self' {_SCRIPTS};"
    " img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
_EDITED_AT_ONCE = 4
"""Questions with edited templates; they pass by the service's own admission."""

_router = APIRouter(include_in_schema=False)


def add_page(app: FastAPI) -> None:
    """Adds the page at / and its calls under /look; they use the app's State."""
    app.state.edited_places = asyncio.Semaphore(_EDITED_AT_ONCE)
    app.include_router(_router)
    app.mount("/page", _PageFiles(directory=_PAGE))


class _PageFiles(StaticFiles):
    """Styles and scripts, asked for anew so that page and service are of one version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


class _Shown(BaseModel):
    """A picture to be looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str


class _Edited(Question):
    """A question to be asked with other templates."""

    templates: Annotated[dict[str, str], Field(max_length=len(TEMPLATES))]


@_router.get("/")
async def page() -> Response:
    """The page; whatever it shows comes through calls that need the key, where there is one."""
    return FileResponse(_PAGE / "index.html", headers=_HEADERS)


@_router.get("/look/state")
async def state(request: Request) -> Response:
    """Who answers, whether it is ready, and a few figures."""
    teaching = _teaching(request)
    figures = teaching.metrics.figures()
    host = teaching.host
    # What it was is for the log: it may name folders
    failure = host.failure and f"{host.failure.partition(':')[0]}; the teacher's log says why"
    about = {"identity": host.teacher.identity, "ready": host.ready, "failure": failure}
    return JSONResponse(about | {"figures": figures})


@_router.get("/look/tasks")
async def tasks(request: Request) -> Response:
    """The teacher's tasks, and where each can be seen."""
    teacher = _teaching(request).host.teacher
    return JSONResponse(
        {
            task: {
                "objective": ALL_TASKS[task].objective if task in ALL_TASKS else None,
                "actions": actions,
                "mission": only_mission(task),
                **asdict(places(task, teacher.hosting)),
            }
            for task, actions in teacher.tasks.items()
        }
    )


@_router.post("/look/scene")
def scene(moment: Moment) -> Response:
    """A moment of an episode and its picture."""
    try:
        found, picture = replay(moment)
    except BadMoment as error:
        return _refused(error.field, error)
    return JSONResponse(found.model_dump() | {"image": _base64(encode_png(picture))})


@_router.post("/look/prepared")
def prepared(request: Request, shown: _Shown) -> Response:
    """A picture as the teacher gets to see it, and the grid found in it."""
    teacher = _teaching(request).host.teacher
    try:
        picture = _decoded(request, shown.image)
        seen = teacher.model.prompts.preparation.prepare(picture) if teacher.model else None
    except (BadPicture, UnreadablePicture) as error:
        return _refused("image", error)
    image = seen.image if seen else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return JSONResponse(
        {
            "image": _base64(file.getvalue()),
            "width": image.width,
            "height": image.height,
            "tokens": visual_tokens(seen) if seen else None,
            "grid": _grid(picture, teacher),
        }
    )


@_router.post("/look/planner")
def planner(request: Request, question: Question) -> Response:
    """What the optimal planner would do, to compare with."""
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


@_router.get("/look/prompts")
async def prompts(request: Request) -> Response:
    """The templates that the teacher is asked with, in their order; none where it is asked without."""
    teacher = _teaching(request).host.teacher.model
    if teacher is None:
        return JSONResponse({"name": None, "templates": []})
    used = (SYSTEM, QUESTION, FOLLOWUPS[teacher.description["reading"]["readout"]])
    sources = teacher.prompts.templates
    templates = [
        {"name": name, "source": sources[name], "variables": sorted(TEMPLATES[name])} for name in used
    ]
    return JSONResponse({"name": teacher.prompts.name, "templates": templates})


@_router.post("/look/ask")
async def ask(request: Request, question: _Edited) -> Response:
    """Asks with edited templates; the answer is stored nowhere."""
    teaching = _teaching(request)
    places: asyncio.Semaphore = request.app.state.edited_places
    if places.locked():
        reason = f"{_EDITED_AT_ONCE} edited questions are being answered already; ask again later"
        return error_response(ErrorBody(status=503, reason=reason, retry_after=1))
    with teaching.host.lease() as leased:
        if (teacher := leased.model) is None:
            return _refused("templates", "this teacher is asked without prompt templates")
        async with places:
            try:
                edited = await asyncio.to_thread(_edited, teacher, question.templates)
            except BadPromptSet as error:
                return _refused(error.file or "templates", error)
            # A service of its own: no store, and figures that nobody counts
            lent = _Lent(edited, teacher, teaching.host)
            service = Service(lent, None, Metrics(), teaching.settings)
            (outcome,) = await while_client_waits(
                request, service.answer([question], patience_s=caller_of(request.scope).patience_s)
            )
    if isinstance(outcome, ErrorBody):
        return error_response(outcome)
    return respond(outcome)


@dataclass(frozen=True)
class _Lent:
    """A teacher in the place of another one of a host's, whose engine it asks."""

    teacher: Teacher
    other: Teacher
    host: Host

    @contextmanager
    def lease(self) -> Iterator[Teacher]:
        yield self.teacher

    def lose(self, _: Teacher, why: str) -> None:
        self.host.lose(self.other, why)


def _edited(teacher: ModelTeacher, sources: dict[str, str]) -> ModelTeacher:
    """The teacher, asked with these templates.

    Raises:
        BadPromptSet: they cannot be used.
    """
    check(sources)
    try:
        return teacher.with_prompts(teacher.prompts.edited(sources))
    except BadChatTemplate as error:
        raise BadPromptSet(str(error)) from error


def _teaching(request: Request) -> State:
    teaching: State = request.app.state.teaching
    return teaching


def _decoded(request: Request, image: str) -> Picture:
    return decode(from_base64(image), max_pixels=_teaching(request).settings.max_pixels)


def _grid(picture: Picture, teacher: Teacher) -> dict[str, Any] | None:
    """Columns and rows of a picture and whether they are numbered in a margin, if it shows a grid."""
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
