"""What pictures are drawn on: names that do not collide, and SVG that belongs inside a page."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import matplotlib
import pytest

from llmtrain.report import canvas
from llmtrain.report.canvas import Box

FRAME = Box(0, 0, 400, 300)


def drawn(text: str = "text", titles: dict[str, str] | None = None, name: str = "plot") -> str:
    with canvas.style():
        figure, axes = canvas.drawing(200, 100, left=20, right=10, bottom=20, top=10)
        axes.plot([1, 2], [1, 2], "o", color=canvas.COLOURS["accent"], gid="points")
        axes.text(1.5, 1.5, text, color=canvas.COLOURS["ink"])
        return canvas.inline(figure, name, "a title", "a description", titles or {})


def test_boxes_know_what_they_share_and_what_sticks_out() -> None:
    assert Box(0, 0, 10, 10).overlap(Box(5, 5, 20, 20)) == 25
    assert Box(0, 0, 10, 10).overlap(Box(10, 0, 20, 10)) == 0
    assert Box(-5, 0, 5, 10).outside(FRAME) == 50


@pytest.mark.parametrize("number", [2, 5, 9])
def test_names_of_points_that_lie_close_together_do_not_cover_each_other(number: int) -> None:
    taken: list[Box] = []
    points = [(200.0 + 6 * i, 150.0 + 3 * (i % 3)) for i in range(number)]
    marks = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for here in points:
        found = canvas.place(FRAME, here, "last 4 blocks", taken, [(30, marks)])
        assert found is not None
        taken.append(found[0])
    assert [a.overlap(b) for a, b in itertools.combinations(taken, 2)] == [0] * (number * (number - 1) // 2)
    assert all(box.outside(FRAME) < 1e-6 for box in taken)


def test_a_name_stands_beside_its_point_where_nothing_is_in_the_way() -> None:
    found = canvas.place(FRAME, (100, 100), "full", [], [])
    assert found is not None
    assert (found[1], found[0].left) == (9.0, 109.0)


def test_a_name_for_which_there_is_no_room_is_left_out() -> None:
    assert canvas.place(FRAME, (200, 150), "full", [Box(100, 50, 300, 250)], []) is None
    assert canvas.place(FRAME, (200, 150), "m" * 200, [], []) is None


def test_wide_letters_need_more_room() -> None:
    assert canvas.wide("漢字", 10) > canvas.wide("ab", 10) > canvas.wide("il", 10)


def test_colours_are_variables_of_the_page_and_nothing_else() -> None:
    found = re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn())
    assert {colour for colour in found if colour != "none"} <= {f"var(--{name})" for name in canvas.COLOURS}
    assert "var(--accent)" in found


def test_ids_begin_with_the_pictures_name_and_every_reference_has_its_target() -> None:
    text = drawn(name="one")
    ids = re.findall(r' id="([^"]+)"', text)
    assert all(name.startswith("one-") for name in ids)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert len(re.findall(r'href="#', text)) > 2


def test_it_is_a_picture_with_a_title_and_a_description_for_those_who_hear_it() -> None:
    root = ElementTree.fromstring(drawn())
    assert root.get("role") == "img"
    by_id = {element.get("id"): element.text for element in root.iter()}
    assert [by_id[name] for name in root.get("aria-labelledby", "").split()] == ["a title", "a description"]


def test_what_is_pointed_at_says_what_it_is() -> None:
    root = ElementTree.fromstring(drawn(titles={"points": "row <1> & more"}))
    assert "row <1> & more" in [element.text for element in root.iter() if element.tag.endswith("title")]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", 'fill: #000001" id="x', "$\\frac{$", "☃ 漢字 ", "\x1b[2J\x00\u202e\ud800", 'href="#a" url(#b)'])
def test_text_of_data_stays_text_whatever_it_is(text: str) -> None:
    """H12: markup, what looks like an attribute, mathematics, letters that the font lacks, control characters."""
    found = drawn(text)
    assert "<script" not in found
    written = [element.text for element in ElementTree.fromstring(found).iter() if element.tag.endswith("}text")]
    assert text.replace("\x1b", "\\x1b").replace("\x00", "\\x00").replace("\u202e", "\\u202e").replace("\ud800", "\\ud800") in written


def test_settings_of_the_user_change_nothing() -> None:
    plain = drawn()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path", "axes.grid": True, "xtick.direction": "in"}):
        assert drawn() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_nothing_is_left_of_what_matplotlib_writes_for_files() -> None:
    assert not re.search(r"metadata|purl\.org|<style|<\?xml|DOCTYPE|font-family", drawn())
