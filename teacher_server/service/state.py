"""What the routes share: a running service's parts."""

from dataclasses import dataclass

from teacher_server.answers.store import AnswerStore
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.service.swap import Swapper
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings


@dataclass(frozen=True)
class State:
    """What the routes share."""

    settings: Settings
    host: Host
    store: AnswerStore | None
    metrics: Metrics
    service: Service
    swapper: Swapper
    watchdog: Watchdog
    keyless: bool
    """Whether whoever reaches the service may ask."""
