"""The metrics of all replicas on one page."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merged(pages: Mapping[str, str]) -> bytes:
    """Returns one page in Prometheus's text format, where each sample has the label `replica`.

    Args:
        pages: each replica's page, by the replica's name.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(pages))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, page in sorted(self._pages.items()):
            for family in text_string_to_metric_families(page):
                all_ = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                all_.samples += [
                    sample._replace(labels=sample.labels | {"replica": name}) for sample in family.samples
                ]
        yield from families.values()
