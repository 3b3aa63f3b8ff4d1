"""Charts for the documentation: SVG with text, described, in colours that fit light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#24292f"
"""Colour of text and lines, which the charts change where the reader's page is dark."""
OURS_COLOUR, PEER_COLOUR = "#2f81f7", "#8b949e"
DARK = f"""<style>
@media (prefers-color-scheme: dark) {{
  text, [style*="fill: {INK}"] {{ fill: #e6edf3 !important }}
  [style*="stroke: {INK}"] {{ stroke: #e6edf3 !important }}
}}
</style>
"""


@contextmanager
def chart(path: Path, *, title: str, told: str, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure, and write it when it is drawn; the same drawing gives the same file, to the byte.

    Args:
        path: Of the SVG.
        title: What it shows.
        told: The same in words and numbers, for who can't see it.
        width: In inches.
        height: In inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": path.name, "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    drawn = path.read_text()
    opened = drawn.index(">", drawn.index("<svg")) + 1
    path.write_text(f"{drawn[:opened]}\n<title>{title}</title><desc>{told}</desc>\n{DARK}{drawn[opened:]}")


def plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """Take off what says nothing, and draw a grid along one axis."""
    axes.grid(axis=grid, color=PEER_COLOUR, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
