"""Input that nobody meant, made by hypothesis. Whatever it is: an exit code of ours, a screen of ours, soon, and nothing ran or changed.

`-m long` tries fifty times as many of each as the ordinary run, and LLMTRAIN_FUZZ_EXAMPLES=N multiplies both. The examples are the same
on every run. What was found and mended stays as an explicit example.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from omegaconf import OmegaConf

from llmtrain import cli, files, runtime
from llmtrain.command import train
from llmtrain.config import compose, flat, shipped_dir
from llmtrain.data.base import Target
from llmtrain.errors import LLMTrainError
from tests.conftest import TINY
from tests.data.files import text as text_data

MORE = int(os.environ.get("LLMTRAIN_FUZZ_EXAMPLES", "1"))
CODES = {0, *(kind.exit_code for kind in LLMTrainError.__subclasses__())}  # 1 is a fault of llmtrain's own
PATIENCE_S = 120  # of an answer that takes a tenth of a second
FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn"),
    *("pickle.find_class", "socket.connect", "socket.getaddrinfo"),
}

each = pytest.mark.parametrize("times", [pytest.param(1, id="some"), pytest.param(50, id="many", marks=pytest.mark.long)])


def fuzz(check: Callable[..., None], number: int, *strategies: st.SearchStrategy[Any], found: Sequence[Any] = ()) -> None:
    """Call `check` with `number` drawn inputs, and with those that were found before."""
    drawn = given(*strategies)(check)
    for before in found:
        drawn = example(*before)(drawn) if isinstance(before, tuple) else example(before)(drawn)
    quiet = settings(max_examples=number * MORE, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    quiet(drawn)()


# --- what may not happen --------------------------------------------------------------------------------------------


class Hang(BaseException):
    """Not an Exception: the command line would answer it."""


@dataclass
class Watch:
    """What ran that had no business to."""

    armed: bool = False
    place: str = "/nowhere"
    seen: tuple[str, ...] = ()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        own = event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(self.place)
        if event in FORBIDDEN or own:
            self.seen += (f"{event} {arguments!r}"[:300],)


WATCH = Watch()


@pytest.fixture(scope="module", autouse=True)
def _watching(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    if not any(hook is WATCH for hook in _hooks):
        sys.addaudithook(WATCH)  # there is no way to take it off again
        _hooks.append(WATCH)


_hooks: list[Watch] = []


@contextlib.contextmanager
def watched(place: Path) -> Iterator[None]:
    """Nothing of `place` is run, nothing else is started, no file of it is changed, and it ends."""

    def late(number: int, frame: Any) -> None:
        raise Hang(f"no answer after {PATIENCE_S} s")

    before, handler = hashes(place), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    WATCH.armed, WATCH.place, WATCH.seen = True, str(place), ()
    try:
        yield
    finally:
        WATCH.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert WATCH.seen == ()
    after = hashes(place)
    changed = [path for path in before if after.get(path) != before[path]]
    assert changed == []


def hashes(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def answer(place: Path, *argv: str, partly: bool = False) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line; checked for all that may never happen, with `place` for what may not change.

    Args:
        partly: 1 says that some of several members failed.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace"))
    with watched(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(argv))
    said, wrong = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    assert code in CODES or (partly and code == 1 and not wrong), wrong
    proper(wrong, 0 if partly and code == 1 else code)
    assert clean(said), ascii(said)
    return code, said, wrong


def proper(wrong: str, code: int = 2) -> None:
    """Check what stands on stderr: notes, then at most six lines of an error."""
    lines = wrong.splitlines()
    own = [line for line in lines if not line.startswith(("note: ", "warning: "))]
    assert "Traceback" not in wrong
    assert len(own) <= 6, wrong
    assert not own or own[0].startswith("error: "), wrong
    assert bool(own) == bool(code), wrong
    assert clean(wrong), ascii(wrong)


def refused(act: Callable[[], Any], *codes: int) -> bool:
    """Whether what a function is asked to do is refused, by a screen of ours with one of these exit codes."""
    try:
        act()
    except LLMTrainError as found:
        error = found
    else:
        return False
    proper(error.screen(), error.exit_code)
    assert error.exit_code in codes, error.screen()
    return True


def clean(text: str) -> bool:
    """Nothing in it drives a terminal."""
    return all(c == "\n" or unicodedata.category(c)[0] != "C" for c in text)


# --- what is drawn --------------------------------------------------------------------------------------------------

DEEP = 100_000
PIECES = (
    *(
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\n\n",
        b"\t",
        b'"',
        b"'",
        b",",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"#",
        b"&a",
        b"*a",
        b"!!python/object",
    ),
    *(b"- ", b"? ", b"|", b">", b"%", b"${", b"${oc.env:HOME}", b"<<: ", b"null", b"true", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 400, b"\x1b[2J"),
    *("\u202e".encode(), b"\\ud800", b"\\u0000", b"_target_: os.system", b"../../x", b"A" * 300, b"\xed\xa0\x80", b"\xf0\x9f\x99\x82", b"__proto__", b"---\n"),
)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "remove"]), st.integers(0, 2**20), st.sampled_from(PIECES) | st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, operations: Sequence[tuple[str, int, bytes]]) -> bytes:
    for kind, number, piece in operations:
        at = number % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at // 2 :]
        elif kind == "remove":
            data = data[:at] + data[at + 1 + number % 40 :]
    return data


GONE = "(gone)"  # stands for a key that is taken out
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 10**6, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), GONE, "", " ", "a", "1", "nan"),
    *(
        "\x1b[2J",
        "\u202e",
        "\x00",
        "é",
        "🙂",
        "../../x",
        "/nowhere/x",
        "~",
        "~nobody/x",
        "a" * 5000,
        "${seed}",
        "${",
        "${oc.env:NOPE}",
        "${oc.env:HOME}",
        "null",
    ),
    *(
        [],
        {},
        [None],
        [[]],
        {"": None},
        {"_target_": "os.system"},
        {"a": {"b": [1, {"c": 2}]}},
        [0] * 50,
        ["x", 1],
        {"kind": "full"},
        "<script>",
        "=1+1",
        "[red]",
    ),
)
VALUES = st.sampled_from(ODD) | st.integers(-5, 99) | st.floats() | st.text(max_size=8) | st.lists(st.integers(0, 3) | st.text(max_size=2), max_size=3)
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), VALUES), min_size=1, max_size=3)


def confused(tree: Any, changes: Sequence[tuple[int, Any]]) -> Any:
    """A tree of JSON in which some nodes, by their number, are of another type, have another value, or are gone."""
    tree = copy.deepcopy(tree)
    for number, value in changes:
        spots = list(_spots(tree))
        if not spots:
            return copy.deepcopy(value)
        parent, key = spots[number % len(spots)]
        if value == GONE:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(value)  # the next change may be inside of it, and the same value be drawn again: in itself it would never end
    return tree


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _spots(tree[key])


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


# --- configs --------------------------------------------------------------------------------------------------------

SHIPPED = sorted(path.relative_to(shipped_dir()).as_posix() for path in shipped_dir().rglob("*.yaml"))
LIGHT = ("data=synthetic", "device=cpu", "precision=fp32", "threads=1")


@st.composite
def yaml_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name in the folder, content) of a file of a user's."""
    name = draw(st.sampled_from(["experiment/mine.yaml", "experiment/mine.yaml", "pretrain.yaml", "base.yaml", "data/synthetic.yaml", *SHIPPED]))
    origin = name if name != "experiment/mine.yaml" else draw(st.sampled_from([n for n in SHIPPED if n.startswith("experiment/")]))
    shipped = (shipped_dir() / origin).read_bytes()
    how = draw(st.sampled_from(["bytes", "mutated", "confused", "confused"]))
    if how == "bytes":
        return name, draw(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
    if how == "mutated":
        return name, mutated(shipped, draw(OPERATIONS))
    head = b"# @package _global_\n" if shipped.startswith(b"# @package") else b""
    return name, head + yaml.safe_dump(confused(yaml.safe_load(shipped), draw(CHANGES)), allow_unicode=True).encode("utf-8", "replace")


@each
def test_a_config_folder_of_any_content_is_composed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.chdir(tmp_path)

    def check(file: tuple[str, bytes], ask: str) -> None:
        name, content = file
        folder = tmp_path / "own"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
        chosen = ["experiment=mine"] if name == "experiment/mine.yaml" else []
        verb = ["validate"] if ask == "validate" else [ask, "--cfg", "job"]
        answer(folder, *verb, "--config-dir", str(folder), *chosen, *(LIGHT if ask == "validate" and not chosen else ()))

    shipped = (shipped_dir() / "pretrain.yaml").read_bytes()
    found = [(("pretrain.yaml", shipped.replace(b"- _self_", piece)), "pretrain") for piece in (b"- Q", b"")]
    fuzz(check, 5 * times, yaml_files(), st.sampled_from(["validate", "pretrain", "finetune"]), found=found)


# --- the command line -----------------------------------------------------------------------------------------------

TOKENS = (
    *("a", "1", "0", "-1", "1e3", "nan", "inf", "null", "true", "é", "🙂", "\x1b", "\n", "\t", "\udcff", " ", ",", ":", "=", "[", "]", "{", "}", "(", ")"),
    *(
        "'",
        '"',
        "\\",
        "$",
        "${",
        "${seed}",
        "${oc.env:HOME}",
        "${oc.env:NOPE}",
        "${oc.create:{a:1}}",
        "${oc.decode:x}",
        "@",
        "/",
        "..",
        "*",
        "~",
        "+",
        "%",
        "#",
    ),
    *(
        "choice(",
        "range(",
        "glob(",
        "interval(",
        "shuffle(",
        "sort(",
        "tag(",
        "int(",
        "float(",
        "str(",
        "bool(",
        "json_str(",
        "extend_list(",
        "_target_",
        "hydra",
    ),
)
GROUPS = ("model", "objective", "data", "finetune", "schedule", "experiment", "sweep", "launcher", "callback@callback.progress", "hydra", "hydra/launcher", "")


def typed_text(longest: int) -> st.SearchStrategy[str]:
    """Text as a shell hands it over: without NUL; bytes that are no UTF-8 come as lone surrogates from U+DC80 on."""
    return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from(["\udc80", "\udcff"]), max_size=longest)


def keys() -> list[str]:
    return sorted({key for verb in ("pretrain", "finetune") for key in flat(OmegaConf.to_container(compose(verb, []).config, resolve=False))})


@st.composite
def overrides(draw: st.DrawFn, known: list[str]) -> str:
    key = draw(st.sampled_from([*known, *GROUPS, "a.b.c", "model.kind", "seed.x", "hf_token", "trainer.learning_rate"]) | typed_text(6))
    odd = st.sampled_from([str(v).replace("\0", "") for v in ODD])
    value = draw(odd | typed_text(8) | st.lists(st.sampled_from(TOKENS), max_size=6).map("".join))
    return draw(st.sampled_from(["", "", "", "", "+", "++", "~"])) + key + draw(st.sampled_from(["=", "=", "=", "=", ""])) + value


@each
def test_overrides_of_any_content_are_composed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    asks = [
        ("pretrain", "--cfg", "job"),
        ("validate", *LIGHT),
        ("pretrain", "-m", "--cfg", "job", *LIGHT),
        ("generate", "--cfg", "job"),
        ("pretrain", "--help"),
    ]

    def check(ask: tuple[str, ...], typed: list[str]) -> None:
        answer(tmp_path, *ask, *typed)

    fuzz(check, 6 * times, st.sampled_from(asks), st.lists(overrides(keys()), min_size=1, max_size=2))


@each
def test_words_of_any_kind_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    known = ["--cfg", "job", "--config-dir", "-m", "--help", "--debug=", "-x", "--", "=", "+", "validate", "report", "sweep", "status", "~nobody"]
    words = st.sampled_from(known) | typed_text(9)

    def check(typed: list[str]) -> None:
        answer(tmp_path, *typed)

    fuzz(check, 15 * times, st.lists(words, max_size=4))


# --- data -----------------------------------------------------------------------------------------------------------

SAMPLES = {
    ".csv": b'id,text,label\n1,"one, two",a\n2,three four,b\n3,"five ""six""",a\n4,seven,b\n5,eight,a\n6,nine,b\n',
    ".jsonl": b"".join(as_json({"text": f"number {i} of all", "label": "ab"[i % 2], "score": i / 3, "choices": ["x", "y"]}) + b"\n" for i in range(8)),
    ".json": b"".join(as_json({"question": f"q {i}", "option_a": "x", "option_b": "y", "answer": i % 2}) + b"\n" for i in range(8)),
    ".txt": "One line.\nAnother, with é.\n\nChapter I\n\nA third one. And more of it.\n".encode(),
}
ENCODINGS = st.sampled_from(
    ["utf-8", "utf-8", "utf-8", "utf-16", "utf-16-le", "utf-7", "latin-1", "cp1252", "utf-8-sig", "shift_jis", "idna", "punycode", "hz"]
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """(suffix, content) of a file of texts."""
    suffix = draw(st.sampled_from(sorted(SAMPLES)))
    how = draw(st.sampled_from(["bytes", "mutated", "mutated", "confused"]))
    if how == "bytes":
        return suffix, draw(st.binary(max_size=80))
    if how == "confused" and suffix.startswith(".json"):
        rows = [json.loads(line) for line in SAMPLES[suffix].splitlines()]
        changed = confused(rows, draw(CHANGES))
        return suffix, b"\n".join(map(as_json, changed if isinstance(changed, list) else [changed]))
    return suffix, mutated(SAMPLES[suffix], draw(OPERATIONS))


@each
def test_a_file_of_any_content_gives_rows_or_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()

    def check(file: tuple[str, bytes], encoding: str, unit: str, target: Target | None) -> None:
        suffix, content = file
        path = folder / f"train{suffix}"
        path.write_bytes(content)

        def read() -> None:
            data = text_data(train=str(path), encoding=encoding, documents=unit, validation_fraction=0.3)
            rows = [data.split(name) if target is None else data.labelled(name, target) for name in ("train", "validation")]
            assert all(len(found) for found in rows)
            assert all(isinstance(text, str) and text.strip() for found in rows for text in found["text"])
            assert [data.summary(), *data.warnings()]

        with watched(folder):
            refused(read, 2, 3)
        path.unlink()

    found = [((".jsonl", b"[" * DEEP), "utf-8", "file", target) for target in (None, Target.label)]
    found += [((".csv", b"text,label\none,a\nt\xd1o,b\n"), "idna", "line", Target.label), ((".json", b"\x03\xa1\x1b"), "idna", "blank_line", Target.label)]
    fuzz(check, 10 * times, tables(), ENCODINGS, st.sampled_from(["file", "line", "blank_line", "chapter"]), st.sampled_from([None, *Target]), found=found)


FACES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(
    ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\x9b31m", "a\nb", "a\tb", "\r", "[red]", "\u2028", "\x7f", "é"]
)


@each
def test_labels_and_the_names_of_files_are_shown_without_driving_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"

    def check(name: str, labels: list[str]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / f"{name.replace('/', '_')}.jsonl"
        path.write_bytes(b"".join(as_json({"text": f"number {i}", "label": labels[i % len(labels)]}) + b"\n" for i in range(12)))
        out = io.StringIO()
        console = runtime.make_console()
        console.file = out

        def show() -> None:
            data = text_data(train=str(path), validation_fraction=0.3)
            data.labelled("train", Target.label)
            console.print(data.summary(), soft_wrap=True)
            for line in data.warnings():
                console.print(line, soft_wrap=True)

        with watched(folder):
            refused(show, 2, 3)
        assert clean(out.getvalue()), ascii(out.getvalue())
        assert out.getvalue().count("\n") <= 4  # no label makes lines of its own

    fuzz(check, 10 * times, FACES, st.lists(FACES, min_size=2, max_size=4, unique=True), found=[("\x1b[2J", ["\x1b]0;x\x07", "a\nb"])])


# --- checkpoints, weights, caches -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and a final/, which no test changes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    asked = (*TINY, "trainer.max_steps=4", "evaluation.every_steps=2", f"output_dir={folder}")
    assert cli.main(["pretrain", *asked]) == 0
    return folder


def described(folder: Path) -> None:
    """Write the manifest anew, so that what stands in the files reaches those who read them."""
    manifest = json.loads((folder / files.MANIFEST).read_text())
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("version", "files")})


@st.composite
def damage(draw: st.DrawFn, names: Sequence[str]) -> tuple[str, str, Any]:
    """(file, how, with what)."""
    name = draw(st.sampled_from(list(names)))
    how = draw(st.sampled_from(["bytes", "confused", "confused"] if name.endswith((".json", ".safetensors", ".jsonl")) else ["bytes"]))
    return name, how, draw(CHANGES if how == "confused" else OPERATIONS)


def damaged(path: Path, how: str, what: Any) -> None:
    data = path.read_bytes()
    if how == "bytes":
        path.write_bytes(mutated(data, what))
    elif path.suffix == ".jsonl":
        lines = confused([json.loads(line) for line in data.splitlines()], what)
        path.write_bytes(b"\n".join(map(as_json, lines if isinstance(lines, list) else [lines])))
    elif path.suffix == ".safetensors":  # its header: 8 bytes of length, then JSON
        length = int.from_bytes(data[:8], "little")
        header = as_json(confused(json.loads(data[8 : 8 + length]), what))
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    else:
        path.write_bytes(as_json(confused(json.loads(data), what)))


CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "state.json", "state.json", "state.json", "manifest.json")


@each
def test_a_checkpoint_of_any_content_is_read_or_refused(tmp_path: Path, trained: Path, times: int) -> None:
    from llmtrain import checkpoint

    def check(file: tuple[str, str, Any], believed: bool) -> None:
        name, how, what = file
        folder = tmp_path / "step-00000004"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "checkpoints" / "step-00000004", folder)
        damaged(folder / name, how, what)
        if believed and name != files.MANIFEST:
            described(folder)
        with watched(folder):
            if not refused(lambda: checkpoint.read(folder), 4):
                state = checkpoint.run_state(folder)
                assert all(isinstance(getattr(state, field), int) and getattr(state, field) >= 0 for field in ("step", "phase", "phase_step", "tokens"))

    fuzz(check, 12 * times, damage(CHECKPOINT), st.booleans())


@each
def test_a_run_goes_on_from_a_checkpoint_of_any_content_or_says_why_not(tmp_path: Path, trained: Path, times: int) -> None:
    def check(file: tuple[str, str, Any]) -> None:
        name, how, what = file
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained, run, symlinks=True, ignore=shutil.ignore_patterns("step-00000002", "final"))
        folder = run / "checkpoints" / "step-00000004"
        damaged(folder / name, how, what)
        if name != files.MANIFEST:
            described(folder)
        code, *_ = answer(folder, "pretrain", *TINY, "trainer.max_steps=5", "resume=must", "checkpoint.keep_last=9", f"output_dir={run}")
        assert code in (0, 4, 5)

    fuzz(check, times, damage(CHECKPOINT))


HOSTILE = ("\x1b[2Jevil", "\u202e", "a\nb", "${nope}", "${oc.select:model}", "${${seed}}", "${", "???")


@each
def test_a_run_goes_on_beside_configs_of_any_content_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "pretrain" / "trained", symlinks=True)  # what `newest` is; where there is none, one is trained

    def check(name: str, checkpoint: Any, changes: Sequence[tuple[int, Any]]) -> None:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained, run, symlinks=True, ignore=shutil.ignore_patterns("step-00000002", "final"))
        content = yaml.safe_load((run / name).read_text())
        content["model"]["checkpoint"] = checkpoint
        (run / name).write_bytes(yaml.safe_dump(confused(content, changes) if changes else content, allow_unicode=True).encode("utf-8", "replace"))
        answer(run / "checkpoints", "validate", "pretrain", *LIGHT, "model=checkpoint", "model.checkpoint=newest", f"output_dir={run}")
        if name == "config.yaml":
            with contextlib.redirect_stdout(out := io.StringIO()):
                refused(lambda: train.name_newest(compose("finetune", []).config, "finetune", run), 2, 4)
            assert clean(out.getvalue()), ascii(out.getvalue())

    found = [("config.yaml", value, []) for value in HOSTILE]
    fuzz(check, 3 * times, st.sampled_from(["config.yaml", "config.yaml", "resolved.yaml"]), st.sampled_from(HOSTILE), st.just([]) | CHANGES, found=found)


def test_why_a_run_stopped_is_shown_without_driving_the_terminal(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    folder = run / "checkpoints" / "step-00000004"
    state = json.loads((folder / "state.json").read_text())
    state["run"]["stop"] = "\x1b[2J\u202e"
    (folder / "state.json").write_bytes(as_json(state))
    described(folder)
    code, said, _ = answer(folder, "pretrain", *TINY, "trainer.max_steps=4", "resume=must", f"output_dir={run}")
    assert (code, r"\x1b[2J\u202e" in said) == (0, True)


FINAL = (
    "config.json",
    "config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors",
)


@each
def test_a_folder_of_weights_of_any_content_is_used_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    there = [name for name in FINAL if (trained / "final" / name).is_file()]

    def check(file: tuple[str, str, Any]) -> None:
        name, how, what = file
        folder = tmp_path / "weights"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "final", folder)
        (folder / files.MANIFEST).unlink(missing_ok=True)  # as another project's would be
        damaged(folder / name, how, what)
        answer(folder, "generate", "prompt=One", "max_new_tokens=2", "device=cpu", "threads=1", f"model.checkpoint={folder}")

    kept = json.loads((trained / "final" / "tokenizer_config.json").read_text())
    place = [key for _, key in _spots(kept)].index("model_max_length")
    found = [(("tokenizer_config.json", "confused", [(place, value)]),) for value in ("", [[]])]
    place = [key for _, key in _spots(json.loads((trained / "final" / "generation_config.json").read_text()))].index("bos_token_id")
    found += [(("generation_config.json", "confused", [(place, value)]),) for value in ("", 10**400)]
    fuzz(check, 3 * times, damage(there), found=found)


@each
def test_a_cache_of_any_content_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    from datasets import Features, Value

    from llmtrain.data import store

    def stored(say: Callable[[str], None]) -> list[int]:
        return list(store.stored("numbers", {"n": 3}, lambda: ({"n": i} for i in range(3)), Features({"n": Value("int64")}), say)["n"])

    def check(file: tuple[str, str, Any]) -> None:
        monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        stored(print)
        (entry,) = (path.parent for path in (tmp_path / "cache").rglob(files.MANIFEST))
        name, how, what = file
        before = (entry / name).read_bytes()
        damaged(entry / name, how, what)
        said: list[str] = []
        with watched(tmp_path / "elsewhere"):
            assert stored(said.append) == [0, 1, 2]
        assert all(line.startswith("cache: numbers is made again: ") and clean(line) and "\n" not in line and len(line) < 1000 for line in said)
        if name == store.ROWS and before != (entry / name).read_bytes():
            assert said

    found = [((files.MANIFEST, "confused", [(1, value)]),) for value in ("\x1b[2J", "a" * 5000)]  # its format
    fuzz(check, 6 * times, damage([files.MANIFEST, store.ROWS]), found=found)


# --- reports --------------------------------------------------------------------------------------------------------

PREDICTIONS = [{"split": split, "sample": i, "target": i % 2, "predicted": i // 2} for split in ("validation", "test") for i in range(4)]
JUDGED = {"best": {"metric": "accuracy", "higher": True}, "validation": {"accuracy": 0.5, "loss": 1.5}, "test": {"accuracy": 0.5}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A sweep of two members as it is on the disk."""
    from llmtrain.sweep.book import Book, Entry, Status

    folder = tmp_path_factory.mktemp("swept") / "sweep"
    names = ["lr=0.001-0000aaaa", "lr=0.002-0000bbbb"]
    for name in names:
        shutil.copytree(trained, folder / "members" / name, symlinks=True, ignore=shutil.ignore_patterns("checkpoints", "final", "tokenizer"))
        home = folder / "members" / name
        (home / "predictions.jsonl").write_bytes(b"\n".join(map(as_json, PREDICTIONS)))
        (home / "run.json").write_bytes(as_json(json.loads((home / "run.json").read_text()) | JUDGED))
    about = {"name": "sweep", "verb": "pretrain", "command": "llmtrain pretrain -m optimizer.lr=1e-3,2e-3", "overrides": ["optimizer.lr=1e-3,2e-3"]}
    about |= {"sweep": {"kind": "grid"}, "launcher": {"kind": "local", "jobs": 2}, "notes": ["a note"], "plan": {"stored": True, "store_seconds": 3.5}}
    entries = [Entry(name, [f"optimizer.lr={name[3:8]}"], [["optimizer.lr", name[3:8]]], Status.finished, seconds=2.0, exit_code=0) for name in names]
    Book(folder, about, {entry.name: entry for entry in entries}).save()
    return folder


@each
def test_a_report_on_files_of_any_content_is_written_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept: Path, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    member = "members/lr=0.001-0000aaaa"
    own = ("run.json", "run.json", "metrics.jsonl", "predictions.jsonl", "config.yaml", "overrides.txt")
    read = ["sweep.json", "sweep.json", *(f"{member}/{name}" for name in own)]

    def check(file: tuple[str, str, Any]) -> None:
        name, how, what = file
        folder = tmp_path / "sweep"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(swept, folder)
        damaged(folder / name, how, what)
        code, *_ = answer(folder, "report", str(folder), f"output={tmp_path / 'out'}")
        if code == 0:
            for path in (tmp_path / "out").iterdir():
                assert clean(path.read_text(encoding="utf-8").replace("\t", " "))

    fuzz(check, 2 * times, damage(read))


@each
def test_a_sweep_whose_book_is_of_any_content_is_shown_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept: Path, times: int) -> None:
    monkeypatch.chdir(tmp_path)

    def check(file: tuple[str, str, Any], words: tuple[str, ...]) -> None:
        folder = tmp_path / "runs" / "sweep" / "sweep"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(swept, folder)
        damaged(folder / file[0], *file[1:])
        answer(folder, "sweep", *words, partly=True)

    fuzz(check, 4 * times, damage(["sweep.json", "sweep.json", "members/lr=0.001-0000aaaa/run.json"]), st.sampled_from([("list",), ("status", "sweep")]))


# --- what was found and mended --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [["a${L}a${L}", "${a}" * 10], ["x", '["${a}", "${a}", "${a}", "${a}", "${a}", "${a}", "${a}"]']], ids=["text", "lists"])
def test_h05_references_that_stand_for_references_are_refused_before_they_grow(tmp_path: Path, levels: list[str]) -> None:
    first, then = levels
    lines = [f"a0: {first.replace('${L}', '')}", *(f"a{i}: {then.replace('${a}', f'${{a{i - 1}}}')}" for i in range(1, 20))]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + "\n".join(lines))
    code, _, said = answer(tmp_path, "pretrain", "--cfg", "job", "--config-dir", str(tmp_path), "experiment=mine")
    assert code == 2
    assert "stand for more than 1,000,000 characters" in said


@pytest.mark.parametrize("resolver", ["oc.select:", "oc.decode:", "oc.dict.values:", ""])
def test_h05_references_that_compute_something_are_refused_before_they_grow(tmp_path: Path, resolver: str) -> None:
    texts = ["output_dir", "resume", "name", "callback.tracker.project", "callback.metrics.file", "device"]
    config = OmegaConf.create({"output_dir": "x"})
    for before, key in itertools.pairwise(texts):
        OmegaConf.update(config, key, f"${{{resolver}{before}}}" * 20)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(config))
    began = time.process_time()
    code, _, said = answer(tmp_path, "validate", "--config-dir", str(tmp_path), "experiment=mine")
    assert (code, ("no such reference" if resolver else "stand for more than") in said) == (2, True)
    assert time.process_time() - began < 30  # a tenth of a second; what it grows into took minutes


@pytest.mark.parametrize("content", ["model: ${nope}", "model: {kind: '${nope}'}", "callback: {progress: '${nope}'}", "cache: ${nope}", "trainer: ${nope}"])
def test_a_section_that_refers_to_nothing_is_one_screen(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    for verb in ("pretrain", "finetune"):
        assert answer(tmp_path, "validate", verb, "--config-dir", str(tmp_path), "experiment=mine")[0] == 2


def test_a_verbs_own_file_whose_defaults_do_not_name_itself_is_taken_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text((shipped_dir() / "pretrain.yaml").read_text().replace("  - _self_\n", ""))
    code, _, said = answer(tmp_path, "pretrain", "--cfg", "job", "--config-dir", str(tmp_path))
    assert (code, "its values win over an experiment" in said) == (0, True)


def test_references_that_stay_small_are_taken(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {batch_size: '${..data.max_length}', max_steps: '${seed}'}\nseed: 3\n")
    assert answer(tmp_path, "pretrain", "--cfg", "job", "--config-dir", str(tmp_path), "experiment=mine")[0] == 0


@pytest.mark.parametrize("value", ["\x1b[2Jx", "a\u202eb", "\udcff"])
def test_what_could_drive_the_terminal_is_escaped_in_a_printed_config_and_still_the_same_value(tmp_path: Path, value: str) -> None:
    code, said, _ = answer(tmp_path, "pretrain", "--cfg", "job", f"data.train='{value}'", "data=text")
    assert code == 0
    assert yaml.safe_load(said)["data"]["train"] == value


@pytest.mark.parametrize("content", ['"a\\0b"', "[x, 'y', \"\\0\"]"])
def test_a_nul_character_is_refused_before_it_becomes_a_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\noutput_dir: {content}\n")
    code, _, said = answer(tmp_path, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")
    assert code == 2
    assert "NUL character" in said


@pytest.mark.parametrize(
    "content",
    [
        "a: 2026-02-30",
        "a: !!bool maybe",
        "a: !!timestamp x",
        "a: !!int x",
        f"a: {'9' * 5000}",
        "defaults: 5",
        "trainer: 5",
        "defaults: [mine]",
        "defaults: [5]",
    ],
)
def test_a_file_that_other_readers_stumble_over_is_one_screen(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    code, _, said = answer(tmp_path, "validate", "--config-dir", str(tmp_path), "experiment=mine")
    assert code == 2, said


@pytest.mark.parametrize(
    "value", ["2026-02-30", "0x_", "9" * 5000, "!!bool maybe", "2026-02-20", "[2026-02-20]", "{a: 1, 2: b}", "[{a: 1, 2026-02-20: !!set {b}}]"]
)
def test_a_report_on_values_that_json_does_not_have_is_written(tmp_path: Path, swept: Path, value: str) -> None:
    member = "members/lr=0.001-0000aaaa"
    for name, before in (("sweep.json", "optimizer.lr=0.001"), (f"{member}/config.yaml", "  lr: 0.002")):
        folder = tmp_path / before.strip()[:2]
        shutil.copytree(swept, folder)
        assert before in (folder / name).read_text()
        (folder / name).write_text((folder / name).read_text().replace(before, before[: before.index("0")] + value))
        if name == "sweep.json":
            shutil.rmtree(folder / member)  # it did not start: its settings are what was typed
        assert answer(folder, "report", str(folder), f"output={tmp_path / 'out'}")[0] == 0


FILES = {"a.txt": {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()}}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({"version": 1, "files": FILES}, None),
        ({"version": 1, "files": {"a.txt": 5}}, "cannot be read"),
        ({"version": 1, "files": {"a.txt": {"bytes": 1}}}, "cannot be read"),
        ({"version": 1, "files": {"a.txt": {"bytes": None, "sha256": 1}}}, "cannot be read"),
        ({"version": 1, "files": ["a.txt"]}, "cannot be read"),
        ({"version": 1, "files": {"../a.txt": FILES["a.txt"]}}, "cannot be read"),
        ({"version": 1, "files": {"/etc/passwd": FILES["a.txt"]}}, "cannot be read"),
        ({"version": 1, "files": {"\x1b[2J": FILES["a.txt"]}}, "cannot be read"),
        ({"version": 1, "files": {"b" * 300: FILES["a.txt"]}}, "cannot be read"),
        ({"version": "\x1b[2J", "files": {}}, "has version '"),
        ([], "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_manifest_of_any_shape_is_a_reason_and_no_crash(tmp_path: Path, manifest: Any, why: str | None) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / files.MANIFEST).write_bytes(b"[" * DEEP if manifest is None else as_json(manifest))
    found = files.problem(tmp_path)
    assert (found is None) if why is None else (found is not None and why in found and clean(found))


@pytest.mark.parametrize(
    "changed",
    [
        {"run": None},
        {"run": {"step": "4"}},
        {"run": {"step": True}},
        {"run": {"step": -(10**9)}},
        {"run": {"phase_step": 2.5}},
        {"run": {"window": {"loss": ["x"]}}},
        {"run": {"best": 10**400}},
        {"base": 5},
        {"base": {"path": "x"}},
        {"scaler": [1]},
    ],
)
def test_a_checkpoint_whose_small_state_is_of_another_type_is_refused(tmp_path: Path, trained: Path, changed: dict[str, Any]) -> None:
    from llmtrain import checkpoint

    folder = tmp_path / "step-00000004"
    shutil.copytree(trained / "checkpoints" / "step-00000004", folder)
    state = json.loads((folder / "state.json").read_text())
    run = {**state["run"], **changed["run"]} if isinstance(changed.get("run"), dict) else changed.get("run", state["run"])
    (folder / "state.json").write_bytes(as_json({**state, **changed, "run": run}))
    described(folder)
    assert refused(lambda: checkpoint.read(folder), 4)
    assert refused(lambda: checkpoint.run_state(folder), 4)


def test_moments_of_another_shape_do_not_go_into_the_optimizer(tmp_path: Path, trained: Path) -> None:
    import safetensors.torch

    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    path = run / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    moments = safetensors.torch.load(path.read_bytes())
    name = next(name for name in moments if name.endswith("/exp_avg") and moments[name].dim() == 2)
    path.write_bytes(safetensors.torch.save({**moments, name: moments[name][:1].contiguous()}))  # would be spread over all rows
    described(path.parent)
    code, _, said = answer(path.parent, "pretrain", *TINY, "trainer.max_steps=5", "resume=must", "checkpoint.keep_last=9", f"output_dir={run}")
    assert code == 4
    assert "does not fit the optimizer" in said


def test_a_library_in_rust_that_panics_is_answered_like_any_error(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 names it; it is no Exception."""

    def panic(*_: Any, **__: Any) -> Any:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    code, _, said = answer(tmp_path, "generate", f"model.checkpoint={trained / 'final'}", "device=cpu")
    assert code == 4
    assert "PanicException: index out of bounds" in said


def test_what_is_written_is_chosen_as_asked_whatever_stands_beside_the_weights(tmp_path: Path, trained: Path) -> None:
    def written(**settings: Any) -> str:
        folder = tmp_path / f"weights-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained / "final", folder)
        (folder / files.MANIFEST).unlink()
        path = folder / "generation_config.json"
        path.write_bytes(as_json(json.loads(path.read_text()) | settings))
        code, said, _ = answer(folder, "generate", "prompt=One", "max_new_tokens=8", "temperature=0", "device=cpu", f"model.checkpoint={folder}")
        assert code == 0
        return said

    assert written() == written(num_beams=3, repetition_penalty=9.0) == written(num_beams="x")


def test_the_watch_sees_what_may_not_happen(tmp_path: Path) -> None:
    (tmp_path / "ran.py").write_text("value = 1\n")
    (tmp_path / "old").write_text("old")
    acts: dict[str, Callable[[], Any]] = {
        "os.system": lambda: os.system("true"),
        "exec": lambda: exec(compile("1", str(tmp_path / "ran.py"), "exec")),
        "old": lambda: (tmp_path / "old").write_text("new"),
    }
    for name, act in acts.items():
        with pytest.raises(AssertionError, match=name), watched(tmp_path):
            act()
