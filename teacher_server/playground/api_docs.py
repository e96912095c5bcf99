"""The documentation of the HTTP API at /docs: offline, under any path prefix, with working examples."""

import base64
import io
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import RedirectResponse
from PIL import Image

from teacher_server.playground.scenes import Moment, environments_of, replay
from teacher_server.teachers.base import Teacher

_router = APIRouter(include_in_schema=False)


def add_docs(app: FastAPI) -> None:
    """Adds /docs, and examples that the present teacher can answer to the schema."""
    app.include_router(_router)
    plain = app.openapi

    def with_examples() -> dict[str, Any]:
        schema = plain()
        # Made for each request: a swap may change the teacher's tasks
        examples = examples_for(app.state.service.host.teacher)
        both = {
            "summary": "two questions",
            "value": [example["value"] for example in list(examples.values())[:2]],
        }
        for path, shown in (("/policy", examples), ("/policy/batch", {"batch": both})):
            body = schema["paths"][path]["post"]["requestBody"]
            body["content"]["application/json"]["examples"] = shown
        return schema

    app.openapi = with_examples  # type: ignore[method-assign]  # as FastAPI documents it


@_router.get("/docs")
async def docs(request: Request) -> Response:
    """Returns the page that shows the schema and sends requests."""
    # Relative URLs, which also work behind a proxy's path prefix
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="static-offline-docs/swagger-ui-bundle.js",
        swagger_css_url="static-offline-docs/swagger-ui.css",
        swagger_favicon_url="static-offline-docs/favicon.png",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )


@_router.get("/docs/")
async def docs_with_slash() -> Response:
    """Redirects to the path on which the relative URLs of the page depend."""
    return RedirectResponse("../docs")


def examples_for(teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Returns a question about each of a teacher's tasks, as OpenAPI `examples`."""
    return {
        task: {
            "summary": task,
            "value": _question(task, tuple(actions), environments_of(task, teacher.hosting).first),
        }
        for task, actions in teacher.tasks.items()
    }


@lru_cache(maxsize=64)
def _question(task: str, actions: tuple[str, ...], env_id: str) -> dict[str, Any]:
    """Returns a question about the first state of an environment."""
    scene, picture = replay(Moment(env_id=env_id))
    file = io.BytesIO()
    # MiniGrid's few colours fit in a palette: the same pixels in a file short enough for a page
    Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return {
        "image": base64.b64encode(file.getvalue()).decode("ascii"),
        "mission": scene.mission,
        "task": task,
        "actions": list(actions),
    }
