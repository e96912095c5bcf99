"""A teacher as a replica of Ray Serve, which starts, watches and ends it: the service of `teacher serve`."""

import asyncio
import sys
from typing import Any, cast

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve

from teacher_api.schemas import ErrorBody
from teacher_server.app import create_app
from teacher_server.fleet import APPLICATION, DEPLOYMENT
from teacher_server.fleet.metrics_page import merged
from teacher_server.fleet.scaling import QUESTIONS
from teacher_server.http.responses import error_response
from teacher_server.serve import SWITCH_S
from teacher_server.service.logs import write_logs
from teacher_server.service.state import ServiceState
from teacher_server.settings import Settings

_PAGES_S = 5.0
"""Seconds to wait for the metrics of all replicas."""


class Replica:
    """What Ray Serve asks of a replica, beside its answers over HTTP.

    Args:
        settings: of the teacher; every replica has the same.
    """

    def __init__(self, settings: Settings) -> None:
        write_logs(settings.log_format)
        sys.setswitchinterval(SWITCH_S)
        # Ray Serve replaces a replica whose teacher has failed: see `check_health`
        self._app = create_app(settings, on_end=lambda: None)
        self._settings, self._service = settings, cast(ServiceState, self._app.state.service)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = self._app
        app.router.add_api_route("/metrics", _page_of_all, response_class=Response, include_in_schema=False)
        app.router.add_api_route(
            "/admin/checkpoint", _deploy_instead, methods=["POST"], include_in_schema=False
        )
        # The first route that matches answers
        app.router.routes[:0] = [app.router.routes.pop(), app.router.routes.pop()]
        return app

    async def check_health(self) -> None:
        """Returns once the teacher has started. Ray Serve replaces a replica that raises.

        Raises:
            RuntimeError: the teacher could not start, or has failed.
        """
        host = self._service.host
        while host.state == "starting":
            await asyncio.sleep(0.05)
        if host.failure is not None:
            raise RuntimeError(f"the teacher {host.failure}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the questions that this replica has."""
        return {QUESTIONS: float(self._service.metrics.counts()["pending"])}

    async def metrics_page(self) -> tuple[str, str]:
        """Returns the replica's name and its metrics, in Prometheus's text format."""
        return serve.get_replica_context().replica_tag, self._service.metrics.page().decode()

    async def deployed(self) -> Settings:
        """Returns the settings."""
        return self._settings


async def _page_of_all() -> Response:
    handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    pages = await handle.broadcast("metrics_page").results_async(timeout_s=_PAGES_S, return_exceptions=True)
    answered = dict(page for page in pages if not isinstance(page, BaseException))
    return Response(merged(answered), media_type=CONTENT_TYPE_LATEST)


async def _deploy_instead() -> Response:
    reason = "this is one replica of several: `teacher fleet deploy` exchanges the checkpoint of all of them"
    return error_response(ErrorBody(status=409, reason=reason))


def application(settings: Settings, options: dict[str, Any]) -> Any:
    """Returns the application that Ray Serve runs.

    Args:
        options: of the deployment: the number of replicas and what each of them needs.
    """
    return serve.deployment(name=DEPLOYMENT, **options)(serve.ingress()(Replica)).bind(settings)
