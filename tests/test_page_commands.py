"""Every command that README, How to run and the page of each place show is run as printed, in a copy of the files.

Scripts for Slurm are run as a whole, by bash, as the first task of an array.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("a-laptop", "colab", "a-gpu-host", "a-cluster", "your-gpu")
PAGES = ("README.md", "book/how-to-run.md", *(f"book/on-{place}.md" for place in PLACES))
# What is not run here, and why; every other command is.
LEFT_OUT = {
    r"kinetics-lab generate ": "fetches a model from the hub",
    r"traces _build/answers/": "reads what generate wrote",
    r"plan --traces traces.parquet --dense-layers 1": "plans with what generate wrote",
    r"--executor dask.* --resources": "needs GPUs, or a cluster",
    r"preset h200": "needs a GPU",
    r"nvidia-l4": "needs the rows of a GPU that was measured",
    r"measure --device host$": "times this machine for ten minutes; the suite of the host does it",
    r"^(git clone|cd kinetics-lab|cd /shared)": "the tests have a copy already",
    r"^[!%]": "a cell of Colab",
    r"^(ssh|rsync) ": "goes to another machine",
    r"pip (wheel|download)|^export PIP_": "installs, which needs a network; the tests of the wheel make one",
    r"^(sbatch|squeue|tail) ": "needs Slurm; the scripts themselves are run",
    r"git (checkout|add|commit)": "changes a checkout",
    r"GPU_PYTHON=.venv": "a script for a GPU",
    r"42_do_tiny_reasoners_have_a_law": "trains for an hour",
    r"benchmarks/shared_cells.py$": "writes an address into the chapters, of which another test knows",
    r"kinetics-lab book -f": "the whole book, which the tests of the book build",
    r"kinetics-lab claims": "needs the whole book",
    r"sweep-hardware.yml": "21 points; the smaller grid of the page is run",
    r"^make ": "a target of make, of which another test knows that it is there",
}


# These take half a minute each, and other tests do the same: on request, PAGE_COMMANDS=1.
LONG = (r"book --only ", r"41_what_does_sparse_attention_forget.* -o _build/my-ladder")
ASKED = "PAGE_COMMANDS" in os.environ


def commands(text: str) -> list[str]:
    """Scripts of the bash blocks, whole, and the lines of the others, without comments, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    scripts = [block for block in blocks if block.startswith("#!")]
    typed = "\n".join(block for block in blocks if block not in scripts)
    lines = re.sub(r"\\\n\s*", "", typed).splitlines()
    return scripts + [
        re.sub(r"\s+# .*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")
    ]


def found_in(patterns, command: str) -> bool:
    return any(re.search(pattern, command) for pattern in patterns)


def places() -> list[Any]:
    """The sections of the pages that show commands to run here, each with these commands in order.

    Those of one page share a copy, so that a sweep that is shown again with another executor finds its points made.
    """
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for section in re.split(r"^## ", text, flags=re.MULTILINE):
            shown = [command for command in commands(section) if not found_in(LEFT_OUT, command)]
            if shown:
                place = f"{Path(page).stem}: {section.splitlines()[0]}"
                found.append(
                    pytest.param(place, shown, marks=pytest.mark.xdist_group(Path(page).stem), id=place)
                )
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh copy with this interpreter in .venv, and the files of parameters that the page shows."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").mkdir()
    for name in ("python", "papermill"):
        tool = Path(sys.executable).parent / name
        (folder / ".venv" / "bin" / name).write_text(f'#!/bin/sh\nexec {tool} "$@"\n')
    (folder / ".venv" / "bin" / "kinetics-lab").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m kinetics_lab.cli "$@"\n'
    )
    for tool in (folder / ".venv" / "bin").iterdir():
        tool.chmod(0o755)
    text = (ROOT / "book" / "on-a-cluster.md").read_text(encoding="utf-8")
    grids = [
        block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("notebook:")
    ]
    (folder / "my-grid.yml").write_text(grids[0])
    return folder


def test_what_is_left_out_is_there_to_leave_out():
    shown = [command for page in PAGES for command in commands((ROOT / page).read_text(encoding="utf-8"))]
    assert len(shown) > 25
    for pattern in [*LEFT_OUT, *LONG]:
        assert any(found_in([pattern], command) for command in shown), pattern
    assert sum(len(place.values[1]) for place in places()) > 15


@pytest.mark.slow
@pytest.mark.parametrize(("place", "shown"), places())
def test_every_command_of_the_place_runs_as_printed(place, shown, clone):
    """On request (PAGE_COMMANDS=1) those that take minutes, too."""
    env = os.environ | {"PYTHONPATH": f"{clone}:{clone / 'kernels'}"}
    env |= {"SLURM_SUBMIT_DIR": str(clone), "SLURM_CPUS_PER_TASK": "1", "SLURM_ARRAY_TASK_ID": "0"}
    for command in shown:
        if found_in(LONG, command) and not ASKED:
            continue
        began = time.perf_counter()
        done = subprocess.run(
            ["bash", "-c", command], cwd=clone, env=env, capture_output=True, text=True, check=False
        )
        print(f"{time.perf_counter() - began:6.1f} s  {command}")
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


def test_papermill_runs_as_the_first_page_prints_it(clone):
    """In a fresh copy nothing is built yet, so the output's folder must be there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [command] = [line for line in commands(text) if "papermill" in line]
    output = command.split()[4]
    assert Path(clone, output).parent.is_dir()
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", output], check=False).returncode == 0
    command = command.replace("model qwen3-8b", "modle qwen3-8b")
    env = os.environ | {"PYTHONPATH": f"{clone}:{clone / 'kernels'}"}
    done = subprocess.run(
        command, shell=True, cwd=clone, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "parameter 'modle' is not known; did you mean model?" in done.stderr
