"""Trains a student with a served teacher, and the same student alone, and compares them.

    python -m student.demo [--teacher compact|planner] [--out runs/demo]

Starts a teacher as a process of its own, shows what it says about a picture, trains PPO on LavaGap alone and
with the teacher, draws both learning curves and an animation of the taught student, prints a table and stops
the teacher.
"""

import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from pydantic import Field
from pydantic_settings import BaseSettings

from gridworld.environments import actions_of, make
from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_key
from gridworld.views import view_of
from student.experiments.statistics import samples_to
from student.runs.animation import animate
from student.runs.folder import Run
from student.runs.trained import load_policy
from student.settings import EnvId, TrainSettings
from student.trainer import Stopped, train
from teacher_api.client import TeacherClient, TeacherError
from teacher_api.command_line import CannotStart, Folder, fail, flags_and_variables, flags_of, parse
from teacher_api.files import write_json
from teacher_api.processes import COMPACT, COMPACT_FLAGS, served_teacher
from teacher_api.schemas import Question
from teacher_api.terminal import speak_as

mpl.use("Agg")
from matplotlib import pyplot as plt

_ARMS = {"alone": "PPO alone", "taught": "PPO with the teacher"}
_TEACHERS: dict[str, tuple[str, dict[str, str]]] = {
    "compact": ("A Qwen2.5-VL of 2.8 million parameters", COMPACT_FLAGS),
    "planner": ("The planner", {}),
}
"""Each teacher's name in the output, and its flags of `teacher serve`."""
_THRESHOLD = 0.9


class DemoSettings(BaseSettings):
    """Trains a student alone and with a teacher, and compares them."""

    model_config = flags_and_variables("python -m student.demo", "STUDENT_DEMO_")

    teacher: Literal["compact", "planner"] = Field(
        default="compact",
        description="the teacher; compact: a small Qwen2.5-VL, from checkpoints/compact; planner: an optimal"
        " planner that reads the picture",
    )
    env: EnvId = Field(default="MiniGrid-LavaGapS6-v0", description="the id of a MiniGrid environment")
    frames: int = Field(default=81_920, ge=1, description="training steps of each student")
    seed: int = Field(default=1, ge=0, description="the seed of all random numbers")
    out: Folder = Field(
        default=Path("runs/demo"),
        description="the folder of all results; stored answers in the folder are used again",
    )


def main() -> int:
    """Runs the demo; returns the exit code: 0, or 1 if the demo failed."""
    speak_as("demo", flags_of(DemoSettings))
    try:
        demo(parse(DemoSettings, sys.argv[1:]))
    except (CannotStart, TeacherError, Stopped) as error:
        return fail(error, 1)
    return 0


def demo(settings: DemoSettings) -> None:
    """Trains both arms and writes summary.json, curve.png and student.gif into `settings.out`.

    Raises:
        CannotStart: the checkpoint is missing.
        TeacherError: the teacher did not start, or stopped answering.
        Stopped: a run was interrupted.
    """
    if settings.teacher == "compact" and not COMPACT.is_dir():
        raise CannotStart(
            f"no checkpoint in {COMPACT}: run in a clone of the repository, or set `teacher` to planner"
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    summaries: dict[str, dict[str, Any]] = {}
    name, flags = _TEACHERS[settings.teacher]
    with served_teacher(settings.out / "answers.sqlite3", flags, settings.out / "teacher.log") as address:
        print(f"{name} answers at {address}.")
        _show_an_answer(settings, address)
        arms: dict[str, dict[str, Any]] = {"alone": {}, "taught": {"teacher": address}}
        for arm, own in arms.items():
            print(f"{_ARMS[arm]}: {settings.env}, {settings.frames} frames", flush=True)
            folder = _fresh(settings.out, arm)
            summaries[arm] = train(
                TrainSettings(
                    env=settings.env,
                    frames=settings.frames,
                    seed=settings.seed,
                    out=folder,
                    evaluate_every=512,
                    **own,
                )
            )
            summaries[arm]["frames_to_threshold"] = _frames_to_threshold(folder)
    write_json(
        settings.out / "summary.json", {"env": settings.env, "threshold": _THRESHOLD, "arms": summaries}
    )
    _draw_curves(settings, settings.out / "curve.png")
    world, policy = load_policy(settings.out / "taught")
    animate(policy, world, 4, settings.out / "student.gif")
    _print_table(summaries)
    names = ("summary.json", "curve.png", "student.gif")
    print("\nWritten: " + ", ".join(str(settings.out / name) for name in names))
    print(f"Curves in TensorBoard: tensorboard --logdir {settings.out}")


def _show_an_answer(settings: DemoSettings, address: str) -> None:
    """Asks about the first state of an episode, writes its picture, and prints what the teacher says."""
    env = make(settings.env)
    env.reset(seed=settings.seed)
    picture, file = encode_png(draw(view_of(env))), settings.out / "question.png"
    file.write_bytes(picture)
    task, actions = task_key(settings.env, None), actions_of(env)
    with TeacherClient(address, deadline_s=60) as client:
        answer = client.ask(Question.about(picture, mission=env.mission, task=task, actions=actions))
    assert answer.probabilities is not None
    likely = sorted(answer.probabilities.items(), key=lambda each: -each[1])[:4]
    print(f"About {file} ({env.mission}) it says: {answer.analysis}")
    print("Its probabilities: " + ", ".join(f"{action} {p:.2f}" for action, p in likely), flush=True)


def _fresh(out: Path, arm: str) -> Path:
    """Returns the arm's folder, without the results of an earlier demo."""
    folder = out / arm
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _evaluations(folder: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in Run.open(folder).metrics() if "evaluation_success" in row]
    return [row["frames"] for row in rows], [row["evaluation_success"] for row in rows]


def _frames_to_threshold(folder: Path) -> int | None:
    return samples_to(_THRESHOLD, *_evaluations(folder))


def _draw_curves(settings: DemoSettings, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for arm, name in _ARMS.items():
        axes.plot(*_evaluations(settings.out / arm), label=name)
    axes.axhline(_THRESHOLD, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        title=f"{settings.env}, seed {settings.seed}",
        xlabel="frames",
        ylabel="success on 100 held-out episodes",
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _print_table(summaries: dict[str, dict[str, Any]]) -> None:
    columns = (
        f"frames to {_THRESHOLD}",
        "success",
        "return",
        "questions",
        "from store",
        "seconds",
        "frames/s",
    )
    print(f"\n{'':22}" + "".join(f"{column:>15}" for column in columns))
    for arm, row in summaries.items():
        cells = (
            "never" if row["frames_to_threshold"] is None else str(row["frames_to_threshold"]),
            f"{row['success']:.2f}",
            f"{row['return']:.3f}",
            str(row["questions"]),
            str(row["store_hits"]),
            f"{row['seconds']:.0f}",
            f"{row['frames_per_second']:.0f}",
        )
        print(f"{_ARMS[arm]:22}" + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
