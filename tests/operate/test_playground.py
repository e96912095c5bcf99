"""The playground in a real headless Chromium. The tests also take the pictures in docs/assets/."""

import base64
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gridworld.tasks import TASKS
from teacher_server.prompting.prompt_set import load_prompt_set
from tests.conftest import AskAbout, StartTeacher, TeacherProcess, started_teachers
from tests.waiting import LONG_S, wait_until_ready
from tools.random_checkpoint import make_checkpoint, shortened

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright: pip install 'lvlm2p[operate]'")
Browser, Page = playwright.Browser, playwright.Page
expect = playwright.expect
expect.set_options(timeout=60_000)

_CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
_DOCS = Path(__file__).parents[2] / "docs/assets"
_USUAL = {"viewport": {"width": 1400, "height": 900}, "reduced_motion": "reduce"}
_LARGEST = 200_000
"""Bytes of a picture in docs/assets/."""

pytestmark = [
    pytest.mark.operate,
    pytest.mark.skipif(not _CHROMIUM, reason="no Chromium: apt-get install chromium, or CHROMIUM=its path"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's own refuses to work for root
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=["--disable-gpu", *sandbox])
        yield browser
        browser.close()


class Watched:
    """A page, its requests and its errors."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**_USUAL | options)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message: Any) -> None:
        # The browser itself logs each response of 4xx and 5xx
        if message.type in ("error", "warning") and "the server responded with a status" not in message.text:
            self.errors.append(message.text)

    def open(self, teacher: TeacherProcess) -> Any:
        return self.open_at(teacher.url)

    def open_at(self, url: str, path: str = "") -> Any:
        """Opens a page; all its requests must be below the URL."""
        self._url = url
        self.page.goto(url + path)
        return self.page

    def check(self) -> None:
        assert self.errors == []
        inside = (f"{self._url}/", f"{self._url}?", "data:", "blob:")
        outside = [url for url in self.requests if url != self._url and not url.startswith(inside)]
        assert outside == []


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    watched.context.close()
    watched.check()


def _settled(page: Any) -> None:
    """Waits until the answer about the present picture is shown."""
    expect(page.locator("#said")).not_to_have_class(re.compile("stale"))
    expect(page.locator(".bar.best")).to_have_count(1)


def _bars(page: Any, who: str) -> dict[str, str]:
    """Returns the number beside the bar of each action."""
    return {
        bar.get_attribute("data-action"): bar.locator(f".number.{who}").inner_text()
        for bar in page.locator(".bar").all()
    }


def _question_of(page: Any) -> dict[str, Any]:
    """Returns the question that the page asks, made without the page."""
    env_id, seed = page.locator("#env").input_value(), int(page.locator("#seed").input_value())
    taken = [title.split(": ")[1] for title in _titles(page)]
    base = page.url.rstrip("/")
    moment = {"env_id": env_id, "seed": seed, "actions": taken}
    scene = httpx.post(f"{base}/playground/scene", json=moment).json()
    task = page.locator("#task").input_value()
    asked = {"task": task, "actions": TASKS[task].useful}
    return {"image": scene["image"], "mission": scene["mission"], **asked}


def _titles(page: Any) -> list[str]:
    return [button.get_attribute("title") for button in page.locator("#trail button").all()]


def _picture(page: Any, file: str) -> None:
    """Takes a picture for the documentation, in few colours so that the file is small."""
    page.mouse.move(0, 0)
    path = _DOCS / file
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        image.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    assert path.stat().st_size < _LARGEST


# The planner


def test_a_question_is_asked_and_shown_beside_the_planner(
    watched: Watched, teacher_process: StartTeacher
) -> None:
    teacher = teacher_process("--noise", "0.5")
    page = watched.open(teacher)
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#identity")).to_have_text(httpx.get(f"{teacher.url}/teacher").json()["identity"])
    page.get_by_label("Task").select_option("fetch")
    page.get_by_label("Environment").select_option("MiniGrid-Fetch-8x8-N3-v0")
    mistakes = 0
    for seed in range(1, 9):
        page.get_by_label("Seed").fill(str(seed))
        with page.expect_response(f"{teacher.url}/playground/scene"):
            page.get_by_label("Seed").press("Enter")
        _settled(page)
        question = _question_of(page)
        expect(page.get_by_label("Mission")).to_have_value(question["mission"])
        asked, planned = (
            httpx.post(f"{teacher.url}/{path}", json=question).json()
            for path in ("policy", "playground/planner")
        )
        assert asked["stored"]
        for who, answer in (("teacher", asked), ("planner", planned)):
            told = {action: f"{p:.3f}" for action, p in answer["probabilities"].items()}
            assert _bars(page, who) == told
        best = page.locator(".bar.best")
        assert best.get_attribute("data-action") == asked["action"]
        width = best.locator(".track.teacher .fill").evaluate("fill => parseFloat(fill.style.width)")
        assert width == pytest.approx(100 * max(asked["probabilities"].values()), abs=0.01)
        optimal = planned["probabilities"][asked["action"]] == max(planned["probabilities"].values())
        mistakes += not optimal
        expect(page.locator("#agreement")).to_contain_text("is optimal" if optimal else "optimal:")
        expect(page.locator("#analysis")).to_have_text(asked["analysis"])
        shown = page.locator("#picture").evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert shown == [8 * 28, 8 * 28]
    assert 0 < mistakes < 8
    expect(page.locator("#templates-hint")).to_contain_text("has no prompt templates")
    expect(page.locator("#mode")).to_be_hidden()
    page.get_by_text("Details").click()
    expect(page.locator("#description")).to_contain_text("noise")


@pytest.mark.parametrize("task", ["lava_gap", "fetch"])
def test_keys_step_through_an_episode_to_success(
    watched: Watched, shared_teacher: TeacherProcess, task: str
) -> None:
    page = watched.open(shared_teacher)
    page.get_by_label("Task").select_option(task)
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Enter")
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text("Step 0")
    page.locator("h1").click()  # so that no field takes the keys
    for step in range(1, 40):
        _settled(page)
        page.keyboard.press("t")
        expect(outcome).to_contain_text(re.compile(rf"Step {step} |after {step} steps"))
        if outcome.get_attribute("data-end"):
            break
    expect(outcome).to_contain_text("Success: return 0.")
    assert len(_titles(page)) == step
    expect(page.get_by_role("button", name="Ask", exact=False).first).to_be_disabled()
    for button in page.locator("#actions button").all():
        expect(button).to_be_disabled()
    if task == "lava_gap":
        page.keyboard.press("Backspace")
        expect(outcome).to_contain_text(f"Step {step - 1} ")
        page.locator("#trail button").first.click()
        expect(outcome).to_contain_text("Step 1 ")
        _settled(page)
        _picture(page, "playground.png")
        page.get_by_role("button", name="Play").click()
        expect(outcome).to_contain_text("Success: return 0.")


def test_keys_take_actions_except_in_fields(watched: Watched, shared_teacher: TeacherProcess) -> None:
    page = watched.open(shared_teacher)
    _settled(page)
    page.locator("h1").click()
    for count, (key, action) in enumerate(
        (("ArrowRight", "right"), ("ArrowUp", "forward"), ("ArrowLeft", "left")), 1
    ):
        page.keyboard.press(key)
        expect(page.locator("#trail button")).to_have_count(count)
        assert _titles(page)[-1] == f"{count}: {action}"
    page.keyboard.press("p")  # not an action of this task
    page.get_by_label("Mission").click()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("t")
    expect(page.locator("#trail button")).to_have_count(3)
    page.get_by_label("Seed").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#outcome")).to_contain_text("Step 0")
    assert page.get_by_label("Seed").input_value() == "1"


def test_a_picture_is_dropped(watched: Watched, shared_teacher: TeacherProcess, ask_about: AskAbout) -> None:
    page = watched.open(shared_teacher)
    _settled(page)
    page.get_by_label("Task").select_option("go_to_door")
    question = ask_about("MiniGrid-GoToDoor-6x6-v0", seed=5, tile=20)
    dropped = """([base64, name]) => {
        const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], name));
        const event = new DragEvent("drop", { bubbles: true, dataTransfer: data });
        document.getElementById("drop").dispatchEvent(event);
    }"""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/policy" in request.url else None)
    page.get_by_label("Task").select_option("fetch")
    _settled(page)
    del asked[:]
    page.evaluate(dropped, [question.image, "grid.png"])
    expect(page.locator("#outcome")).to_contain_text("Your own picture")
    expect(page.locator("#caption")).to_contain_text("120 × 120 px · 6 × 6 cells of 20 px")
    # Nothing is asked before the user presses Ask
    mission = page.get_by_label("Mission")
    expect(mission).to_have_value("")  # the mission of the previous episode is cleared
    page.get_by_label("Task").select_option("lava_gap")
    expect(mission).to_have_value("avoid the lava and get to the green goal square")
    page.get_by_label("Task").select_option("go_to_door")
    expect(mission).to_have_value("")
    mission.fill(question.mission)
    mission.press("Tab")
    expect(page.locator(".bar.best")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    assert asked == []
    page.get_by_role("button", name="Ask A").click()
    _settled(page)
    assert len(asked) == 1
    answer = httpx.post(f"{shared_teacher.url}/policy", json=question.model_dump()).json()
    assert _bars(page, "teacher") == {action: f"{p:.3f}" for action, p in answer["probabilities"].items()}

    page.evaluate(dropped, [base64.b64encode(b"not a picture").decode(), "notes.txt"])
    expect(mission).to_have_value(question.mission)  # kept for the next picture
    page.get_by_role("button", name="Ask A").click()
    expect(page.locator("#answer-error")).to_contain_text("neither a PNG nor a JPEG")
    expect(page.locator("#scene-error")).to_contain_text("neither a PNG nor a JPEG")
    page.locator("#file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": base64.b64decode(question.image)}
    )
    expect(page.locator("#scene-error")).to_be_empty()
    page.get_by_role("button", name="Ask A").click()
    _settled(page)
    page.get_by_role("button", name="Restart").click()
    expect(page.locator("#outcome")).to_contain_text("Step 0")


def test_a_teachers_text_is_never_html(
    watched: Watched, shared_teacher: TeacherProcess, ask_about: AskAbout
) -> None:
    page = watched.open(shared_teacher)
    _settled(page)
    page.get_by_label("Task").select_option("go_to_door")
    _settled(page)
    mission = "<img src=x onerror=alert(1)><b>bold</b>"
    page.get_by_label("Mission").fill(mission)
    page.get_by_label("Mission").press("Tab")
    expect(page.locator("#answer-error")).to_contain_text(mission)  # quoted in the planner's error
    assert page.locator("main b, main img:not(#picture)").count() == 0


def test_the_page_survives_a_restart_of_the_teacher(watched: Watched, teacher_process: StartTeacher) -> None:
    teacher = teacher_process()
    page = watched.open(teacher)
    _settled(page)
    teacher.kill()
    expect(page.locator("#readiness")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Ask").first.click(force=True)
    teacher.restart()
    expect(page.locator("#readiness")).to_have_text("ready")
    page.locator("h1").click()
    page.keyboard.press("a")
    _settled(page)
    watched.errors = [error for error in watched.errors if "ERR_CONNECTION_REFUSED" not in error]


@pytest.mark.parametrize("width", [320, 390, 700, 1000, 1920])
def test_nothing_is_cut_off_and_nothing_jumps(
    browser: Any, shared_teacher: TeacherProcess, width: int
) -> None:
    watched = Watched(browser, viewport={"width": width, "height": 900}, color_scheme="dark")
    page = watched.open(shared_teacher)
    _settled(page)
    page.get_by_text("Details").click()
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    cut = page.evaluate(
        "[...document.querySelectorAll('button, .card, .tabs, select')]"
        ".filter((e) => e.clientWidth && e.getBoundingClientRect().right >"
        " e.parentElement.getBoundingClientRect().right + 1).map((e) => e.outerHTML)"
    )
    assert cut == []
    shown = "[...document.querySelectorAll('.card, #bars, #outcome, #said > h3')]"
    places = f"{shown}.map((e) => e.getBoundingClientRect().top)"
    before = page.evaluate(places)
    page.locator("h1").click()
    for _ in range(3 if width >= 680 else 0):  # in one column, what moves is out of view
        page.keyboard.press("t")
        page.wait_for_timeout(30)
        assert page.evaluate(places)[: len(before)] == before
        _settled(page)
    watched.context.close()
    watched.check()


def test_the_page_asks_for_the_key(watched: Watched, teacher_process: StartTeacher, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("open sesame\n")
    teacher = teacher_process("--api-key-file", str(tmp_path / "key"))
    page = watched.open(teacher)
    dialog = page.get_by_role("dialog", name="This teacher requires a key")
    expect(dialog).to_be_visible()
    assert page.locator("#identity").inner_text() == "…"
    page.get_by_label("Key", exact=True).fill("open barley")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#key-error")).to_contain_text("does not accept this key")
    page.get_by_label("Key", exact=True).fill("open sesame")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    _settled(page)
    page.reload()  # this tab keeps the key
    _settled(page)
    assert "sesame" not in page.content() + "".join(watched.requests)
    other = Watched(page.context.browser)  # another tab does not
    expect(other.open(teacher).get_by_role("dialog")).to_be_visible()
    other.context.close()


_PREFIX = "/user/ann/teacher"


class _Prefixing(BaseHTTPRequestHandler):
    """A proxy that strips a path prefix, as JupyterHub and nginx do, and adds no headers."""

    backend = ""

    def do_GET(self) -> None:
        if not f"{self.path}/".startswith(f"{_PREFIX}/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = {"Content-Type": self.headers.get("Content-Type") or ""}
        path = self.path.removeprefix(_PREFIX) or "/"
        reply = httpx.request(self.command, self.backend + path, content=body, headers=sent)
        self.send_response(reply.status_code)
        for name in ("Content-Type", "Content-Security-Policy", "Location"):
            if name in reply.headers:
                self.send_header(name, reply.headers[name])
        self.end_headers()
        self.wfile.write(reply.content)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def prefixed(shared_teacher: TeacherProcess) -> Iterator[str]:
    """Returns the address of the shared teacher behind a proxy."""
    handler = type("Handler", (_Prefixing,), {"backend": shared_teacher.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}{_PREFIX}"
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/"])
def test_behind_a_path_prefix_the_page_works(watched: Watched, prefixed: str, path: str) -> None:
    watched.open_at(prefixed, path)
    _settled(watched.page)
    watched.page.reload()
    _settled(watched.page)
    # Without the final slash the browser requests the styles before the script adds the slash
    watched.errors = [error for error in watched.errors if "MIME" not in error]
    beside = f"{prefixed.rpartition('/')[0]}/page/"
    watched.requests = [url for url in watched.requests if path == "/" or not url.startswith(beside)]


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_behind_a_path_prefix_the_examples_of_the_docs_are_answered(
    watched: Watched, prefixed: str, path: str
) -> None:
    watched.open_at(prefixed, path)
    page = watched.page
    groups = page.locator(".opblock-tag")
    expect(groups).to_have_count(3)
    for name in ("Ask a question", "Ask a batch of questions"):
        call = page.locator(".opblock", has_text=name)
        call.locator(".opblock-summary-control").click()
        call.get_by_role("button", name="Try it out").click()
        call.get_by_role("button", name="Execute").click()
        expect(call.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")


# A prompted teacher


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[TeacherProcess]:
    """A teacher whose analyses are complete."""
    prompts = shortened(load_prompt_set("minigrid"), tmp_path_factory.mktemp("prompts") / "minigrid")
    flags = ("--teacher", "prompted", "--engine", "transformers", "--model", str(checkpoint))
    with started_teachers(tmp_path_factory) as start:
        teacher = start(*flags, "--prompts", str(prompts), "--min-label-mass", "0")
        wait_until_ready(teacher)
        yield teacher


def test_a_prompted_teacher_is_asked_again_with_edited_templates(
    watched: Watched, prompted: TeacherProcess
) -> None:
    page = watched.open(prompted)
    _settled(page)
    question = _question_of(page)
    served = httpx.post(f"{prompted.url}/policy", json=question, timeout=LONG_S).json()
    assert served["stored"]
    told = {action: f"{p:.3f}" for action, p in served["probabilities"].items()}
    assert _bars(page, "teacher") == told
    expect(page.locator("#raw-analysis")).to_have_text(served["stages"]["analysis"]["text"])
    expect(page.locator("#raw-action")).to_have_text(served["stages"]["action"]["text"])
    expect(page.locator("#times")).to_contain_text("label mass")
    said = json.loads(served["analysis"], strict=False)
    expect(page.locator("#analysis dt")).to_have_text(list(said))
    size = page.locator("#picture").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [7 * 56, 7 * 56]  # six cells and the margin
    expect(page.locator("#caption")).to_contain_text(
        "196 visual tokens · 6 × 6 cells of 56 px · numbered margin"
    )
    page.get_by_label("original").check()
    assert page.locator("#picture").evaluate("image => image.naturalWidth") == 6 * 28
    page.get_by_label("as the teacher sees it").check()

    area = page.get_by_label("Template action-labels.txt")
    source = area.input_value()
    again = page.get_by_role("button", name="Ask with these")
    expect(again).to_be_disabled()
    area.fill("Choose {% for action in actions %}{{ action.label }} {% endfor %}now.")
    again.click()
    expect(page.locator("#progress")).to_contain_text("edited templates, not stored · prompted-")
    _settled(page)
    assert _bars(page, "teacher") != told
    _picture(page, "playground-prompted.png")

    question_area = page.get_by_label("Template question.txt")
    shown = question_area.input_value()
    area.fill(source)
    question_area.fill("What is there?")
    again.click()
    expect(page.locator("#answer-error")).to_have_text("question.txt is not valid: see below.")
    expect(page.locator(".template.bad .error")).to_contain_text("shows the picture 0 times")
    assert page.locator(".template.bad h3").inner_text() == "question.txt"
    page.get_by_role("button", name="Reset question.txt").click()
    assert question_area.input_value() == shown
    expect(again).to_be_disabled()
    page.get_by_role("button", name="Ask A").click()
    expect(page.locator("#progress")).to_have_text("from the store")
    _settled(page)
    assert _bars(page, "teacher") == told


def test_an_answer_that_cannot_be_read_is_shown_raw(
    watched: Watched, teacher_process: StartTeacher, checkpoint: Path
) -> None:
    flags = ("--teacher", "prompted", "--engine", "transformers", "--model", str(checkpoint))
    teacher = teacher_process(*flags, "--prompts", "minigrid-zero-shot", "--min-label-mass", "0.9999")
    wait_until_ready(teacher)
    page = watched.open(teacher)
    expect(page.locator("#answer-error")).to_contain_text("(502)")
    expect(page.locator("#raw-analysis")).not_to_be_empty()
    expect(page.locator("#raw-analysis")).to_be_visible()
    assert all(number == "–" for number in _bars(page, "teacher").values())
    assert all(number != "–" for number in _bars(page, "planner").values())
