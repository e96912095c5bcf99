"""A failing episode of a score, played again: what the teacher saw, said and chose, step by step."""

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
from teacher_api.keys import read_key
from teacher_api.schemas import Answer
from teacher_tools.score.asking import Asked, Outcome
from teacher_tools.score.figures import Failure, Score
from teacher_tools.score.scoring import BadScore, read_score
from teacher_tools.score.settings import ReplaySettings
from teacher_tools.score.world import World, actions_of

_ENDS = {"failure": "failure", "time_out": "out of time"}
_TILE = 48
"""Pixels a tile in an animation."""
_SECOND = 1000
"""Milliseconds that a frame is seen."""


def main(settings: ReplaySettings) -> int:
    """Runs the command; returns 0."""
    scored = read_score(settings.score)
    episodes = failing_episodes(scored)
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
    """An episode without success, and who played it: argmax or sampled."""

    env: str
    task: str
    policy: str
    failure: Failure

    @property
    def title(self) -> str:
        """What it was, in a line."""
        count = len(self.failure.actions)
        end = f"{_ENDS[self.failure.end]} after {count} step{'s' * (count != 1)}"
        return f"{self.env}  seed {self.failure.seed}  {self.policy:7}  {end}"


@dataclass(frozen=True)
class Step:
    """What was seen, said and chosen. `action` is the episode's; None at its end, where nobody is asked."""

    number: int
    scene: Scene
    action: str | None
    outcome: Outcome | None
    optimal: tuple[str, ...]


def failing_episodes(score: Score) -> list[Episode]:
    """Those of a score, in the order of its environments, arg-max first."""
    return [
        Episode(env, task.task, policy, failure)
        for env, task in score.tasks.items()
        for policy, played in (("argmax", task.argmax), ("sampled", task.sampled))
        for failure in (played.failures if played else ())
    ]


def choose(episodes: Sequence[Episode], settings: ReplaySettings) -> Episode:
    """The one that the settings name.

    Raises:
        CannotStart: none is, or several are.
    """
    found = [
        episode
        for episode in episodes
        if episode.failure.seed == settings.seed
        and settings.env in (None, episode.env)
        and settings.policy in (None, episode.policy)
    ]
    if not found:
        listed = f"`teacher replay {settings.score}` lists them"
        raise CannotStart(f"--seed: no such episode failed with the seed {settings.seed}; {listed}")
    if len({episode.env for episode in found}) > 1:
        envs = ", ".join(dict.fromkeys(episode.env for episode in found))
        raise CannotStart(f"--env is missing: the seed {settings.seed} failed in {envs}")
    return found[0]


def replay(episode: Episode, identity: str, settings: ReplaySettings) -> Iterator[Step]:
    """Plays the episode's actions again, and asks the teacher about each state on the way.

    Raises:
        BadScore: another teacher answers at the address, or the environment plays differently now.
        TeacherError: the teacher cannot be asked.
    """
    key = read_key(settings.teacher_key_file)
    with TeacherClient(settings.url, deadline_s=settings.teacher_wait_s, key=key) as client:
        now = client.teacher().identity
        if now != identity:
            raise BadScore(f"{settings.url} is {now}, and {settings.score} the score of {identity}")
        asked = Asked(client, actions_of(episode.env), identity)
        world = World(episode.env, episode.task, lambda _: episode.failure.seed)
        scene, ended = world.reset(), False
        for number, action in enumerate(episode.failure.actions):
            if ended:
                break
            (outcome,) = asked.about([scene])
            yield Step(number, scene, action, outcome, _optimal(scene, asked.actions))
            scene, _, terminated, truncated = world.step(ACTIONS.index(action))
            ended = terminated or truncated
        if not ended or world.total != episode.failure.episode_return:
            raise BadScore(
                f"{episode.env} plays differently now than when the score was made: make the score anew"
            )
        yield Step(world.length, scene, None, None, ())


def in_words(step: Step) -> str:
    """The step in a few lines."""
    scene = step.scene
    row, column = scene.here
    saw = f"agent in row {row}, column {column}, heading {scene.heading}; in front: {scene.front}"
    if step.action is None:
        return f"end      {saw}"
    lines = [f"step {step.number:<3} {saw}"]
    if isinstance(step.outcome, Answer):
        lines.append(f"   said  {' '.join(step.outcome.analysis.split())}")
        lines.append(f"   chose {step.action}  ({probabilities(step)})")
    elif step.outcome is not None:
        lines.append(f"   said  nothing that could be read ({step.outcome.status}): {step.outcome.reason}")
        lines.append(f"   drawn {step.action}")
    if step.optimal and step.action not in step.optimal:
        lines.append(f"   optimal: {' or '.join(step.optimal)}")
    return "\n".join(lines)


def probabilities(step: Step) -> str:
    """Those of the answer that are above 0, the largest first."""
    found = (isinstance(step.outcome, Answer) and step.outcome.probabilities) or {}
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{action} {p:.2f}" for action, p in ordered if p >= 0.005)


def animate(steps: Sequence[Step], path: Path) -> None:
    """Writes the steps as an animated GIF, a second each, with mission, action and probabilities below.

    Raises:
        CannotStart: it cannot be written.
    """
    frames = [_frame(step) for step in steps]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=_SECOND, loop=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    except OSError as error:
        raise CannotStart(f"--gif: {path} cannot be written: {error.strerror or error}") from error


def _frame(step: Step) -> Image.Image:
    picture = Image.fromarray(draw(step.scene.view, _TILE))
    optimal = f"; optimal: {' or '.join(step.optimal)}" if step.optimal else ""
    lines = (
        f"step {step.number}: {step.scene.mission}",
        f"{step.action}{optimal}" if step.action else "the end",
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
