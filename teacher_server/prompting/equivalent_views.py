"""Equivalent views: pictures of the same state that a prompt set declares to have the same best action."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gridworld.pictures import UnreadablePicture, draw, read, tile_size
from gridworld.symmetry import mirrored, turned
from teacher_server.prompting.preparation import Preparation

_EXCHANGED = {"left": "right", "right": "left"}


class EquivalentView(BaseModel):
    """A picture of the same state, made of the question's picture: mirrored, then turned, then scaled.

    Attributes:
        mirrored: left and right are exchanged, in the picture and in the actions.
        turned: degrees clockwise.
        tile: pixels a side to which the model's tiles are scaled, in place of the prompt set's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mirrored: bool = False
    turned: Literal[0, 90, 180, 270] = 0
    tile: Annotated[int, Field(ge=8, le=256)] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """The view's own values, for the identity."""
        return self.model_dump(exclude_defaults=True)

    def asked(self, actions: Sequence[str]) -> tuple[str, ...]:
        """Returns the actions to ask about: the question's, in its order if they stay the same together."""
        renamed = tuple(map(self.renamed, actions))
        return tuple(actions) if set(renamed) == set(actions) else renamed

    def renamed(self, action: str) -> str:
        """Returns the action of this view that is an action of the question, and the reverse."""
        return _EXCHANGED.get(action, action) if self.mirrored else action

    def picture(self, picture: NDArray[np.uint8], *, pixels: bool) -> NDArray[np.uint8]:
        """Returns the view's picture: uint8 [H, W, 3], or [W, H, 3] after one or three quarter turns.

        The grid is read off the picture, moved and drawn again, as MiniGrid would draw it.

        Args:
            picture: uint8 [H, W, 3], RGB.
            pixels: move the pixels of a picture that shows no grid.

        Raises:
            UnreadablePicture: the picture shows no grid, and `pixels` is False.
        """
        if not self.mirrored and not self.turned:
            return picture
        quarters = self.turned // 90
        try:
            view = read(picture)
        except UnreadablePicture:
            if not pixels:
                raise
            moved = picture[:, ::-1] if self.mirrored else picture
            return np.ascontiguousarray(np.rot90(moved, -quarters))
        return draw(turned(mirrored(view) if self.mirrored else view, quarters), tile_size(picture))

    def preparation(self, usual: Preparation) -> Preparation:
        """Returns how the view's picture is prepared."""
        return usual if self.tile is None else replace(usual, tile=self.tile)


QUESTION_VIEW = EquivalentView()
"""The question's own picture."""


class ViewsFile(BaseModel):
    """views.toml: by task, the views that are asked about after the question's own picture, in order.

    Attributes:
        unreadable: what to do with a picture that shows no grid: refuse the question, or move pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unreadable: Literal["refuse", "pixels"] = "refuse"
    views: Mapping[str, tuple[EquivalentView, ...]] = {}

    @model_validator(mode="after")
    def _differ(self) -> Self:
        for task, views in self.views.items():
            if len({QUESTION_VIEW, *views}) <= len(views):
                raise ValueError(
                    f"views.{task}: two views are the same, or one is the question's own picture; remove one"
                )
        return self
