"""Settings come from flags, then variables, then defaults; a wrong setting is reported in one line."""

import pytest

from teacher_api.command_line import BadSetting, names_a_service, parse
from teacher_server.settings import Settings

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TEACHER_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = parse(Settings, [])
    assert (settings.host, settings.port, settings.teacher) == ("127.0.0.1", 8000, "planner")


def test_a_flag_takes_precedence_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_DELAY_MS", "7")
    monkeypatch.setenv("TEACHER_STORE", "from-variable.sqlite3")
    settings = parse(Settings, ["--delay-ms", "9"])
    assert settings.delay_ms == 9
    assert settings.store == "from-variable.sqlite3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--noise", "1.5"],
            "--noise (or TEACHER_NOISE): Input should be less than or equal to 1, not '1.5'",
        ),
        (["--noise", "nan"], "--noise"),
        (["--fault", "deaf"], "'mirrored', 'shifted' or 'blind', not 'deaf'"),
        (["--delay-ms", "inf"], "--delay-ms"),
        (["--delay-ms", "-1"], "--delay-ms"),
        (["--port", "65536"], "--port"),
        (["--port", "http"], "--port"),
        (["--concurrency", "0"], "--concurrency"),
        (["--timeout-s", "0"], "--timeout-s"),
        (["--teacher", "oracle"], "'oracle' is none of planner, uniform, prompted"),
        (["--nosie", "0.5"], "--nosie"),
        (["--delay", "5"], "--delay"),
        (["stray"], "stray"),
        (["--port"], "--port"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        parse(Settings, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_SEED", "one")
    with pytest.raises(BadSetting, match="TEACHER_SEED"):
        parse(Settings, [])


def test_a_variable_of_a_kubernetes_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(BadSetting) as caught:
        parse(Settings, [])
    assert str(caught.value) == (
        "TEACHER_PORT is 'tcp://10.0.0.1:80', which Kubernetes sets for a Service named teacher: add"
        " enableServiceLinks: false to the pod's spec, or set --port"
    )
    assert parse(Settings, ["--port", "9"]).port == 9
    with pytest.raises(BadSetting, match=r"--port .* not 'udp://10.0.0.1:80'"):
        parse(Settings, ["--port", "udp://10.0.0.1:80"])


@pytest.mark.parametrize(
    "variable",
    [
        *("TEACHER_SERVICE_HOST", "TEACHER_SERVICE_PORT", "TEACHER_SERVICE_PORT_HTTP"),
        *("TEACHER_PORT_80_TCP", "STUDENT_PORT_8000_TCP_ADDR", "TEACHER_BENCH_PORT_53_UDP_PROTO"),
    ],
)
def test_other_variables_of_a_service_are_known_by_their_names(variable: str) -> None:
    assert names_a_service(variable, "80")


def test_no_setting_has_the_name_of_a_service_s_variable() -> None:
    assert not [name for name in Settings.model_fields if names_a_service(f"TEACHER_{name}", "80")]


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
