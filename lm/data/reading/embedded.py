"""The embedded corpus: Python's own documentation, which needs no download.

Each document is one topic of the language reference (`pydoc_data.topics`), or about one page of docstrings from one
standard-library module. Modules are parsed with `ast` and are not imported. A given Python installation always yields
the same documents in the same order.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record
from lm.data.reading.format import Format, Refuse
from lm.errors import UserError

SKIPPED_FOLDERS = "test tests idle_test idlelib lib2to3 pydoc_data site-packages dist-packages __pycache__".split()
TOPICS = "pydoc_data/topics.py"
PAGE_CHARACTERS = 1200
FEWEST_CHARACTERS = 500_000  # a full installation has over 2 million; one without topics or docstrings has far fewer


class Embedded(Format):
    doc = "Python's own documentation; needs no path"
    holds = ("documents",)
    settings = ()
    names_fields = True

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        """Does nothing, because this format needs no path."""

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return (({"text": text}, "") for text in documents())

    def identity(self) -> list[str]:
        digest = hashlib.sha256()
        for name, path in _files():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return [digest.hexdigest()]


def _files() -> list[tuple[str, Path]]:
    """Returns the name and path of each file to read. The names do not depend on where Python is installed."""
    library = Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec("pydoc_data.topics")
    topics = [(TOPICS, Path(spec.origin))] if spec and spec.origin else []
    files = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = set(subfolders) - {*SKIPPED_FOLDERS}  # installed packages contain far more files
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return topics + sorted((path.relative_to(library).as_posix(), path) for path in files)


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    """Yields the docstrings of a module, class or function and of everything defined in it, in file order."""
    definitions = ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    if isinstance(node, (ast.Module, *definitions)) and (text := ast.get_docstring(node) or "").strip():
        yield f"{name}\n\n{text}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, definitions):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _docstrings(child, name)


def _pages(docstrings: Iterator[str]) -> Iterator[str]:
    """Joins consecutive docstrings into pages of at most PAGE_CHARACTERS characters.

    A longer docstring is a page of its own.
    """
    page: list[str] = []
    for text in docstrings:
        if page and sum(map(len, page)) + len(text) > PAGE_CHARACTERS:
            yield "\n\n\n".join(page)
            page = []
        page.append(text)
    yield "\n\n\n".join(page)  # "" if there is no docstring


@functools.cache
def documents() -> tuple[str, ...]:
    """Returns all documents (2.3 MB in Python 3.11 to 3.13). Raises UserError if the documentation is missing."""
    collects = gc.isenabled()
    gc.disable()  # the collector would rescan all objects in the process, e.g. JAX's, for each large syntax tree
    try:
        texts = [text for name, path in _files() for text in _documents_of(name, path)]
    finally:
        if collects:
            gc.enable()
    if (size := sum(map(len, texts))) < FEWEST_CHARACTERS:
        raise UserError(
            f"embedded corpus: the Python installation in {sysconfig.get_path('stdlib')} contains only {size:,} "
            "characters of documentation; use a full installation, or your own text (kind='text', path=FILE)."
        )
    return tuple(filter(None, texts))


def _documents_of(name: str, path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # library files may contain invalid escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some library files are templates, not valid Python
        return []
    if name != TOPICS:
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return list(_pages(_docstrings(tree, module)))
    values = (getattr(statement, "value", None) for statement in tree.body)  # topics = {name: text, ...}
    dicts = [ast.literal_eval(value) for value in values if isinstance(value, ast.Dict)]
    return [topics[topic].strip("\n") for topics in dicts for topic in sorted(topics)]
