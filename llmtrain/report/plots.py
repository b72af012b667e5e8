"""The pictures of a report, as SVG that stands inside a page: a metric against its costs, learning curves, block maps.

    for picture in pictures(study):
        picture.name, picture.title, picture.svg, picture.caption

Equal studies give equal bytes: no clock, no random ids, fixed fonts, all places computed here. Colours are names of CSS
variables (`canvas.COLOURS`), so that the page decides what they are in the light, in the dark and on paper. What a colour
says is said by a shape or a word too. Text stays text: it can be read aloud, searched and enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.report import canvas, summary
from llmtrain.report.canvas import COLOURS, FONT, Box
from llmtrain.report.study import Estimate, Row, Run, Study

HATCHES = 8  # colours of lines; further lines take them again with other dashes
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX*"
NAMED = 12  # rows whose names a picture tries to show
WIDTH = 540  # points
LINES = 12  # curves in one picture
COLUMNS = 12  # block maps side by side
LABEL = 26  # characters of a row's name inside a picture


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: its key in Study.sentences.
        svg: an <svg> element with a title and a description, for the inside of an HTML page.
        caption: how it is read.
        width: points of its coordinates; its text is FONT points high in them.
    """

    name: str
    title: str
    svg: str
    caption: str
    width: int


@dataclass(frozen=True)
class Point:
    """A row in a picture: where it stands, its spread, and its single runs."""

    row: Row
    x: float
    found: Estimate
    singles: tuple[float, ...]


def pictures(study: Study, names: Iterable[str] | None = None) -> list[Picture]:
    """All that the study has numbers for; `names`: only these."""
    drawn = {
        "setting": _setting,
        "parameters": lambda study: scatter(study, "parameters", "trained parameters", lambda row: float(row.trainable)),
        "seconds": lambda study: scatter(study, "seconds", "time", lambda row: row.seconds),
        "memory": lambda study: scatter(study, "memory", "peak memory", lambda row: row.memory_mb),
        "curves": curves,
        "blocks": blocks,
    }
    with canvas.style():
        found = [drawn[name](study) for name in (drawn if names is None else names)]
    return [picture for picture in found if picture is not None]


# --- a metric against a cost --------------------------------------------------------------------------------------


def scatter(study: Study, name: str, cost: str, at: Callable[[Row], float]) -> Picture | None:
    """The metric of every row against one of its costs.

    Args:
        name: the picture's.
        cost: what lies on the horizontal axis, in words.
        at: a row's place on it; nan where it has none.

    Returns:
        None where fewer than two different places are known: nothing could be compared.
    """
    points = _points(study, at)
    if len({point.x for point in points}) < 2:
        return None
    figure, axes = canvas.drawing(WIDTH, 320, left=58, right=18, bottom=42, top=14)
    unit = _horizontal(axes, name, [point.x for point in points])
    missing = _vertical(axes, study, points)
    axes.set_xlabel(f"{cost}{unit}")
    _front(axes, points, name)
    for number, point in enumerate(points):
        _mark(axes, point, number)
    baselines = _baselines(axes, study, points, missing)
    _labels(axes, points, baselines, on_line=[point for point in points if _on_front(point, name)])
    title = f"{summary.words(study.metric).capitalize()} against {cost}"
    caption = _caption(study, points, name)
    titles = {f"row-{number}": _told(study, point, cost, name) for number, point in enumerate(points)}
    return Picture(
        name, title, canvas.inline(figure, f"plot-{name}", title, f"{len(points)} rows; the table has the numbers. {caption}", titles), caption, WIDTH
    )


def _setting(study: Study) -> Picture | None:
    """The metric against the one setting that differs, where that is a number."""
    if len(study.differs) != 1:
        return None
    (key,) = study.differs
    values = [row.differs.get(key) for row in study.rows]
    if not all(isinstance(found, int | float) and not isinstance(found, bool) for found in values):
        return None
    return scatter(study, "setting", summary.short(key, 60), lambda row: float(row.differs[key]))


def _points(study: Study, at: Callable[[Row], float]) -> list[Point]:
    """The rows that have a finite place."""
    found = []
    for row in study.rows:
        estimate = summary.compared(study, row)
        if estimate is not None and math.isfinite(estimate.mean) and math.isfinite(at(row)) and at(row) >= 0:
            found.append(Point(row, at(row), estimate, tuple(_singles(study, row))))
    return found


def _singles(study: Study, row: Row) -> Iterable[float]:
    for run in row.finished:
        metrics = run.test if study.compared_on == "test" else run.validation
        if math.isfinite(metrics.get(study.metric, math.nan)):
            yield metrics[study.metric]


def _horizontal(axes: Any, name: str, places: list[float]) -> str:
    """Scale, limits and ticks of the cost; returns its unit, with the comma before it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    low, high = min(places), max(places)
    positive = min((x for x in places if x > 0), default=1.0)
    wide = high / positive > 20
    if wide and low <= 0:
        axes.set_xscale("symlog", linthresh=positive, linscale=0.5)
        axes.set_xlim(-positive * 0.3, high * 2.2)
    elif wide:
        axes.set_xscale("log")
        axes.set_xlim(low / 2.2, high * 2.2)
    else:
        pad = 0.12 * (high - low)
        axes.set_xlim(0 if name in ("seconds", "parameters") and low < 0.75 * high else low - pad, high + pad)
    if name == "seconds":
        size, unit = (1, "s") if high < 180 else (60, "min") if high < 3 * 3600 else (3600, "h")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / size:,.4g}"))
        if not wide:
            _steps(axes, size)
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
        unit = {"memory": "MB"}.get(name, "")
        if name == "setting" and wide and len(set(places)) <= 8:
            axes.xaxis.set_major_locator(FixedLocator(sorted(set(places))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return f", {unit}" if unit else ""


def _steps(axes: Any, size: int) -> None:
    """Ticks at round numbers of the unit, not at round numbers of seconds."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([x * size for x in MaxNLocator(7).tick_values(low / size, high / size)]))
    axes.set_xlim(low, high)


def _count(number: float) -> str:
    """1.2e−3, 12, 3,400, 250 k, 66 M, 1.5 G: as a tick says it. Three digits: with one, neighbours would have the same name."""
    if 0 < abs(number) < 0.01:
        digits, power = f"{number:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}".replace("-", "−")
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            return f"{number / (1e3 if unit == ' k' else size):,.3g}{unit}"
    return f"{number:,.4g}"


def _vertical(axes: Any, study: Study, points: list[Point]) -> list[str]:
    """Limits of the metric; returns the baselines that lie too far off to be drawn."""
    ends = [y for p in points for y in (p.found.mean - _sd(p), p.found.mean + _sd(p), *p.singles)]
    low, high = min(ends), max(ends)
    axes.set_ylabel(f"{study.compared_on} {summary.words(study.metric)}")
    if not study.higher and low > 0 and high / low > 20:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        return [name for name, y in study.baselines.items() if not low / 1.5 < y < high * 1.5]
    span = high - low or max(abs(high) * 0.02, 1e-3)
    near = {name: y for name, y in study.baselines.items() if low - span <= y <= high + span}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    pad = 0.13 * (high - low or span)
    axes.set_ylim(low - pad, high + pad)
    return [name for name in study.baselines if name not in near]


def _sd(point: Point) -> float:
    return point.found.sd if math.isfinite(point.found.sd) else 0.0


def _on_front(point: Point, name: str) -> bool:
    return summary.on_front(point.row, name)


def _front(axes: Any, points: list[Point], name: str) -> None:
    line = sorted((point.x, point.found.mean) for point in points if _on_front(point, name))
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), color=COLOURS["accent"], linewidth=5, alpha=0.22, solid_capstyle="round", solid_joinstyle="round", zorder=2)


def _mark(axes: Any, point: Point, number: int) -> None:
    """A row: single runs faint, the mean with its sd; a star is chosen, a square is the reference."""
    colour = COLOURS["mark" if point.row.chosen else "accent"]
    if len(point.singles) > 1:
        axes.plot([point.x] * len(point.singles), point.singles, "_", color=colour, alpha=0.55, markersize=9, zorder=3)
    marker, size = ("*", 13) if point.row.chosen else ("s", 7) if point.row.reference else ("o", 6.5)
    bars = axes.errorbar(
        [point.x], [point.found.mean], yerr=[_sd(point)], fmt=marker, color=colour, markersize=size, markeredgecolor=COLOURS["paper"], elinewidth=1.3, zorder=4
    )
    bars[0].set_gid(f"row-{number}")


def _baselines(axes: Any, study: Study, points: list[Point], missing: list[str]) -> list[Box]:
    """Dashed lines with their names where least is in the way; those too far off as a word at the edge. Returns where text stands."""
    frame, low = canvas.frame(axes), axes.get_ylim()[0]
    avoid = [_bar(axes, point) for point in points]
    taken: list[Box] = []
    for name, level in sorted(study.baselines.items(), key=lambda item: item[1]):
        text = f"{summary.short(summary.words(name), LABEL + 8)} {summary.value(level)}"
        if name in missing:
            below = not level >= low
            text = ("↓ " if below else "↑ ") + text
            heights = [frame.bottom + 8 + 12 * i if below else frame.top - 8 - 12 * i for i in range(1 + len(study.baselines))]
        else:
            axes.axhline(level, linestyle=(0, (4, 3)), linewidth=1, color=COLOURS["muted"], zorder=1)
            here = canvas.pixels(axes, axes.get_xlim()[0], level)[1]
            heights = [here + 7, here - 7]
        wide = canvas.wide(text, FONT - 1)
        options = [canvas.text_box(left, y, text, FONT - 1) for y in heights for left in (frame.right - 4 - wide, frame.left + 4)]
        box = min(options, key=lambda box: 10 * sum(map(box.overlap, taken)) + sum(map(box.overlap, avoid)) + 10 * box.outside(frame))
        taken.append(box)
        right = box.left > frame.left + 5
        x, y = canvas.data(axes, box.right if right else box.left, (box.bottom + box.top) / 2)
        style = {"va": "center_baseline", "fontsize": FONT - 1, "style": "italic", "color": COLOURS["muted"], "in_layout": False}
        axes.text(x, y, text, ha="right" if right else "left", **style)
    return taken


def _caption(study: Study, points: list[Point], name: str) -> str:
    """How the picture is read: only what is in it."""
    parts = [f"Each point is a row: its mean on the {study.compared_on} split"]
    if any(math.isfinite(point.found.sd) for point in points):
        parts[0] += ", the bar ± one standard deviation over seeds, faint dashes the single runs"
    both = any(point.row.chosen and point.row.reference for point in points)
    if any(point.row.chosen for point in points):
        parts.append("The star was chosen on validation" + (", and the others are compared with it" if both else ""))
    if any(point.row.reference for point in points) and not both:
        parts.append("The square is what the others are compared with")
    text = ". ".join(parts) + "."
    if sum(_on_front(point, name) for point in points) > 1:
        text += " The broad line is the Pareto front: nothing off it is better at no more cost."
    left = [row.label for row in study.rows if summary.has_result(row) and all(row is not point.row for point in points)]
    return text + (f" Not drawn, since a number is missing or not finite: {', '.join(left)}." if left else "")


def _told(study: Study, point: Point, cost: str, name: str) -> str:
    """What a pointer over a point shows."""
    known = {"seconds": summary.duration(point.x), "memory": summary.megabytes(point.x), "parameters": f"{point.row.trainable:,}"}
    found = known.get(name, f"{point.x:g}")
    return f"{point.row.label}: {study.compared_on} {summary.words(study.metric)} {summary.estimate(point.found)}, {cost} {found}"


# --- labels that do not collide -----------------------------------------------------------------------------------


def _labels(axes: Any, points: list[Point], taken: list[Box], on_line: list[Point]) -> None:
    """Every row's name beside its point, where there is room; the important ones choose first.

    A name that finds no room is left out: the table has it, and so has a pointer over the point.
    """
    frame = canvas.frame(axes)
    places = {id(point): canvas.pixels(axes, point.x, point.found.mean) for point in points}
    marks = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    bars = [_bar(axes, point) for point in points]
    line = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in canvas.along([places[id(point)] for point in on_line])]
    taken = list(taken)
    for point in sorted(points, key=lambda p: (not p.row.chosen, not p.row.reference, not p.row.front, p.x))[:NAMED]:
        text, here = summary.short(point.row.label, LABEL), places[id(point)]
        room = canvas.place(frame, here, text, taken, [(30, marks), (5, bars), (2, line)])
        if room is None:
            continue
        box, far = room
        taken.append(box)
        if far > 12:
            canvas.leader(axes, here, box)
        weight = "bold" if point.row.chosen else "normal"
        x, y = canvas.data(axes, box.left + 2, (box.bottom + box.top) / 2)
        axes.text(x, y, text, ha="left", va="center_baseline", fontsize=FONT, weight=weight, color=COLOURS["ink"], zorder=6, in_layout=False)


def _bar(axes: Any, point: Point) -> Box:
    ends = [point.found.mean - _sd(point), point.found.mean + _sd(point), *point.singles]
    x, low = canvas.pixels(axes, point.x, min(ends))
    return Box(x - 4, low, x + 4, canvas.pixels(axes, point.x, max(ends))[1])


# --- learning curves ----------------------------------------------------------------------------------------------


def curves(study: Study) -> Picture | None:
    """The validation metric over the run, a line for each row and a band of ± sd over its seeds."""
    rows = _first(study, [row for row in study.rows if any(len(_curve(study, run)) > 1 for run in row.runs)], LINES)
    if not rows:
        return None
    lasts = {max(step for step, _ in _curve(study, run)) for row in rows for run in row.runs if len(_curve(study, run)) > 1 and run.status == "finished"}
    in_share = len(lasts) > 1
    names = [summary.short(row.label, 32) for row in rows]
    figure, axes = canvas.drawing(WIDTH, 320, left=58, right=min(220, 22 + max(canvas.wide(name, FONT) for name in names)), bottom=42, top=14)
    ends = []
    for number, row in enumerate(rows):
        lines = [line for run in row.runs if len(line := _curve(study, run)) > 1]
        scales = [1 / line[-1][0] if in_share else 1.0 for line in lines]
        ends.append(_line(axes, number, [[(step * scale, y) for step, y in line] for line, scale in zip(lines, scales, strict=True)]))
    if not any(end is not None for end in ends):
        return None
    _limits(axes, study)
    axes.set_xlabel("share of the run, %" if in_share else "updates")
    axes.set_ylabel(f"validation {summary.words(study.metric)}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}" if in_share else _count(x))
    _end_labels(axes, rows, names, ends)
    title = f"Validation {summary.words(study.metric)} while training"
    several = any(len(row.runs) > 1 for row in rows)
    caption = "Each line is a row: the mean over its seeds, the band ± one standard deviation." if several else "Each line is a row."
    caption += " Runs of different lengths are drawn by the share of themselves." if in_share else ""
    caption += _left_out(study, rows, lambda row: any(len(_curve(study, run)) > 1 for run in row.runs))
    titles = {f"row-{number}": row.label for number, row in enumerate(rows)}
    return Picture("curves", title, canvas.inline(figure, "plot-curves", title, caption, titles), caption, WIDTH)


def _curve(study: Study, run: Run) -> list[tuple[float, float]]:
    """(step, validation metric) of a run, without what is not finite."""
    names = (f"validation_{study.metric}", f"evaluation_{study.metric}", study.metric)
    found: dict[float, float] = {}
    for record in run.curve:
        number = next((record[name] for name in names if isinstance(record.get(name), int | float)), math.nan)
        if math.isfinite(number) and record.get("step", 0) > 0:
            found[float(record["step"])] = float(number)
    return sorted(found.items())


def _line(axes: Any, number: int, lines: list[list[tuple[float, float]]]) -> tuple[float, float] | None:
    """Draw the mean of a row's runs at the places that all of them have; returns its end."""
    colour, dash = COLOURS[f"c{number % HATCHES}"], DASHES[(number // HATCHES + number) % len(DASHES)]
    shared = sorted(set.intersection(*({round(x, 9) for x, _ in line} for line in lines)))
    if len(shared) < 2:  # evaluated at different places: every run by itself
        for line in lines:
            axes.plot(*zip(*line, strict=True), color=colour, linestyle=dash, linewidth=1.1, alpha=0.8)
        return lines[0][-1] if lines else None
    by_place = [[{round(place, 9): y for place, y in line}[x] for line in lines] for x in shared]
    means = [sum(values) / len(values) for values in by_place]
    if len(lines) > 1:
        spreads = [math.sqrt(sum((y - mean) ** 2 for y in values) / (len(values) - 1)) for values, mean in zip(by_place, means, strict=True)]
        lows, highs = zip(*((mean - sd, mean + sd) for mean, sd in zip(means, spreads, strict=True)), strict=True)
        axes.fill_between(shared, lows, highs, color=colour, alpha=0.14, linewidth=0)
    marker = MARKERS[number % len(MARKERS)] if len(shared) <= 30 else None
    (line,) = axes.plot(shared, means, color=colour, linestyle=dash, linewidth=1.7, marker=marker, markersize=3.8, markeredgewidth=0)
    line.set_gid(f"row-{number}")
    return shared[-1], means[-1]


def _limits(axes: Any, study: Study) -> None:
    """A loss of which the first values tower over all others is drawn on a logarithmic axis."""
    axes.margins(x=0.02, y=0.06)
    axes.autoscale_view()
    heights = [y for line in axes.get_lines() for y in line.get_ydata()]
    if not study.higher and min(heights) > 0 and max(heights) / min(heights) > 20:
        axes.set_yscale("log")
        axes.set_ylim(min(heights) / 1.2, max(heights) * 1.2)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0) if low < 0.15 * high else low, high)


def _end_labels(axes: Any, rows: list[Row], names: list[str], ends: Sequence[tuple[float, float] | None]) -> None:
    """The names at the right, in the order in which the lines end, none over another."""
    frame, step = canvas.frame(axes), FONT * 1.25
    order = sorted((canvas.pixels(axes, *end)[1], number) for number, end in enumerate(ends) if end is not None)
    heights = [max(height, frame.bottom) for height, _ in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + step)
    ceiling = frame.top
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - step
    for (_, number), height in zip(order, heights, strict=True):
        end = ends[number]
        assert end is not None
        xs, ys = zip(end, canvas.data(axes, frame.right + 10, height), strict=True)
        colour = COLOURS[f"c{number % HATCHES}"]
        axes.plot(xs, ys, color=colour, linewidth=0.8, clip_on=False, scalex=False, scaley=False)
        style = {"ha": "left", "va": "center_baseline", "fontsize": FONT, "color": COLOURS["ink"], "in_layout": False}
        axes.text(*canvas.data(axes, frame.right + 13, height), names[number], weight="bold" if rows[number].chosen else "normal", **style)


# --- block maps ---------------------------------------------------------------------------------------------------


def blocks(study: Study) -> Picture | None:
    """The parts of the model from the bottom up, a column for each way of freezing."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in study.rows:
        found = next((run.sections for run in row.runs if run.sections), None)
        if found:
            groups.setdefault(tuple(_part(section) for section in found), []).append(row)
    if not groups:
        return None
    kept = _first(study, [rows[0] for rows in groups.values()], COLUMNS)
    maps = {key: rows for key, rows in groups.items() if any(rows[0] is row for row in kept)}
    floors = _floors(list(maps))
    wide, high, left = 84, 17, 150
    heads = max(len(_two_lines(_head(rows))) for rows in maps.values())
    width, height = max(left + wide * len(maps) + 8, 320), high * len(floors) + 26 + 13 * heads
    figure, axes = canvas.drawing(width, height, left=0, right=0, bottom=0, top=0)
    axes.axis("off")
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    for floor, (name, numbers, _) in enumerate(floors):
        y = 6 + high * (floor + 0.5)
        axes.text(left - 8, y, f"{name} · {numbers}", ha="right", va="center_baseline", fontsize=FONT - 0.5, color=COLOURS["muted"])
    rates = [part[3] for parts in maps for part in parts if part[3]]
    for column, (parts, rows) in enumerate(maps.items()):
        x, by_name = left + wide * column, {part[0]: part for part in parts}
        for floor, (_, _, member) in enumerate(floors):
            _cell(axes, x, 6 + high * floor, wide - 6, high - 2, by_name.get(member), rates)
        _column_head(axes, x + (wide - 6) / 2, 6 + high * len(floors) + 6, parts, rows)
    title = "What moved"
    caption = "From the embeddings at the bottom to the head at the top: what was frozen, and the learning rate of what moved (darker is larger)."
    caption += " Crossed means frozen, but gradients had to pass through." if any(part[5] for parts in maps for part in parts) else ""
    if len(kept) < len(groups):
        caption += f" {len(groups) - len(kept)} further ways of freezing are left out."
    titles = {"map": "; ".join(f"{rows[0].label}: {_share(parts)} trained" for parts, rows in maps.items())}
    return Picture("blocks", title, canvas.inline(figure, "plot-blocks", title, f"{caption} {titles['map']}", {}), caption, int(width))


def _part(section: Mapping[str, Any]) -> tuple[Any, ...]:
    """(name, parameters, trainable, lr, from_share, crossed) of a section."""
    lr, begins = section.get("lr"), section.get("from_share")
    return (str(section.get("section", "?")), section.get("parameters", 0), section.get("trainable", 0), lr, begins, bool(section.get("crossed")))


def _floors(maps: list[tuple[Any, ...]]) -> list[tuple[str, str, str]]:
    """(words, parameters, a section's name) from the bottom up; neighbours that are alike in every map share a floor."""
    names = list(dict.fromkeys(part[0] for parts in sorted(maps, key=len, reverse=True) for part in parts))
    names = [*(n for n in names if n not in ("final", "head")), *(n for n in ("final", "head") if n in names)]
    runs: list[list[str]] = []
    for name in names:
        alike = runs and name.startswith("block.") and _alike(maps, runs[-1][-1], name) and len(names) > 16
        if alike:
            runs[-1].append(name)
        else:
            runs.append([name])
    sizes = {part[0]: part[1] for parts in maps for part in parts}
    return [(_called(run), _count(sizes[run[0]]) + (" each" if len(run) > 1 else ""), run[0]) for run in runs]


def _alike(maps: list[tuple[Any, ...]], one: str, other: str) -> bool:
    return one.startswith("block.") and all(
        {part[1:] for part in parts if part[0] == one} == {part[1:] for part in parts if part[0] == other} for parts in maps
    )


def _called(run: list[str]) -> str:
    name = summary.short(run[0].replace("block.", "block "), 24)
    return f"{name} … {run[-1].removeprefix('block.')}" if len(run) > 1 else name


def _cell(axes: Any, x: float, y: float, wide: float, high: float, part: tuple[Any, ...] | None, rates: list[float]) -> None:
    """One section of one map: dashed and empty where frozen, filled where it moved, with the word or the rate."""
    from matplotlib.patches import Rectangle

    if part is None:
        return
    _, parameters, trainable, lr, begins, crossed = part
    centre = {"ha": "center", "va": "center_baseline", "fontsize": FONT - 1}
    if not trainable:
        axes.add_patch(Rectangle((x, y), wide, high, facecolor="none", edgecolor=COLOURS["line"], linewidth=0.9, linestyle=(0, (3, 2))))
        axes.text(x + wide / 2, y + high / 2, "crossed" if crossed else "frozen", color=COLOURS["muted"], **centre)
        return
    axes.add_patch(Rectangle((x, y), wide, high, facecolor=COLOURS["accent"], alpha=_shade(lr, rates), linewidth=0))
    axes.add_patch(Rectangle((x, y), wide, high, facecolor="none", edgecolor=COLOURS["accent"], linewidth=1))
    text = "moves" if lr is None else f"{lr:.2g}"
    text += f" from {begins:.0%}" if begins else f" ({trainable / parameters:.0%})" if parameters and trainable / parameters < 0.995 else ""
    axes.text(x + wide / 2, y + high / 2, text, color=COLOURS["ink"], **centre)


def _shade(lr: float | None, rates: list[float]) -> float:
    """Opacity by the logarithm of the learning rate: pale enough for text over the darkest."""
    if not lr or min(rates) == max(rates):
        return 0.28
    return 0.14 + 0.30 * (math.log(lr) - math.log(min(rates))) / (math.log(max(rates)) - math.log(min(rates)))


def _column_head(axes: Any, x: float, y: float, parts: tuple[Any, ...], rows: list[Row]) -> None:
    """A map's name in at most two lines, and how much of the model it moves."""
    centre = {"ha": "center", "va": "baseline", "in_layout": False}
    axes.text(x, y, _share(parts), fontsize=FONT - 1, color=COLOURS["muted"], **centre)
    for number, line in enumerate(reversed(_two_lines(_head(rows)))):
        axes.text(x, y + 14 + 12 * number, line, fontsize=FONT, color=COLOURS["ink"], weight="bold" if any(row.chosen for row in rows) else "normal", **centre)


def _head(rows: list[Row]) -> str:
    return rows[0].label if len(rows) == 1 else f"{rows[0].label} and {len(rows) - 1} more"


def _two_lines(text: str, limit: int = 14) -> list[str]:
    first, _, rest = text.partition(" ") if len(text) > limit else (text, "", "")
    while rest and len(first) + 1 + len(rest.partition(" ")[0]) <= limit:
        word, _, rest = rest.partition(" ")
        first = f"{first} {word}"
    return [summary.short(line, limit) for line in (first, rest) if line]


def _share(parts: Iterable[tuple[Any, ...]]) -> str:
    parts = list(parts)
    return summary.share(sum(part[2] for part in parts), sum(part[1] for part in parts))


# --- what all pictures share --------------------------------------------------------------------------------------


def _first(study: Study, rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` rows, the chosen, the reference and those on a front before others, in the study's order."""
    order = sorted(range(len(rows)), key=lambda i: (not rows[i].chosen, not rows[i].reference, not rows[i].front, i))
    return [rows[i] for i in sorted(order[:limit])]


def _left_out(study: Study, drawn: list[Row], could: Callable[[Row], bool]) -> str:
    number = sum(could(row) for row in study.rows) - len(drawn)
    return f" {number} further rows are left out." if number > 0 else ""
