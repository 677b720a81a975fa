"""What kills and races leave of each command that writes: `python benchmarks/faults.py {kills|races} COUNT [COMMAND ...]`.

kills: a command is killed with SIGKILL, its whole process group, at random instants between its start and the time that it takes, and
started again; whatever ends by itself is compared and begun anew. After the last kill it is left to end. Its files must then be
those of a command that nobody killed, but for times, and after every kill what has its final name must be whole.

races: two of a command start at one instant into one place, with other inputs where it takes any. Right is one result of the two, whole: one
command says that another is at work there, or waits and finds it done, or writes its own in turn.

Every command runs in a process forked from this one, so that none waits for imports. Prints a row of `faults.csv` for each command,
and exits with 1 at the first fault, whose folder is kept.
"""

import contextlib
import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import yaml

from kinetics_lab import cli

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
CELLS = 'from kinetics_lab.book.results import hand_over\nimport time\ntime.sleep(0.2)\nhand_over({"square": n * n})'
TIMES = {"date", "seconds", "start_time", "end_time", "last_run"}


# ---- the commands: each a function of a folder and of which of two inputs; what it leaves, but for times ------------


def project(folder: Path, which: int) -> Path:
    """A project of one notebook, a grid of two points and two trace files."""
    home = folder.parent / "project"
    if not home.exists():
        home.mkdir()
        cells = [
            nbformat.v4.new_code_cell("n = 0", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(CELLS),
        ]
        about = {
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "kinetics": {"result": "result.json"},
        }
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), home / "10_square.ipynb")
        (home / "pyproject.toml").touch()
        for i in (1, 2):
            grid = {"notebook": "10_square.ipynb", "axes": {"n": [i, 10 * i]}}
            (home / f"grid{i}.yml").write_text(yaml.safe_dump(grid))
            n, draw = np.arange(4000), np.random.default_rng(i)
            rows = {
                "model": "m",
                "task": "t",
                "problem": [f"p{p}" for p in n % 50],
                "trial": n // 50,
                "policy": "dense",
            }
            rows |= {
                "tokens_in": 9,
                "tokens_out": draw.integers(1, 9999, len(n)),
                "correct": draw.random(len(n)) < 0.5,
            }
            pd.DataFrame(rows | {"truncated": False}).to_json(
                home / f"{i}.jsonl", orient="records", lines=True
            )
    return home


def run(folder: Path, which: int) -> int:
    return cli.main(
        [
            "run",
            str(project(folder, which) / "10_square.ipynb"),
            "-p",
            "n",
            str(which),
            "-o",
            str(folder / "out"),
        ]
    )


def sweep(folder: Path, which: int) -> int:
    return cli.main(
        [
            "sweep",
            str(project(folder, which) / f"grid{which}.yml"),
            "-o",
            str(folder / "out"),
            "--workers",
            "1",
        ]
    )


def traces(folder: Path, which: int) -> int:
    return cli.main(
        ["traces", str(project(folder, which) / f"{which}.jsonl"), "-o", str(folder / "out.parquet")]
    )


def measure(folder: Path, which: int) -> int:
    import torch

    from kinetics_lab.measure import suites
    from kinetics_lab.measure.timers import HostTimer

    torch.set_num_threads(1)
    HostTimer.most = HostTimer.least  # what is tried here are files, not times
    HostTimer.load = lambda timer: None
    small = [case for case in suites.ROOFLINE.host() if case["size"] <= 2**9]
    suites.SUITES["roofline"] = dataclasses.replace(suites.ROOFLINE, host=lambda: small)
    return cli.main(["measure", "--suite", "roofline", "--device", "host", "-o", str(folder / "out")])


def ladder(folder: Path, which: int) -> int:
    import torch
    from test_ladder import TINY

    from kinetics_lab import ladder as presets

    torch.set_num_threads(1)
    presets.PRESETS["tiny"] = TINY
    return cli.main(["ladder", "sample", "--preset", "tiny", "--folder", str(folder)])


def generate(folder: Path, which: int) -> int:
    import test_generate as tiny

    try:
        tiny.run(tiny.tiny_model(), tiny.letters_tokenizer(), str(folder / "out"))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def book(folder: Path, which: int) -> int:
    from kinetics_lab.book.build import build_book

    root = project(folder, which)
    if not (root / "_config.yml").exists():
        (root / "book").mkdir()
        (root / "notebooks").mkdir()
        shutil.copy(root / "10_square.ipynb", root / "notebooks")
        text = nbformat.read(root / "notebooks" / "10_square.ipynb", 4)
        text.cells.insert(0, nbformat.v4.new_markdown_cell("# Square?"))
        nbformat.write(text, root / "notebooks" / "10_square.ipynb")
        config = {"title": "Small", "only_build_toc_files": True, "execute": {"execute_notebooks": "off"}}
        (root / "_config.yml").write_text(yaml.safe_dump(config))
        toc = {"format": "jb-book", "root": "book/intro", "chapters": [{"file": "notebooks/10_square"}]}
        (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
        (root / "book" / "intro.md").write_text("# Intro\n")
    try:
        build_book(root, None, folder / "out", repository_url="")
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


LOADED = {  # before a command is forked
    "run": "papermill kinetics_lab.book.runs", "sweep": "papermill kinetics_lab.book.sweep", "generate": "test_generate", "ladder": "test_ladder",
    "measure": "torch kinetics_lab.measure.suites", "traces": "kinetics_lab.traces.read", "book": "papermill kinetics_lab.book.build",
}  # fmt: skip
COMMANDS = {f.__name__: f for f in (run, sweep, generate, ladder, measure, traces, book)}


def left(folder: Path) -> dict[str, object]:
    """What stands under a final name, readable and without times; anything half-written raises."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if (
            ".part" in name
            or ".lock" in name
            or "/_build/" in name
            or name.endswith((".pt", ".html", ".png", ".error.txt"))
        ):
            found |= {name: path.stat().st_size > 0} if name.endswith("index.html") else {}
        elif path.suffix == ".json":
            value = json.loads(path.read_text())
            found[name] = (
                {k: v for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value
            )
        elif path.suffix == ".parquet":
            table = pd.read_parquet(path)
            cases = [c for c in ("suite", "case", "kind", "n", "dtype", "bytes", "flops") if c in table]
            found[name] = (
                table[cases]
                if "sm_mhz" in table
                else table.drop(columns=[c for c in table if c == "seconds"])
            ).to_json()
        elif path.suffix == ".ipynb":
            found[name] = [cell.source for cell in nbformat.read(path, 4).cells]
        elif path.suffix in (".jsonl", ".txt"):
            found[name] = path.read_text()
    return found


# ---- forks ---------------------------------------------------------------------------------------------------------


def forked(call: Callable[[Path, int], int], folder: Path, which: int, start: int = -1) -> int:
    """The process that runs a command, which begins when the pipe ``start`` is closed; what it says is in ``said-N``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        if start >= 0:
            os.read(start, 1)
        said = os.open(folder.parent / f"said-{which}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        code = call(folder, which)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def alone(call: Callable[[Path, int], int], home: Path, which: int) -> tuple[dict[str, object], float]:
    """What a command leaves that nobody disturbs, and its seconds."""
    folder, began = home / f"alone-{which}", time.perf_counter()
    folder.mkdir(parents=True)
    project(folder, which)
    began = time.perf_counter()
    if code := ended(forked(call, folder, which)):
        raise SystemExit(f"code {code}: {(home / f'said-{which}').read_text()[-800:]}")
    return left(folder), time.perf_counter() - began


def kills(name: str, home: Path, count: int) -> list[object]:
    call, chance = COMMANDS[name], random.Random(1)
    want, seconds = alone(call, home, 1)
    folder, hit, whole = home / "killed", 0, 0
    while hit < count:
        folder.mkdir(exist_ok=True)
        pid = forked(call, folder, 1)
        time.sleep(chance.uniform(0, min(seconds, 12)))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if ended(pid) == -signal.SIGKILL:
            hit += 1
            left(folder)  # raises where something is half there
        else:
            assert left(folder) == want, f"{folder}: not what it leaves undisturbed"
            shutil.rmtree(folder)
            whole += 1
    folder.mkdir(exist_ok=True)
    assert ended(forked(call, folder, 1)) == 0, (home / "said-1").read_text()
    assert left(folder) == want, f"{folder}: not what it leaves undisturbed"
    return ["kills", name, count, whole + 1, "", "", round(seconds, 1)]


def races(name: str, home: Path, count: int) -> list[object]:
    call, told, waited = COMMANDS[name], 0, 0
    wants = {which: alone(call, home, which) for which in (1, 2)}
    won = {1: 0, 2: 0}
    for _ in range(count):
        folder = home / "raced"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        waiting, go = os.pipe()
        pids = [forked(call, folder, which, waiting) for which in (1, 2)]
        time.sleep(0.05)
        os.write(go, b"12")
        codes = [ended(pid) for pid in pids]
        os.close(waiting)
        os.close(go)
        said = [(home / f"said-{which}").read_text() for which in (1, 2)]
        assert 0 in codes, said
        for code, text in zip(codes, said, strict=True):
            assert code == 0 or (code == 2 and "another" in text), text[-800:]
        found = left(folder)
        who = [which for which in (1, 2) if same(found, wants[which][0])]
        assert who, f"{folder}: neither result is whole"
        assert any(codes[which - 1] == 0 for which in who), (
            f"{folder}: the result of the one that was refused"
        )
        won[who[0]] += 1
        told, waited = told + (2 in codes), waited + (codes == [0, 0])
    return ["races", name, count, count, told, waited, round(wants[1][1], 1)]


def same(found: dict[str, object], want: dict[str, object]) -> bool:
    """Whether everything that one command leaves is there, and nothing else but finished points of the other's grid."""
    more = found.keys() - want.keys()
    return all(found.get(name) == value for name, value in want.items()) and all(
        "points/" in name for name in more
    )


def main() -> None:
    kind, count, *names = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
    out = csv.writer(sys.stdout)
    for name in names or COMMANDS:
        for module in LOADED[name].split():
            import_module(module)
        home = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        out.writerow((kills if kind == "kills" else races)(name, home, count))
        sys.stdout.flush()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
