"""What code depends on, read from its text: modules of this project, the kernels' sources, data files. Nothing is run.

Imports inside functions count as those at the top do, and a public name of ``kinetics_lab`` as its own module. Where
the text does not tell what is meant, everything counts: a result that is taken for fresh and is not is the worst fault.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kinetics_lab
from kinetics_lab.book.parameters import parsed
from kinetics_lab.data import data_dir, manifest

PACKAGE, KERNELS = "kinetics_lab", "kinetics_kernels"
MEASURED = "measurements"  # the folder of measured rows, among the data
LOADERS = ("import_module", "__import__", "exec", "eval")  # may import what no name in the text tells
READERS = ("read_table", "data_path", "manifest", "data_dir")  # of kinetics_lab.data: what gives a data file


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, rooms by their own: ``kinetics_lab.cost`` is its ``__init__``."""
    root = Path(kinetics_lab.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Mapping[str, Path]) -> set[str]:
    """The modules among those ``known`` that the source imports anywhere, with the rooms that hold them.

    The package's own ``__init__`` only says where names live, so it is never among them.
    Raises SyntaxError where the source is not Python.
    """
    names, homes, whole = set[str](), set[str](), False
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            whole |= any(alias.name.split(".")[0] == PACKAGE for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if node.module == PACKAGE:
                given = {alias.name for alias in node.names}
                public = kinetics_lab.HOME if "*" in given else given & set(kinetics_lab.HOME)
                names |= {f"{PACKAGE}.{kinetics_lab.HOME[name]}" for name in public}
        elif isinstance(node, ast.Attribute) and node.attr in kinetics_lab.HOME:
            homes.add(f"{PACKAGE}.{kinetics_lab.HOME[node.attr]}")
    names |= homes if whole else set()  # kinetics_lab.plan(...)
    rooms = {name[:at] for name in names for at in range(len(name)) if name[at] == "."}
    return {name for name in names | rooms if name in known} - {PACKAGE}


def closure(sources: Iterable[str]) -> set[str]:
    """All modules of the package that the sources import, and what those import in turn."""
    found: set[str] = set()
    waiting = set[str]().union(*(_facts(source).modules for source in sources))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _facts(modules()[name].read_text(encoding="utf-8")).modules - found
    return found


@dataclass(frozen=True)
class _Facts:
    """What a source says: modules imported, its constant texts, data files read ("ladder_*": all that begin so)."""

    modules: frozenset[str]
    texts: frozenset[str]
    reads: frozenset[str]
    kernels: bool


@cache
def _facts(source: str) -> _Facts:
    """The facts of one source; of one that is not Python, that it may do anything."""
    known = modules()
    try:
        tree = parsed(source)
    except SyntaxError:  # magics of IPython, another language
        return _Facts(frozenset(known) - {PACKAGE}, frozenset(), frozenset({"*", MEASURED}), True)
    nodes = list(ast.walk(tree))
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    names = imported(source, known) | (texts & set(known))
    loads = (node for node in nodes if isinstance(node, ast.Call) and _name(node.func) in LOADERS)
    if any(node.args and not isinstance(node.args[0], ast.Constant) for node in loads):
        names = set(known)
    kernels = KERNELS in source  # imported, found or quoted
    return _Facts(frozenset(names - {PACKAGE}), frozenset(texts), frozenset(_reads(nodes)), kernels)


def _name(node: ast.AST) -> str:
    """The last part of a name: ``table`` for ``a.table``; empty for what is no name."""
    return getattr(node, "id", "") or getattr(node, "attr", "")


def _reads(nodes: list[ast.AST]) -> set[str]:
    """Patterns of the names of data files that the readers of ``kinetics_lab.data`` are asked for here."""
    above = {id(part): node for node in nodes for part in ast.iter_child_nodes(node)}
    found = set[str]()
    for node in nodes:
        if isinstance(node, ast.alias) and node.asname and node.name in READERS:
            found |= {"*", MEASURED}  # under another name
        elif isinstance(node, ast.Name | ast.Attribute) and (reader := _name(node)) in READERS:
            call = above.get(id(node))
            called = isinstance(call, ast.Call) and call.func is node
            found |= _asked(reader, call if called else None, above.get(id(call)))
    return found


def _asked(reader: str, call: ast.AST | None, around: ast.AST | None) -> set[str]:
    """Patterns of what one call of a reader gives, by what stands ``around`` it; all where the names are not written."""
    asked: ast.AST | None = None
    match reader, call, around:
        case "data_dir", ast.Call(), ast.BinOp(right=ast.Constant(value=text)) if text == MEASURED:
            return {MEASURED}
        case "data_dir", _, _:
            return {"*", MEASURED}
        case "manifest", ast.Call(), ast.Subscript(slice=asked):
            pass
        case "read_table" | "data_path", ast.Call(), _:
            asked = next(iter([*call.args, *(key.value for key in call.keywords if key.arg == "name")]), None)
    match asked:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return {f"{text}*"}
    return {"*"}


def dependencies(
    cells: Iterable[str], sets: Iterable[Mapping[str, Any]], root: Path
) -> Iterator[dict[str, str]]:
    """For each set of parameters: what the cells' result depends on besides them, as name -> SHA-256.

    The closure's modules and what lies beside them, all kernel sources where any is mentioned, entries of the data
    manifest by ``data:name``, measured rows, and files (counted from ``root``) that a parameter names.
    """
    own, names = _facts("\n".join(cells)), closure(["\n".join(cells)])
    paths = {name: modules()[name] for name in names}
    sources = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    every = [own, *(_facts(source) for name, source in sources.items() if name != f"{PACKAGE}.data")]
    fixed = {name: _digest(source.encode()) for name, source in sources.items()}
    home = modules()[PACKAGE].parent
    for folder in {path.parent for path in paths.values()}:  # a room's own data, beside its code
        beside = _digests(folder, "*", (".py", ".pyc"))
        fixed |= {str(folder.relative_to(home) / name): digest for name, digest in beside.items()}
    if any(fact.kernels for fact in every) and (spec := find_spec(KERNELS)):
        for place in spec.submodule_search_locations or ():
            found = _digests(Path(place), "**/*", (".pyc",))
            fixed |= {f"{KERNELS}/{name}": digest for name, digest in found.items()}
    reads = set[str]().union(*(fact.reads for fact in every))
    if MEASURED in reads:
        fixed |= _digests(data_dir() / MEASURED, "*/*.parquet")
    texts = set[str]().union(*(fact.texts for fact in every))
    entries = manifest() if (data_dir() / "MANIFEST.toml").is_file() else {}
    told = {name: _digest(json.dumps(entry, sort_keys=True).encode()) for name, entry in entries.items()}
    for name, entry in entries.items():
        named = any(t == name or t.endswith(entry["file"]) for t in texts)
        if named or any(fnmatchcase(name, pattern) for pattern in reads):
            fixed[f"data:{name}"] = told[name]

    @cache
    def file(word: str) -> str:
        path = os.path.join(root, word)
        return _digest(Path(path).read_bytes()) if os.path.isfile(path) else ""

    @cache  # many sets name the same texts
    def needed(given: frozenset[str]) -> dict[str, str]:
        found = {f"data:{name}": told[name] for name in told.keys() & given}
        found |= {word: file(word) for word in given if file(word)}
        return fixed | found if found else fixed

    yield from (needed(frozenset(_words(parameters))) for parameters in sets)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digests(folder: Path, pattern: str, without: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of the folder's files by their path in it, but of those whose names end in ``without``."""
    files = (path for path in folder.glob(pattern) if path.is_file() and path.suffix not in without)
    return {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in files}


def _words(value: Any) -> Iterator[str]:
    """All texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in [*value, *value.values()] if isinstance(value, Mapping) else value:
            yield from () if isinstance(part, (int, float)) else _words(part)
