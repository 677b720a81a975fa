"""Which small faults the tests notice: `python benchmarks/mutations.py OUT.csv [--count 40] [--seed 0] [--only ROOM]`.

Draws changes to the code that counts (cost, traces, laws, planner and the kernels), at most one a function: a
comparison moved to its neighbour, + for -, a number or a default changed, a condition negated, min for max. Docstrings,
messages and types stay as they are. Each change is made alone in a copy of the tree, where pytest runs until a test
fails, those of the room first: with `--tests near` no others, with `default` all that `make test` runs (a survivor then
takes as long as all of them), with `whole` the slow ones, too. A change that hangs counts as caught, by time.

A line of OUT.csv is written as soon as a change is judged, so a stopped run goes on where it was; the table of all is
printed at the end. Whether a survivor is a hole in the tests or changes nothing that matters is for a reader to say.
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
#: Room -> its folder, and the tests that know it best.
ROOMS = {
    "cost": (
        "kinetics_lab/cost",
        (
            "cost",
            "hardware",
            "policies",
            "shapes",
            "families",
            "stack",
            "fit",
            "price",
            "reprice",
            "silicon",
            "clock",
            "serving",
        ),
    ),
    "traces": ("kinetics_lab/traces", ("trace*", "counts", "published", "resample")),
    "laws": ("kinetics_lab/laws", ("frontier", "laws", "resample", "reprice", "price")),
    "planner": ("kinetics_lab/planner", ("plan*", "strategy", "price")),
    "kernels": ("kernels/kinetics_kernels", ("kernels/test_*", "caches")),
}
LEFT_OUT = (
    ".git",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    "dist",
    "build",
)
MARKS = {"near": "not slow", "default": "not slow", "whole": ""}

COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div}
PAIRS = [("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("idxmin", "idxmax"),
         ("fmin", "fmax"), ("nanmin", "nanmax"), ("floor", "ceil"), ("any", "all")]  # fmt: skip
NAMED = dict(PAIRS) | {b: a for a, b in PAIRS}
TEXT = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict)  # + of these has no -
SAID = {"print", "warn", "ValueError", "TypeError", "RuntimeError", "add_argument", "Option", "Argument"}


@dataclass(frozen=True)
class Mutation:
    """A change of one place, and what came of it."""

    room: str
    place: str
    function: str
    kind: str
    before: str
    after: str
    start: int = 0  # bytes of the file that `after` replaces
    end: int = 0
    outcome: str = ""  # caught, time or survived
    by: str = ""
    seconds: float = 0.0

    @property
    def path(self) -> str:
        return self.place.partition(":")[0]


# --- what could be changed ------------------------------------------------------------------------


def parts(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The parts of a node that are code, not words or types, each with its part in it ("default", "condition" or "")."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.ClassDef):
        return
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        yield from ((value, "default") for value in [*node.args.defaults, *node.args.kw_defaults] if value)
        yield from ((child, "") for child in (node.body if isinstance(node.body, list) else [node.body]))
    elif isinstance(node, ast.AnnAssign):
        yield from [(node.value, "")] if node.value else []
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in SAID:
            return
        said = called in ("require", "_require", "refuse")  # its rule is a sentence
        yield node.func, ""
        yield from ((value, "") for value in (node.args[:1] if said else node.args))
        yield from ((word.value, "") for word in node.keywords if word.arg not in ("strict", "encoding"))
    else:
        for child in ast.iter_child_nodes(node):
            yield child, "condition" if child is getattr(node, "test", None) else ""


def changes(node: ast.AST, role: str) -> Iterator[tuple[str, ast.AST, str]]:
    """What can be made of a node itself: the kind of change, the node it replaces, and the new text."""
    if role == "condition":
        yield "condition", node, f"(not ({ast.unparse(node)}))"
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], COMPARED[type(op)](), *node.ops[i + 1 :]]
            yield "comparison", node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})"
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        sides = [node.left, node.right]
        if not any(isinstance(side, TEXT) or isinstance(getattr(side, "value", 0), str) for side in sides):
            yield (
                "arithmetic",
                node,
                f"({ast.unparse(ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right))})",
            )
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = node.value
        new = (
            not value
            if isinstance(value, bool)
            else value + 1
            if isinstance(value, int)
            else 2 * value or 1.0
        )
        yield role or "constant", node, repr(new)
    elif isinstance(node, ast.Call):
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in NAMED:
            yield "min, max", func, ast.unparse(ast.Attribute(func.value, NAMED[func.attr]))
        elif isinstance(func, ast.Name) and func.id in NAMED:
            yield "min, max", func, NAMED[func.id]


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function that is not inside another one, with its name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield within + node.name, node
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try):
            yield from functions(node, f"{within}{node.name}." if isinstance(node, ast.ClassDef) else within)


def candidates(room: str, path: Path, root: Path) -> Iterator[list[Mutation]]:
    """For each function of a file all that could be changed in it."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    for name, function in functions(tree):
        found, todo = [], [(function, "")]
        while todo:
            node, role = todo.pop()
            todo += reversed(list(parts(node)))
            for kind, old, after in changes(node, role):
                start = starts[old.lineno - 1] + old.col_offset
                end = starts[old.end_lineno - 1] + old.end_col_offset
                place = f"{path.relative_to(root).as_posix()}:{old.lineno}:{old.col_offset + 1}"
                before = source[start:end].decode()
                found.append(Mutation(room, place, name, kind, before, after, start, end))
        if found:
            yield found


def draw(rooms: list[str], count: int, seed: int, root: Path = ROOT) -> list[Mutation]:
    """The same mutations for the same code and seed: functions by chance, then a kind of change, then its place."""
    each = []
    for room in rooms:
        for path in sorted((root / ROOMS[room][0]).rglob("*.py")):
            each += candidates(room, path, root)
    chance = random.Random(seed)
    drawn = []
    for found in chance.sample(each, min(count, len(each))):
        kind = chance.choice(sorted({one.kind for one in found}))
        drawn.append(chance.choice([one for one in found if one.kind == kind]))
    return drawn


# --- what the tests say -----------------------------------------------------------------------------


def command(room: str, tests: str, root: Path) -> list[str]:
    """pytest on the room's own tests first, then (unless they are all that is asked for) on all others."""
    near = []
    for name in ROOMS[room][1]:
        pattern = f"tests/{name}.py" if "/" in name else f"tests/test_{name}.py"
        near += [path for path in sorted(root.glob(pattern)) if path not in near]
    if not near:
        raise SystemExit(f"no test file of the room {room} is there: change ROOMS")
    every = sorted([*root.glob("tests/test_*.py"), *root.glob("tests/*/test_*.py")])
    files = near + [path for path in every if path not in near and tests != "near"]
    names = [path.relative_to(root).as_posix() for path in files]
    options = ["-q", "-x", "-rfE", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-m", MARKS[tests]]
    return [sys.executable, "-m", "pytest", *options, *names]


def judged(one: Mutation, root: Path, tests: str, limit: float) -> Mutation:
    """Run pytest in the tree ``root`` as it is; the mutation with its outcome."""
    paths = os.pathsep.join(map(str, [root, root / "kernels"]))
    env = os.environ | {
        "PYTHONPATH": paths,
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # stale bytecode would hide a change
    began = time.perf_counter()
    process = subprocess.Popen(
        command(one.room, tests, root), cwd=root, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the kernels and grading processes it started
        process.communicate()
        return replace(one, outcome="time", by=f"more than {limit:.0f} s", seconds=limit)
    seconds = round(time.perf_counter() - began, 1)
    if process.returncode == 0:
        return replace(one, outcome="survived", seconds=seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", said, re.MULTILINE)
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    by = failed[1].removeprefix("tests/") if failed else f"exit {process.returncode}: {last[:80]}"
    return replace(one, outcome="caught", by=by, seconds=seconds)


def tried(one: Mutation, trees: Queue[Path], tests: str, limit: float) -> Mutation:
    """Make the change in a free copy of the tree, judge it, and take it back."""
    root = trees.get()
    path = root / one.path
    source = path.read_bytes()
    try:
        path.write_bytes(source[: one.start] + one.after.encode() + source[one.end :])
        return judged(one, root, tests, limit)
    finally:
        path.write_bytes(source)
        trees.put(root)


def copied(to: Path) -> Path:
    """A copy of the working tree; of what was built it has the runs of chapters, which are kept by the code they use."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*LEFT_OUT, "_build"))
    if (ROOT / "_build" / "runs").is_dir():
        shutil.copytree(ROOT / "_build" / "runs", to / "_build" / "runs")
    return to


# --- the log ----------------------------------------------------------------------------------------

COLUMNS = ("room", "place", "function", "kind", "before", "after", "outcome", "by", "seconds")


def key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:6])


def line(one: Mutation) -> dict[str, str]:
    """A row of the log; several lines of code become one."""
    return {name: " ".join(str(asdict(one)[name]).split()) for name in COLUMNS}


def read_log(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {key(row): row for row in csv.DictReader(file) if row["seconds"]}  # a torn last line has none


def write(path: Path, one: Mutation) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS)
        if new:
            rows.writeheader()
        rows.writerow(line(one))


def told(row: dict[str, str]) -> str:
    change = f"{row['before'][:40]} -> {row['after'][:40]}"
    return f"{row['place']:44} {row['kind']:11} {change:60} {row['outcome']:8} {row['by'][:70]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV of the outcomes, added to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(ROOMS), default=list(ROOMS), metavar="ROOM")
    parser.add_argument("--tests", choices=list(MARKS), default="default")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one mutation (3600)")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    drawn, known = draw(args.only, args.count, args.seed), read_log(args.out)
    todo = [one for one in drawn if key(line(one)) not in known]
    # Without a change all must pass, or nothing that follows means anything.
    rooms = sorted({one.room for one in todo})
    plain = [Mutation(room, f"unchanged, {args.tests}", "", "", "", "") for room in rooms]
    plain = plain if args.tests == "near" else plain[:1]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: Queue[Path] = Queue()
        for i in range(args.jobs if todo else 0):
            trees.put(copied(Path(folder, str(i))))
        for one in plain:
            if key(line(one)) not in known:
                found = judged(one, Path(folder, "0"), args.tests, args.limit)
                if found.outcome != "survived":
                    raise SystemExit(f"the tests of {one.room} fail without any change: {found.by}")
                write(args.out, found)
        for found in pool.map(lambda one: tried(one, trees, args.tests, args.limit), todo):
            write(args.out, found)
            print(told(line(found)), flush=True)
    known = read_log(args.out)
    print()
    for room in args.only:
        rows = [known[key(line(one))] for one in drawn if one.room == room]
        caught = sum(row["outcome"] != "survived" for row in rows)
        print(f"{room}: {caught} of {len(rows)} caught", *(told(row) for row in rows), sep="\n  ")


if __name__ == "__main__":
    main()
