"""Runs: their parameters, their key, their folder, and the cache that tests and the book share."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import kinetics_lab
from kinetics_lab.book import imports, runs
from kinetics_lab.book.imports import closure
from kinetics_lab.book.parameters import check_parameters, declared_parameters, read_notebook, read_parameters
from kinetics_lab.book.runs import NotebookError, execute_all, run_key, run_notebook
from kinetics_lab.data import manifest
from kinetics_lab.files import locked, write_whole

PARAMETERS = "# parameters\nn = 3  # tokens\nmodel: str = 'qwen3-8b'\nrate = 0.5\nmany = 2 * 8\nother = None"


@pytest.fixture
def project(tmp_path, write_notebook, monkeypatch):
    """A project of two notebooks and a collector of claims, with the working folder in it."""
    (tmp_path / "pyproject.toml").touch()
    claim = (
        "import json, os, pathlib\n"
        "folder = pathlib.Path(os.environ['KINETICS_RUN_DIR'])\n"
        "folder.joinpath('claims.jsonl').write_text(json.dumps({'id': 'a', 'value': n}) + '\\n')\n"
        "print(n, model, os.getcwd() == str(pathlib.Path('.').resolve()), pathlib.Path('pyproject.toml').exists())"
    )
    one, two = ("markdown", "# One?"), ("markdown", "# Two?")
    write_notebook(
        tmp_path / "notebooks" / "10_one.ipynb", one, ("code", PARAMETERS, "parameters"), ("code", claim)
    )
    write_notebook(
        tmp_path / "notebooks" / "11_two.ipynb", two, ("code", "n = 4", "parameters"), ("code", "10 // n")
    )
    collect = "import os; print(open(os.environ['KINETICS_CLAIMS']).read(), end='')"
    metadata = {"kinetics": {"collects_claims": True}}
    write_notebook(tmp_path / "notebooks" / "05_score.ipynb", ("code", collect), **metadata)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def notebooks(project):
    return sorted((project / "notebooks").glob("*.ipynb"))


@pytest.fixture
def one(project):
    return project / "notebooks" / "10_one.ipynb"


@pytest.fixture
def no_kernel(monkeypatch):
    """Runs that execute nothing: a list of the notebooks that would have been."""
    ran = []

    def work(notebook, parameters, part, *_, **how):
        ran.append(notebook)
        book = read_notebook(notebook)
        book.metadata.papermill = {}
        nbformat.write(book, part / notebook.name)

    monkeypatch.setattr(runs, "execute", work)
    return ran


def outputs(notebook):
    return "".join(o.get("text", "") for c in read_notebook(notebook).cells for o in c.get("outputs", []))


# --- parameters ---------------------------------------------------------------------------------


def test_declared_parameters(one, write_notebook, tmp_path):
    want = {"n": 3, "model": "qwen3-8b", "rate": 0.5, "many": "2 * 8", "other": None}
    assert declared_parameters(one) == want
    assert declared_parameters(write_notebook(tmp_path / "none.ipynb", ("code", "n = 1"))) == {}


def test_only_the_first_tagged_cell_declares(write_notebook, tmp_path):
    cells = [("code", "n = 1", "parameters"), ("code", "m = 1", "parameters")]
    assert declared_parameters(write_notebook(tmp_path / "x.ipynb", *cells)) == {"n": 1}


def test_parameters_are_checked_against_what_is_declared(one):
    assert check_parameters(one, {"n": 1e3, "rate": 2, "other": "x"}) == {"n": 1000, "rate": 2, "other": "x"}
    assert type(check_parameters(one, {"n": 1e3})["n"]) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"modle": "x"},
            r"10_one\.ipynb declares n, model, .*parameter 'modle' is not known; did you mean model\?",
        ),
        ({"xyz": 1}, "parameter 'xyz' is not known; known: n, model, rate, many, other"),
        ({"n": 1.5}, r"parameter 'n' of 10_one\.ipynb takes int \(default 3\); got 1\.5"),
        ({"n": True}, "'n' of 10_one.ipynb takes int"),
        ({"rate": "fast"}, r"'rate' of 10_one\.ipynb takes float \(default 0\.5\); got 'fast'"),
        ({"model": 8}, r"'model' of 10_one\.ipynb takes str \(default 'qwen3-8b'\); got 8"),
    ],
)
def test_wrong_parameters_leave_nothing_behind(one, project, given, message):
    with pytest.raises(ValueError, match=message):
        run_notebook(one, given, out=project / "out")
    assert not list(project.glob("out*"))


def test_not_a_notebook(tmp_path, write_notebook):
    with pytest.raises(FileNotFoundError, match=r"there is no notebook .*gone\.ipynb"):
        declared_parameters(tmp_path / "gone.ipynb")
    (tmp_path / "text.ipynb").write_text("# Title")
    with pytest.raises(ValueError, match=r"text\.ipynb is not a Jupyter notebook"):
        declared_parameters(tmp_path / "text.ipynb")
    broken = write_notebook(tmp_path / "broken.ipynb", ("code", "a = 1\nn = = 1", "parameters"))
    with pytest.raises(ValueError, match=r"broken\.ipynb: the parameters cell is not Python: line 2"):
        declared_parameters(broken)


def test_common_parameters_go_where_they_are_declared_and_a_section_wins(project, notebooks):
    file = project / "p.yml"
    file.write_text("common: {n: 5, model: a}\n11_two: {n: 6}\n10_one:\n")
    want = {"05_score": {}, "10_one": {"n": 5, "model": "a"}, "11_two": {"n": 6}}
    assert read_parameters(file, notebooks) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common: {modell: x}", r"p\.yml: no notebook declares .*'modell' is not known; did you mean model"),
        ("12_two: {n: 1}", r"p\.yml: section '12_two' is not known; did you mean 11_two"),
        ("11_two: {model: x}", r"p\.yml: 11_two\.ipynb declares n; parameter 'model' is not known"),
        ("common: {n: x}", r"p\.yml: parameter 'n' of 10_one\.ipynb takes int"),
        ("n: 1", r"p\.yml must map section names"),
        ("- n", r"p\.yml must map section names"),
        ("common: {n: 1", r"p\.yml is not YAML: .*line 1"),
    ],
)
def test_wrong_parameter_files(project, notebooks, text, message):
    (project / "p.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        execute_all(notebooks, project / "p.yml", project / "cache")
    assert not (project / "cache").exists()


def test_missing_parameter_file(project, notebooks):
    with pytest.raises(FileNotFoundError, match=r"there is no parameter file .*none\.yml"):
        execute_all(notebooks, project / "none.yml", project / "cache")


# --- the key ------------------------------------------------------------------------------------


def test_key_ignores_outputs_and_ids_and_sees_text_parameters_and_versions(one, monkeypatch):
    key = run_key(one, {"n": 1})
    assert re.fullmatch("[0-9a-f]{12}", key)
    book = read_notebook(one)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="old")]
    book.cells[2].execution_count = 7
    book.cells[2].id = "another"
    nbformat.write(book, one)
    assert run_key(one, {"n": 1}) == key
    changed = {run_key(one, {"n": 2}), run_key(one, {}), run_key(one, {"n": 1}, ["claims"])}
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3.99"})
    changed.add(run_key(one, {"n": 1}))
    book.cells[2].source += "\n"
    nbformat.write(book, one)
    changed.add(run_key(one, {"n": 1}))
    book.cells[2].metadata["tags"] = ["hide-input"]
    nbformat.write(book, one)
    changed.add(run_key(one, {"n": 1}))
    book.metadata["kinetics"] = {"result": "result.json"}
    nbformat.write(book, one)
    changed.add(run_key(one, {"n": 1}))
    assert len(changed | {key}) == 8


# --- what a run depends on ----------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PART_1, PART_2, PART_3, PART_4 = (
    {path.stem[:2] for path in CHAPTERS if path.stem[0] == part} for part in "1234"
)
PRIMER, ANSWERS = {"00"}, {"50", "51", "52", "53"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package, the kernels and the data: what chapters depend on, to be changed."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("kinetics_lab", "kernels/kinetics_kernels", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_data"))
    return folder


@pytest.fixture
def keys(house, monkeypatch):
    """The keys of all chapters, by number, as the copied house gives them."""
    known = {
        name: house / path.relative_to(Path(kinetics_lab.__file__).parents[1])
        for name, path in imports.modules().items()
    }
    spec = SimpleNamespace(submodule_search_locations=[house / "kernels" / "kinetics_kernels"])
    monkeypatch.setattr(imports, "modules", lambda: known)
    monkeypatch.setattr(imports, "find_spec", lambda name: spec)
    monkeypatch.setenv("KINETICS_DATA", str(house / "data"))
    notebooks = {path: read_notebook(path) for path in CHAPTERS}  # they stay as they are
    monkeypatch.setattr(runs, "read_notebook", lambda path: notebooks[Path(path)])
    return lambda: {path.stem[:2]: run_key(path, {}) for path in CHAPTERS}


def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(house, keys):
    """On the book's own chapters; those that reach the runs themselves are left out where data and kernels change."""
    scorecard = {"90"}
    everything = PRIMER | PART_1 | PART_2 | PART_3 | PART_4 | ANSWERS | scorecard
    measuring = PART_2 - {"27"}  # which reads the kernels' source and no times
    reached = {
        path.stem[:2]
        for path in CHAPTERS
        if "kinetics_lab.book.runs"
        in closure(c.source for c in read_notebook(path).cells if c.cell_type == "code")
    }
    claiming = {
        "10",
        "11",
        "12",
        "13",
        "14",
        "20",
        "23",
        "25",
        "30",
        "31",
        "32",
        "33",
        "34",
        "39",
        *scorecard,
    }
    expected = {
        "kinetics_lab/decode/hf.py": measuring,
        "kinetics_lab/decode/caches.py": measuring | PART_4,
        "kinetics_lab/ladder/tables.py": PART_4,
        "kinetics_lab/planner/plan.py": {"35", "42"} | ANSWERS,
        "kinetics_lab/traces/table.py": PRIMER | PART_3 | PART_4 | ANSWERS,
        "kinetics_lab/measure/rows.py": measuring,
        "kinetics_lab/cost/hardware.py": everything - scorecard,
        "kinetics_lab/book/charts/__init__.py": everything,
        "kinetics_lab/book/claims.py": claiming,
        "kinetics_lab/book/build.py": set(),
        "kinetics_lab/book/sweep.py": set(),
        "kinetics_lab/cli/__init__.py": set(),
        "kinetics_lab/cost/silicon/grid.py": PRIMER
        | PART_3
        | PART_4
        | ANSWERS
        | {"11", "12", "14", "15", *["20", "21", "23", "24", "25"]},
        "kernels/kinetics_kernels/dense.py": PART_2 | PART_4,
        "data/measurements/amd-epyc-2-threads/model.parquet": measuring,
    }
    before = keys()
    for name, stale in expected.items():
        path = house / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n# changed")
        after = keys()
        path.write_bytes(whole)
        changed = {number for number in before if before[number] != after[number]}
        free = reached if name.startswith(("kernels", "data")) else set()
        assert changed - free == stale - free, name


def test_a_changed_data_file_makes_stale_what_reads_it(house, keys):
    manifest = house / "data" / "MANIFEST.toml"
    whole, before = manifest.read_text(), keys()
    for name, readers in (
        ("printed_rows", {"10", "13"}),
        ("ladder_walks", PART_4),
        ("kernels_sm90", {"27"}),
        ("kernels_by_architecture", {"27"}),
        ("kernel_bytes", {"22", "27"}),
    ):
        head, _, rest = whole.partition(f"[{name}]")
        manifest.write_text(f"{head}[{name}]" + rest.replace('sha256 = "', 'sha256 = "0', 1))
        after = keys()
        changed = {number for number in before if before[number] != after[number]}
        assert changed - {"35", "37", "42"} - ANSWERS == readers - {"42"}, name  # those take any table
    manifest.write_text(whole)


def test_a_collector_of_claims_depends_on_the_chapters_beside_it(project):
    score = project / "notebooks" / "05_score.ipynb"
    before = run_key(score, {})
    assert run_key(score, {}) == before
    other = project / "notebooks" / "11_two.ipynb"
    other.write_text(other.read_text().replace("# Two?", "# Two, or three?"))
    assert run_key(score, {}) != before


def needs(*cells, root=ROOT, **parameters):
    [found] = imports.dependencies(cells, [parameters], root)
    return found


DATA = "from kinetics_lab.data import data_dir, data_path, manifest, read_table\n"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ('read_table("claims")', {"claims"}),
        ('read_table(name="claims")', {"claims"}),
        ('def read(kind):\n    return read_table(f"ladder_{kind}")', "ladder_"),
        ('manifest()["claims"]', {"claims"}),
        ('wanted = ["claims"]', {"claims"}),  # the text is there, however it gets to the reader
        ('open("data/published/sparse_scale.csv")', {"sparse_scale"}),
        ("1", set()),
        ("def read(name):\n    return read_table(name)", ""),
        ('name = "claims"\nread_table(name)', ""),
        ('for name in ["claims"]:\n    read_table(name)', ""),
        ('print("claims", read_table)', ""),
        ("map(read_table, names)", ""),
        ("read = read_table", ""),
        ('import kinetics_lab.data as data\nread = data.read_table\nread("claims")', ""),
        ("from kinetics_lab import read_table as read", ""),
        ("manifest().values()", ""),
        ("list(data_dir().iterdir())", ""),
        ("%matplotlib inline", ""),
    ],
)
def test_data_that_a_text_asks_for(code, data):
    """A set names the files; a text is what their names begin with: where nothing tells, all count."""
    every = set(manifest())
    want = data if isinstance(data, set) else {name for name in every if name.startswith(data)}
    found = {name.removeprefix("data:") for name in needs(DATA + code) if name.startswith("data:")}
    assert found == want


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("def f():\n    from kinetics_lab.laws import resample", True),
        ("from kinetics_lab import winners", True),
        ("from kinetics_lab import *", True),
        ("import kinetics_lab as k\nk.winners", True),
        ("import kinetics_lab.cost.shapes\nkinetics_lab.winners", True),
        ('from importlib import import_module\nimport_module("kinetics_lab.laws.resample")', True),
        ("from importlib import import_module\nimport_module(f'kinetics_lab.{x}')", True),
        ("x = = 1", True),
        ("from kinetics_lab import find_model", False),
        ('import_module("torch")', False),
    ],
)
def test_a_module_counts_however_it_is_imported(code, counts):
    assert ("kinetics_lab.laws.resample" in needs(code)) == counts


def test_kernels_files_of_parameters_and_measured_rows_count(project):
    assert "kinetics_kernels/dense.py" in needs("import kinetics_kernels")
    assert "kinetics_kernels/dense.py" in needs('find_spec("kinetics_kernels")')
    assert not [
        name for name in needs("from kinetics_lab import plan") if name == "kinetics_kernels/dense.py"
    ] or ("kinetics_lab.book.runs" in closure(["from kinetics_lab import plan"]))
    rows = "amd-epyc-2-threads/model.parquet"
    assert rows in needs(DATA + 'data_dir() / "measurements"')
    assert rows in needs(DATA + "data_dir()")
    assert rows not in needs(DATA + 'read_table("claims")')
    (project / "traces.csv").write_text("a")
    first = needs("1", root=project, files=["traces.csv", "none.csv", "", "nul\0l", "x" * 5000])
    (project / "traces.csv").write_text("b")
    again = needs("1", root=project, files=["traces.csv"])
    assert list(first) == list(again) == ["traces.csv"]
    assert first != again
    assert "data:claims" in needs("1", task="claims")


def test_no_import_of_the_package_is_relative():
    """Such a one is not followed."""
    for path in imports.modules().values():
        assert not re.search(r"^\s*from \.", path.read_text(encoding="utf-8"), re.MULTILINE), path


# --- one run ------------------------------------------------------------------------------------


def test_a_run_is_whole_and_free_of_machine_paths(one, project):
    result = run_notebook(one, {"n": 7}, out=project / "deep" / "run", progress=False)
    assert sorted(p.name for p in result.folder.iterdir()) == ["10_one.ipynb", "claims.jsonl", "run.json"]
    assert outputs(result.executed) == "7 qwen3-8b True True\n"
    assert json.loads(result.claims) == {"id": "a", "value": 7}
    record = json.loads((result.folder / "run.json").read_text())
    assert record["notebook"] == "notebooks/10_one.ipynb"
    assert record["parameters"] == {"n": 7}
    assert record["key"] == result.key == run_key(one, {"n": 7})
    assert record["versions"]["papermill"]
    assert record["seconds"] == result.seconds > 0
    assert str(project) not in result.executed.read_text() + json.dumps(record)
    assert not read_notebook(one).cells[2].outputs  # the source stays as it was


ADDRESSES = "import pandas as pd\nprint(object())\npd.DataFrame({'a': [1]}).style.hide()"


@pytest.mark.parametrize(
    "chapter",
    ["", pytest.param("13_what_sparse_attention_saves", marks=[pytest.mark.slow, pytest.mark.notebooks])],
)
def test_two_runs_differ_in_times_only(project, write_notebook, chapter):
    """Sets in one order, no address of an object, no name drawn by chance; a whole chapter with its tables and charts."""
    cells = [("code", "n = 1", "parameters"), ("code", "print(*set('abcdefgh'))"), ("code", ADDRESSES)]
    one, texts = write_notebook(project / "notebooks" / "sets.ipynb", *cells), []
    if chapter:
        one = Path(__file__).parent.parent / "notebooks" / f"{chapter}.ipynb"
    for name in ("a", "b"):
        given = {} if chapter else {"n": 7}
        book = read_notebook(run_notebook(one, given, out=project / name, progress=False).executed)
        del book.metadata.papermill["start_time"], book.metadata.papermill["end_time"]
        del book.metadata.papermill["duration"]
        for cell in book.cells:
            del cell.metadata["papermill"]
            cell.metadata.pop("execution", None)
        texts.append(json.dumps(book, sort_keys=True))
    assert "<pandas.io.formats.style.Styler>" in texts[0]
    assert texts[0] == texts[1]


def test_a_failed_run_keeps_the_last_good_one_and_shows_how_far_it_came(one, project, write_notebook):
    bad = project / "notebooks" / "20_bad.ipynb"
    cells = [
        ("code", "n = 0", "parameters"),
        ("markdown", "Now:"),
        ("code", "print('here')"),
        ("code", "1 // n\n0"),
    ]
    write_notebook(bad, *cells)
    good = run_notebook(bad, {"n": 1}, out=project / "run", progress=False)
    with pytest.raises(
        NotebookError, match=r"20_bad\.ipynb: cell 4 \('1 // n'\.\.\.\) raised ZeroDivisionError: .*run\.part"
    ):
        run_notebook(bad, out=project / "run", progress=False)
    assert good.executed.exists()
    assert "here" in outputs(project / "run.part" / "20_bad.ipynb")
    with pytest.raises(NotebookError, match="cell 4"):  # the same cell, though papermill put one in before it
        run_notebook(bad, {"n": 0}, out=project / "run", progress=False)
    assert run_notebook(bad, {"n": 2}, out=project / "run", progress=False).folder == good.folder
    assert not (project / "run.part").exists()


def test_a_dead_kernel_is_one_error(project, write_notebook):
    dead = write_notebook(project / "dead.ipynb", ("code", "import os; os._exit(1)"))
    with pytest.raises(NotebookError, match=r"dead\.ipynb: the kernel failed: .*died"):
        run_notebook(dead, out=project / "run", progress=False)


def test_a_declared_result_must_be_handed_over(project, write_notebook):
    hand = "open(os.environ['KINETICS_RUN_DIR'] + '/result.json', 'w').write('{}')"
    cells = ("code", "late = False", "parameters"), ("code", f"import os\nlate or {hand}")
    one = write_notebook(project / "notebooks" / "30_one.ipynb", *cells, kinetics={"result": "result.json"})
    assert runs.declared_result(one) == "result.json"
    assert (run_notebook(one, out=project / "run", progress=False).folder / "result.json").exists()
    with pytest.raises(NotebookError, match=r"30_one\.ipynb declares result\.json and did not hand it over"):
        run_notebook(one, {"late": True}, out=project / "run", progress=False)
    assert (project / "run" / "result.json").exists()  # the last good run stays
    wrong = write_notebook(project / "w.ipynb", ("code", "1"), kinetics={"result": "../result.json"})
    with pytest.raises(
        ValueError, match=r"w\.ipynb: the declared result must be result\.parquet or result\.json"
    ):
        run_notebook(wrong, out=project / "w", progress=False)


def test_whoever_asks_hears_of_the_kernels_process(one, project):
    heard = []
    run_notebook(one, out=project / "run", progress=False, started=heard.append)
    [kernel] = heard
    assert kernel != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.killpg(kernel, 0)  # it was a group of its own, and is gone


def test_a_run_is_cleared_record_last(project, monkeypatch):
    """Killed on the way, the rest must still be known as a run."""
    run = project / "run"
    (run / "sub").mkdir(parents=True)
    for name in ("a.ipynb", "run.json", "z.parquet"):
        (run / name).write_text('{"kind": "kinetics-lab run"}')
    removed, unlink = [], os.unlink

    def note(path, *args, **kwargs):
        removed.append(os.path.basename(os.fspath(path)))
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", note)
    runs._remove(run)
    assert removed[-1] == "run.json"
    assert sorted(removed) == ["a.ipynb", "run.json", "z.parquet"]
    assert not run.exists()


@pytest.mark.parametrize("there", ["run", "run.part"])
def test_a_folder_that_is_not_a_run_is_left_alone(one, project, there):
    (project / there).mkdir()
    (project / there / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{there} exists and is not a run folder"):
        run_notebook(one, out=project / "run", progress=False)
    assert (project / there / "thesis.txt").read_text() == "precious"


def test_unknown_kernel(one, project):
    with pytest.raises(ValueError, match="kernel 'python33' is not known; did you mean python3"):
        run_notebook(one, out=project / "run", kernel="python33")


# --- all runs -----------------------------------------------------------------------------------


def test_execute_all_reuses_runs_and_hands_claims_to_their_collector(project, notebooks, capsys):
    first = execute_all(notebooks, None, "cache")
    assert [run.notebook for run in first] == notebooks
    assert not any(run.reused for run in first)
    assert json.loads(outputs(first[0].executed)) == {"id": "a", "value": 3}
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["[1/3]", "[2/3]", "[3/3]"]
    assert re.fullmatch(r"\[3/3\] 05_score \d+\.\d s", told[-1])
    again = execute_all(notebooks, None, "cache")
    assert all(run.reused for run in again)
    assert [run.folder for run in again] == [run.folder for run in first]
    (project / "p.yml").write_text("10_one: {n: 5}")
    changed = execute_all(notebooks, "p.yml", "cache")
    assert [run.reused for run in changed] == [
        False,
        False,
        True,
    ]  # the claims are part of the collector's key
    assert "5" in outputs(changed[0].executed)


def test_findings_outlive_a_clock_that_went_back(project, notebooks):
    """The newest are those just collected, whatever the times of older files say."""
    cache = project / "cache"
    cache.mkdir()
    for n in range(6):
        (cache / f"claims-{n:012x}.jsonl").write_text("")
        os.utime(cache / f"claims-{n:012x}.jsonl", (time.time() + 3600 + n,) * 2)
    execute_all(notebooks, None, "cache")
    [merged] = cache.glob("claims-*.jsonl")
    assert len(merged.read_text().splitlines()) == 1


def test_all_notebooks_are_tried_before_the_failures_are_told(project, notebooks, write_notebook):
    for name in ("12_bad", "13_bad"):
        notebooks.append(write_notebook(project / "notebooks" / f"{name}.ipynb", ("code", "1 / 0")))
    with pytest.raises(NotebookError, match=r"(?s)12_bad.*13_bad|13_bad.*12_bad"):
        execute_all(notebooks, None, "cache")
    assert len(list((project / "cache").glob("1[01]_*/run.json"))) == 2
    assert not list((project / "cache").glob("05_*"))  # no scorecard of half the claims


def test_a_failure_outside_a_notebook_starts_no_further_run(notebooks, monkeypatch):
    tried = []

    def full_disk(notebook, *_, **__):
        tried.append(notebook)
        raise OSError("no space left on device")

    monkeypatch.setattr(runs, "run_notebook", full_disk)
    with pytest.raises(OSError, match="no space left"):
        execute_all([*notebooks, *notebooks], None, "cache", jobs=1)
    assert len(tried) == 1


def test_old_runs_are_pruned_and_the_newest_kept(project, no_kernel):
    two = project / "notebooks" / "11_two.ipynb"
    folders = []
    for n in range(1, runs.KEPT_RUNS + 3):
        (project / "p.yml").write_text(f"11_two: {{n: {n}}}")
        [run] = execute_all([two], "p.yml", "cache")
        folders.append(run.folder)
        os.utime(run.folder, (n, n))  # in this order whatever the clock's step
    assert [folder.exists() for folder in folders] == [False, False] + [True] * runs.KEPT_RUNS


def test_of_two_that_want_the_same_run_one_waits(project, no_kernel):
    two = project / "notebooks" / "11_two.ipynb"
    with ThreadPoolExecutor(2) as pool:
        pair = [pool.submit(execute_all, [two], None, project / "cache") for _ in range(2)]
    assert sorted(future.result()[0].reused for future in pair) == [False, True]
    assert no_kernel == [two]


def test_a_lock_of_a_killed_process_is_free(project):
    code = "import sys, time; from pathlib import Path; from kinetics_lab.files import locked\nwith locked(Path('x.lock')):\n    print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    lock = project / "x.lock"
    with pytest.raises(ValueError, match="busy"), locked(lock, ValueError("busy")):
        pass
    process.kill()
    process.communicate()
    with locked(lock, ValueError("busy")):
        pass
    with pytest.raises(TimeoutError), locked(lock, ValueError("busy")):
        raise TimeoutError  # what happens within is not taken for a busy lock


# --- races and links ----------------------------------------------------------------------------


def test_of_two_runs_into_one_folder_one_wins_whole_and_the_other_says_who_works(project, write_notebook):
    slow = write_notebook(
        project / "notebooks" / "30_slow.ipynb",
        ("code", "n = 0", "parameters"),
        (
            "code",
            "import time; from kinetics_lab.book.results import hand_over; time.sleep(1); hand_over({'n': n})",
        ),
        kinetics={"result": "result.json"},
    )
    command = [sys.executable, "-m", "kinetics_lab.cli", "run", str(slow), "-o", str(project / "run")]
    racing = [
        subprocess.Popen(
            [*command, "-p", "n", str(n)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in (1, 2)
    ]
    told = [process.communicate(timeout=120) for process in racing]
    codes = [process.returncode for process in racing]
    assert sorted(codes) in ([0, 2], [0, 0])  # refused, or in turn
    record = json.loads((project / "run" / "run.json").read_text())
    result = json.loads((project / "run" / "result.json").read_text())
    assert record["parameters"] == result
    if 2 in codes:
        loser = codes.index(2)
        assert result == {"n": 2 - loser}
        assert f"another process writes {project / 'run'}" in told[loser][1]
        if Path("/proc/locks").exists():
            assert "kinetics_lab.cli run" in told[loser][1]
    assert not (project / "run.part").exists()


def test_nothing_is_written_through_a_link_nor_a_guessed_name(one, project, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("precious")
    for name in ("run", "run.part"):
        (project / name).symlink_to(precious)
        with pytest.raises(FileExistsError, match="is not a run folder"):
            run_notebook(one, out=project / "run", progress=False)
        (project / name).unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (project / "run.part").symlink_to(empty)
    with pytest.raises(FileExistsError, match="is not a run folder"):
        run_notebook(one, out=project / "run", progress=False)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]
    (tmp_path / "out.txt.part").symlink_to(precious / "thesis.txt")
    parts = []
    write_whole(tmp_path / "out.txt", lambda part: (parts.append(part.name), part.write_text("new")))
    write_whole(tmp_path / "out.txt", lambda part: (parts.append(part.name), part.write_text("newer")))
    assert (precious / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "out.txt").read_text() == "newer"
    (tmp_path / "x.lock").symlink_to(precious / "thesis.txt")
    with pytest.raises(OSError, match="x.lock"), locked(tmp_path / "x.lock"):
        pass
    assert (precious / "thesis.txt").read_text() == "precious"
    assert len({*parts}) == 2
    assert not [path for path in tmp_path.glob("*.part") if not path.is_symlink()]
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found
