"""`teacher replay`: lists failed episodes of a score, or replays one step by step."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gridworld.pictures import draw
from gridworld.planner import NoPlan, plan
from gridworld.scenes import Scene
from gridworld.tasks import ACTIONS
from teacher_api.client import TeacherClient
from teacher_api.command_line import CannotStart
from teacher_api.files import writing
from teacher_api.keys import read_key
from teacher_api.schemas import Answer
from teacher_tools.score.answers import CachedAnswers, Outcome
from teacher_tools.score.episodes import SceneEnvironment, actions_of
from teacher_tools.score.results import Failure, Score
from teacher_tools.score.scoring import BadScore, read_score
from teacher_tools.score.settings import ReplaySettings

_ENDS = {"failure": "failure", "time_out": "out of time"}
_TILE = 48
"""Pixels of a tile in an animation."""
_FRAME_MS = 1000


def main(settings: ReplaySettings) -> int:
    """Runs the command; returns 0."""
    scored = read_score(settings.score)
    episodes = failed_episodes(scored)
    if settings.seed is None:
        print("\n".join(episode.title for episode in episodes) or "no episode failed")
        return 0
    episode = choose(episodes, settings)
    steps: list[Step] = []
    for step in replay(episode, scored.identity, settings):
        if not steps:
            print(f"{episode.title}\n{step.scene.mission}\n")
        print(in_words(step), flush=True)
        steps.append(step)
    if settings.gif is not None:
        animate(steps, settings.gif)
        print(f"\nWritten: {settings.gif}")
    return 0


@dataclass(frozen=True)
class Episode:
    """A failed episode, and its policy: argmax or sampled."""

    env: str
    task: str
    policy: str
    failure: Failure

    @property
    def title(self) -> str:
        """One line that describes the episode."""
        count = len(self.failure.actions)
        end = f"{_ENDS[self.failure.end]} after {count} step{'s' * (count != 1)}"
        return f"{self.env}  seed {self.failure.seed}  {self.policy:7}  {end}"


@dataclass(frozen=True)
class Step:
    """A scene, the teacher's outcome and the episode's action; both are None at the end of the episode."""

    number: int
    scene: Scene
    action: str | None
    outcome: Outcome | None
    optimal: tuple[str, ...]


def failed_episodes(score: Score) -> list[Episode]:
    """Returns the failed episodes of a score, by environment, with arg-max first."""
    return [
        Episode(env, task.task, policy, failure)
        for env, task in score.tasks.items()
        for policy, played in (("argmax", task.argmax), ("sampled", task.sampled))
        for failure in (played.failures if played else ())
    ]


def choose(episodes: Sequence[Episode], settings: ReplaySettings) -> Episode:
    """Returns the episode that the settings select.

    Raises:
        CannotStart: the settings select none, or episodes of several environments.
    """
    found = [
        episode
        for episode in episodes
        if episode.failure.seed == settings.seed
        and settings.env in (None, episode.env)
        and settings.policy in (None, episode.policy)
    ]
    if not found:
        listed = f"`teacher replay {settings.score}` lists the failed ones"
        raise CannotStart(f"`seed`: no selected episode failed with seed {settings.seed}; {listed}")
    if len({episode.env for episode in found}) > 1:
        envs = ", ".join(dict.fromkeys(episode.env for episode in found))
        raise CannotStart(f"`env` is missing: seed {settings.seed} failed in {envs}")
    return found[0]


def replay(episode: Episode, identity: str, settings: ReplaySettings) -> Iterator[Step]:
    """Replays the episode's actions, and asks the teacher about each state.

    Raises:
        BadScore: another teacher answers at the address, or the environment behaves differently now.
        TeacherError: the teacher cannot be reached.
    """
    key = read_key(settings.teacher_key_file)
    with TeacherClient(settings.url, deadline_s=settings.teacher_wait_s, key=key) as client:
        now = client.teacher().identity
        if now != identity:
            raise BadScore(f"{settings.url} is {now}, but {settings.score} is the score of {identity}")
        answers = CachedAnswers(client, actions_of(episode.env), identity)
        environment = SceneEnvironment(episode.env, episode.task, lambda _: episode.failure.seed)
        scene, ended = environment.reset(), False
        for number, action in enumerate(episode.failure.actions):
            if ended:
                break
            (outcome,) = answers.about([scene])
            yield Step(number, scene, action, outcome, _optimal(scene, answers.actions))
            scene, _, terminated, truncated = environment.step(ACTIONS.index(action))
            ended = terminated or truncated
        if not ended or environment.total != episode.failure.episode_return:
            raise BadScore(
                f"{episode.env} behaves differently than when the score was made: score the teacher again"
            )
        yield Step(environment.length, scene, None, None, ())


def in_words(step: Step) -> str:
    """Returns a step as a few lines of text."""
    scene = step.scene
    row, column = scene.here
    seen = f"agent in row {row}, column {column}, heading {scene.heading}; in front: {scene.front}"
    if step.action is None:
        return f"end      {seen}"
    lines = [f"step {step.number:<3} {seen}"]
    if isinstance(step.outcome, Answer):
        lines.append(f"   analysis {' '.join(step.outcome.analysis.split())}")
        lines.append(f"   chose {step.action}  ({probabilities(step)})")
    elif step.outcome is not None:
        lines.append(f"   no answer ({step.outcome.status}): {step.outcome.reason}")
        lines.append(f"   random action {step.action}")
    if step.optimal and step.action not in step.optimal:
        lines.append(f"   optimal: {' or '.join(step.optimal)}")
    return "\n".join(lines)


def probabilities(step: Step) -> str:
    """Returns the answer's probabilities of at least 0.005 as text, the largest first."""
    found = (isinstance(step.outcome, Answer) and step.outcome.probabilities) or {}
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{action} {p:.2f}" for action, p in ordered if p >= 0.005)


def animate(steps: Sequence[Step], path: Path) -> None:
    """Writes an animated GIF, a second for each step, with mission, action and probabilities below.

    Raises:
        CannotStart: the file cannot be written.
    """
    frames = [_frame(step) for step in steps]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    with writing("gif", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())


def _frame(step: Step) -> Image.Image:
    picture = Image.fromarray(draw(step.scene.view, _TILE))
    optimal = f"; optimal: {' or '.join(step.optimal)}" if step.optimal else ""
    lines = (
        f"step {step.number}: {step.scene.mission}",
        f"{step.action}{optimal}" if step.action else "end of the episode",
        probabilities(step),
    )
    font = ImageFont.load_default(14)
    width = max(picture.width, 360, *(int(font.getlength(line)) + 16 for line in lines))
    frame = Image.new("RGB", (width, picture.height + 24 * len(lines)), "white")
    frame.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(frame)
    for i, line in enumerate(lines):
        pen.text((8, picture.height + 4 + 23 * i), line, fill="black", font=font)
    return frame


def _optimal(scene: Scene, actions: Sequence[str]) -> tuple[str, ...]:
    try:
        return plan(scene.view, scene.task, scene.mission, actions).best
    except NoPlan:
        return ()
