"""Views of the same state: mirrored left to right, or turned by quarter turns."""

import numpy as np

from gridworld.views import View


def mirrored(view: View) -> View:
    """Returns the view as a mirror to its right shows it: left and right are exchanged, up and down stay."""
    _, width = view.cells_HW.shape
    return View(view.cells_HW[:, ::-1], width - 1 - view.x, view.y, (2 - view.heading) % 4, view.carried)


def turned(view: View, quarters: int) -> View:
    """Returns the view after a number of quarter turns clockwise."""
    for _ in range(quarters % 4):
        height, _ = view.cells_HW.shape
        turned_WH = np.rot90(view.cells_HW, -1)
        view = View(turned_WH, height - 1 - view.y, view.x, (view.heading + 1) % 4, view.carried)
    return view
