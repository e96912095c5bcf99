"""Animations of held-out episodes: picture, mission, action, and the probabilities of all actions."""

import math
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gridworld.pictures import Picture
from gridworld.tasks import EVALUATION_SEEDS
from student.runs.policies import Policy, choose
from worlds.world import Environment, World, stacked

_SIDE = 448
"""Approximate pixels of a picture's longer side."""
_WIDTH = 300
"""Width of the text beside the picture, in pixels."""
_LINE = 22
_FONT = ImageFont.load_default(16)
_CHARACTERS = 34
"""Characters in a line of the text."""
_MISSION_LINES = 6
_BAR = 110
_INK, _QUIET, _CHOSEN, _OTHER = "#1c1c1a", "#62625c", "#D55E00", "#9db8cc"
_MILLISECONDS, _AT_THE_END = 400, 1600


def animate(policy: Policy, world: World, episodes: int, file: Path) -> None:
    """Writes a GIF of the first `episodes` held-out episodes, played with the most probable actions.

    Raises:
        OSError: the file cannot be written.
    """
    env = world.environment(lambda episode: EVALUATION_SEEDS + episode)
    images, milliseconds = [], []
    for episode in range(episodes):
        for image in _episode(policy, world, env, f"episode {episode + 1} of {episodes}"):
            images.append(image.quantize(256, Image.Quantize.FASTOCTREE))  # a third of the memory
            milliseconds.append(_MILLISECONDS)
        milliseconds[-1] = _AT_THE_END
    first, *rest = images
    file.parent.mkdir(parents=True, exist_ok=True)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _episode(policy: Policy, world: World, env: Environment, title: str) -> Iterator[Image.Image]:
    """Yields an image for each step, with the action to be taken, and one for the episode's last state."""
    obs, step, ended = env.reset(), 0, False
    while not ended:
        obs_1K = stacked([obs])
        log_probs_A = policy(obs_1K)[0]
        action = int(choose(log_probs_A[np.newaxis], None)[0])
        mission = world.mission(obs_1K[0])
        shown = f"{title}, step {step}"
        yield _image(env.picture(_SIDE), mission, world.actions, shown, np.exp(log_probs_A), action)
        obs, _, terminated, truncated = env.step(action)
        step, ended = step + 1, terminated or truncated
    outcome = "success" if env.total > world.success_above else "failure" if terminated else "out of time"
    title = f"{title}: {outcome}, return {env.total:.2f}"
    yield _image(env.picture(_SIDE), world.mission(stacked([obs])[0]), world.actions, title, None, None)


def _image(
    shown: Picture,
    mission: str,
    actions: tuple[str, ...],
    title: str,
    probs_A: NDArray[np.float32] | None,
    action: int | None,
) -> Image.Image:
    """Returns a state's picture with text and bars beside it."""
    picture = Image.fromarray(shown)
    lines = [(_QUIET, line) for line in wrap(title, _CHARACTERS)]
    shortened = wrap(mission or "no mission", _CHARACTERS, max_lines=_MISSION_LINES, placeholder=" ...")
    lines += [(_INK, line) for line in ("", *shortened, "")]
    # The same height for all images: two lines of title, the mission between empty lines, the actions
    height = max(picture.height, _LINE * (2 + 1 + _MISSION_LINES + 1 + len(actions) + 1))
    image = Image.new("RGB", (picture.width + _WIDTH, height), "white")
    image.paste(picture, (0, 0))
    pen, x, y = ImageDraw.Draw(image), picture.width + 16, 10
    for colour, line in lines:
        pen.text((x, y), line, fill=colour, font=_FONT)
        y += _LINE
    for number, (name, probability) in enumerate(
        zip(actions, probs_A if probs_A is not None else (), strict=False)
    ):
        colour, bar = (_CHOSEN, _CHOSEN) if number == action else (_QUIET, _OTHER)
        pen.text((x, y), name, fill=colour, font=_FONT)
        width = math.ceil(_BAR * float(probability))
        pen.rectangle((x + 80, y + 3, x + 80 + width, y + _LINE - 5), fill=bar)
        pen.text((x + 90 + _BAR, y), f"{probability:.2f}", fill=colour, font=_FONT)
        y += _LINE
    return image
