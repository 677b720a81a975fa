"""Every chapter: its source is clean, it runs without a warning, and it runs with other parameters."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

from kinetics_lab.book.parameters import declared_parameters, read_notebook, read_parameters
from kinetics_lab.book.results import check_injected, read_result
from kinetics_lab.book.runs import collects_claims, execute_all
from kinetics_lab.cost.hardware import find_hardware
from kinetics_lab.cost.models import find_model

_spec = importlib.util.spec_from_file_location("chapters", Path(__file__).with_name("chapters.py"))
chapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chapters)

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = ROOT / "notebooks" / "params"
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|work|tmp|usr|mnt|opt|Users|content)/")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def parameter_cells(book):
    return [cell for cell in code_cells(book) if "parameters" in cell.metadata.get("tags", [])]


def test_there_are_notebooks_and_the_contents_lists_them_all():
    listed = re.findall(r"file:\s*notebooks/(\S+)", (ROOT / "book" / "_toc.yml").read_text())
    assert listed
    assert sorted(re.sub(r"\.ipynb$", "", name) for name in listed) == [path.stem for path in NOTEBOOKS]


def test_the_first_page_has_a_card_for_each_chapter():
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    cards = re.findall(r":::\{grid-item-card\} (.+)\n:link: ../notebooks/(\w+)\n:link-type: doc\n", text)
    shown = [path for path in NOTEBOOKS if path.stem != "90_scorecard"]
    heads = {path.stem: read_notebook(path).cells[0].source for path in shown}
    assert {stem: title for title, stem in cards} == {s: re.match(r"# (.+)", h)[1] for s, h in heads.items()}


def test_outputs_are_stripped():
    command = [sys.executable, "-m", "nbstripout", "--keep-id", "--verify", *map(str, NOTEBOOKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_notebook
def test_the_source_is_clean(path):
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert book.metadata.kernelspec.name == "python3"
    for cell in code_cells(book):
        assert not cell.outputs
        assert cell.execution_count is None
        # drawing a chart takes a line for each argument
        folded = {"hide-input", "remove-input"} & set(cell.metadata.get("tags", []))
        assert len(cell.source.splitlines()) <= (40 if folded else 25), cell.source
    for cell in book.cells:
        assert cell.source.strip(), f"empty cell {cell.id}"
        assert not MACHINE_PATH.search(cell.source), cell.source
    assert len({cell.id for cell in book.cells}) == len(book.cells)


def test_every_chapter_has_the_shared_cells_and_folded_code_is_folded_in_jupyterlab_too(tmp_path):
    spec = importlib.util.spec_from_file_location("shared_cells", ROOT / "benchmarks" / "shared_cells.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    differ = [path.name for path in script.outdated()]
    assert not differ, f"{differ}. Run: {script.COMMAND}"
    book = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    bare = {**book, "cells": [cell for cell in book["cells"] if cell["id"] not in ("install", "injected")]}
    for cell in bare["cells"]:
        cell["metadata"].pop("jupyter", None)
    assert script.with_shared_cells(bare, script.address()) == json.loads(
        NOTEBOOKS[0].read_text(encoding="utf-8")
    )
    [install] = [cell for cell in book["cells"] if cell["id"] == "install"]
    moved = script.with_shared_cells(book, "https://example.org/a/b")["cells"][1]
    assert moved["source"] != install["source"]  # a new address is written into every chapter


def first_code(book):
    return next(cell.source for cell in book.cells if cell.cell_type == "code")


def bare(folder, code, cwd, *, name=sys.executable):
    """The code run by an interpreter without third-party packages, whose pip only says what it was asked."""
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__main__.py").write_text("import sys; print('pip', *sys.argv[1:])")
    command = [name, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(folder)}
    )


def test_a_bare_kernel_is_told_the_line_that_installs(tmp_path):
    code = first_code(read_notebook(NOTEBOOKS[0]))
    assert bare(tmp_path / "a", "1", ROOT).returncode == 0
    told = bare(tmp_path / "b", code, ROOT / "notebooks").stderr.splitlines()[-1]
    line = f"{sys.executable} -m pip install --quiet {ROOT}"
    assert told == f"ModuleNotFoundError: this kernel lacks kinetics_lab; run: {line}"
    told = bare(tmp_path / "c", code, tmp_path).stderr.splitlines()[-1]
    assert told.endswith("pip install --quiet git+https://THE/REPOSITORY")


def test_colab_installs_from_the_address(tmp_path):
    code = first_code(read_notebook(NOTEBOOKS[0]))
    colab = "import sys; sys.modules['google.colab'] = sys\n"
    unset = bare(tmp_path / "a", colab + code, tmp_path)
    assert unset.returncode
    address = "https://github.com/someone/kinetics-lab"
    code = code.replace('address = ""', f'address = "{address}"')
    code = code.replace(
        '[sys.executable, "-m"', f"[sys.executable, '-c', {'print(sys.argv)'!r}, '-m'"
    ).replace("print(sys.argv)", "import sys; print(*sys.argv[1:])")
    done = bare(tmp_path / "b", colab + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-m", "pip", "install", "--quiet", f"git+{address}"]


@pytest.fixture(scope="module")
def small(tmp_path_factory, write_notebook):
    """A small chapter, which shows what it was given."""
    check = next(c.source for c in read_notebook(NOTEBOOKS[0]).cells if c.id == "injected")
    cells = [
        "import os",
        "size = 3  # a\nsizes = [1]\nname = 'x'\nlimit = None\nrate = 0.5\non = False",
        check,
    ]
    tags = [(), ("parameters",), ()]
    return write_notebook(
        tmp_path_factory.mktemp("papermill") / "a.ipynb",
        *(("code", cell, *tag) for cell, tag in zip(cells, tags, strict=True)),
        ("code", "print([size, sizes, name, limit, rate, on])"),
    )


def test_papermill_alone_gives_numbers_and_lists_as_text_and_they_are_read(small, tmp_path):
    options = ["-p", "sizes", "[4, 5]", "-r", "size", "8", "-r", "limit", "7", "-p", "on", "yes"]
    command = [sys.executable, "-m", "papermill", "-k", "python3", str(small), str(tmp_path / "out.ipynb"), *options]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = read_notebook(tmp_path / "out.ipynb").cells[-1].outputs[0].text
    assert told == "[8, [4, 5], 'x', 7, 0.5, True]\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"szie": 8},
            "declares size, sizes, name, limit, rate, on; parameter 'szie' is not known; did you mean size",
        ),
        ({"size": "many"}, "parameter 'size' of this chapter takes int (default 3); got 'many'"),
        ({"name": 3}, "parameter 'name' of this chapter takes str (default 'x'); got 3"),
        ({"sizes": 3}, "parameter 'sizes' of this chapter takes list (default [1]); got 3"),
        ({"sizes": "[1"}, "parameter 'sizes' must be YAML; got '[1'"),
    ],
)
def test_a_chapter_refuses_by_itself_what_its_cell_does_not_take(small, given, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        chapters.run_here(small, given, tmp_path)


def test_too_few_resamples_for_an_interval_are_refused():
    cells = ["n_boot = 1000", "# Parameters\nn_boot = 19\n"]
    with pytest.raises(ValueError, match="n_boot must be >= 20, for intervals; got 19"):
        check_injected({"In": cells, "n_boot": 19})
    check_injected({"In": cells, "n_boot": 20})


@each_notebook
def test_a_chapter_imports_no_tool_that_only_the_book_has(path):
    """From a wheel alone there is no myst_nb; what stands under an `if` may be left out."""
    for cell in code_cells(read_notebook(path)):
        for node in ast.parse(cell.source).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names}
            assert not tops & {"myst_nb", "jupyter_book", "sphinx", "papermill", "nbformat", "vl_convert"}, (
                tops
            )


@each_notebook
def test_the_title_is_a_question(path):
    first = read_notebook(path).cells[0]
    assert first.cell_type == "markdown"
    titles = re.findall(r"^# (.+)$", first.source, re.MULTILINE)
    assert len(titles) == 1
    assert titles[0].endswith("?") or re.match(r"(?:How|What|When|Which|Why) ", titles[0])


@each_notebook
def test_every_parameter_is_explained(path):
    cells = parameter_cells(read_notebook(path))
    assert len(cells) == 1
    tokens = list(tokenize.generate_tokens(io.StringIO(cells[0].source).readline))
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.parse(cells[0].source).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign), ast.unparse(node)
        lines = set(range(node.lineno - 1, node.end_lineno + 1))  # above it, or beside it
        assert lines & commented, ast.unparse(node)


@each_notebook
def test_a_page_with_prices_has_the_default_device_and_says_so(path):
    """One device for the whole book, but for cases whose question names another, and a badge wherever a parameter chooses it."""
    named = {"52_contest_maths_on_eight_gpus": "h100", "53_multiple_choice_without_a_judge": "rtx-4090"}
    given = declared_parameters(path)
    source = "\n".join(cell.source for cell in code_cells(read_notebook(path)))
    if {"hardware", "gpu", "machine"} & set(given):
        assert "Badge(" in source
    assert given.get("hardware", "h200") == named.get(path.stem, "h200")
    assert given.get("gpu", "nvidia-h200") == "nvidia-h200"


@pytest.mark.xdist_group("book")
@each_notebook
def test_it_runs_without_a_warning(path, executed):
    book = read_notebook(executed[path.stem].executed)
    for cell in code_cells(book):
        assert cell.execution_count is not None, cell.source
        told = [
            o.get("text", o.get("evalue")) for o in cell.outputs if o.get("name") == "stderr" or "ename" in o
        ]
        assert not told, cell.source


CHAPTERS = [path for path in NOTEBOOKS if not collects_claims(path)]  # the collector has no second set
# One each of derivation, measurement and laws, each in a kernel of its own; the others run in this process.
SHOWN_OTHERWISE = ("11_", "24_", "30_")


@pytest.mark.parametrize("stem", SHOWN_OTHERWISE)
def test_it_runs_with_other_parameters(stem):
    [path] = [path for path in CHAPTERS if path.name.startswith(stem)]
    [run] = execute_all([path], PARAMS / "alternative.yml", ROOT / "_build" / "runs")
    given = read_parameters(PARAMS / "alternative.yml", NOTEBOOKS)[path.stem]
    assert read_notebook(run.executed).metadata.papermill.parameters == given


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_it_shows_no_nonsense_with_other_parameters(path, tmp_path):
    given = read_parameters(PARAMS / "alternative.yml", NOTEBOOKS)[path.stem]
    assert chapters.wrong(chapters.run_here(path, given, tmp_path)) == []


def run_for(path, given, out):
    """The result, all that was printed, and what the charts and tables say, for other parameters; nothing warns."""
    run = chapters.run_here(path, given, out)
    outputs = [o for cell in code_cells(read_notebook(run.executed)) for o in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    said = " ".join("".join(o["text"]) for o in outputs if o.get("name") == "stdout")
    return read_result(run.folder), said, json.dumps([o.get("data") for o in outputs])


def test_a_chapter_prices_states_as_they_are_read_and_written(tmp_path):
    path, n_in, n_out = next(path for path in CHAPTERS if path.stem.startswith("10_")), 100, 400
    given = {"model": "qwen3.5-27b", "n_in": n_in, "n_out": n_out, "n_trials": 1}
    result, said, _ = run_for(path, given, tmp_path / "run")
    assert "qwen3.5-27b has no D and no r: 16 of its 64 layers attend to the whole context" in said
    shape, moved = find_model("qwen3.5-27b"), 0.0
    for n in range(n_in, n_in + n_out):  # half a token arrives during each step
        kinds = shape.read(n)
        before, after = float(kinds["kv"]), float(shape.read(n + 1)["kv"])
        moved += 2 * ((before + after) / 2 + 2 * float(kinds["state"] + kinds["conv"]))
    assert result["bytes"].item() == pytest.approx(moved, rel=1e-9)


@pytest.mark.slow  # twelve runs of chapters whose default runs are in the default set
@pytest.mark.parametrize("model", ["gpt-oss-120b", "qwen3.5-27b"])
@pytest.mark.parametrize("number", range(10, 16))
def test_chapters_on_cost_are_told_for_any_stack(number, model, tmp_path):
    path = next(path for path in CHAPTERS if path.stem.startswith(f"{number}_"))
    result, said, shown = run_for(path, {"model": model}, tmp_path / "run")
    shape = find_model(model)
    assert f"{model} has no D and no r: {shape.n_whole} of its {shape.n_layers} layers" in said
    assert np.isfinite(result.select_dtypes("number")).all(axis=None)
    assert "nan" not in said.split()
    assert model in shown  # drawn, or in a table
    if number == 13:  # policies save something in the layers that they act on, and no more than there is
        assert (result["saved"].between(1, 20)).all()
    if number == 15:
        room = find_hardware("h200", None, 8).memory - 2 * shape.n_params
        held = 2 * sum(map(float, shape.stored(16384).values()))
        assert result["batch"].item() == room // held


def test_the_second_set_differs_in_every_chapter():
    usual = {path.stem: declared_parameters(path) for path in NOTEBOOKS}
    for stem, given in read_parameters(PARAMS / "alternative.yml", NOTEBOOKS).items():
        if stem in {path.stem for path in CHAPTERS}:
            assert any(usual[stem][name] != value for name, value in given.items()), stem


def test_the_second_set_has_a_section_for_each_chapter():
    sections = set(yaml.safe_load((PARAMS / "alternative.yml").read_text())) - {"common"}
    assert sections == {path.stem for path in CHAPTERS}


def test_the_parameters_cell_is_the_only_place_of_a_default():
    """Files of parameters beside the chapters hold other sets and grids; a file that repeats a cell would hide its edits."""
    usual = {path.stem: declared_parameters(path) for path in NOTEBOOKS}
    files = [path for path in PARAMS.glob("*.yml") if "notebook:" not in path.read_text()]
    assert files
    for file in files:
        given = read_parameters(file, NOTEBOOKS)
        assert [stem for stem in given if given[stem] and given[stem] == usual[stem]] == [], file
