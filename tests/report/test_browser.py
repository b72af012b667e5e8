"""The page in a real browser: it shows table and pictures, runs nothing, fetches nothing, and fits a phone."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from llmtrain.report import page
from llmtrain.report.study import Study
from tests.report import samples

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")
# Of the test alone: writes what a script can measure into the page. The page itself has no script, and its policy would refuse one.
PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main > *, main > section > *, .pictures > *")].map(e => Math.round(e.getBoundingClientRect().right));
  document.body.dataset.found = JSON.stringify({scroll: document.documentElement.scrollWidth, window: innerWidth, right: Math.max(...wide),
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
    figures: [...document.querySelectorAll("svg.plot")].map(e => e.getBoundingClientRect().width)});
});
</script>"""
OF_A_PAGE = 101845102  # what Chromium's network log marks requests of pages with, "blink_resource_loader"
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"


def browse(tmp_path: Path, text: str, *flags: str, name: str = "report.html") -> subprocess.CompletedProcess[str]:
    """Open a page in a browser of its own and return what that printed."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert BROWSER is not None
    always = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-default-browser-check"]
    return subprocess.run(
        [BROWSER, *always, *quiet, f"--user-data-dir={tmp_path / 'profile'}", *flags, (tmp_path / name).as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )


def dom(tmp_path: Path, text: str, *flags: str) -> str:
    return browse(tmp_path, text, "--dump-dom", *flags).stdout


def measured(tmp_path: Path, text: str, width: int, *flags: str) -> dict[str, object]:
    """What the probe finds. Windows of a browser have a least width, so that the page stands in a frame as wide as a phone."""
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert without != text
    framed = without.replace("</body>", f"{PROBE}</body>")
    (tmp_path / "inner.html").write_text(framed, encoding="utf-8")
    outer = (
        f'<body style="margin:0"><iframe id="inner" src="inner.html" style="width:{width}px;height:800px;border:0"></iframe><script>'
        "addEventListener('message', e => { document.body.dataset.found = e.data; });</script></body>"
    )
    inner = framed.replace("document.body.dataset.found = JSON", "parent.postMessage(JSON").replace("width)});\n", 'width)}), "*");\n')
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    shown = browse(tmp_path, outer, "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=3000", *flags, name="outer.html").stdout
    found = re.search(r'data-found="([^"]*)"', shown)
    assert found, shown[:500]
    read: dict[str, object] = json.loads(unescape(found[1]))
    return read


def requests(log: Path) -> set[str]:
    """Addresses that a page asked for. The browser itself asks for others at its start (the time, a dictionary)."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(rf'"traffic_annotation":{OF_A_PAGE},"url":"([^"]+)"', text))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, set[str]]:
    """The hostile page, opened once: the DOM, what the browser said, and what it asked the network for."""
    folder = tmp_path_factory.mktemp("browser")
    done = browse(folder, page.html(samples.hostile()), "--dump-dom", f"--log-net-log={folder / 'net.json'}", "--enable-logging=stderr", "--v=0")
    return done.stdout, done.stderr, requests(folder / "net.json")


def test_the_table_and_the_pictures_are_there(opened: tuple[str, str, set[str]]) -> None:
    shown, study = opened[0], samples.hostile()
    assert len(re.findall(r"<tr[ >]", shown.partition("</table>")[0])) == 1 + len(study.rows)
    assert len(re.findall(r'<svg [^>]*class="plot"', shown)) == 5
    assert "0.847 ± 0.003" in shown


def test_script_in_a_row_is_shown_as_text_and_never_ran(opened: tuple[str, str, set[str]]) -> None:
    """H12."""
    shown = opened[0]
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in shown.partition("</table>")[0]
    assert re.search(r"<title>(.*?)</title>", shown)[1].startswith("&lt;/script&gt;")  # type: ignore[index]


def test_the_console_has_no_error(opened: tuple[str, str, set[str]]) -> None:
    assert [line for line in opened[1].splitlines() if "CONSOLE" in line] == []


def test_nothing_is_asked_of_the_network(opened: tuple[str, str, set[str]]) -> None:
    """H18."""
    assert opened[2] == set()


def test_the_guards_see_a_page_that_runs_and_fetches(tmp_path: Path) -> None:
    bad = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "ran"; console.error("an error")</script>'
    done = browse(tmp_path, bad, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}", "--enable-logging=stderr", "--v=0")
    assert "<title>ran</title>" in done.stdout
    assert any("CONSOLE" in line and "an error" in line for line in done.stderr.splitlines())
    assert "http://127.0.0.1:9/x.png" in requests(tmp_path / "net.json")


def test_the_pages_policy_would_stop_a_script_that_got_through(tmp_path: Path) -> None:
    """H12, H18: the second line of defence."""
    text = page.html(samples.single()).replace("</body>", "<script>document.title = 'ran'</script></body>")
    assert "<title>ran</title>" not in dom(tmp_path, text)


@pytest.mark.parametrize(
    "made",
    [samples.hostile, *(pytest.param(f, marks=pytest.mark.long, id=f.__name__) for f in (samples.freezing, samples.pretraining, samples.many))],
)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(tmp_path: Path, made: Callable[[], Study], width: int) -> None:
    found = measured(tmp_path, page.html(made()), width)
    assert found["window"] == width
    assert found["scroll"] == width
    assert int(str(found["right"])) <= width


def test_pictures_stay_readable_on_a_phone_and_scroll_in_their_box(tmp_path: Path) -> None:
    found = measured(tmp_path, page.html(samples.freezing()), 390)
    assert min(found["figures"]) >= 540  # type: ignore[call-overload]


def test_it_is_light_in_the_light_and_dark_in_the_dark(tmp_path: Path) -> None:
    light, dark = (measured(tmp_path, page.html(samples.single()), 1280, flag) for flag in (LIGHT, DARK))
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(20, 25, 31)")
    assert light["ink"] != dark["ink"]


def test_it_can_be_looked_at(tmp_path: Path) -> None:
    """A picture of the page is not one colour: something was drawn."""
    browse(tmp_path, page.html(samples.freezing()), f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,900")
    content = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 900)
    assert len(content) > 40_000
