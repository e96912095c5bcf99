"""Environments as another package would register them: import this module and their ids are known."""

from typing import Any

import gymnasium
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Goal
from minigrid.minigrid_env import MiniGridEnv


class Painted(MiniGridEnv):
    """A room of 7 x 4 whose ball is painted anew at every step; the mission tells its colour."""

    def __init__(self, **more: Any) -> None:
        mission_space = MissionSpace(mission_func=lambda: "the ball is red")
        super().__init__(mission_space, width=7, height=4, max_steps=40, **more)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.ball = Ball("red")
        self.put_obj(self.ball, 4, 1)
        self.put_obj(Goal(), 5, 2)
        self.place_agent()
        self.mission = "the ball is red"

    def step(self, action: Any) -> Any:
        self.ball.color = ("red", "blue", "green")[self.step_count % 3]
        self.mission = f"the ball is {self.ball.color}"
        return super().step(action)


class Broken(Painted):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("the roof\nis leaking")


class EightActions(Painted):
    """Has an action that MiniGrid does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Discrete(8)


class Talkative(Painted):
    """Its mission has 17 words."""

    def reset(self, **more: Any) -> Any:
        result = super().reset(**more)
        self.mission = " ".join(["go"] * 17)
        return result


gymnasium.register("Rooms-Painted-v0", Painted)
gymnasium.register("Rooms-Broken-v0", Broken)
gymnasium.register("Rooms-Eight-Actions-v0", EightActions)
gymnasium.register("Rooms-Talkative-v0", Talkative)
gymnasium.register("Rooms-Limited-v0", Painted, max_episode_steps=5)
