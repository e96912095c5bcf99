"""The parts of a running service, which the routes share."""

from dataclasses import dataclass

from starlette.requests import Request

from teacher_server.answers.store import AnswerStore
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.swap import Swapper
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings


@dataclass(frozen=True)
class ServiceState:
    """The parts of a running service; `app.state.service` holds them.

    Attributes:
        keyless: Whether the service requires no API key.
    """

    settings: Settings
    host: Host
    store: AnswerStore | None
    metrics: Metrics
    service: Service
    swapper: Swapper
    watchdog: Watchdog
    keyless: bool

    @classmethod
    def of(cls, request: Request) -> "ServiceState":
        """Returns the state of the service that received a request."""
        state: ServiceState = request.app.state.service
        return state
