"""`student export`: writes a trained student as an ONNX file and measures it beside its teacher."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.tasks import EVALUATION_SEEDS, UnknownTask, task_key
from student.labels.table import LabelTable
from student.runs.onnx_student import (
    INPUT,
    LOGITS,
    VALUES,
    About,
    BadExport,
    ExportedStudent,
    load_exported,
    needed,
)
from student.runs.settings import ExportSettings
from student.runs.trained import Trained, load_trained
from teacher_api.client import QuestionRefused, TeacherError, connect
from teacher_api.files import write_whole
from worlds.world import World, stacked

_BATCH = 64
_TOLERANCE = 1e-4
"""Largest difference to torch's output, as a share of its largest value or of 1: above rounding errors, below
the error of a wrong graph."""
_WARM_UP, _TIMES = 20, 300
"""Runs of the student before and during a measurement."""
_STATES_A_QUESTION = 4
"""States for each question to measure: the teacher's store may know some of them."""
_FIRST_SEED = EVALUATION_SEEDS + 2**30
"""First of the held-out episodes that `student evaluate` does not play."""


@dataclass(frozen=True)
class TeacherLatency:
    """A teacher's latencies in milliseconds, one question at a time over HTTP.

    size: the weights in bytes, None if unknown; fresh: of questions that the teacher answered; stored: of
    questions that its store answered; failed: questions without an answer.
    """

    identity: str
    size: int | None
    fresh: tuple[float, ...]
    stored: tuple[float, ...]
    failed: int


@dataclass(frozen=True)
class ExportReport:
    """An exported student's size in bytes and latency in milliseconds, and a teacher's for the same states.

    one_ms: latency for one observation; batch_ms: for a batch.
    """

    file: Path
    about: About
    size: int
    parameters: int
    one_ms: float
    batch_ms: float
    teacher: TeacherLatency | None


def main(settings: ExportSettings) -> int:
    """Runs the command; returns 0."""
    print(table(export(settings)))
    return 0


def export(settings: ExportSettings) -> ExportReport:
    """Writes a run's student to a file and measures it.

    Raises:
        CannotStart: the run or the file cannot be used; nothing was written.
        TeacherError: the teacher cannot be used (nothing was written), or was lost during the measurement.
    """
    file = settings.out or settings.run / "student.onnx"
    trained = load_trained(settings.run)
    if trained.world.keeps_pictures:
        raise BadExport(
            f"{trained.world.env_id} is not of MiniGrid's kind: only students of those can be exported"
        )
    _check_free(file, settings.overwrite)
    needed("onnxruntime")
    teacher = None if settings.teacher == "none" else _Teacher(settings, trained)
    content = to_onnx(trained)
    student = load_exported(content, str(file))
    states = _states(trained.world, max(_BATCH, settings.questions * _STATES_A_QUESTION))
    _compare(trained, student, states)
    _write(file, content)
    measured = list(range(len(states)))
    latency = None
    if teacher is not None:
        try:
            latency, measured = teacher.measure(states, settings.questions)
        except TeacherError as error:
            raise TeacherError(
                f"{file} was written, but its teacher could not be measured: {error}"
            ) from error
    batch_BK = np.resize(states, (_BATCH, trained.world.length))
    return ExportReport(
        file,
        student.about,
        len(content),
        sum(parameter.numel() for parameter in trained.network.parameters()),
        _median_ms(student.judge, [states[i : i + 1] for i in measured]),
        _median_ms(student.judge, [batch_BK]),
        latency,
    )


def to_onnx(trained: Trained) -> bytes:
    """Returns a student as the content of an ONNX file.

    torch.export proves that the graph takes batches of any size; tracing would fix the size silently.

    Raises:
        BadExport: the extra `export` is not installed.
    """
    onnx = needed("onnx")
    needed("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # a warning that torchvision is not installed
    example_BK = torch.from_numpy(_states(trained.world.copy(), 2))
    network = trained.network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from inside torch
        graph = torch.export.export(
            network, (example_BK,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
        )
        program = torch.onnx.export(
            graph,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[LOGITS, VALUES],
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    model = program.model_proto
    nodes = model.graph
    for part in (nodes, *nodes.node, *nodes.input, *nodes.output, *nodes.value_info, *nodes.initializer):
        part.ClearField("metadata_props")  # source lines and paths of this machine
    onnx.helper.set_model_props(model, _about(trained).lines())
    content: bytes = model.SerializeToString()
    return content


def _about(trained: Trained) -> About:
    width, height = trained.world.size or (0, 0)
    return About(
        env=trained.world.env_id,
        height=height,
        width=width,
        actions=trained.world.actions,
        words=trained.world.words,
        success_above=trained.world.success_above,
        algorithm=trained.settings.algo,
        seed=trained.settings.seed,
        frames=trained.frames,
        teacher=trained.teacher or "none",
    )


def _compare(trained: Trained, student: ExportedStudent, states_SK: NDArray[np.uint8]) -> None:
    """Raises BadExport if the file's output for states, alone or in a batch, differs from the network's."""
    for size in (1, 3, len(states_SK)):
        with torch.inference_mode():
            expected = trained.network(torch.from_numpy(states_SK[:size]))
        for ours, theirs in zip(student.judge(states_SK[:size]), expected, strict=True):
            difference = np.abs(ours - theirs.numpy()).max()
            if not difference <= _TOLERANCE * max(1.0, float(theirs.abs().max())):
                raise BadExport(
                    f"onnxruntime's output is {difference:.1e} away from the network's; nothing was written"
                )


def _check_free(file: Path, overwrite: bool) -> None:
    if file.is_dir():
        raise BadExport(f"{file} is a folder: choose another `out`")
    if file.exists() and not overwrite:
        raise BadExport(f"{file} exists already: choose another `out`, or replace it with `overwrite`")


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise BadExport(f"cannot write {file}: {error.strerror}") from error


def _states(world: World, most: int) -> NDArray[np.uint8]:
    """Returns up to `most` different states of held-out episodes with random actions, uint8 [S, K]."""
    rng = np.random.default_rng(0)
    env = world.environment(lambda episode: _FIRST_SEED + episode)
    obs = env.reset()
    met = {obs: None}  # a set in the order of insertion
    for _ in range(100 * most):  # a small environment may have fewer states
        if len(met) == most:
            break
        obs, _, terminated, truncated = env.step(int(rng.integers(len(world.actions))))
        if terminated or truncated:  # no action follows a last state
            obs = env.reset()
        met[obs] = None
    return stacked(list(met))


def _median_ms(run: Callable[[NDArray[np.uint8]], object], batches: Sequence[NDArray[np.uint8]]) -> float:
    times = []
    for i in range(_WARM_UP + _TIMES):
        batch_BK = batches[i % len(batches)]
        began = time.perf_counter()
        run(batch_BK)
        times.append(time.perf_counter() - began)
    return statistics.median(times[_WARM_UP:]) * 1000


class _Teacher:
    """A teacher whose latency is measured; the constructor asks who it is and whether it knows the task."""

    def __init__(self, settings: ExportSettings, trained: Trained) -> None:
        try:
            task = task_key(trained.world.env_id, settings.task or trained.settings.task)
        except UnknownTask as error:
            raise BadExport(str(error)) from error
        self._client = connect(
            settings.teacher, key_file=settings.teacher_key_file, wait_s=settings.teacher_wait_s
        )
        self._table = LabelTable(trained.world, self._client, task=task)
        trained.world.draws = True
        self._table.start()

    def measure(self, states_SK: NDArray[np.uint8], questions: int) -> tuple[TeacherLatency, list[int]]:
        """Asks about states, one after another, until the teacher itself answered `questions` of them.

        Returns:
            The latencies, and the indices of the states that they were measured with: the states that the
            teacher answered, or else those that its store answered.

        Raises:
            TeacherError: the teacher was lost, or answered no question.
        """
        fresh: dict[int, float] = {}
        stored: dict[int, float] = {}
        refused: list[QuestionRefused] = []
        for i, obs_K in enumerate(states_SK):
            question = self._table.question(obs_K)
            began = time.perf_counter()
            try:
                answer = self._client.ask(question)
            except QuestionRefused as error:
                refused.append(error)
            else:
                (stored if answer.stored else fresh)[i] = (time.perf_counter() - began) * 1000
            if len(fresh) + len(refused) == questions:
                break
        if not fresh and not stored:
            raise TeacherError(f"{self._client.url} answered none of {len(refused)} questions: {refused[0]}")
        info = self._table.info
        latency = TeacherLatency(
            info.identity,
            info.hosting.get("weight_bytes"),
            tuple(fresh.values()),
            tuple(stored.values()),
            len(refused),
        )
        return latency, list(fresh or stored)


def table(report: ExportReport) -> str:
    """Returns the report as lines of text, with the teacher's figures beside the student's."""
    about, teacher = report.about, report.teacher
    head = (
        f"{report.file}: {about.env}, {about.frames} frames of {about.algorithm}, seed {about.seed},"
        f" teacher {about.teacher}"
    )
    rows = [
        ("size", f"{report.size / 1e6:.3f} MB"),
        ("parameters", f"{report.parameters:,}"),
        ("one observation", f"{report.one_ms:.3f} ms"),
        (f"a batch of {_BATCH}", f"{report.batch_ms:.3f} ms"),
    ]
    if teacher is None:
        return "\n".join([head, *(f"{name:18}{ours:>14}" for name, ours in rows)])
    fresh_ms = statistics.median(teacher.fresh) if teacher.fresh else None
    theirs = [
        ("unknown", "") if teacher.size is None else _beside(teacher.size / 1e6, "MB", report.size / 1e6),
        ("", ""),
        ("not measured", "") if fresh_ms is None else _beside(fresh_ms, "ms", report.one_ms),
        ("", ""),
    ]
    lines = [head, f"{'':18}{'student':>14}{'teacher':>16}{'ratio':>12}"]
    for (name, ours), (value, ratio) in zip(rows, theirs, strict=True):
        lines.append(f"{name:18}{ours:>14}{value:>16}{ratio:>12}".rstrip())
    if teacher.stored:
        lines.append(f"{'... from its store':32}{statistics.median(teacher.stored):>13.3f} ms")
    failed = f", {teacher.failed} without an answer" if teacher.failed else ""
    lines.append(
        f"{teacher.identity}: medians of {len(teacher.fresh)} questions that it answered"
        f" and {len(teacher.stored)} that its store answered{failed}"
    )
    return "\n".join(lines)


def _beside(value: float, unit: str, ours: float) -> tuple[str, str]:
    return f"{value:,.3f} {unit}", f"{value / ours:,.0f} x"
