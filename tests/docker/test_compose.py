"""`docker compose up` without a GPU and without weights: the planner. Each test can run alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from teacher_tools.bench.questions import distinct_questions
from tests.docker.conftest import CPU, Stack, stack, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_KEY = "a-key-of-the-tests"
_ADMIN_KEY = "of the administration"
_HEADERS = {"Authorization": f"Bearer {_KEY}"}
_ASKED = 'teacher_questions_total{way="asked"} '
_METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/metrics").read().decode())
"""
_OUTSIDE = """
import os, socket
def tries(what, attempt):
    try:
        attempt()
    except OSError as error:
        print(what, "failed")
    else:
        print(what, "worked")
tries("name", lambda: socket.getaddrinfo("pypi.org", 443))
for address in ("1.1.1.1", "8.8.8.8"):
    for port in (53, 443):
        tries("address", lambda: socket.create_connection((address, port), timeout=2))
tries("root", lambda: open("/written", "w"))
tries("code", lambda: open("/opt/lvlm2p/written", "w"))
print("user", os.getuid())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose student has completed the run `first`."""
    folder = tmp_path_factory.mktemp("cpu")
    key, admin_key = folder / "key", folder / "admin-key"
    key.write_text(f"{_KEY}\n")
    admin_key.write_text(f"{_ADMIN_KEY}\n")
    for path in (folder, *folder.parents[:2], key, admin_key):
        path.chmod(0o755)  # the containers' user reads it
    variables = {"TEACHER_TEACHER": "planner", "STUDENT_FRAMES": "8192", "STUDENT_RUN": "first"}
    variables |= {"API_KEY_FILE": str(key), "ADMIN_KEY_FILE": str(admin_key)}
    with stack("lvlm2p-test-cpu", CPU, folder, **variables) as made:
        made.up()
        assert made.run_ended() == 0
        yield made


@pytest.fixture
def cpu(trained: Stack) -> Stack:
    """The same stack in its initial state."""
    trained.reset()
    trained.up("--wait", "--scale", "teacher=1", "teacher", "gateway", "tensorboard")
    return trained


def test_up_trains_a_student_and_publishes_the_teacher_and_tensorboard(cpu: Stack) -> None:
    for service in ("teacher", "gateway"):
        assert cpu.state(service)["Health"] == "healthy"
    assert httpx.get(f"{cpu.url}/teacher").status_code == 401
    teacher = httpx.get(f"{cpu.url}/teacher", headers=_HEADERS).json()
    assert teacher["kind"] == "planner"
    question = distinct_questions(1)[0].model_dump(mode="json")
    answer = httpx.post(f"{cpu.url}/policy", json=question, headers=_HEADERS, timeout=30).json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    summary = cpu.summary("first")
    assert summary["success"] >= 0.9
    assert summary["questions"] > 0
    assert summary["teacher"] == teacher["identity"]
    wait_for(lambda: cpu.state("tensorboard")["Health"] == "healthy", "TensorBoard")
    runs = f"http://127.0.0.1:{cpu.tensorboard_port}/data/runs"
    wait_for(lambda: "first/tensorboard" in httpx.get(runs).json(), "the run's charts", 30)


def test_the_teachers_image_can_recover_damaged_stores(cpu: Stack) -> None:
    code = "from teacher_tools.answers.recover import program; print(program())"
    assert cpu.python("teacher", code) == "/usr/local/bin/sqlite3"


@pytest.mark.parametrize("service", ["teacher", "tensorboard"])  # the second is the student's image
def test_containers_have_no_network_outside_and_a_read_only_root(cpu: Stack, service: str) -> None:
    printed = cpu.python(service, _OUTSIDE).splitlines()
    assert printed == ["name failed", *["address failed"] * 4, "root failed", "code failed", "user 2000"]


def test_ports_are_published_on_this_machine_only(cpu: Stack) -> None:
    published = cpu.do("ps", "--format", "{{.Ports}}").split()
    hosts = {each.rpartition(":")[0] for each in ",".join(published).split(",") if "->" in each}
    assert hosts == {"127.0.0.1"}


def test_the_gateway_refuses_administration(cpu: Stack) -> None:
    refused = httpx.post(f"{cpu.url}/admin/checkpoint", json={"model": "/models/any"}, headers=_HEADERS)
    assert refused.status_code == 403
    assert "gateway" in refused.json()["error"]["reason"]


def test_the_keys_are_secrets_and_the_admin_key_is_required_inside(cpu: Stack) -> None:
    known = cpu.do("exec", "-T", "teacher", "env")
    assert _KEY not in known
    assert _ADMIN_KEY not in known
    refused = cpu("exec", "-T", "teacher", "teacher", "swap", "/models/any")
    assert refused.returncode == 2
    assert "a planner teacher has no checkpoint to swap" in refused.stderr
    other = ("exec", "-T", "-e", "TEACHER_ADMIN_KEY_FILE=/run/secrets/api_key")
    refused = cpu(*other, "teacher", "teacher", "swap", "/models/any")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--admin-key-file" in refused.stderr


def test_a_second_up_asks_nothing_new(cpu: Stack) -> None:
    first, second = cpu.second_run()
    assert second["questions"] == 0
    assert second["store_hits"] == first["questions"] + first["store_hits"]
    assert second["sampled"] == first["sampled"]


def test_a_completed_run_stays_unchanged(cpu: Stack) -> None:
    before = cpu.summary("first")
    cpu.up("--force-recreate", "student")
    assert cpu.run_ended() == 0
    assert cpu.summary("first") == before


def test_a_stop_saves_the_run_and_the_next_up_resumes_it(cpu: Stack) -> None:
    """The resumed run ends as the uninterrupted one."""
    cpu.variables |= {"STUDENT_RUN": "stopped"}
    cpu.up()
    begun = ("exec", "-T", "student", "test", "-s", "/runs/stopped/metrics.jsonl")
    wait_for(lambda: cpu(*begun).returncode == 0, "the run's beginning", 60)
    cpu.do("stop", "student")
    assert cpu.state("student")["ExitCode"] == 130
    assert "interrupted after" in cpu.do("logs", "student")
    cpu.up()
    assert cpu.run_ended() == 0
    assert cpu.summary("stopped")["sampled"] == cpu.summary("first")["sampled"]


def test_several_teachers_share_the_questions(cpu: Stack) -> None:
    def asked(index: int) -> float:
        page = cpu.do("exec", "-T", "--index", str(index), "teacher", "python3", "-c", _METRICS)
        counts = [line.removeprefix(_ASKED) for line in page.splitlines() if line.startswith(_ASKED)]
        return float(counts[0]) if counts else 0.0  # a teacher without questions has no such line

    cpu.up("--wait", "--scale", "teacher=2", "teacher", "gateway")
    before = [asked(1), asked(2)]
    with httpx.Client(headers=_HEADERS, timeout=30) as http:
        for question in distinct_questions(40, seed=4):
            http.post(f"{cpu.url}/policy", json=question.model_dump(mode="json"))
    for index in (1, 2):
        assert 10 <= asked(index) - before[index - 1] <= 30


def test_a_teacher_that_stops_finishes_its_pending_answers(cpu: Stack) -> None:
    cpu.variables |= {"TEACHER_DELAY_MS": "3000"}
    cpu.up("--wait", "--scale", "teacher=1", "teacher", "gateway")
    question = distinct_questions(1, seed=5)[0].model_dump(mode="json")
    with ThreadPoolExecutor() as pool:
        url = f"{cpu.url}/policy"
        asked = pool.submit(lambda: httpx.post(url, json=question, headers=_HEADERS, timeout=30))
        wait_for(lambda: "teacher_pending 1.0" in cpu.python("teacher", _METRICS), "the question", 20)
        cpu.do("stop", "teacher")
        assert asked.result().status_code == 200
    assert cpu.state("teacher")["ExitCode"] == 0


def test_without_a_key_no_authentication_is_required(cpu: Stack) -> None:
    del cpu.variables["API_KEY_FILE"]
    cpu.up("--wait", "teacher", "gateway")
    assert httpx.get(f"{cpu.url}/teacher").status_code == 200
