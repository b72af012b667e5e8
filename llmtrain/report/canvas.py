"""What the pictures of a report are drawn on: axes of a fixed size, places for names, and the way into a page.

matplotlib draws; here is what it leaves open. Margins are given in points, so that text has no say in the layout. The
reader's font is not known, so the width of a text is estimated, rather too wide. The SVG is taken apart and put
together again for the inside of an HTML page: colours become CSS variables, ids the page's own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width
from xml.etree import ElementTree

from llmtrain.errors import printable

# Drawn with colours that stand for a CSS variable: matplotlib writes them as they are, `inline` replaces them.
COLOURS = {name: f"#0000{number:02x}" for number, name in enumerate(("ink", "muted", "line", "accent", "mark", "paper", *(f"c{i}" for i in range(8))), 1)}
FONT = 10  # points; the figures are about as wide as the page shows them
SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
# Text of data is never read as mathematics. DejaVu comes with matplotlib: what a machine has installed changes nothing.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "llmtrain", "text.parse_math": False, "font.family": ["DejaVu Sans"]}
CROWDED = 1e4  # cost from which a name is rather left out


@dataclass(frozen=True)
class Box:
    """A rectangle in points from the lower left corner of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area in common."""
        return max(0.0, min(self.right, other.right) - max(self.left, other.left)) * max(0.0, min(self.top, other.top) - max(self.bottom, other.bottom))

    def outside(self, other: Box) -> float:
        """Area that `other` does not cover."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib as it comes, whatever the user's own settings are; a character that its font lacks is left to the reader's."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph")
        yield


# --- axes ----------------------------------------------------------------------------------------------------------


def drawing(width: float, height: float, *, left: float, right: float, bottom: float, top: float) -> tuple[Any, Any]:
    """A figure of a size in points, and axes with such margins: fixed, so that text has no say in the layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["line"])
    axes.tick_params(which="both", colors=COLOURS["line"], labelcolor=COLOURS["muted"], labelsize=FONT - 0.5, length=3)
    axes.tick_params(which="minor", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=COLOURS["ink"], fontsize=FONT)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def pixels(axes: Any, x: float, y: float) -> tuple[float, float]:
    """Points from the figure's lower left corner."""
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def data(axes: Any, x: float, y: float) -> tuple[float, float]:
    """The way back."""
    across, up = axes.transData.inverted().transform((x, y))
    return float(across), float(up)


def frame(axes: Any) -> Box:
    box = axes.bbox
    return Box(float(box.x0), float(box.y0), float(box.x1), float(box.y1))


# --- names that do not collide --------------------------------------------------------------------------------------


def place(frame: Box, here: tuple[float, float], text: str, taken: Sequence[Box], avoid: Sequence[tuple[float, Sequence[Box]]]) -> tuple[Box, float] | None:
    """Where a name can stand beside a point, and how far away; None where there is no room.

    Args:
        frame: it stays inside.
        taken: other names, which it never covers.
        avoid: what it had better not cover, each with how bad that is for a square point.
    """
    options = [(_beside(here, text, dx, dy), far) for far, dx, dy in _around()]

    def cost(box: Box, far: float) -> float:
        hard = box.outside(frame) + sum(box.overlap(other) for other in taken)
        return CROWDED * hard + sum(weight * box.overlap(other) for weight, others in avoid for other in others) + 4 * far

    costs = [cost(*option) for option in options]
    best = min(range(len(options)), key=costs.__getitem__)
    return options[best] if costs[best] < CROWDED else None


def _around() -> Iterable[tuple[float, float, float]]:
    """(distance, its parts to the right and up), nearest first: right, left, above, below, and between."""
    for far in (9.0, 16.0, 26.0, 38.0, 52.0):
        for dx, dy in ((1, 0), (0, 1), (0, -1), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)):
            yield far, dx * far, dy * far


def _beside(here: tuple[float, float], text: str, dx: float, dy: float) -> Box:
    """Where a text stands that begins, ends or is centred `dx`, `dy` away."""
    width, x, y = wide(text, FONT) + 4, here[0] + dx, here[1] + dy
    left = x if dx > 0 else x - width if dx < 0 else x - width / 2
    return Box(left, y - FONT * 0.62, left + width, y + FONT * 0.62)


def text_box(left: float, y: float, text: str, size: float) -> Box:
    return Box(left, y - size * 0.62, left + wide(text, size), y + size * 0.62)


def wide(text: str, size: float) -> float:
    """About how wide a text is, in points: the reader's font is not known here, so rather too much."""
    return size * sum(1.05 if east_asian_width(c) in "WF" else 0.36 if c in "iljtfr.,:;' |" else 0.62 for c in text)


def along(corners: list[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Points on the line through `corners`, ten on each piece."""
    corners = sorted(corners)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        for step in range(11):
            yield x0 + (x1 - x0) * step / 10, y0 + (y1 - y0) * step / 10


def leader(axes: Any, here: tuple[float, float], box: Box) -> None:
    """A thin line from a point to a name that stands away from it."""
    end = min(max(here[0], box.left), box.right), min(max(here[1], box.bottom), box.top)
    xs, ys = zip(data(axes, *here), data(axes, *end), strict=True)
    axes.plot(xs, ys, color=COLOURS["muted"], linewidth=0.7, zorder=2.5, scalex=False, scaley=False)


# --- into a page ----------------------------------------------------------------------------------------------------


def inline(figure: Any, name: str, title: str, description: str, titles: Mapping[str, str]) -> str:
    """The figure as an <svg> element for the inside of a page.

    Args:
        name: no other picture of the page has it: ids begin with it.
        titles: gid of something drawn → what a pointer over it shows.
    """
    from matplotlib.text import Text

    out = io.StringIO()
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())
    for junk in (f"{{{SVG}}}metadata", f"{{{SVG}}}defs"):
        for element in [child for child in root if child.tag == junk and child.find(f"{{{SVG}}}clipPath") is None]:
            root.remove(element)
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _mend(element, name, used, titles)
    box = root.attrib.pop("viewBox")
    root.attrib.clear()
    root.attrib.update({"xmlns": SVG, "class": "plot", "viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"})
    for number, (tag, text) in enumerate((("title", title), ("desc", description))):
        root.insert(number, _element(tag, text, id=f"{name}-{tag}"))
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _references(element: ElementTree.Element) -> Iterable[str]:
    """Ids that an element points at."""
    if HREF in element.attrib:
        yield element.attrib[HREF].removeprefix("#")
    if element.get("clip-path", "").startswith("url(#"):
        yield element.attrib["clip-path"][5:-1]


def _mend(element: ElementTree.Element, name: str, used: set[str], titles: Mapping[str, str]) -> None:
    """Make ids the page's own, colours variables, fonts the page's; attributes alone, never the text of data."""
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{name}-{own}")
    if own is not None and own in titles:
        element.insert(0, _element("title", titles[own]))
    if HREF in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(HREF)[1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", f"url(#{name}-{element.attrib['clip-path'][5:-1]})")
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if "d" in element.attrib:
        element.set("d", " ".join(element.attrib["d"].split()))
    if "style" in element.attrib:
        rules = [rule for rule in element.attrib["style"].split("; ") if not rule.startswith("font-family")]
        colours = {colour: f"var(--{variable})" for variable, colour in COLOURS.items()}
        element.set("style", "; ".join(": ".join(colours.get(part, part) for part in rule.split(": ")) for rule in rules))
    element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    element.tail = None
    if element.tag not in ("text", "title"):
        element.text = None


def _element(tag: str, text: str, **attributes: str) -> ElementTree.Element:
    made = ElementTree.Element(tag, attributes)
    made.text = printable(text)
    return made
