"""Eight families of the standard library's modules: the classes of the embedded task.

A docstring's class is the family of the module it stands in. The families are cut by what a module is for, and so that
each has between about a twelfth and a fifth of the rows. Modules that belong to several families, or to none (os,
argparse, locale, …), are left out.

Whole files are held out: docstrings of one file repeat each other's phrases, so that words alone find the family of three in
four docstrings where files are torn apart, and of one in two where they are not.

The table names modules of Python 3.11 to 3.13; a Python without some of them has fewer rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmtrain.data import documents as docs

# Family → top-level modules and packages, without the underscore that some private parts of them begin with.
FAMILIES: dict[str, tuple[str, ...]] = {
    "gui": ("curses", "idlelib", "tkinter", "turtle", "turtledemo"),
    "network": (
        *("asynchat", "asyncore", "cgi", "cgitb", "email", "ftplib", "http", "imaplib", "ipaddress", "mailbox", "mailcap", "netrc", "nntplib"),
        *("poplib", "smtpd", "smtplib", "socket", "socketserver", "ssl", "telnetlib", "urllib", "webbrowser", "wsgiref", "xmlrpc"),
    ),
    "formats": (
        *("base64", "bz2", "codecs", "compression", "configparser", "csv", "dbm", "difflib", "encodings", "filecmp", "fileinput", "fnmatch"),
        *("genericpath", "glob", "gzip", "html", "json", "lzma", "markupbase", "mimetypes", "ntpath", "pathlib", "pickle", "plistlib", "posixpath"),
        *("pyio", "quopri", "re", "shelve", "shutil", "string", "stringprep", "tarfile", "tempfile", "textwrap", "tomllib", "xml", "zipfile"),
    ),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "queue", "sched", "selectors", "signal", "subprocess", "threading", "threading_local"),
    "packaging": (
        *("compileall", "distutils", "ensurepip", "imp", "importlib", "modulefinder", "pkgutil", "py_compile", "runpy", "site", "sysconfig"),
        *("venv", "zipapp", "zipimport"),
    ),
    "testing": (*("bdb", "cProfile", "doctest", "logging", "pdb", "profile", "pstats", "timeit", "trace", "traceback", "tracemalloc", "unittest", "warnings"),),
    "numbers": (
        *("bisect", "calendar", "collections", "collections_abc", "datetime", "decimal", "fractions", "graphlib", "heapq", "numbers", "operator"),
        *("pydatetime", "pydecimal", "random", "secrets", "statistics", "strptime", "uuid", "weakref", "weakrefset", "zoneinfo"),
    ),
    "language": (
        *("abc", "ast", "code", "codeop", "contextlib", "copy", "copyreg", "dataclasses", "dis", "enum", "functools", "inspect", "keyword", "lib2to3"),
        *("opcode", "opcode_metadata", "pickletools", "py_abc", "pyclbr", "pydoc", "pyrepl", "rlcompleter", "symtable", "tabnanny", "token"),
        *("tokenize", "types", "typing"),
    ),
}
# A file with more than this share of its family's rows always trains: held out, it would be the whole of its family there.
LARGE = 0.1
_FAMILY = {module: family for family, modules in FAMILIES.items() for module in modules}


def family(file: str) -> str | None:
    """The family of a file of the standard library, by its name there (`email/message.py`); None: it has none."""
    return _FAMILY.get(dotted(file)[0].lstrip("_"))


def dotted(file: str) -> list[str]:
    """The parts of a module's name: `email/message.py` → email, message; `json/__init__.py` → json."""
    parts = file.removesuffix(".py").split("/")
    return parts[:-1] if len(parts) > 1 and parts[-1] in ("__init__", "__main__") else parts


def unnamed(text: str, file: str) -> str:
    """`text` without the name of the file's own module, each part of it, in any case, also with an underscore beside it."""
    names = {part.strip("_") for part in dotted(file)} - {""}
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![a-z0-9])(?:{longest_first})(?![a-z0-9])", "", text, flags=re.IGNORECASE)


def groups(sizes: Mapping[str, int]) -> dict[str, int]:
    """Of each file, the 63-bit number that decides its split (see `documents.assign`), from the number of rows of each.

    The files of a family stand on a line in the order of a hash of their names, the large ones in its middle, each as long
    as it has rows; a file's place is its centre. So every family gives about the same share of its rows to each split.
    """
    found = {}
    for name in FAMILIES:
        own = sorted((file for file, size in sizes.items() if size and family(file) == name), key=docs.key)
        total = sum(sizes[file] for file in own)
        large = [file for file in own if sizes[file] > LARGE * total]
        small = [file for file in own if file not in large]
        before = 0
        for file in [*small[: len(small) // 2], *large, *small[len(small) // 2 :]]:
            found[file] = int((before + sizes[file] / 2) / total * 2**63)
            before += sizes[file]
    return found
