"""Sweeps: a grid's points, their folder, what a kill, Ctrl-C or a failure leaves, executors, the gathered results."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from kinetics_lab.book import results, runs, sweep_points, sweep_report
from kinetics_lab.book.grids import canonical, read_grid
from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.book.sweep import listing, sweep
from kinetics_lab.book.sweep_points import SourceChangedError
from kinetics_lab.cli import main
from kinetics_lab.files import write_whole

ROOT = Path(__file__).parent.parent
PARAMETERS = """
n = 1  # a number
word = "a"  # a text
rate = 0.5  # a float
many = [1]  # a list
other = None  # anything
pause = 0.0  # seconds
"""
WORK = """
import os, time
from pathlib import Path
from kinetics_lab.book.results import hand_over
time.sleep(pause)
if n == 13 and not Path("mended").exists():
    raise RuntimeError("thirteen")
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


def names(out, state="done"):
    found = {p.name for p in (out / "points").glob("tiny-*")}
    suffix = {"done": "", "failed": ".error.txt", "part": ".part"}[state]
    return {
        name.removesuffix(suffix) for name in found if name.endswith(suffix) and (suffix or "." not in name)
    }


def log(out):
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


# --- the grid -----------------------------------------------------------------------------------


def test_points_are_all_combinations_in_the_order_of_the_file(grid):
    text = """
fixed: {pause: 0, other: fp8}
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
        ("axes: {nn: [1]}", r"grid\.yml line 2: tiny\.ipynb declares n, .*'nn' is not known; did you mean n"),
        ("axes: {n: [1, x]}", r"line 2: parameter 'n' of tiny\.ipynb takes int \(default 1\); got 'x'"),
        ("fixed: {wrod: x}\naxes: {n: [1]}", r"line 2: .*'wrod' is not known; did you mean word"),
        ("axis: {n: [1]}", r"line 2: section 'axis' is not known; did you mean axes"),
        ("axes:\n  n: [1]\n  n: [2]", r"line 4: 'n' is given twice"),
        ("fixed: {n: 1}\naxes: {n: [1]}", r"line 3: parameter 'n' is given twice"),
        ("axes: {n: [1]}\nzip:\n  - {n: [1]}", r"line 4: parameter 'n' is given twice"),
        ("zip:\n  - {n: [1, 2], word: [a]}", r"line 3: axes that move together .*; n has 2, word has 1"),
        ("zip: {n: [1]}", r"line 2: `zip` is a list of groups"),
        ("fixed: {n: 1}", r"grid\.yml has no points: give it `axes`"),
        ("", r"grid\.yml has no points"),
        ("axes: {n: []}", r"line 2: axis 'n' has no values, so the grid has no points"),
        ("axes: {n: [1]}\nexclude:\n  - {n: 1}", r"line 4: with this rule the grid has no points"),
        ("axes: {n: [1]}\nexclude:\n  - {n: 2}", r"line 4: the rule n=2 excludes no point"),
        (
            "axes: {n: [1]}\nexclude:\n  - {wor: a}",
            r"line 4: the grid's parameter 'wor' is not known; known: n",
        ),
        ("axes: {n: [1]}\nexclude: {n: 1}", r"line 3: `exclude` is a list of rules"),
        ("axes: {n: [1, 2, 1.0]}", r"points 1 and 3 are the same: n=1"),
        ("axes: {other: [1, 1.0]}", r"points 1 and 2 are the same: other=1"),
        ("axes: {n: 3}", r"line 2: axis 'n' must be a list, or range reads|line 2: axis 'n' must be a list"),
        ("axes: [n]", r"line 2: `axes` maps names to values; got \['n'\]"),
        ("axes: {n: {from: 1, to: 9}}", r"line 2: a range reads \{from: 1, to: 9, step: 2\} or"),
        ("axes: {n: {from: 1, to: x, step: 1}}", r"line 2: a range reads"),
        ("axes: {n: {from: 1, to: .inf, step: 1}}", r"line 2: a range reads"),
        ("axes: {n: {from: 1, to: 9, step: 0}}", r"line 2: step must not be 0"),
        ("axes: {n: {from: 9, to: 1, step: 1}}", r"line 2: the range leads away from its end"),
        ("axes: {n: {from: 0, to: 9, factor: 2}}", r"line 2: with a factor, from, to and factor are above 0"),
        ("axes: {n: {from: 1, to: 9, factor: 1}}", r"line 2: with a factor, .*factor is not 1"),
        ("axes: {n: {from: 9, to: 1, factor: 2}}", r"line 2: the range leads away from its end"),
        (
            "axes: {n: {from: 1, to: 1e9, step: 1}}",
            r"line 2: the range has 1,000,000,000 values; at most 100,000",
        ),
        (
            "axes: {n: {from: 1, to: 999, step: 1}, pause: {from: 1, to: 999, step: 1}}",
            r"has 998,001 points; at most 100,000 make a sweep",
        ),
        ("axes: {other: [2024-01-01]}", r"line 2: a parameter takes numbers, texts, .*for 'other'"),
        ("axes: {n: [1]}\nshow: [square]", r"line 3: `show` names a column"),
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


def test_equal_values_have_one_text_and_truth_is_no_number():
    assert canonical({"a": [1.0, {"b": 2}]}) == canonical({"a": [1, {"b": 2.0}]})
    assert canonical(True) != canonical(1)
    assert canonical("1") != canonical(1)


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
    others = {named("axes: {n: [2]}"), named("fixed: {word: b}\naxes: {n: [1]}")}
    kernels = project / "kernels" / "kinetics_kernels"
    kernels.mkdir(parents=True)
    (kernels / "dense.py").write_text("x = 1")
    others.add(named())
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
    (project / "out").mkdir()
    with (project / "out" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match=r"another sweep is at work in .*out"):
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


def test_dask_is_asked_for_by_its_extra(grid, project, monkeypatch):
    monkeypatch.setattr(sweep_points, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"executor dask needs dask\.distributed: pip install 'kinetics-lab\[cluster\]'"
    ):
        sweep(grid("axes: {n: [1]}"), project / "out", executor="dask")
    assert not (project / "out").exists()


# --- running ------------------------------------------------------------------------------------


def test_six_points_on_two_workers_and_nothing_twice(grid, project, capsys):
    out = project / "out"
    path = grid("axes:\n  n: {from: 1, to: 3, step: 1}\n  word: [a, ../b]")
    found = sweep(path, out, workers=2, summary=False)
    assert (found.points, found.done, found.failed) == (6, 6, {})
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "tiny: 6 points, 6 to run"
    assert [
        re.match(r"\[(\d)/6\] n=\d word=\S+: \d\.\d s \((\d) done, 0 failed, (\d) left", line).groups()
        for line in told[1:]
    ] == [(str(i), str(i), str(6 - i)) for i in range(1, 7)]
    assert "left, about " in told[1]
    assert "about" not in told[-1]
    table = pd.read_parquet(found.results)
    assert list(table) == ["sweep.point", "param.n", "param.word", "square", "said", "devices"]
    assert list(table["param.n"]) == [1, 1, 2, 2, 3, 3]
    assert (table["square"] == table["param.n"] ** 2).all()
    assert (table["said"] == table["param.word"]).all()
    assert set(table["sweep.point"]) == names(out) == {line["name"] for line in log(out)}
    assert {p.name for p in out.iterdir()} == {
        "points",
        "runs.jsonl",
        "results.parquet",
        "sweep.json",
        ".lock",
    }
    lines = {line["name"]: line for line in log(out)}
    for name in names(out):
        record = json.loads((out / "points" / name / "run.json").read_text())
        assert record["key"] == name[-12:]
        assert lines[name]["parameters"] == record["parameters"]
        assert lines[name]["seconds"] == record["seconds"]
        assert lines[name]["state"] == "done"
    before = {p: p.stat().st_mtime_ns for p in (out / "points").rglob("*.*")}
    again = sweep(path, out, progress=False, summary=False)
    assert again == found
    assert {p: p.stat().st_mtime_ns for p in (out / "points").rglob("*.*")} == before
    assert len(log(out)) == 6
    assert all(line.startswith("done ") for line in listing(path, out))
    smaller = sweep(grid("axes: {n: [3], word: [a]}"), out, progress=False, summary=False)
    assert list(pd.read_parquet(smaller.results)["square"]) == [9]  # of this grid alone, and nothing ran
    assert len(log(out)) == 6


def test_dask_gives_each_worker_a_gpu_of_its_own(grid, project, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    options = {"executor": "dask", "workers": 2, "resources": {"GPU": 1}}
    found = sweep(grid("axes: {n: [1, 2, 3]}"), project / "out", summary=False, **options)
    table = pd.read_parquet(found.results)
    assert list(table["square"]) == [1, 4, 9]
    assert set(table["devices"]) == {"4", "7"}
    with pytest.raises(ValueError, match="4 workers with 1 GPU each need 4 devices in CUDA_VISIBLE_DEVICES"):
        sweep(grid("axes: {n: [7]}"), project / "out", summary=False, **(options | {"workers": 4}))


def test_a_scheduler_of_your_own(grid, project, capsys):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(resources={"GPU": 1}, **options) as cluster:
        address = cluster.scheduler_address
        found = sweep(
            grid("axes: {n: [3, 13]}"),
            project / "out",
            executor="dask",
            scheduler=address,
            resources={"GPU": 1},
            summary=False,
        )
    assert found.done == 1
    assert list(found.failed.values()) == [found.failed[name] for name in names(project / "out", "failed")]
    assert pd.read_parquet(found.results)["devices"].isna().all()  # whoever starts a worker sets its devices
    assert "waiting" not in capsys.readouterr().err


def test_failures_are_kept_with_their_traceback_and_retried_on_request(grid, project, capsys):
    out, path = project / "out", grid("axes: {n: [13, 2]}")
    found = sweep(path, out, summary=False)
    assert (found.points, found.done) == (2, 1)
    [(name, why)] = found.failed.items()
    assert "raised RuntimeError: thirteen" in why
    assert re.search(r"\] n=13: FAILED after .* raised RuntimeError: thirteen", capsys.readouterr().err)
    kept = (out / "points" / f"{name}.error.txt").read_text()
    assert kept.startswith(why)
    assert "Traceback (most recent call last)" in kept
    assert "if n == 13" in kept
    assert names(out, "part") == {name}  # the half-executed notebook
    assert len(pd.read_parquet(found.results)) == 1
    assert sorted(line["state"] for line in log(out)) == ["done", "failed"]
    again = sweep(path, out, summary=False)
    assert again == found
    assert (
        "2 points, 0 to run; 1 failed before and stay so (--retry runs them again)" in capsys.readouterr().err
    )
    (project / "mended").touch()
    mended = sweep(path, out, retry=True, summary=False, progress=False)
    assert (mended.done, mended.failed) == (2, {})
    assert not names(out, "failed")
    assert not names(out, "part")
    assert [line["state"] for line in log(out)].count("done") == 2


def test_code_that_changes_under_way_stops_the_sweep(project, grid, write_notebook):
    """A point that ran while the code changed is of neither state of it: it is not kept."""
    (project / "kernels" / "kinetics_kernels").mkdir(parents=True)
    edit = "open('kernels/kinetics_kernels/new.py', 'w').write(str(n))"
    cells = ("code", "n = 1", "parameters"), ("code", edit)
    write_notebook(project / "notebooks" / "tiny.ipynb", *cells)
    path, out = grid("axes: {n: [1, 2, 3]}"), project / "out"
    with pytest.raises(SourceChangedError, match=r"tiny\.ipynb, the package or the data changed since"):
        sweep(path, out, workers=1, summary=False, progress=False)
    assert (project / "kernels" / "kinetics_kernels" / "new.py").read_text() == "1"  # no other point began
    assert names(out) == names(out, "failed") == set()
    assert not (out / "runs.jsonl").exists()
    assert all(line.startswith("left ") for line in listing(path, out))


def test_a_torn_last_line_is_dropped_and_a_missing_one_restored(grid, project):
    out, path = project / "out", grid("axes: {n: [1, 13]}")
    sweep(path, out, summary=False, progress=False)
    whole = (out / "runs.jsonl").read_text()
    first, _ = whole.splitlines(keepends=True)
    for torn in ("", first[:-1], first[:-2], first + '{"name": "ti', '{"name": "t\ufffd'):
        (out / "runs.jsonl").write_text(torn)
        found = sweep(path, out, summary=False, progress=False)
        assert (found.done, len(found.failed)) == (1, 1)
        assert sorted(line["state"] for line in log(out)) == ["done", "failed"]
        assert {line["parameters"]["n"] for line in log(out)} == {1, 13}
    (out / "runs.jsonl").write_text("not a line\n" + whole)
    with pytest.raises(ValueError, match=r"runs\.jsonl line 1 is not a run's line: 'not a line'"):
        sweep(path, out, summary=False, progress=False)


def test_a_full_disk_stops_the_sweep_with_a_path(grid, project, monkeypatch):
    from papermill.iorw import LocalHandler

    whole, first = LocalHandler.write, []

    def full(self, text, path):
        first.append(path)
        if path != first[0]:
            raise OSError(28, "No space left on device")
        return whole(self, text, path)

    monkeypatch.setattr(LocalHandler, "write", full)
    out = project / "out"
    with pytest.raises(OSError, match=r"No space left on device: '.*points/tiny-[0-9a-f]{12}\.part'"):
        sweep(grid("axes: {n: [1, 2, 3, 4]}"), out, workers=1, summary=False, progress=False)
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert len(names(out)) == len(log(out)) == 1
    assert len(set(first)) == 2  # the third and the fourth were not begun
    assert not names(out, "failed")
    found = sweep(grid("axes: {n: [1, 2]}"), out, summary=False, progress=False)
    assert found.done == 2
    assert len(log(out)) == 2  # the first one was not run again


def test_a_point_that_a_lost_worker_is_still_at_is_waited_for(grid, project):
    [name] = (line.split()[1] for line in listing(grid("axes: {n: [5]}"), project / "out"))
    place = project / "out" / "points" / name
    (place.parent / ".locks").mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool, (place.parent / ".locks" / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        late = pool.submit(sweep_points.run_point, "notebooks/tiny.ipynb", {"n": 5}, str(place), name[-12:])
        time.sleep(0.3)
        place.mkdir()
        (place / "run.json").write_text('{"date": "then", "seconds": 1.5}')
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert late.result() == {
            "name": name,
            "parameters": {"n": 5},
            "state": "done",
            "date": "then",
            "seconds": 1.5,
        }


def test_what_cannot_be_written_names_its_path_and_leaves_no_half(tmp_path):
    def half(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*table\.parquet'"):
        write_whole(tmp_path / "table.parquet", half)
    assert not list(tmp_path.iterdir())


def test_the_command(grid, project, capsys, monkeypatch):
    monkeypatch.setattr("kinetics_lab.book.sweep.summarize", lambda out: [out / "summary" / "page.html"])
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
    assert str(out / "results.parquet") in told.out.splitlines()
    assert str(out / "summary" / "page.html") in told.out.splitlines()
    (project / "mended").touch()
    assert main([*command, "--retry"]) == 0


# --- kills --------------------------------------------------------------------------------------

SWEEP = (
    "import sys; from kinetics_lab.book.sweep import sweep; sweep(sys.argv[1], sys.argv[2], summary=False)"
)


def test_ctrl_c_stops_the_kernels_and_leaves_what_can_go_on(grid, project):
    out, path = project / "out", grid("zip:\n  - {n: [1, 2, 3], pause: [0, 60, 60]}")
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(path), str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 60
    while not (names(out) and len(names(out, "part")) == 2) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    kernels = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert "KeyboardInterrupt" in told
    assert "stopped: 1 done, 0 failed, 2 left; what is done is kept, go on with" in told
    assert f"kinetics-lab sweep {path} -o {out} --executor local --workers 2" in told
    assert len(kernels) == 2
    assert not [pid for pid in kernels if Path(f"/proc/{pid}").exists()]
    assert [line["state"] for line in log(out)] == ["done"]
    assert not names(out, "failed")
    assert [line.split()[0] for line in listing(path, out)] == ["done", "left", "left"]


def test_three_kills_lose_only_what_was_under_way():
    command = [
        sys.executable,
        ROOT / "benchmarks" / "sweep_kills.py",
        "--kills",
        "3",
        "--points",
        "5",
        "--seed",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills: all 5 points done" in done.stdout


def test_runs_killed_at_their_start_or_while_they_were_cleared_are_run_again(grid, project):
    out, path = project / "out", grid("axes: {n: [1, 2, 3, 4]}")
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps({"kind": sweep_report.KIND}))
    left = [], ["run.json.part"], ["run.json"], ["run.json", "tiny.ipynb", "result.json"]
    for line, files in zip(listing(path, out), left, strict=True):
        part = out / "points" / f"{line.split()[1]}.part"
        part.mkdir(parents=True)
        for file in files:
            (part / file).write_text('{"kind": "kinetics-lab run"}' if file == "run.json" else "{")
    assert sweep(path, out, summary=False, progress=False).done == 4
    assert not names(out, "part")


def test_a_sweep_killed_before_its_marker_goes_on(grid, project):
    (project / "out").mkdir()
    (project / "out" / "sweep.json.part").write_text("{")
    (project / "out" / ".lock").touch()
    path = grid("axes: {n: [13]}")
    assert sweep(path, project / "out", summary=False, progress=False).points == 1


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


def swept(out, points, found, **about):
    """A sweep's folder with these results: parameters by name, tables by name."""
    for name, table in found.items():
        place = out / "points" / name
        place.mkdir(parents=True)
        table.to_parquet(place / "result.parquet")
        (place / "run.json").write_text(json.dumps({"date": "d", "seconds": 1.0}))
    facts = {"kind": sweep_report.KIND, "points": points, "axes": {}, "show": None}
    (out / "sweep.json").write_text(json.dumps(facts | about))
    return out


def test_gathered_columns_hold_whatever_kinds_there_are(tmp_path):
    points = {
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
    table = pd.read_parquet(sweep_report.gather(swept(tmp_path, points, tables)))
    assert list(table["sweep.point"]) == ["a", "a", "b", "c"]
    assert list(table["param.n"]) == [1, 1, 2, 3]
    assert list(table["param.batch"].fillna("none")) == ["none", "none", '"fits"', "64"]
    assert list(table["param.many"]) == ["[1, 2]", "[1, 2]", "[]", "[3]"]
    assert list(table["param.kind"]) == ["x", "x", "y", "z"]
    assert table["y"].dtype == float
    assert table["y"].fillna(-1).tolist() == [1, 2, 0.5, -1]
    assert table["told"].fillna("none").tolist() == ['"p"', '"q"', "3", "none"]
    assert table["more"].fillna("none").tolist() == ["none", "none", True, False]
    (tmp_path / "sweep.json").write_text(json.dumps({"points": {"left": {"n": 4}}}))
    assert sweep_report.gather(tmp_path) is None
    assert not (tmp_path / "results.parquet").exists()  # that of another grid would be read for this one's


def test_what_is_drawn(tmp_path):
    rows = [(n, w, kind, n * (w == "b") + len(kind)) for n in (1, 2, 4) for w in "ab" for kind in ("k", "kk")]
    table = pd.DataFrame(rows, columns=["param.n", "param.word", "kind", "y"]).assign(zero=0.0)
    about = {"axes": {"word": ["a", "b"], "n": [1, 2, 4], "one": [7]}, "show": None}
    table["param.one"] = 7
    drawn, x, y = sweep_report.drawable(table, about)
    assert (x, y) == ("n", "y")
    assert set(drawn["which"]) == {"a, k", "a, kk", "b, k", "b, kk"}
    assert list(drawn["y"]) == list(table["y"])
    some = table[(table["kind"] == "k") & (table["param.n"] == 4)]
    _, x, _ = sweep_report.drawable(some, about | {"axes": {"word": ["a", "b"]}})
    assert x == "word"
    for change, axes, message in (
        ({"kind": "k"}, about["axes"], "several rows of y that no column of text tells apart"),
        ({}, {"one": [7]}, "no axis, or no column of numbers"),
        ({"y": 1}, about["axes"], "no axis, or no column of numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep_report.drawable(table.assign(**change), {"axes": axes, "show": None})
    with pytest.raises(ValueError, match=r"no column 'x' of numbers that differ; it has \['y'\]"):
        sweep_report.drawable(table, about | {"show": "x"})


# --- the book -----------------------------------------------------------------------------------


@pytest.mark.notebooks
def test_the_example_of_the_page_is_six_points_and_ends_in_a_page(tmp_path, monkeypatch):
    text = (ROOT / "book" / "how-to-run.md").read_text(encoding="utf-8")
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "notebook:" in block]
    monkeypatch.chdir(ROOT)
    (tmp_path / "my-grid.yml").write_text(example)
    found = sweep(tmp_path / "my-grid.yml", tmp_path / "out", workers=2, progress=False)
    assert (found.points, found.done) == (6, 6)
    assert len(pd.read_parquet(found.results)) >= 6
    executed, page = found.pages
    assert executed.name == "sweep_summary.ipynb"
    html = page.read_text(encoding="utf-8")
    assert "6 points: <strong>6</strong> done" in html
    assert "data:image/png" in html
    assert html.count("<td>done</td>") + len(re.findall(r">done</td>", html)) >= 6
    assert "<script" not in html
    assert str(ROOT) not in html
    other = {"folder": str(tmp_path / "out"), "most_points": 2}
    again = runs.run_notebook(sweep_report.TEMPLATE, other, out=tmp_path / "elsewhere", progress=False)
    assert "The first 2 of 6" in again.executed.read_text(encoding="utf-8")


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
