"""The embedded default: the prose that the running Python carries, about 2 MB of English.

The help topics of the language and the docstrings of the standard library, and of installed packages on request. They
are read as source, by `ast`: nothing is imported, so nothing of theirs runs.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import documents as docs, families, labelled
from llmtrain.data.base import Target
from llmtrain.data.documents import Documents
from llmtrain.data.labelled import Labelled
from llmtrain.errors import DataError, require
from llmtrain.files import sha256

if TYPE_CHECKING:
    from datasets import Dataset

# Folders of tests, of what was installed later, and of what is no module (the topics have a reader of their own).
SKIPPED = frozenset({"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"})
TOPICS = "pydoc_data/topics.py"
# Shorter docstrings are labels ("Helper.", "Overridden"), shorter documents boilerplate (the codecs' one line each).
MIN_DOCSTRING_WORDS, MIN_DOCUMENT_WORDS = 3, 20
# Shorter docstrings without their module's name ("Return the value.") say nothing of a family of modules.
MIN_LABELLED_WORDS = 5
# A Python with fewer documents was stripped of its sources or help topics.
MIN_DOCUMENTS = 50
DOCTEST = re.compile(r"^[ ]*>>>.*?(?:\n[ ]*\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PyDocs(Documents):
    """Prose of the standard library: one document for a help topic, one for the docstrings of a file.

    Attributes:
        packages: installed packages whose docstrings are read as well.
    """

    packages: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.packages:
            require(name.isidentifier(), "packages", name, "names that one imports, without dots: torch, numpy, …")

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        if name != "train":
            return None
        files = [(where, path, sha256(path)) for where, path in self._files]
        parts = {"python": _python(), "files": [(where, content) for where, _, content in files]}
        rows = store.stored("pydocs", parts, lambda: documents([(where, path) for where, path, _ in files]), docs.features())
        if len(rows) < MIN_DOCUMENTS:
            raise self._stripped(len(rows))
        return rows

    def _stripped(self, number: int) -> DataError:
        what = f"{_python()} in {_stdlib()} carries {number} documents of at least {MIN_DOCUMENT_WORDS} words: its help or sources were stripped"
        return DataError(what, fix="use a full Python (Debian: apt install python3-full), or data=text data.train=FILE")

    def check(self) -> None:
        if len(self._files) < MIN_DOCUMENTS:
            raise self._stripped(len(self._files))

    def origin(self) -> str:
        return f"{_python()} standard library" + "".join(f", {name}" for name in self.packages)

    def described(self) -> str:
        counted = docs.facts(self._sources["train"])
        notes = {
            "{:,} help topics": counted["topics"],
            "{:,} files with docstrings": counted["modules"],
            f"left out: {{:,}} docstrings of under {MIN_DOCSTRING_WORDS} words": counted["short_docstrings"],
            f"{{:,}} files of under {MIN_DOCUMENT_WORDS} words": counted["short_documents"],
            "{:,} files that are no Python": counted["unparsed"],
            "{:,} equal to another, so left out": counted["repeated"],
        }
        return "; ".join([super().described(), *(text.format(number) for text, number in notes.items() if number)])

    def answers(self, target: Target) -> Labelled:
        """The docstrings of the standard library, each labelled with the family of its module, split by file."""
        from llmtrain.data import store

        if target is not Target.label:
            raise self.unanswered(target)
        files = [(where, path, sha256(path)) for where, path in modules(_stdlib()) if families.family(where)]
        parts = {"python": _python(), "files": [(where, content) for where, _, content in files]}
        make = partial(docstrings, [(where, path) for where, path, _ in files])
        rows = store.stored("pydocs-labelled", parts, make, labelled.features(target, pairs=False))
        if len(rows) < MIN_DOCUMENTS:
            raise self._stripped(len(rows))
        return labelled.of(
            self,
            target,
            {"train": rows},
            {"train": [str(path) for _, path, _ in files]},
            origin=f"{_python()} standard library",
            answer="family",
            columns="a docstring's family of modules, its own module's name removed, split by file",
        )

    @cached_property
    def _files(self) -> list[tuple[str, Path]]:
        """Every file to read, under a name that does not depend on where Python is installed."""
        found = [(TOPICS, _stdlib() / TOPICS)] if (_stdlib() / TOPICS).is_file() else []
        found += [(f"stdlib/{where}", path) for where, path in modules(_stdlib())]
        for name in sorted(set(self.packages)):
            found += [(f"{name}/{where}", path) for folder in locate(name) for where, path in modules(folder)]
        return found


def documents(files: list[tuple[str, Path]]) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """The rows of the documents in some files, equal documents once; returns what was counted."""
    count: Counter[str] = Counter(dict.fromkeys(("topics", "modules", "short_docstrings", "short_documents", "unparsed", "repeated"), 0))
    counted: dict[str, Any] = yield from docs.rows([_distinct(files, count)])
    return {**counted, **count}


def _distinct(files: list[tuple[str, Path]], count: Counter[str]) -> Generator[docs.Found, None, None]:
    seen: set[int] = set()
    for where, path in files:
        tree = _parsed(path)
        if tree is None:
            count["unparsed"] += 1
            continue
        kind = "topics" if where == TOPICS else "modules"
        for text in topics(tree) if where == TOPICS else [prose(tree, count)]:
            text = text.encode("utf-8", "replace").decode()  # a few docstrings spell out halves of surrogate pairs
            key = docs.key(text)
            short = len(text.split()) < MIN_DOCUMENT_WORDS
            count["short_documents" if short else "repeated" if key in seen else kind] += 1
            if not short and key not in seen:
                yield where, [text]
            seen.add(key)


def docstrings(files: list[tuple[str, Path]]) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """The labelled rows of the docstrings in some files of the standard library, equal ones once; returns what was counted."""
    found: dict[str, list[tuple[int, str]]] = {}
    seen: set[str] = set()
    for where, path in files:
        tree = _parsed(path)
        found[where] = []
        for node in _in_order(tree) if tree else ():
            text = families.unnamed(ast.get_docstring(node, clean=True) or "", where).strip().encode("utf-8", "replace").decode()
            if len(DOCTEST.sub("", text).split()) >= MIN_LABELLED_WORDS and text not in seen:
                seen.add(text)
                found[where].append((getattr(node, "lineno", 1), text))
    groups = families.groups({where: len(texts) for where, texts in found.items()})
    sources = (_rows(where, texts, groups.get(where, 0)) for where, texts in found.items())
    return (yield from labelled.rows(sources, Target.label, pairs=False))


def _rows(where: str, texts: list[tuple[int, str]], group: int) -> Generator[labelled.Row, None, None]:
    for line, text in texts:
        yield labelled.Row(where=f"{where}:{line}", number=line, text=text, answer=families.family(where), group=group)


# --- reading Python as text ---------------------------------------------------------------------------------------


def topics(tree: ast.Module) -> list[str]:
    """The help topics, `topics = {name: text}` in pydoc_data.topics, in the order of their names."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return [inspect.cleandoc(text) for _, text in sorted(ast.literal_eval(node.value).items())]
    return []


def prose(tree: ast.Module, count: Counter[str]) -> str:
    """The docstrings of a module, its classes and functions, in the order of the source, a blank line between."""
    found = [text for node in _in_order(tree) if (text := ast.get_docstring(node, clean=True))]
    long = [text for text in found if len(DOCTEST.sub("", text).split()) >= MIN_DOCSTRING_WORDS]
    count["short_docstrings"] += len(found) - len(long)
    return "\n\n".join(text.strip("\n") for text in long)


def _in_order(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What can carry a docstring, as it stands in the source. Expressions are passed over: they hold no definitions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _in_order(child)


def _parsed(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError):
            return None


# --- where Python and packages are --------------------------------------------------------------------------------


def modules(folder: Path) -> list[tuple[str, Path]]:
    """The .py files below a folder (or that one file), sorted by their names below it, without tests."""
    if folder.is_file():
        return [(folder.name, folder)]
    names = ((path.relative_to(folder), path) for path in folder.rglob("*.py"))
    return sorted((name.as_posix(), path) for name, path in names if not SKIPPED & set(name.parts) and path.is_file())


def locate(package: str) -> list[Path]:
    """The folders or the file of an installed package, found without importing it.

    Raises:
        DataError: where there is no such package, or it has no Python source.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DataError(f"data.packages: {package}: not installed in this Python", fix=f"pip install {package}, or leave it out")
    found = [Path(folder) for folder in spec.submodule_search_locations or ([spec.origin] if spec.origin else [])]
    if not any(path.is_dir() or path.suffix == ".py" for path in found):
        raise DataError(f"data.packages: {package}: has no Python source ({spec.origin})", allowed="packages that install .py files")
    return found


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"
