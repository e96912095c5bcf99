"""What the service counts and times, for GET /metrics."""

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

# They would be a second series for each, with the time of its first count
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One service's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.questions = Counter(
            "teacher_questions",
            "Questions by the way they took: stored (answered before), joined (an equal one was in flight),"
            " asked (put to the teacher).",
            ["way"],
            registry=self.registry,
        )
        self.requests = Counter(
            "teacher_requests",
            "HTTP requests by route and status; 499: the client went away, no route: there is no such path or"
            " the request was refused at the door (401, 413, 422, 429, 503).",
            ["route", "status"],
            registry=self.registry,
        )
        self.failures = Counter(
            "teacher_failures",
            "Questions without an answer, by the HTTP status of each.",
            ["status"],
            registry=self.registry,
        )
        self.unreadable = Counter(
            "teacher_unreadable",
            "Answers of the teacher that could not be used, by stage (analysis, action) and fault: truncated,"
            " schema, label_mass, scores, sum, engine.",
            ["stage", "fault"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "teacher_seconds",
            "Time of a question put to the teacher, by part: waiting (for a free place), picture,"
            " teacher (of it: analysis, action), storing.",
            ["part"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pending = Gauge("teacher_pending", "Questions in the service.", registry=self.registry)
        self.pending_bytes = Gauge(
            "teacher_pending_bytes", "Bytes of all request bodies in the service.", registry=self.registry
        )
        self.in_flight = Gauge(
            "teacher_in_flight", "Questions that the teacher has yet to answer.", registry=self.registry
        )
        self.store_failures = Counter(
            "teacher_store_failures", "Store look-ups and writes that failed.", registry=self.registry
        )
        self.store_evicted = Counter(
            "teacher_store_evicted",
            "Stored answers that went because the store was over --store-max-mib.",
            registry=self.registry,
        )

        self.ready = Gauge("teacher_ready", "1 while questions are answered, else 0.", registry=self.registry)
        self.swaps = Counter(
            "teacher_swaps",
            "Swaps of the checkpoint by outcome: swapped, unchanged (it was served already), refused (nothing"
            " had been touched), went_back (the one before serves again), lost (nor could that be loaded).",
            ["outcome"],
            registry=self.registry,
        )
        self.replacements = Counter(
            "teacher_replacements",
            "Engines that were to be replaced, by why: dead, stuck (asked, it answered nothing), and by"
            " outcome: replaced, failed (then the service ends).",
            ["why", "outcome"],
            registry=self.registry,
        )
        self.silent = Gauge(
            "teacher_silent_seconds",
            "For how long the engine has been asked and has answered nothing.",
            registry=self.registry,
        )
        self._teacher = Info("teacher", "Who answers now, or answered last.", registry=self.registry)

    def serving(self, teacher: Teacher) -> None:
        """Notes who answers from now on."""
        self._teacher.info({"identity": teacher.identity, "kind": teacher.kind})

    def stage_seconds(self, stages: Stages) -> None:
        """Counts the time of both stages of an answer."""
        self.seconds.labels("analysis").observe(stages.analysis.milliseconds / 1000)
        if stages.action is not None:
            self.seconds.labels("action").observe(stages.action.milliseconds / 1000)

    def figures(self) -> dict[str, int]:
        """Questions by their way (asked, stored, joined), failed, pending and in_flight."""
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
        """In Prometheus's text format, with the process's own figures and the engine's (vllm:...)."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)
