"""`student export`: a trained student in one file that needs no torch, measured beside its teacher."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.tasks import EVALUATION_SEEDS, UnknownTask, task_key
from student.environments import Environment, Layout, Vocabulary, stacked
from student.labels.table import LabelTable
from student.runs.evaluate import Trained, load_trained
from student.runs.exported import (
    INPUT,
    LOGITS,
    VALUES,
    About,
    BadExport,
    ExportedStudent,
    load_exported,
    needed,
)
from student.runs.folder import write_whole
from student.settings import ExportSettings
from teacher_api.client import QuestionRefused, TeacherError, connect

_BATCH = 64
_TOLERANCE = 1e-4
"""How far a figure may be from torch's, as a share of the largest (of 1, where all are smaller): rounding
stays below, and a wrong graph does not."""
_WARM_UP, _TIMES = 20, 300
"""Times that the student is run before and while it is measured."""
_STATES_A_QUESTION = 4
"""States at hand for each question that the teacher's store shall not know."""
_FIRST_SEED = EVALUATION_SEEDS + 2**30
"""Held-out episodes of which `student evaluate` asks nothing."""


@dataclass(frozen=True)
class TeacherFigures:
    """What asking a teacher took, in milliseconds a question, one after another over HTTP.

    fresh: the questions that it had to answer; stored: those that its store knew.
    """

    identity: str
    size: int | None
    fresh: tuple[float, ...]
    stored: tuple[float, ...]
    failed: int


@dataclass(frozen=True)
class Figures:
    """An exported student's size in bytes and latency in milliseconds, and a teacher's on the same states."""

    file: Path
    about: About
    size: int
    parameters: int
    one_ms: float
    batch_ms: float
    teacher: TeacherFigures | None


def main(settings: ExportSettings) -> int:
    """Runs the command; returns 0."""
    print(table(export(settings)))
    return 0


def export(settings: ExportSettings) -> Figures:
    """Writes a run's student into a file and measures it.

    Raises:
        CannotStart: the run or the file cannot be used; nothing was written.
        TeacherError: the teacher cannot be used (nothing was written), or was lost while it was asked.
    """
    file = settings.out or settings.run / "student.onnx"
    trained = load_trained(settings.run)
    _check_free(file, settings.overwrite)
    needed("onnxruntime")
    teacher = None if settings.teacher == "none" else _Teacher(settings, trained)
    content = to_onnx(trained)
    student = load_exported(content, str(file))
    states = _states(trained.layout, student.vocabulary, max(_BATCH, settings.questions * _STATES_A_QUESTION))
    _compare(trained, student, states)
    _write_whole(file, content)
    asked = list(range(len(states)))
    teacher_figures = None
    if teacher is not None:
        try:
            teacher_figures, asked = teacher.measure(states, settings.questions)
        except TeacherError as error:
            raise TeacherError(
                f"{file} is written, but its teacher could not be measured: {error}"
            ) from error
    batch_BK = np.resize(states, (_BATCH, trained.layout.length))
    return Figures(
        file,
        student.about,
        len(content),
        sum(parameter.numel() for parameter in trained.network.parameters()),
        _median_ms(student.judge, [states[i : i + 1] for i in asked]),
        _median_ms(student.judge, [batch_BK]),
        teacher_figures,
    )


def to_onnx(trained: Trained) -> bytes:
    """The content of a student's file.

    torch.export proves that the batch may have any size, where tracing would fix it in silence.

    Raises:
        BadExport: the extra is not installed.
    """
    onnx = needed("onnx")
    needed("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there
    example_BK = torch.from_numpy(_states(trained.layout, Vocabulary(trained.words), 2))
    network = trained.network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
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
        part.ClearField("metadata_props")  # paths and source lines of this machine
    onnx.helper.set_model_props(model, _about(trained).lines())
    content: bytes = model.SerializeToString()
    return content


def _about(trained: Trained) -> About:
    return About(
        env=trained.layout.env_id,
        height=trained.layout.height,
        width=trained.layout.width,
        actions=trained.layout.actions,
        words=trained.words,
        algorithm=trained.settings.algo,
        seed=trained.settings.seed,
        frames=trained.frames,
        teacher=trained.teacher or "none",
    )


def _compare(trained: Trained, student: ExportedStudent, states_SK: NDArray[np.uint8]) -> None:
    """Raises BadExport where the file does not judge states, alone or together, as the run's network does."""
    for size in (1, 3, len(states_SK)):
        with torch.inference_mode():
            expected = trained.network(torch.from_numpy(states_SK[:size]))
        for ours, theirs in zip(student.judge(states_SK[:size]), expected, strict=True):
            difference = np.abs(ours - theirs.numpy()).max()
            if not difference <= _TOLERANCE * max(1.0, float(theirs.abs().max())):
                raise BadExport(
                    f"what onnxruntime computes differs from the run's network by {difference:.1e};"
                    " nothing was written"
                )


def _check_free(file: Path, overwrite: bool) -> None:
    if file.is_dir():
        raise BadExport(f"{file} is a folder: choose another --out")
    if file.exists() and not overwrite:
        raise BadExport(f"{file} is there already: choose another --out, or replace it by --overwrite")


def _write_whole(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        with suppress(OSError):
            file.with_name(f"{file.name}.part").unlink()
        raise BadExport(f"cannot write {file}: {error.strerror}") from error


def _states(layout: Layout, vocabulary: Vocabulary, most: int) -> NDArray[np.uint8]:
    """Up to `most` different states of held-out episodes with random actions, uint8 [S, K]."""
    rng = np.random.default_rng(0)
    env = Environment(layout, vocabulary, lambda episode: _FIRST_SEED + episode)
    row = env.reset()
    met = {row: None}  # a set that keeps its order
    for _ in range(100 * most):  # small environments have fewer states than may be wanted
        if len(met) == most:
            break
        row, _, terminated, truncated = env.step(int(rng.integers(len(layout.actions))))
        if terminated or truncated:  # nobody has to act there
            row = env.reset()
        met[row] = None
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
    """A teacher whose answers are timed; making one asks who it is and whether it knows the task."""

    def __init__(self, settings: ExportSettings, trained: Trained) -> None:
        try:
            task = task_key(trained.layout.env_id, settings.task or trained.settings.task)
        except UnknownTask as error:
            raise BadExport(str(error)) from error
        self._client = connect(
            settings.teacher, key_file=settings.teacher_key_file, wait_s=settings.teacher_wait_s
        )
        self._labels = LabelTable(trained.layout, Vocabulary(trained.words), self._client, task=task)
        self._labels.start()

    def measure(self, states_SK: NDArray[np.uint8], questions: int) -> tuple[TeacherFigures, list[int]]:
        """Asks about one state after another until it had to answer `questions` times itself.

        Returns:
            The figures, and which states they are of: those that it had to answer, else all.

        Raises:
            TeacherError: it was lost, or answered nothing.
        """
        fresh: dict[int, float] = {}
        stored: dict[int, float] = {}
        refused: list[QuestionRefused] = []
        for i, row in enumerate(states_SK):
            question = self._labels.question(row)
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
        info = self._labels.info
        figures = TeacherFigures(
            info.identity,
            info.hosting.get("weight_bytes"),
            tuple(fresh.values()),
            tuple(stored.values()),
            len(refused),
        )
        return figures, list(fresh or stored)


def table(figures: Figures) -> str:
    """The figures as lines of text, a teacher's beside the student's."""
    about, teacher = figures.about, figures.teacher
    head = (
        f"{figures.file}: {about.env}, {about.frames} frames of {about.algorithm}, seed {about.seed},"
        f" teacher {about.teacher}"
    )
    rows = [
        ("size", f"{figures.size / 1e6:.3f} MB"),
        ("parameters", f"{figures.parameters:,}"),
        ("one observation", f"{figures.one_ms:.3f} ms"),
        (f"a batch of {_BATCH}", f"{figures.batch_ms:.3f} ms"),
    ]
    if teacher is None:
        return "\n".join([head, *(f"{name:18}{ours:>14}" for name, ours in rows)])
    fresh_ms = statistics.median(teacher.fresh) if teacher.fresh else None
    theirs = [
        ("unknown", "") if teacher.size is None else _beside(teacher.size / 1e6, "MB", figures.size / 1e6),
        ("", ""),
        ("not measured", "") if fresh_ms is None else _beside(fresh_ms, "ms", figures.one_ms),
        ("", ""),
    ]
    lines = [head, f"{'':18}{'student':>14}{'teacher':>16}{'ratio':>12}"]
    for (name, ours), (value, ratio) in zip(rows, theirs, strict=True):
        lines.append(f"{name:18}{ours:>14}{value:>16}{ratio:>12}".rstrip())
    if teacher.stored:
        lines.append(f"{'... from its store':32}{statistics.median(teacher.stored):>13.3f} ms")
    failed = f", {teacher.failed} without an answer" if teacher.failed else ""
    lines.append(
        f"{teacher.identity}: medians of {len(teacher.fresh)} questions that it had to answer"
        f" and {len(teacher.stored)} that its store knew{failed}"
    )
    return "\n".join(lines)


def _beside(value: float, unit: str, ours: float) -> tuple[str, str]:
    return f"{value:,.3f} {unit}", f"{value / ours:,.0f} x"
