"""Makes a prompt set's few-shot examples from its examples.toml: states, exactly analysed.

    python prompts/make_examples.py SET        a name (a folder beside this file) or a folder

examples.toml lists, by family, the environment's id, its seed, the actions before the picture is taken and
what the example covers. Each entry becomes examples/<family>/NN.png and NN.json. Equal lists give equal
bytes.
"""

import json
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import toy_text_examples

from gridworld.pictures import Picture, draw, encode_png
from gridworld.planner import plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ACTIONS, TASKS
from gridworld.views import HEADINGS, STEPS, view_of


@dataclass(frozen=True)
class Example(Scene):
    """A scene with its analysis."""

    def beside(self, heading: int) -> Cell:
        """Returns the cell next to the agent in a direction."""
        dx, dy = STEPS[heading]
        return self.view.y + dy, self.view.x + dx

    def _steps_to(self, cell: Cell) -> int:
        return abs(cell[0] - self.here[0]) + abs(cell[1] - self.here[1])

    @property
    def target(self) -> Cell:
        """The nearest of the mission's targets."""
        return min(self.targets, key=self._steps_to)

    @property
    def stop(self) -> Cell:
        """The free cell beside the target that is nearest to the agent."""
        sides = [(self.target[0] + dy, self.target[1] + dx) for dx, dy in STEPS]
        free = set(self.cells("free floor"))
        return min((cell for cell in sides if cell in free), key=self._steps_to)

    @property
    def picture(self) -> Picture:
        """The scene as MiniGrid draws it."""
        return draw(self.view)

    @property
    def probabilities(self) -> dict[str, float]:
        """The planner's probabilities."""
        return plan(self.view, self.task, self.mission, TASKS[self.task].useful).probabilities

    def best(self) -> str:
        """Returns the planner's best action; see `best_of`."""
        return toy_text_examples.best_of(self.probabilities)

    def path_heading(self) -> int:
        """Returns the heading in which the best path leaves this cell, or ends."""
        scene, best = self, self.best()
        for _ in range(3):
            if best not in ("left", "right"):
                break
            turn = -1 if best == "left" else 1
            scene = replace(scene, view=replace(scene.view, heading=(scene.view.heading + turn) % 4))
            ranked = scene.probabilities
            best = max(ranked, key=lambda action: ranked[action])
        return scene.view.heading

    def analysis(self) -> dict[str, Any]:
        """Returns a perfect analysis."""
        return {
            "agent": {"row": self.here[0], "column": self.here[1], "heading": self.heading},
            "target": {"name": self.name(self.target), "row": self.target[0], "column": self.target[1]},
            "hazards": [list(cell) for cell in self.hazards],
            "front": self.front,
            "direction": self.direction(self.target),
            "reasoning": " ".join([*self._remarks(), self._conclusion()]),
        }

    def _remarks(self) -> list[str]:
        """Returns remarks on hazards and on objects that look like the target."""
        remarks = []
        deadly = {"lava_gap": ("lava",), "dynamic_obstacles": ("ball", "wall")}.get(self.task, ())
        if self.front.endswith(deadly or ("nothing",)):
            thing = "Lava" if self.front == "lava" else f"A {self.front}"
            remarks.append(f"{thing} is in front of me: I must not go forward.")
        elif self.front != self.name(self.target) and self.front.endswith(("key", "ball")):
            remarks.append(f"The {self.front} in front of me is not the {self.name(self.target)}.")
        elif self.front == "wall":
            remarks.append("A wall is in front of me.")
        if self.task == "lava_gap" and self.hazards:
            column = self.hazards[0][1]
            height = self.view.cells_HW.shape[0]
            (gap,) = [row for row in range(1, height - 1) if (row, column) not in self.hazards]
            if self.here[1] <= column < self.target[1] and self.here != (gap, column):
                remarks.append(f"The gap is at row {gap}, column {column}.")
        if self.task == "go_to_door" and self.best() != "done":
            others = [cell for cell in map(self.beside, range(4)) if cell in self.hazards]
            remarks += [
                f"The {self.name(cell)} beside me is not the {self.name(self.target)}." for cell in others
            ]
            target, (row, column) = self.name(self.target), self.stop
            if self._steps_to(self.target) == 2 and self.direction(self.target) not in (
                "ahead",
                "left",
                "behind",
                "right",
            ):
                remarks.append(f"The {target} touches my cell only at a corner.")
            remarks.append(f"The cell beside the {target} is row {row}, column {column}.")
        return remarks

    def _conclusion(self) -> str:
        best, way, target = self.best(), self.path_heading(), self.name(self.target)
        to = HEADINGS[way]
        if best == "pickup":
            return f"The {target} is right in front of me, so I pick it up."
        if best == "done":
            (at,) = [h for h in range(4) if self.beside(h) == self.target]
            side = {"up": "above", "down": "below", "left": "to the left of", "right": "to the right of"}[
                HEADINGS[at]
            ]
            return f"The {target} is in the next cell, {side} mine. I am beside it, so I say done."
        if best == "forward":
            front = "the goal is" if self.front == target else "free floor is"
            return f"I have to go {to} in the picture. I face {to} and {front} in front: I go forward."
        why = f"I have to go {to} in the picture."
        if self.beside(way) == self.target:
            why = f"The {target} is in the next cell, {to} in the picture."
        if (way - self.view.heading) % 4 == 2:
            return f"{why} I face {self.heading}, so that is behind me: I turn {best}."
        return f"{why} I face {self.heading}, so the picture's {to} is on my {best}: I turn {best}."


def scene_of(task: str, environment: str, seed: int, steps: list[str]) -> Example:
    """Returns the state after these actions.

    Raises:
        ValueError: the episode ends before the last action.
    """
    env = gymnasium.make(environment)
    env.reset(seed=seed)
    for step in steps:
        _, _, terminated, truncated, _ = env.step(ACTIONS.index(step))
        if terminated or truncated:
            raise ValueError(f"{environment}, seed {seed}: the episode ends after {step}")
    return Example(task, str(env.unwrapped.mission), view_of(env))  # type: ignore[attr-defined]


def make(folder: Path) -> list[Path]:
    """Replaces the examples of the prompt set in a folder; returns the paths of their pictures."""
    listed = tomllib.loads((folder / "examples.toml").read_text(encoding="utf-8"))
    written = []
    for task, entries in listed.items():
        place = folder / "examples" / task
        place.mkdir(parents=True, exist_ok=True)
        for old in [*place.glob("*.png"), *place.glob("*.json")]:
            old.unlink()
        for number, entry in enumerate(entries, 1):
            played = task, entry["environment"], entry["seed"], entry["steps"]
            is_minigrid = entry["environment"].startswith("MiniGrid-")
            scene = (scene_of if is_minigrid else toy_text_examples.scene_of)(*played)
            content = {
                **entry,
                "mission": scene.mission,
                "analysis": scene.analysis(),
                "probabilities": {action: round(p, 4) for action, p in scene.probabilities.items()},
            }
            picture = place / f"{number:02}.png"
            picture.write_bytes(encode_png(scene.picture))
            text = json.dumps(content, indent=2) + "\n"
            picture.with_suffix(".json").write_text(text, encoding="utf-8", newline="\n")
            written.append(picture)
    return written


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 0 if arguments == ["--help"] else 2
    beside = Path(__file__).parent / arguments[0]
    folder = beside if beside.is_dir() else Path(arguments[0])
    if not (folder / "examples.toml").is_file():
        print(f"make_examples: error: {folder} has no examples.toml", file=sys.stderr)
        return 2
    print(f"{len(make(folder))} examples in {folder / 'examples'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
