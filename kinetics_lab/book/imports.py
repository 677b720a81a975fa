"""What a piece of code imports of this project, read from its text: nothing is run.

Imports inside functions count as those at the top do, and a public name of ``kinetics_lab`` as its own module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import kinetics_lab

PACKAGE = "kinetics_lab"


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
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                home = kinetics_lab.HOME.get(alias.name, "") if node.module == PACKAGE else ""
                names.add(f"{PACKAGE}.{home}" if home else f"{node.module}.{alias.name}")
            names.add(node.module)
    rooms = {name[:at] for name in names for at in range(len(name)) if name[at] == "."}
    return {name for name in names | rooms if name in known} - {PACKAGE}


def closure(sources: Iterable[str]) -> set[str]:
    """All modules of the package that the sources import, and what those import in turn."""
    known = modules()
    found: set[str] = set()
    waiting = set().union(*(imported(source, known) for source in sources))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported(known[name].read_text(encoding="utf-8"), known) - found
    return found
