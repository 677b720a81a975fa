"""The wheel alone, far from the checkout: package, command line and a chapter run with what it carries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics_lab.book.parameters import read_notebook

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
OFFLINE = ("Could not find a version", "No matching distribution", "Connection", "Temporary failure")
# What the book needs and the wheel does not: an import of one of these fails.
HIDDEN = "import sys\nfor name in ('myst_nb', 'jupyter_book', 'vl_convert'):\n    sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run a command with the built wheel's files ahead of the checkout, in a folder outside of it."""
    folder = tmp_path_factory.mktemp("wheel")
    tree, site, away = folder / "tree", folder / "site", folder / "away"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(folder), str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and any(word in built.stderr for word in OFFLINE):
        pytest.skip("the wheel's builder, hatchling, cannot be fetched")
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (site / "sitecustomize.py").write_text(HIDDEN)
    shutil.rmtree(tree)
    away.mkdir()

    def run(*command):
        env = os.environ | {"PYTHONPATH": str(site), "IPYTHONDIR": str(folder / "ipython")}
        return subprocess.run(
            [sys.executable, *command], cwd=away, env=env, capture_output=True, text=True, check=False
        )

    run.site, run.away = site, away
    return run


def test_the_wheel_carries_both_packages_and_every_data_file(installed):
    told = installed(
        "-c",
        "import kinetics_lab, kinetics_kernels, sys\n"
        "from kinetics_lab.data import read_table\n"
        "print(kinetics_lab.__file__, kinetics_kernels.__file__)\n"
        "print(len(read_table('aime24_qwen3_best_of_n')))",
    )
    assert told.returncode == 0, told.stderr
    where, rows = told.stdout.splitlines()
    assert all(Path(name).is_relative_to(installed.site) for name in where.split())
    assert int(rows) > 1000
    data = installed.site / "kinetics_lab" / "_data"
    carried = {path.relative_to(data) for path in data.rglob("*") if path.is_file()}
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "data"], capture_output=True, text=True, check=True
    )
    assert carried == {Path(name).relative_to("data") for name in tracked.stdout.splitlines()}


def test_the_command_line_answers_as_it_does_in_the_checkout(installed):
    asked = [
        "cost",
        "--model",
        "qwen3-8b",
        "--n-in",
        "512",
        "--n-out",
        "8192",
        "--hardware",
        "h200",
        "--json",
    ]
    away = installed("-m", "kinetics_lab.cli", *asked)
    assert away.returncode == 0, away.stderr
    here = subprocess.run(
        [sys.executable, "-m", "kinetics_lab.cli", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert away.stdout == here.stdout
    script = installed(str(installed.site / "bin" / "kinetics-lab"), "list", "models")
    assert script.returncode == 0, script.stderr
    assert "qwen3-8b" in script.stdout


@pytest.mark.parametrize("number", ["10", "35"])
def test_a_chapter_runs(installed, number):
    [chapter] = ROOT.glob(f"notebooks/{number}_*.ipynb")
    shutil.copy2(chapter, installed.away)
    fewer = ["-p", "n_boot", "20"] if number == "35" else []
    done = installed("-m", "papermill", "-k", "python3", chapter.name, "out.ipynb", *fewer)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [cell for cell in read_notebook(installed.away / "out.ipynb").cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert any("vegalite" in kind for cell in cells for out in cell.outputs for kind in out.get("data", {}))
