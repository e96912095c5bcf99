"""MiniGrid's own bot as an expert for BabyAI's levels."""

from collections.abc import Iterator
from typing import Any

from minigrid.utils.baby_ai_bot import BabyAIBot

from gridworld.environments import actions_of
from gridworld.scenes import Cell, Scene
from gridworld.views import view_of
from teacher_tools.train.experts import Advice


class BabyAIExpert:
    """The bot's next action in BabyAI's levels.

    The bot sees what lies hidden, and remembers the episode: it has to be told each action that was taken.
    """

    def __init__(self) -> None:
        self._env: Any = None
        self._bot: BabyAIBot | None = None
        self._taken: int | None = None

    def __call__(self, env: Any, /) -> Advice | None:
        """Returns the bot's action; None: it does not go on, such as after a box was opened.

        Raises:
            ValueError: the environment is not a level of BabyAI's.
        """
        if not hasattr(env, "instrs"):
            raise ValueError("babyai-bot knows BabyAI's levels alone")
        if env is not self._env or env.step_count == 0:
            self._env, self._bot, self._taken = env, BabyAIBot(env), None  # type: ignore[no-untyped-call]
        if self._bot is None:
            return None
        try:
            action = int(self._bot.replan(self._taken))  # type: ignore[no-untyped-call]
        except Exception:  # it raises several kinds where random actions have made a mission impossible
            self._bot = None
            return None
        view = view_of(env)
        scene = Scene("", env.mission, view)
        targets = tuple(sorted(set(_named(env.instrs))))
        row, column = scene.here
        analysis = {
            "agent": {"row": row, "column": column, "heading": scene.heading},
            "targets": [list(cell) for cell in targets],
            "front": scene.front,
        }
        return Advice({actions_of(env)[action]: 1.0}, analysis, view, targets)

    def took(self, action: int) -> None:
        """Tells the expert the number of the action that was taken in the state of the last call."""
        self._taken = action


def _named(instruction: Any) -> Iterator[Cell]:
    """Yields the cells of the things that an instruction names, as far as they lie on the grid."""
    for part in ("instr_a", "instr_b"):
        if hasattr(instruction, part):
            yield from _named(getattr(instruction, part))
    for part in ("desc", "desc_move", "desc_fixed"):
        for thing in getattr(getattr(instruction, part, None), "obj_set", ()):
            if thing.cur_pos is not None and thing.cur_pos[0] >= 0:
                yield int(thing.cur_pos[1]), int(thing.cur_pos[0])
