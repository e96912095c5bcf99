"""The metrics of the service, for GET /metrics."""

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from teacher_api.schemas import Stages
from teacher_server.teachers.base import Teacher

# A second series for each counter, with the time of its first increment
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.questions = Counter(
            "teacher_questions",
            "Questions by their path: stored (answered from the store), joined (shared the outcome of an"
            " equal question in flight), asked (sent to the teacher).",
            ["way"],
            registry=self.registry,
        )
        self.requests = Counter(
            "teacher_requests",
            "HTTP requests by route and status. Status 499: the client disconnected. No route: the path does"
            " not exist, or the request was refused before routing (401, 413, 422, 429, 503).",
            ["route", "status"],
            registry=self.registry,
        )
        self.failures = Counter(
            "teacher_failures",
            "Questions without an answer, by HTTP status.",
            ["status"],
            registry=self.registry,
        )
        self.unreadable = Counter(
            "teacher_unreadable",
            "Teacher answers that could not be read, by stage (analysis, action) and fault: truncated,"
            " schema, label_mass, scores, sum, engine.",
            ["stage", "fault"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "teacher_seconds",
            "Time of a question that is sent to the teacher, by part: waiting (for a free place), picture"
            " (decoding), teacher (in total, and its stages analysis and action), storing.",
            ["part"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pending = Gauge("teacher_pending", "Questions in the service.", registry=self.registry)
        self.pending_bytes = Gauge(
            "teacher_pending_bytes", "Bytes of all request bodies in the service.", registry=self.registry
        )
        self.in_flight = Gauge(
            "teacher_in_flight",
            "Questions that are sent to the teacher and not answered yet.",
            registry=self.registry,
        )
        self.store_failures = Counter(
            "teacher_store_failures",
            "Failed look-ups and writes of the answer store.",
            registry=self.registry,
        )
        self.store_evicted = Counter(
            "teacher_store_evicted",
            "Stored answers that were evicted because the store was larger than `store_max_mib`.",
            registry=self.registry,
        )

        self.ready = Gauge(
            "teacher_ready", "1 while the teacher answers questions, else 0.", registry=self.registry
        )
        self.swaps = Counter(
            "teacher_swaps",
            "Swaps of the checkpoint by outcome: swapped, unchanged (the checkpoint was served already),"
            " refused (nothing was changed), went_back (the previous checkpoint is served again), lost (the"
            " previous checkpoint could not be loaded either).",
            ["outcome"],
            registry=self.registry,
        )
        self.replacements = Counter(
            "teacher_replacements",
            "Engines that were replaced, by reason: dead, stuck (unresponsive to questions), and by outcome:"
            " replaced, failed (then the service ends).",
            ["why", "outcome"],
            registry=self.registry,
        )
        self.silent = Gauge(
            "teacher_silent_seconds",
            "Seconds for which the engine has had questions and has answered none.",
            registry=self.registry,
        )
        self._teacher = Info(
            "teacher", "The teacher that answers now, or answered last.", registry=self.registry
        )

    def serving(self, teacher: Teacher) -> None:
        """Sets the teacher that answers from now on."""
        self._teacher.info({"identity": teacher.identity, "kind": teacher.kind})

    def stage_seconds(self, stages: Stages) -> None:
        """Observes the times of both stages of an answer."""
        self.seconds.labels("analysis").observe(stages.analysis.milliseconds / 1000)
        if stages.action is not None:
            self.seconds.labels("action").observe(stages.action.milliseconds / 1000)

    def counts(self) -> dict[str, int]:
        """Returns the numbers of questions: asked, stored, joined, failed, pending and in_flight."""
        found = dict.fromkeys(("asked", "stored", "joined", "failed", "pending", "in_flight"), 0)
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == "teacher_questions_total":
                    found[sample.labels["way"]] += int(sample.value)
                elif sample.name == "teacher_failures_total":
                    found["failed"] += int(sample.value)
                elif sample.name in ("teacher_pending", "teacher_in_flight"):
                    found[sample.name.removeprefix("teacher_")] = int(sample.value)
        return found

    def page(self) -> bytes:
        """Returns all metrics, the process's and the engine's (vllm:...) too, in Prometheus's text format."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)
