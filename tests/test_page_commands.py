"""Every command that README and How to run show is run as printed, in a copy of the files under version control."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "book/how-to-run.md")
# What is not run here, and why; every other command is.
LEFT_OUT = {
    r"kinetics-lab generate ": "fetches a model from the hub",
    r"traces _build/answers/": "reads what generate wrote",
    r"plan --traces traces.parquet --dense-layers 1": "plans with what generate wrote",
    r"--executor dask": "needs GPUs, or a cluster",
    r"preset h200": "needs a GPU",
    r"42_do_tiny_reasoners_have_a_law": "trains for an hour",
    r"kinetics-lab book -f": "the whole book, which the tests of the book build",
    r"kinetics-lab claims": "needs the whole book",
    r"sweep-hardware.yml": "21 points; the smaller grid of the page is run",
    r"^make ": "a target of make, of which another test knows that it is there",
}


LONG = pytest.mark.skipif(
    "PAGE_COMMANDS" not in os.environ, reason="a quarter of an hour, on request: PAGE_COMMANDS=1"
)


def commands(page: str) -> list[str]:
    """The lines of the page's bash blocks, without comments, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()
    return [
        re.sub(r"\s+# .*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")
    ]


def left_out(command: str) -> bool:
    return any(re.search(pattern, command) for pattern in LEFT_OUT)


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
    text = (ROOT / "book" / "how-to-run.md").read_text(encoding="utf-8")
    grids = [
        block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("notebook:")
    ]
    (folder / "my-grid.yml").write_text(grids[0])
    return folder


def test_what_is_left_out_is_there_to_leave_out():
    shown = [command for page in PAGES for command in commands(page)]
    assert len(shown) > 25
    for pattern in LEFT_OUT:
        assert any(re.search(pattern, command) for command in shown), pattern


@pytest.mark.slow
@pytest.mark.parametrize("page", [PAGES[0], pytest.param(PAGES[1], marks=LONG)])
def test_every_command_of_the_page_runs_as_printed(page, clone):
    env = os.environ | {"PYTHONPATH": f"{clone}:{clone / 'kernels'}"}
    ran = 0
    for command in filter(lambda line: not left_out(line), commands(page)):
        done = subprocess.run(
            command, shell=True, cwd=clone, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 5


def test_papermill_runs_as_the_first_page_prints_it(clone):
    """In a fresh copy nothing is built yet, so the output's folder must be there."""
    [command] = [line for line in commands("README.md") if "papermill" in line]
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
