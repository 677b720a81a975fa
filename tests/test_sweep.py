"""Sweeps: a grid's points, their folder, what a kill, Ctrl-C or a failure leaves, executors, the gathered results."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from kinetics_lab.book import execute, results, runs
from kinetics_lab.book import sweep as sweeps
from kinetics_lab.book.parameters import read_grid, read_notebook
from kinetics_lab.book.runs import NotebookError, SourceChangedError
from kinetics_lab.book.sweep import listing, run_point, sweep
from kinetics_lab.cli import main
from kinetics_lab.files import locked, read_text, write_whole

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)
ROOT = Path(__file__).parent.parent
PARAMETERS = """
n = 1  # a number
word = "a"  # a text
rate = 0.5  # a float
many = [1]  # a list
other = None  # anything
"""
WORK = """
import os, time
from pathlib import Path
from kinetics_lab.book.results import hand_over
while n == 2 and Path("hold").exists():
    time.sleep(0.05)
with open("ended.txt", "a") as file:
    file.write(f"{n}\\n")
hand_over({"square": n * n, "said": word, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")})
"""


@pytest.fixture
def project(tmp_path, write_notebook, monkeypatch):
    """A project with one notebook, `notebooks/tiny.ipynb`, and the working folder in it."""
    (tmp_path / "pyproject.toml").touch()
    cells = ("markdown", "# Tiny?"), ("code", PARAMETERS.strip(), "parameters"), ("code", WORK.strip())
    write_notebook(tmp_path / "notebooks" / "tiny.ipynb", *cells, kinetics={"result": "result.json"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def grid(project):
    """Write a grid of the tiny notebook: `grid("axes: {n: [1, 2]}")` gives its path."""

    def write(text, name="grid.yml"):
        (project / name).write_text(f"notebook: notebooks/tiny.ipynb\n{text}\n")
        return project / name

    return write


@pytest.fixture
def no_kernel(monkeypatch):
    """The tiny notebook's work without a kernel: a list of the n that ran; 13 fails until a file `mended` is there."""
    ran = []

    def work(notebook, parameters, part, *_, **how):
        n = parameters.get("n", 1)
        ran.append(n)
        book = read_notebook(notebook)
        book.metadata.papermill = {}
        nbformat.write(book, part / notebook.name)
        if n == 13 and not Path("mended").exists():
            raise NotebookError(f"{notebook}: cell 3 raised RuntimeError: thirteen")
        (part / "result.json").write_text(json.dumps({"square": n * n, "said": parameters.get("word", "a")}))

    monkeypatch.setattr(runs, "execute", work)
    return ran


def names(out, state="done"):
    found = {p.name for p in (out / "points").glob("tiny-*")}
    suffix = {"done": "", "failed": ".error.txt", "part": ".part"}[state]
    return {
        name.removesuffix(suffix) for name in found if name.endswith(suffix) and (suffix or "." not in name)
    }


def states(path, out):
    return [line.split()[0] for line in listing(path, out)]


# --- the grid -----------------------------------------------------------------------------------


def test_points_are_all_combinations_in_the_order_of_the_file(grid):
    text = """
fixed: {other: fp8}
axes:
  n: [3, 1.0]
  word: [a, b]
zip:
  - {rate: [0.25, 1], many: [[1, 2], []]}
exclude:
  - {n: 3, word: b}
  - {word: a, rate: 1.0, n: 1}
show: square
"""
    found = read_grid(grid(text))
    assert found.axes == {"n": [3, 1], "word": ["a", "b"], "rate": [0.25, 1], "many": [[1, 2], []]}
    assert found.show == "square"
    rows = [tuple(p[k] for k in ("n", "word", "rate", "many")) for p in found.points]
    assert rows == [
        (3, "a", 0.25, [1, 2]),
        (3, "a", 1, []),
        (1, "a", 0.25, [1, 2]),
        (1, "b", 0.25, [1, 2]),
        (1, "b", 1, []),
    ]
    assert all(p["other"] == "fp8" and type(p["n"]) is int for p in found.points)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{from: 1, to: 7, step: 2}", [1, 3, 5, 7]),
        ("{from: 1, to: 8, step: 2}", [1, 3, 5, 7]),
        ("{from: 5, to: 1, step: -2}", [5, 3, 1]),
        ("{from: 2, to: 2, step: 1}", [2]),
        ("{from: 1024, to: 16384, factor: 4}", [1024, 4096, 16384]),
        ("{from: 16384, to: 1024, factor: 0.25}", [16384, 4096, 1024]),
        ("{from: 1e3, to: 1e5, factor: 10}", [1000, 10000, 100000]),
        ("{from: 3, to: 3000, factor: 10}", [3, 30, 300, 3000]),
    ],
)
def test_ranges_hold_both_ends(grid, text, want):
    found = read_grid(grid(f"axes: {{n: {text}}}")).axes["n"]
    assert found == want
    assert {type(value) for value in found} == {int}


def test_a_range_of_fractions_is_free_of_rounding(grid):
    found = read_grid(grid("axes: {rate: {from: 0.1, to: 0.7, step: 0.1}}")).axes["rate"]
    assert found == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {nn: [1]}", r"grid\.yml: tiny\.ipynb declares n, .*'nn' is not known; did you mean n"),
        ("axes: {n: [1, x]}", r"grid\.yml: parameter 'n' of tiny\.ipynb takes int \(default 1\); got 'x'"),
        ("fixed: {wrod: x}\naxes: {n: [1]}", r"grid\.yml: .*'wrod' is not known; did you mean word"),
        ("axis: {n: [1]}", r"grid\.yml: section 'axis' is not known; did you mean axes"),
        ("axes:\n  n: [1]\n  n: [2]", r"grid\.yml is not YAML: 'n' is given twice"),
        ("fixed: {n: 1}\naxes: {n: [1]}", r"each parameter must be given once; got \['n', 'n'\]"),
        ("axes: {n: [1]}\nzip:\n  - {n: [1]}", r"each parameter must be given once; got \['n', 'n'\]"),
        (
            "zip:\n  - {n: [1, 2], word: [a]}",
            r"move together must be equally long; got \{'n': 2, 'word': 1\}",
        ),
        ("zip: {n: [1]}", r"`zip` is a list of mappings.*got \{'n': \[1\]\}"),
        ("fixed: {n: 1}", r"grid\.yml: `axes` must give 1 to 100,000 points; got 0"),
        ("", r"`axes` must give 1 to 100,000 points; got 0"),
        ("axes: {n: []}", r"axis 'n' must be a list of values.*; got \[\]"),
        (
            "axes: {n: [1]}\nexclude:\n  - {n: 1}",
            r"must match some of the points, and not all; got \{'n': 1\}",
        ),
        (
            "axes: {n: [1]}\nexclude:\n  - {n: 2}",
            r"must match some of the points, and not all; got \{'n': 2\}",
        ),
        ("axes: {n: [1]}\nexclude:\n  - {wor: a}", r"the grid's parameter 'wor' is not known; known: n"),
        ("axes: {n: [1]}\nexclude: {n: 1}", r"`exclude` is a list of mappings"),
        ("axes: {n: [1, 2, 1.0]}", r"points must differ; got \{'n': 1\}"),
        (
            "axes: {n: 3}",
            r"axis 'n' must be a list of values, or range reads|'n' must be a list of values.*; got 3",
        ),
        ("axes: [n]", r"`axes` maps names to values; got \['n'\]"),
        ("axes: {n: {from: 1, to: 9}}", r"axis 'n': a range reads \{from: 1, to: 9, step: 2\} or"),
        ("axes: {n: {from: 1, to: x, step: 1}}", r"axis 'n': a range reads"),
        ("axes: {n: {from: 1, to: .inf, step: 1}}", r"axis 'n': a range reads"),
        ("axes: {n: {from: 1, to: true, step: 1}}", r"axis 'n': a range reads"),
        ("axes: {n: {from: 1, to: 9, step: 0}}", r"axis 'n': step must not be 0"),
        ("axes: {n: {from: 9, to: 1, step: 1}}", r"axis 'n': a range .* leads to its end"),
        ("axes: {n: {from: 0, to: 9, factor: 2}}", r"'n': with a factor, from, to and factor are above 0"),
        ("axes: {n: {from: 1, to: 9, factor: 1}}", r"with a factor, .*factor is not 1"),
        ("axes: {n: {from: 9, to: 1, factor: 2}}", r"axis 'n': a range .* leads to its end"),
        ("axes: {n: {from: 1, to: 1e9, step: 1}}", r"leads to its end, in less than 100,000 steps"),
        (
            "axes: {n: {from: 1, to: 999, step: 1}, rate: {from: 1, to: 999, step: 1}}",
            r"`axes` must give 1 to 100,000 points; got 998001",
        ),
        ("axes: {n: [1]}\nshow: [square]", r"`show` is one text; got \['square'\]"),
        ("axes: {n: [1", r"grid\.yml is not YAML: .*line"),
    ],
)
def test_wrong_grids_are_one_clear_error_and_leave_nothing_behind(grid, project, text, message):
    with pytest.raises(ValueError, match=message) as error:
        sweep(grid(text), project / "out")
    assert "\n" not in str(error.value)
    assert not (project / "out").exists()


def test_grids_that_name_no_notebook(project):
    (project / "g.yml").write_text("notebook: notebooks/tinny.ipynb\naxes: {n: [1]}")
    with pytest.raises(FileNotFoundError, match=r"g\.yml: there is no notebook notebooks/tinny\.ipynb"):
        read_grid("g.yml")
    for text, message in (("axes: {n: [1]}", "must name its notebook"), ("- n", "must map sections")):
        (project / "g.yml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_grid("g.yml")
    (project / "g.yml").write_bytes(b"notebook: \xff")
    with pytest.raises(ValueError, match=r"g\.yml is not UTF-8"):
        read_grid("g.yml")
    with pytest.raises(FileNotFoundError, match=r"there is no grid file gone\.yml"):
        read_grid("gone.yml")


def test_the_notebook_is_found_from_the_grid_file_as_well(grid, project, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (project / "grids").mkdir()
    moved = grid("axes: {n: [1]}").rename(project / "grids" / "grid.yml")
    assert read_grid(moved).notebook.resolve() == project / "notebooks" / "tiny.ipynb"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks" / "params").glob("sweep-*.yml")), ids=lambda p: p.stem
)
def test_ready_grids_fit_their_chapters(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_grid(path)
    assert 2 <= len(found.points) <= 50
    assert f"`{found.show}`" in read_notebook(found.notebook).cells[-1].source
    assert f"kinetics-lab sweep notebooks/params/{path.name} -o" in path.read_text()


# --- names and folders --------------------------------------------------------------------------


def test_no_value_reaches_a_path(grid, project):
    evil = [
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "a/b",
        "nul\x00l",
        "x" * 5000,
        "\u202e",
        "$(rm -rf x)",
        "-rf",
    ]
    lines = listing(grid(f"axes: {{word: {json.dumps(evil)}}}"), project / "out")
    found = [line.split()[1] for line in lines]
    assert len(set(found)) == len(evil)
    assert all(re.fullmatch(r"tiny-[0-9a-f]{12}", name) for name in found)
    assert all(line.startswith("left ") for line in lines)
    assert not (project / "out").exists()


def test_names_change_with_text_code_and_parameters_alone(grid, project, monkeypatch, write_notebook):
    def named(text="axes: {n: [1]}"):
        return listing(grid(text), project / "out")[0].split()[1]

    first = named()
    assert named("axes: {n: [1.0]}") == first
    others = {named("axes: {n: [2]}"), named("fixed: {word: c.txt}\naxes: {n: [1]}")}
    (project / "c.txt").write_text("what a parameter names is a file now")
    others.add(named("fixed: {word: c.txt}\naxes: {n: [1]}"))
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3.99"})
    others.add(named())
    notebook = project / "notebooks" / "tiny.ipynb"
    notebook.write_text(notebook.read_text().replace("n * n", "n ** 2"))
    others.add(named())
    assert len(others | {first}) == 6


@pytest.mark.parametrize("there", ["thesis.txt", "sweep.json", "run.json"])
def test_a_folder_that_is_no_sweeps_is_refused_and_left_alone(grid, project, there):
    (project / "out").mkdir()
    (project / "out" / there).write_text('{"kind": "precious"}')
    with pytest.raises(FileExistsError, match=r"out exists and is not a sweep's folder"):
        sweep(grid("axes: {n: [1]}"), project / "out")
    assert [p.name for p in (project / "out").iterdir()] == [there]
    assert (project / "out" / there).read_text() == '{"kind": "precious"}'


def test_a_file_in_the_place_of_the_folder_is_named(grid, project):
    (project / "out").write_text("precious")
    with pytest.raises(NotADirectoryError, match=r"out"):
        sweep(grid("axes: {n: [1]}"), project / "out")
    with pytest.raises(NotADirectoryError, match=r"out/deep"):
        sweep(grid("axes: {n: [1]}"), project / "out" / "deep")
    assert (project / "out").read_text() == "precious"


def test_one_sweep_at_a_time(grid, project):
    with (
        locked(project / "out" / ".lock"),
        pytest.raises(FileExistsError, match=r"another sweep is at work in .*out"),
    ):
        sweep(grid("axes: {n: [1]}"), project / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "slurm"}, "executor 'slurm' is not known; known: local, dask"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"scheduler": "tcp://x"}, "scheduler is for executor dask"),
        ({"resources": {"GPU": 1}}, "resources is for executor dask"),
        ({"executor": "dask", "resources": {"GPU": 0.5}}, "resource GPU must be a whole number; got 0.5"),
    ],
)
def test_wrong_options(grid, project, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(grid("axes: {n: [1]}"), project / "out", progress=False, **options)


def test_there_are_gpus_for_all_workers(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    given = []
    monkeypatch.setattr(execute, "_dask", lambda *options: given.append(options))
    execute.dask_workers(2, None, {"GPU": 1})
    execute.dask_workers(1, None, {"GPU": 2})
    execute.dask_workers(4, "tcp://x", {"GPU": 1})  # whoever starts its workers sets their devices
    execute.dask_workers(4, None, {})
    assert [options[-1] for options in given] == [["4", "7"], ["4,7"], [], []]
    with pytest.raises(ValueError, match="4 workers with 1 GPU each need 4 devices in CUDA_VISIBLE_DEVICES"):
        execute.dask_workers(4, None, {"GPU": 1})


def test_dask_is_asked_for_by_its_extra(grid, project, monkeypatch):
    monkeypatch.setattr(execute, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"executor dask needs distributed: run `make torch`"):
        sweep(grid("axes: {n: [1]}"), project / "out", executor="dask")
    assert not (project / "out").exists()


# --- running ------------------------------------------------------------------------------------


def test_points_on_two_workers_and_nothing_twice(grid, project, capsys):
    out, path = project / "out", grid("axes: {n: [1, 3], word: [../b]}")
    found = sweep(path, out, workers=2)
    assert (found.points, found.done, found.failed) == (2, 2, {})
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "tiny: 2 points, 2 to run"
    assert re.fullmatch(r"\[1/2\] n=\d word=\.\./b: \d+\.\d s, about \d+ s left", told[1])
    assert re.fullmatch(r"\[2/2\] n=\d word=\.\./b: \d+\.\d s", told[2])
    table = pd.read_parquet(found.results)
    assert list(table) == ["sweep.point", "param.n", "param.word", "square", "said", "devices"]
    assert list(table["param.n"]) == [1, 3]
    assert list(table["square"]) == [1, 9]
    assert (table["said"] == table["param.word"]).all()
    assert set(table["sweep.point"]) == names(out)
    assert {p.name for p in out.iterdir()} == {
        ".lock",
        "points",
        "results.parquet",
        "summary.html",
        "sweep.json",
    }
    for name in names(out):
        record = json.loads((out / "points" / name / "run.json").read_text())
        assert record["key"] == name[-12:]
    before = {p: p.stat().st_mtime_ns for p in (out / "points").rglob("*.*")}
    assert sweep(path, out, progress=False) == found
    assert {p: p.stat().st_mtime_ns for p in (out / "points").rglob("*.*")} == before
    assert states(path, out) == ["done", "done"]
    smaller = sweep(grid("axes: {n: [3], word: [../b]}"), out, progress=False, summary=False)
    assert list(pd.read_parquet(smaller.results)["square"]) == [9]  # of this grid alone, and nothing ran
    assert (project / "ended.txt").read_text().split() in (["1", "3"], ["3", "1"])


def test_failures_are_kept_with_their_traceback_and_retried_on_request(grid, project, capsys, no_kernel):
    out, path = project / "out", grid("axes: {n: [13, 2]}")
    found = sweep(path, out, workers=1, summary=False)
    assert (found.points, found.done) == (2, 1)
    [(name, why)] = found.failed.items()
    assert "raised RuntimeError: thirteen" in why
    assert re.search(r"\[1/2\] n=13: FAILED after .* raised RuntimeError: thirteen", capsys.readouterr().err)
    kept = (out / "points" / f"{name}.error.txt").read_text()
    assert kept.startswith(why)
    assert "Traceback (most recent call last)" in kept
    assert names(out, "failed") == names(out, "part") == {name}  # the half-executed notebook is there
    assert len(pd.read_parquet(found.results)) == 1
    assert sweep(path, out, summary=False) == found
    assert "2 points, 0 to run" in capsys.readouterr().err
    (project / "mended").touch()
    mended = sweep(path, out, retry=True, summary=False, progress=False)
    assert (mended.done, mended.failed) == (2, {})
    assert not names(out, "failed") | names(out, "part")
    assert no_kernel == [13, 2, 13]


def test_the_command(grid, project, capsys, no_kernel):
    out, path = project / "out", grid("axes: {n: [13, 2]}")
    command = ["sweep", str(path), "-o", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert [line.split()[::2] for line in capsys.readouterr().out.splitlines()] == [
        ["left", "n=13"],
        ["left", "n=2"],
    ]
    assert not out.exists()
    assert main([*command, "--resources", "GPU=1"]) == 2
    assert "resources is for executor dask" in capsys.readouterr().err
    assert main([*command, "--workers", "2"]) == 1  # a point failed
    told = capsys.readouterr()
    assert "1 of 2 points failed" in told.err
    assert told.out.splitlines() == [str(out / "results.parquet"), str(out / "summary.html")]
    (project / "mended").touch()
    assert main([*command, "--retry"]) == 0


def test_code_that_changes_under_way_stops_the_sweep(project, grid, monkeypatch, no_kernel):
    """A point that ran while the code changed is of neither state of it: it is not kept."""
    work = runs.execute

    def edit(*given, **how):
        work(*given, **how)
        cells = read_notebook("notebooks/tiny.ipynb")
        cells.cells[2].source += "\n"
        nbformat.write(cells, "notebooks/tiny.ipynb")

    monkeypatch.setattr(runs, "execute", edit)
    out, path = project / "out", grid("axes: {n: [1, 2, 3]}")
    with pytest.raises(SourceChangedError, match=r"tiny\.ipynb, or code or data that it depends on, changed"):
        sweep(path, out, workers=1, summary=False, progress=False)
    assert no_kernel == [1]  # no other point began
    assert names(out) == names(out, "failed") == set()
    assert states(path, out) == ["left"] * 3


def test_a_full_disk_stops_the_sweep_with_a_path(grid, project, monkeypatch, no_kernel):
    work = runs.execute

    def full(notebook, parameters, part, *rest, **how):
        if parameters["n"] == 2:
            no_kernel.append(2)
            raise OSError(28, "No space left on device")
        work(notebook, parameters, part, *rest, **how)

    monkeypatch.setattr(runs, "execute", full)
    out, path = project / "out", grid("axes: {n: [1, 2, 3, 4]}")
    with pytest.raises(OSError, match=r"No space left on device: '.*points/tiny-[0-9a-f]{12}\.part'"):
        sweep(path, out, workers=1, summary=False, progress=False)
    assert no_kernel == [1, 2]  # the third and the fourth were not begun
    assert states(path, out) == ["done", "left", "left", "left"]


def test_a_point_that_a_lost_worker_is_still_at_is_waited_for(grid, project, no_kernel):
    [name] = (line.split()[1] for line in listing(grid("axes: {n: [5]}"), project / "out"))
    place = project / "out" / "points" / name
    with ThreadPoolExecutor(1) as pool, locked(place.parent / ".locks" / name):
        late = pool.submit(run_point, Path("notebooks/tiny.ipynb"), {"n": 5}, place)
        time.sleep(0.1)
        assert not late.done()
        place.mkdir()
        (place / "run.json").write_text('{"kind": "kinetics-lab run", "seconds": 1.5}')
    assert late.result() == (1.5, "")
    assert no_kernel == []


def test_runs_killed_at_their_start_or_while_they_were_cleared_are_run_again(grid, project, no_kernel):
    out, path = project / "out", grid("axes: {n: [1, 2, 3, 4]}")
    out.mkdir()
    (out / "sweep.json.0a1b.part").write_text("{")  # killed before its marker, too
    (out / ".lock").touch()
    left = [], ["run.json.0a1b.part"], ["run.json"], ["run.json", "tiny.ipynb", "result.json"]
    for line, files in zip(listing(path, out), left, strict=True):
        part = out / "points" / f"{line.split()[1]}.part"
        part.mkdir(parents=True)
        for file in files:
            (part / file).write_text('{"kind": "kinetics-lab run"}' if file == "run.json" else "{")
    (out / "points").rename(project / "points")  # the marker comes first
    assert sweep(grid("axes: {n: [5]}", "other.yml"), out, summary=False, progress=False).done == 1
    for part in (project / "points").iterdir():
        part.rename(out / "points" / part.name)
    assert sweep(path, out, summary=False, progress=False).done == 4
    assert not names(out, "part")


def test_what_cannot_be_written_names_its_path_and_leaves_no_half(tmp_path):
    def half(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*table\.parquet'"):
        write_whole(tmp_path / "table.parquet", half)
    assert not list(tmp_path.iterdir())


# --- dask ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xdist_group("dask")
def test_dask_gives_each_worker_a_gpu_of_its_own(grid, project, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    options = {"executor": "dask", "workers": 2, "resources": {"GPU": 1}}
    found = sweep(grid("axes: {n: [1, 3]}"), project / "out", summary=False, **options)
    table = pd.read_parquet(found.results)
    assert list(table["square"]) == [1, 9]
    assert set(table["devices"]) == {"4", "7"}


@pytest.mark.xdist_group("dask")
def test_a_scheduler_of_your_own(grid, project, no_kernel, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    given, work = [], runs.execute

    def told(notebook, parameters, part, root, env, *rest, **how):
        given.append(env)
        work(notebook, parameters, part, root, env, *rest, **how)

    monkeypatch.setattr(runs, "execute", told)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(resources={"GPU": 1}, **options) as cluster:
        asked = {"executor": "dask", "scheduler": cluster.scheduler_address, "resources": {"GPU": 1}}
        found = sweep(grid("axes: {n: [3, 13]}"), project / "out", summary=False, progress=False, **asked)
    assert found.done == 1
    assert set(found.failed) == names(project / "out", "failed")
    # whoever starts a worker sets its devices
    assert not any("CUDA_VISIBLE_DEVICES" in env for env in given)
    assert len(given) == 2


def test_a_cluster_that_has_no_worker_is_told_of_and_one_that_gives_a_point_up_is_one_error(
    monkeypatch, capsys
):
    distributed = pytest.importorskip("distributed")

    class Client(ExitStack):
        def __init__(self, address):
            super().__init__()

        def scheduler_info(self, **_):
            return {"workers": {}}

        def get_executor(self, **_):
            return ThreadPoolExecutor(1)

    def lost(*_, **__):
        raise distributed.KilledWorker("point", SimpleNamespace(address="tcp://gone"), 1)

    monkeypatch.setattr(distributed, "Client", Client)
    monkeypatch.setattr(execute, "_on_dask", lost)
    with (
        pytest.raises(RuntimeError, match="the cluster gave a point up"),
        execute.dask_workers(1, "tcp://nowhere", {"GPU": 1}) as submit,
    ):
        list(execute.outcomes({submit(print): 0}))
    assert "waiting for a worker: the scheduler has none with {'GPU': 1}" in capsys.readouterr().err


# --- kills --------------------------------------------------------------------------------------

SWEEP = (
    "import sys; from kinetics_lab.book.sweep import sweep; sweep(sys.argv[1], sys.argv[2], summary=False)"
)


def running(process):
    """The kernels of a sweep's process."""
    done = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_sweep_loses_only_what_was_under_way(grid, project, number):
    out, path = project / "out", grid("axes: {n: [1, 2]}")
    (project / "hold").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(path), str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (names(out) and names(out, "part") and len(running(process)) == 1):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    kernels = running(process)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert states(path, out) == ["done", "left"]
    assert not names(out, "failed")
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in told
        assert "stopped: 1 of 2 points ended and are kept; the same command goes on" in told
        assert not [pid for pid in kernels if Path(f"/proc/{pid}").exists()]
        return
    [first] = names(out)
    record = out / "points" / first / "run.json"
    before = record.stat().st_mtime_ns
    for pid in kernels:  # it would end by itself once it finds its parent gone
        os.kill(int(pid), signal.SIGKILL)
    (project / "hold").unlink()
    assert sweep(path, out, summary=False, progress=False).done == 2
    assert record.stat().st_mtime_ns == before
    assert (project / "ended.txt").read_text().split() == ["1", "2"]
    assert not names(out, "part")


@pytest.mark.slow
def test_three_kills_lose_only_what_was_under_way():
    script = ROOT / "benchmarks" / "sweep_kills.py"
    options = ["--kills", "3", "--points", "5", "--seed", "4"]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills: all 5 points done" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", ["kills 3 traces", "kills 2 run", "races 5 traces", "races 2 run"])
def test_kills_and_races_leave_whole_results(words):
    script = ROOT / "benchmarks" / "faults.py"
    done = subprocess.run(
        [sys.executable, script, *words.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kind, count, command = words.split()
    assert f"{kind},{command},{count}" in done.stdout


# --- results ------------------------------------------------------------------------------------


def test_record_hands_over_in_a_run_and_only_returns_outside(tmp_path, monkeypatch):
    table = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="who"))
    monkeypatch.delenv("KINETICS_RUN_DIR", raising=False)
    assert results.hand_over(table) is table
    assert results.read_result(tmp_path) is None
    monkeypatch.setenv("KINETICS_RUN_DIR", str(tmp_path))
    row = {"a": 1.5, "b": None, "c": pd.Series([7]).iloc[0], "d": "x"}
    assert results.hand_over(row) is row
    assert results.read_result(tmp_path).to_dict("records") == [{"a": 1.5, "b": None, "c": 7, "d": "x"}]
    results.hand_over(table)
    pd.testing.assert_frame_equal(results.read_result(tmp_path), table.reset_index())
    results.hand_over(table.reset_index(drop=True)[1:])  # an unnamed index is no column
    assert list(results.read_result(tmp_path)) == ["a"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "result.parquet"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"param.n": 1}, r"columns that begin with param\. or sweep\. are a sweep's own; got \['param\.n'\]"),
        (pd.DataFrame({"sweep.point": [1]}), r"are a sweep's own"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"must differ in name; got \['a', 'a'\]"),
        (pd.DataFrame({"a": [1]}, index=pd.Index([1], name="a")), r"must differ in name"),
        (pd.DataFrame({3: [1]}), r"must be named by text; got \[3\]"),
        ({"a": object()}, r"values must be numbers, texts"),
    ],
)
def test_results_that_are_refused(tmp_path, monkeypatch, result, message):
    monkeypatch.setenv("KINETICS_RUN_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        results.hand_over(result)
    assert not list(tmp_path.iterdir())


def test_gathered_columns_hold_whatever_kinds_there_are(tmp_path):
    front = {
        "a": {"n": 1, "batch": None, "many": [1, 2], "kind": "x"},
        "b": {"n": 2, "batch": "fits", "many": [], "kind": "y"},
        "c": {"n": 3, "batch": 64, "many": [3], "kind": "z"},
        "left": {"n": 4, "batch": None, "many": [], "kind": "z"},
        "empty": {"n": 5, "batch": None, "many": [], "kind": "z"},
    }
    tables = {
        "a": pd.DataFrame({"y": [1, 2], "told": ["p", "q"]}),
        "b": pd.DataFrame({"y": [0.5], "told": [3], "more": [True]}),
        "c": pd.DataFrame({"y": [None], "more": [False]}),
        "empty": pd.DataFrame({"y": []}),
    }
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "result.parquet")
    points = {tmp_path / name: parameters for name, parameters in front.items()}
    table = pd.read_parquet(sweeps.gather(points, tmp_path))
    assert list(table["sweep.point"]) == ["a", "a", "b", "c"]
    assert list(table["param.n"]) == [1, 1, 2, 3]
    assert list(table["param.batch"].fillna("none")) == ["none", "none", '"fits"', "64"]
    assert list(table["param.many"]) == ["[1, 2]", "[1, 2]", "[]", "[3]"]
    assert list(table["param.kind"]) == ["x", "x", "y", "z"]
    assert table["y"].dtype == float
    assert table["y"].fillna(-1).tolist() == [1, 2, 0.5, -1]
    assert table["told"].fillna("none").tolist() == ['"p"', '"q"', "3", "none"]
    assert table["more"].fillna("none").tolist() == ["none", "none", True, False]
    assert sweeps.gather({tmp_path / "left": {"n": 4}}, tmp_path) is None
    assert not (tmp_path / "results.parquet").exists()  # that of another grid would be read for this one's


@pytest.mark.parametrize(
    ("axes", "drawn"),
    [
        ("axes: {n: [13, 2, 3], word: [a, <b>]}\nshow: square", True),
        ("axes: {word: [a, <b>], n: [13, 2]}\nshow: square", True),
        ("axes: {n: [13, 2], word: [a, <b>]}\nshow: said", False),  # no number
        ("axes: {n: [13]}\nshow: square", False),  # no result
        ("axes: {n: [13, 2], word: [a, <b>]}", False),
        pytest.param(f"axes: {{word: {json.dumps(hostile.NAMES)}}}\nshow: square", True, id="hostile"),
    ],
)
def test_the_page_shows_a_column_and_every_point(grid, project, no_kernel, axes, drawn):
    found = sweep(grid(axes), project / "out", progress=False)
    html = found.pages[0].read_text()
    assert ('src="data:image/png;base64,' in html) == drawn
    assert f"{found.points} points: {found.done} done, {len(found.failed)} failed, 0 left" in html
    assert html.count("<td>done</td>") == found.done
    assert html.count("raised RuntimeError: thirteen") == len(found.failed)
    assert "<b>" not in html
    assert "<script" not in html
    ours = ["body", "h1", "p", "img", "table", "thead", "tbody", "tr", "th", "td"]
    assert {kind[0] for kind in hostile.census(html)} <= {*ours}


# --- the book -----------------------------------------------------------------------------------


@pytest.mark.notebooks
def test_the_example_of_the_page_is_six_points(tmp_path, monkeypatch, executed):
    text = (ROOT / "book" / "on-a-cluster.md").read_text(encoding="utf-8")
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "notebook:" in block]
    monkeypatch.chdir(ROOT)
    (tmp_path / "my-grid.yml").write_text(example)
    found = read_grid(tmp_path / "my-grid.yml")
    assert len(found.points) == 6
    assert found.show in results.read_result(executed[found.notebook.stem].folder)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECLARING = [path for path in NOTEBOOKS if runs.declared_result(path)]


def test_every_chapter_declares_its_result():
    assert len(NOTEBOOKS) > 20
    assert DECLARING == NOTEBOOKS


@pytest.mark.notebooks
@pytest.mark.parametrize("path", DECLARING, ids=lambda path: path.stem)
def test_a_chapter_hands_over_what_it_explains(path, executed):
    table = results.read_result(executed[path.stem].folder)
    assert len(table)
    told = set(re.findall(r"`(\w+)`", read_notebook(path).cells[-1].source))
    assert set(table) <= told, "columns that the chapter's last cell does not explain"


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\x00\xff", "NaN garbage"])
def test_a_result_that_cannot_be_read_fails_its_point_and_is_made_again(grid, no_kernel, tmp_path, content):
    path, out = grid("axes: {n: [1, 2, 3]}"), tmp_path / "out"
    assert sweep(path, out, progress=False, summary=False).done == 3
    place = out / "points" / min(names(out))
    (place / "result.json").write_bytes(content.encode("latin-1"))
    again = sweep(path, out, progress=False, summary=False)
    assert list(again.failed) == [place.name]
    assert "its result cannot be read" in again.failed[place.name]
    assert len(pd.read_parquet(again.results)) == 2
    mended = sweep(path, out, progress=False, summary=False, retry=True)
    assert not mended.failed
    assert len(pd.read_parquet(mended.results)) == 3
    assert len(no_kernel) == 4


def test_what_is_read_whole_has_a_size_that_the_message_names(project, capsys):
    """A parameter file, a grid, a device, findings, a model and its precision, and a foreign record: a file of zeros each."""
    small, large, cost = 2**20, 16 * 2**20, ["cost", "--n-in", "1", "--n-out", "1"]
    for name, size, command in [
        ("g.yml", small, ["sweep", "g.yml", "-o", "out"]),
        ("p.yml", small, ["run", "notebooks/tiny.ipynb", "-f", "p.yml", "-o", "out"]),
        ("d.toml", small, [*cost, "--model", "qwen3-8b", "--hardware", "d.toml"]),
        ("c.jsonl", large, ["claims", "c.jsonl"]),
        ("config.json", large, [*cost, "--model", "config.json"]),
    ]:
        path = Path(name)
        with path.open("wb") as file:
            file.truncate(size + 1)
        assert main(command) == 2
        told = f"{name} has more than {size >> 20} MiB, the most that is read of a file of its kind"
        assert told in capsys.readouterr().err
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match="has more than 1 MiB") if size > small else nullcontext():
            read_text(path, 1)


def test_yaml_is_bounded(grid):
    """Nine lists of nine aliases each stand for 387 million values; a list within itself for endlessly many."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    for text in ("\n".join(bomb), "axes: &a [*a]"):
        with pytest.raises(
            ValueError, match="with its aliases written out it has more than 1,000,000 values"
        ):
            read_grid(grid(text))
    with pytest.raises(ValueError, match="a name must be text; got 1"):
        read_grid(grid("axes: {1: [2]}"))
    assert len(read_grid(grid("axes: {n: &n [1, 2]}\nexclude: [{n: 1}]")).points) == 1
