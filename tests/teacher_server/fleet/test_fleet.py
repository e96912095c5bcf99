"""What a fleet computes without Ray: the page of metrics, the number of replicas, the reason of a failure."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from teacher_api.command_line import CannotStart
from teacher_server.fleet.metrics_page import merged
from teacher_server.fleet.scaling import replicas_for_questions
from teacher_server.service.metrics import Metrics
from teacher_tools.fleet import DeploySettings, deploy, reason

pytestmark = pytest.mark.unit


def test_the_page_has_the_samples_of_all_replicas() -> None:
    pages = {}
    for name, asked in (("a", 2), ("b", 5)):
        metrics = Metrics()
        metrics.questions.labels("asked").inc(asked)
        metrics.seconds.labels("teacher").observe(0.3)
        pages[name] = metrics.page().decode()
    families = {family.name: family for family in text_string_to_metric_families(merged(pages).decode())}
    questions = families["teacher_questions"]
    assert questions.type == "counter"
    assert {(each.labels["replica"], each.value) for each in questions.samples} == {("a", 2), ("b", 5)}
    one = next(
        family for family in text_string_to_metric_families(pages["a"]) if family.name == "teacher_seconds"
    )
    both = families["teacher_seconds"]
    assert (both.type, len(both.samples)) == ("histogram", 2 * len(one.samples))


@pytest.mark.parametrize(
    ("reported", "wanted"), [({}, 0.0), ({"questions": {"a": 64.0, "b": 32.0}}, 1.5), (None, 0.0)]
)
def test_replicas_follow_the_questions(reported: object, wanted: float) -> None:
    config = SimpleNamespace(target_ongoing_requests=64.0)
    context = SimpleNamespace(aggregated_metrics=reported, config=config)
    assert replicas_for_questions(context) == (wanted, {})


def test_the_reason_is_the_last_error_of_a_traceback() -> None:
    said = (
        "Deployment 'Teacher': 2 replicas are unhealthy.\nTraceback (most recent call last):\n"
        '  File "app.py", line 3, in create\n    raise CannotTeach("x")\n'
        "teacher_server.teachers.registry.CannotTeach: --model /models/A: no config.json\n\n"
    )
    assert reason(said) == "--model /models/A: no config.json"
    assert reason("the deployment is gone") == "the deployment is gone"


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ({}, 0),
        ({"teacher": "prompted", "model": "/models/A"}, 1),
        ({"teacher": "prompted", "model": "/models/A", "tensor_parallel_size": 2}, 2),
        ({"teacher": "prompted", "model": "/models/A", "engine": "onnx"}, 0),
        ({"replica_gpus": 0.5}, 0.5),
    ],
)
def test_gpus_are_those_of_the_engine(flags: dict[str, object], gpus: float) -> None:
    options = DeploySettings(_cli_parse_args=False, **flags).options  # type: ignore[arg-type]
    assert options["ray_actor_options"]["num_gpus"] == gpus


def test_a_fleet_needs_keys_on_a_network(tmp_path: Path) -> None:
    key = tmp_path / "keys"
    key.write_text("")
    settings = DeploySettings(_cli_parse_args=False, host="0.0.0.0", api_key_file=key)  # type: ignore[call-arg]
    with pytest.raises(
        CannotStart, match=r"`host` 0\.0\.0\.0 is not a loopback address, so the service requires"
    ):
        deploy(settings)
