"""Environments as users of MiniGrid write them; importing this module registers their ids."""

from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np
from minigrid.core import constants
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Goal, Key, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper, StochasticActionWrapper


class Room(MiniGridEnv):
    """6 x 6 with a goal in the far corner."""

    def __init__(
        self, mission: str = "get to the goal", width: int = 6, height: int = 6, **more: Any
    ) -> None:
        space = MissionSpace(mission_func=lambda: mission)
        super().__init__(space, width=width, height=height, max_steps=64, **more)
        self._mission = mission

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.furnish(width, height)
        self.agent_pos, self.agent_dir = (1, 1), 0
        self.mission = self._mission

    def furnish(self, width: int, height: int) -> None:
        self.put_obj(Goal(), width - 2, height - 2)


class TwoGoals(Room):
    """Only the red goal pays."""

    def __init__(self) -> None:
        super().__init__("get to the red goal square")

    def furnish(self, width: int, height: int) -> None:
        self.put_obj(Goal("red"), width - 2, height - 2)
        self.put_obj(Goal("blue"), width - 2, 1)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        here = self.grid.get(*self.agent_pos)
        return obs, reward if here is None or here.color == "red" else 0, terminated, truncated, info


class Looking(Room):
    """Reads its own observation in reset and step, by each method of a dictionary."""

    def reset(self, **more: Any) -> Any:
        obs, info = super().reset(**more)
        return obs, info | {"looks": obs["direction"], "all": dict(**obs)}

    def step(self, action: Any) -> Any:
        obs, _, terminated, truncated, info = super().step(action)
        sees_goal = (obs.get("image")[..., 0] == constants.OBJECT_TO_IDX["goal"]).any()
        return obs, float(sees_goal and "mission" in obs), terminated, truncated, info


class LookingReward(Room):
    """Reads its own observation in the reward, without overriding step or reset."""

    def _reward(self) -> float:
        return float(self.gen_obs()["image"].any())


class Failing(Room):
    """Raises in the middle of an episode."""

    def step(self, action: Any) -> Any:
        if self.step_count == 20:
            raise RecursionError("rejection sampling\nfailed")
        return super().step(action)


class Growing(Room):
    """Larger from its third episode on."""

    episodes = 0

    def _gen_grid(self, width: int, height: int) -> None:
        self.episodes += 1
        self.width = self.height = 6 if self.episodes < 3 else 8
        super()._gen_grid(self.width, self.height)


class Turning(Room):
    """9 x 5 in one episode and 5 x 9 in the next: as many cells."""

    episodes = 0

    def __init__(self) -> None:
        super().__init__(width=9, height=5)

    def _gen_grid(self, width: int, height: int) -> None:
        self.episodes += 1
        self.width, self.height = (9, 5) if self.episodes % 2 else (5, 9)
        super()._gen_grid(self.width, self.height)


class Ice(WorldObj):
    def __init__(self) -> None:
        super().__init__("ice", "blue")

    def render(self, img: Any) -> Any:
        img[:] = 255


class Star(Ball):
    """A ball by its type with another picture."""

    def render(self, img: Any) -> Any:
        img[:] = 255


class Coin(Ball):
    """Drawn as MiniGrid's ball, and can be walked over."""

    def can_overlap(self) -> bool:
        return True


class Icy(Room):
    def furnish(self, width: int, height: int) -> None:
        constants.OBJECT_TO_IDX.setdefault("ice", 11)
        self.put_obj(Ice(), 3, 3)


class Orange(Room):
    def furnish(self, width: int, height: int) -> None:
        constants.COLORS.setdefault("orange", np.array([255, 165, 0]))
        constants.COLOR_TO_IDX.setdefault("orange", 6)
        self.put_obj(Ball("orange"), 3, 3)


class Starry(Room):
    def furnish(self, width: int, height: int) -> None:
        self.put_obj(Star("yellow"), 3, 3)


class Coins(Room):
    def furnish(self, width: int, height: int) -> None:
        super().furnish(width, height)
        self.put_obj(Coin("yellow"), 2, 1)
        self.put_obj(Key("red"), 3, 3)


class Compass(IntEnum):
    up = 0
    down = 1
    left = 2
    right = 3


class Swapped(IntEnum):
    right = 0
    forward = 1
    left = 2


class Gaps(IntEnum):
    left = 0
    right = 2


class Named(Room):
    """Its actions are named by an enumeration of its own."""

    def __init__(self, actions: Any, n: int) -> None:
        super().__init__()
        self.actions, self.action_space = actions, gymnasium.spaces.Discrete(n)


class Painted(MiniGridEnv):
    """A grid of 7 x 4 whose ball changes its colour at every step, and the mission with it."""

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
    """Its mission has 129 words."""

    def reset(self, **more: Any) -> Any:
        result = super().reset(**more)
        self.mission = " ".join(["go"] * 129)
        return result


for _name, _kind in {
    "Room": Room,
    "TwoGoals": TwoGoals,
    "Looking": Looking,
    "LookingReward": LookingReward,
    "Failing": Failing,
    "Growing": Growing,
    "Turning": Turning,
    "Icy": Icy,
    "Orange": Orange,
    "Starry": Starry,
    "Coins": Coins,
}.items():
    gymnasium.register(f"Custom-{_name}-v0", _kind)
gymnasium.register("Custom-Compass-v0", lambda: Named(Compass, 4))
gymnasium.register("Custom-Swapped-v0", lambda: Named(Swapped, 3))
gymnasium.register("Custom-Gaps-v0", lambda: Named(Gaps, 2))
gymnasium.register("Custom-Unnamed-v0", lambda: Named(("left", "right"), 2))
gymnasium.register("Custom-Human-v0", Room, kwargs={"render_mode": "human"})
gymnasium.register("Custom-Wrapped-v0", lambda: StochasticActionWrapper(Room()))
gymnasium.register("Custom-Seen-v0", lambda: FullyObsWrapper(Room()))
gymnasium.register("Custom-Painted-v0", Painted)
gymnasium.register("Custom-Broken-v0", Broken)
gymnasium.register("Custom-EightActions-v0", EightActions)
gymnasium.register("Custom-Talkative-v0", Talkative)
gymnasium.register("Custom-Limited-v0", Painted, max_episode_steps=5)
