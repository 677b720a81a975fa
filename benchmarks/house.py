"""The picture of the rooms and the lists of their files on the page Architecture, drawn from the imports themselves.

    python benchmarks/house.py   # draws book/_static/house.svg, writes the lists in book/architecture.md

An arrow is an import. One that others already imply is left out: where a room imports a second one and that a third,
an arrow from the first to the third would say little; the lists on the page name every import.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

from kinetics_lab.book.imports import PACKAGE, imported, modules

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "book" / "_static" / "house.svg"
PAGE = ROOT / "book" / "architecture.md"
COMMAND = "python benchmarks/house.py"
ROOF, GROUND = "cli", ("errors", "files", "data")


@dataclass(frozen=True)
class Room:
    """How a room is drawn: its first and last column of four, its colour, what it is for in short lines."""

    columns: tuple[int, int]
    colour: str
    lines: tuple[str, ...]


LAW, MACHINE, WORKSHOP = "#d8e8dd", "#d9e5f4", "#f0e3d0"
ROOMS = {
    "planner": Room((0, 0), LAW, ("what to run", "for a budget")),
    "measure": Room((1, 1), MACHINE, ("kernels and", "steps, timed")),
    "ladder": Room((2, 2), MACHINE, ("tiny models,", "trained here")),
    "laws": Room((0, 0), LAW, ("what the", "traces say")),
    "decode": Room((1, 2), MACHINE, ("a model answers problems", "under a policy")),
    "traces": Room((0, 2), LAW, ("answers as one checked table; Pass@N",)),
    "cost": Room((0, 2), LAW, ("what a request costs:", "shapes, policies, hardware")),
    "book": Room((3, 3), WORKSHOP, ("a chapter", "becomes", "a page:", "charts, runs,", "claims, build")),
}
#: What begins a reading: the rooms of the law, without what reads other people's files.
LAW_ROOMS = ("cost", "traces", "laws", "planner")
READERS = (
    "cost.families",
    "traces.counts",
    "traces.formats",
    "traces.read",
    "traces.said",
    "traces.sources",
    "traces.trial",
)
LENGTH = re.compile(r"about\s+([\d,]+)\s+lines")  # as the page says it; within a tenth is true


# --- what the imports say ---------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """The room of a module. The command line is the roof, in one file or several."""
    name = module.split(".")[1]
    if name in GROUND or name in ROOMS:
        return name
    if name == ROOF or (f"{PACKAGE}.{name}" == module and modules()[module].stem == name):
        return ROOF
    raise ValueError(f"the room {name!r} has no place in the picture: give it one in ROOMS of {COMMAND}")


@cache
def imports() -> dict[str, set[str]]:
    """Each room, ground and roof included, and the others that it imports."""
    known = {name: path for name, path in modules().items() if name != PACKAGE}
    found: dict[str, set[str]] = {name: set() for name in (*GROUND, *ROOMS, ROOF)}
    for name, path in known.items():
        found[room_of(name)] |= {
            room_of(other) for other in imported(path.read_text(encoding="utf-8"), known)
        }
    return {name: others - {name} for name, others in found.items()}


def floors(above_ground: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports. Raises ValueError for a circle."""
    found: dict[str, int] = {}
    while len(found) < len(above_ground):
        ready = [name for name, others in above_ground.items() if name not in found and others <= set(found)]
        if not ready:
            raise ValueError(f"rooms import in a circle: {', '.join(sorted(set(above_ground) - set(found)))}")
        found |= {name: 1 + max((found[other] for other in above_ground[name]), default=0) for name in ready}
    return found


def arrows(above_ground: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no chain of others implies."""

    def below(name: str) -> set[str]:
        return above_ground[name].union(*(below(other) for other in above_ground[name]))

    return [
        (name, other)
        for name, others in above_ground.items()
        for other in sorted(others)
        if not any(other in below(between) for between in others)
    ]


# --- the picture ------------------------------------------------------------------------------------------------

WIDTH, COLUMN, GAP, BETWEEN = 480, 112, 10, 26
EDGE, INK, MUTED = "#7d8794", "#1b2027", "#3d4651"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture, in its units."""

    left: float
    top: float
    right: float
    bottom: float


def _text(x: float, y: float, text: str, name: bool = False) -> str:
    style = f'font-size="19" font-weight="600" fill="{INK}"' if name else f'font-size="15.5" fill="{MUTED}"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" {style}>{escape(text)}</text>'


def _room(name: str, lines: tuple[str, ...], box: Box, colour: str) -> list[str]:
    """A room with its name and what it is for, set in its middle."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2 - 9 * len(lines) + 6
    return [
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.right - box.left:g}" '
        f'height="{box.bottom - box.top:g}" rx="5" fill="{colour}" stroke="{EDGE}"/>',
        _text(x, y, name, name=True),
        *(_text(x, y + 19 * i, line) for i, line in enumerate(lines, 1)),
    ]


def _boxes(
    above: Mapping[str, set[str]], floor: Mapping[str, int], roof: float
) -> tuple[dict[str, Box], float]:
    """Where each room stands below the roof; a room reaches up to the lowest floor that imports it. And the ground."""
    top = {
        name: min((floor[n] for n in above if name in above[n]), default=floor[name] + 1) - 1
        for name in above
    }
    bottoms, tops, y = dict[int, float](), dict[int, float](), roof
    for level in range(floor[ROOF] - 1, 0, -1):
        own = [len(ROOMS[n].lines) for n in ROOMS if floor[n] == top[n] == level]
        tops[level] = y + BETWEEN
        y = bottoms[level] = tops[level] + 38 + 19 * max(own, default=1)
    at = [1 + i * (COLUMN + GAP) for i in range(4)]
    boxes = {
        name: Box(at[room.columns[0]], tops[top[name]], at[room.columns[1]] + COLUMN, bottoms[floor[name]])
        for name, room in ROOMS.items()
    }
    return boxes, y + 10


def _arrow(upper: Box, lower: Box) -> str:
    """A line from the floor of one room to the ceiling of another, upright where they overlap."""
    left, right = max(upper.left, lower.left), min(upper.right, lower.right)
    ends = (left + right,) * 2 if left < right else (upper.left + upper.right, lower.left + lower.right)
    return (
        f'<line x1="{ends[0] / 2:g}" y1="{upper.bottom:g}" x2="{ends[1] / 2:g}" y2="{lower.top - 3:g}" '
        f'stroke="{EDGE}" stroke-width="2" marker-end="url(#head)"/>'
    )


def describe(pairs: list[tuple[str, str]]) -> str:
    """The picture in words, for those who cannot see it."""
    by_room: dict[str, list[str]] = {}
    for name, other in pairs:
        by_room.setdefault(name, []).append(other)
    told = [f"{name} imports {' and '.join(others)}" for name, others in by_room.items()]
    return f"{'; '.join(told)}. All stand on the ground floor: {', '.join(GROUND)}."


def draw() -> str:
    """The picture as SVG. Boxes bring their own background, so that it reads on light and on dark pages."""
    found = imports()
    above = {name: others - set(GROUND) for name, others in found.items() if name not in GROUND}
    floor, pairs, eaves = floors(above), arrows(above), 76.0
    boxes, ground = _boxes(above, floor, eaves)
    body = [_arrow(boxes.get(a, Box(1, 0, WIDTH - 1, eaves)), boxes[b]) for a, b in pairs]
    body += [
        f'<path d="M112 2H368L479 {eaves:g}H1Z" fill="#ead9d9" stroke="{EDGE}" stroke-linejoin="round"/>',
        _text(WIDTH / 2, 34, ROOF, name=True),
        _text(WIDTH / 2, 56, "the command line sees every room"),
    ]
    for name, room in ROOMS.items():
        body += _room(name, room.lines, boxes[name], room.colour)
    body.append(
        f'<path d="M1 {ground:g}H479V{ground + 62:g}H1Z" fill="#dcdfe3" stroke="{EDGE}" stroke-linejoin="round"/>'
    )
    body.append(_text(WIDTH / 2, ground + 26, " · ".join(GROUND), name=True))
    body.append(_text(WIDTH / 2, ground + 47, "the ground floor, which every room may use"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ground + 63:g}" font-family="{FONT}" '
        'role="img" aria-labelledby="title desc">'
    )
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="4.5" markerHeight="4.5" orient="auto">'
        f'<path d="M0 0L8 4L0 8Z" fill="{EDGE}"/></marker></defs>'
    )
    title = f'<title id="title">The rooms of {PACKAGE} and what they import</title>'
    words = f'<desc id="desc">{escape(describe(pairs))}</desc>'
    return "\n".join([head, title, words, marker, *body, "</svg>"]) + "\n"


# --- the lists on the page --------------------------------------------------------------------------------------


def first_line(path: Path) -> str:
    """The first line of a module's docstring, as a cell of a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(not described)"
    return (
        text.splitlines()[0].rstrip(".").replace("``", "`").replace(f"`{PACKAGE}.", "`").replace("|", "\\|")
    )


def files(room: str) -> str:
    """What a room (or ``ground``) imports, and its modules with a line each, in Markdown."""
    rooms = GROUND if room == "ground" else (room,)
    found = set().union(*(imports()[name] for name in rooms)) - set(rooms)
    own = {
        name.removeprefix(f"{PACKAGE}."): path
        for name, path in modules().items()
        if name != PACKAGE and room_of(name) in rooms
    }
    others = "every room" if room == ROOF else ", ".join(name for name in (*ROOMS, *GROUND) if name in found)
    room_itself = {name for name, path in own.items() if path.name == "__init__.py" and name == room}
    rows = [f"| `{name}` | {first_line(path)} |" for name, path in own.items() if name not in room_itself]
    return "\n".join(
        [f"Imports: {others or 'nothing'}.", "", "| module | what it holds |", "|---|---|", *rows]
    )


def blocks(text: str) -> dict[str, str]:
    """The lists that stand on the page, by room."""
    return {
        name: body.strip()
        for name, body in re.findall(r"^% files: (\w+)\n(.*?)^% end$", text, re.DOTALL | re.MULTILINE)
    }


def with_facts(text: str) -> str:
    """The page with its lists, and the length of the law's argument, as the files say now."""
    if not tells_length(text):
        text = LENGTH.sub(f"about {round(law_lines(), -2):,} lines", text)
    return re.sub(
        r"^% files: (\w+)\n.*?^% end$",
        lambda found: f"% files: {found[1]}\n\n{files(found[1])}\n\n% end",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


def tells_length(text: str) -> bool:
    """Whether the length of the law's argument that the page gives is true within a tenth."""
    said = LENGTH.search(text)
    return said is not None and abs(int(said[1].replace(",", "")) / law_lines() - 1) <= 0.1


def law_lines() -> int:
    """Lines of the law's argument: its rooms without the readers of files."""
    argument = [
        path
        for name, path in modules().items()
        if name.startswith(tuple(f"{PACKAGE}.{room}." for room in LAW_ROOMS))
        and not name.removeprefix(f"{PACKAGE}.").startswith(READERS)
    ]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in argument)


def outdated() -> list[str]:
    """What no longer says what the files say: the picture, the list of a room, a length. Empty if all is well."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    if PICTURE.read_text(encoding="utf-8") != draw():
        found.append(f"{PICTURE.relative_to(ROOT)} differs from the imports")
    found += [
        f"{PAGE.relative_to(ROOT)}: the files of {name} have changed"
        for name, body in blocks(text).items()
        if body != files(name)
    ]
    if not tells_length(text):
        found.append(f"{PAGE.relative_to(ROOT)}: the law's argument has {law_lines():,} lines")
    return found


def main() -> None:
    """Draw and write."""
    PICTURE.write_text(draw(), encoding="utf-8")
    PAGE.write_text(with_facts(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
