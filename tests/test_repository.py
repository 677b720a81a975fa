"""The repository as a whole: what is in it, what it promises, what importing the package costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kinetics_lab
from kinetics_lab.book.imports import modules

ROOT = Path(__file__).parent.parent
TEXT = {".bib", ".cff", ".css", ".ipynb", ".js", ".md", ".py", ".sh", ".toml", ".txt", ".yml", ""}


def tracked() -> list[Path]:
    """Files under version control, or that would be; without git (an sdist) nothing can be said."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_file_names_a_machines_folder_or_a_package_index():
    machine = re.compile(r"(?<![\w.:/-])/(?:home|root|work|farm|Users)/")
    index = re.compile(r"://[^\s\"']*/simple\b|--(?:extra-)?index[-]url|--find[-]links")
    for path in tracked():
        if path.suffix in TEXT and "vendor" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not machine.search(text), f"{path.relative_to(ROOT)}: a folder of one machine"
            assert not index.search(text), f"{path.relative_to(ROOT)}: an index of packages"


def test_nothing_large_or_built_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 4_000_000, path
        assert not {"_build", "__pycache__", ".venv", ".ipynb_checkpoints"} & set(
            path.relative_to(ROOT).parts
        ), path


def test_one_version_everywhere():
    version = project()["project"]["version"]
    assert kinetics_lab.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert re.search(
        rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_citation_and_licence_are_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert project()["project"]["license"] == "MIT" == citation.get("license", "MIT")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License")
    assert "WITHOUT WARRANTY OF ANY KIND" in licence


def test_kernels_is_no_package():
    """A `kernels` that can be imported from the root would hide Hugging Face's package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_what_chapters_import_loads_neither_torch_nor_the_tools_of_the_book():
    """All modules but those that decode a model, or drive one, in one interpreter."""
    need_torch = ("kinetics_lab.decode.", "kinetics_lab.ladder.", "kinetics_lab.measure.ahead")
    names = [name for name in modules() if not name.startswith(need_torch)]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "papermill", "nbformat", "jupyter_book", "sphinx"} & set(done.stdout.split())


def test_constraints_pin_everything_and_point_nowhere():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    facts = project()["project"]
    extras = [name for extra in ("book", "dev") for name in facts["optional-dependencies"][extra]]
    for requirement in facts["dependencies"] + extras:
        name = re.match(r"[\w.-]+", requirement).group()
        assert re.sub(r"[-_.]+", "-", name).lower() in pinned, requirement


def test_continuous_integration_runs_what_a_reader_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    events = workflow[True]  # YAML 1.1 takes the key `on` for a truth value
    assert {"push", "pull_request", "schedule"} <= set(events)
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["build"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    [upload] = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == "_build/book/_build/html"
    assert workflow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.findall(r"^make ([\w-]+)$", script.read_text(), re.MULTILINE) == [
        "lint",
        "book",
        "test-triton36",
        "test",
        "test-slow",
    ]


@pytest.mark.skipif(not shutil.which("actionlint"), reason="needs actionlint on the PATH")
def test_actionlint_finds_nothing():
    done = subprocess.run(["actionlint", "-no-color"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_make_lists_its_targets():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE))
    tests = {"test", "test-slow", "test-triton36", "gpu-check"}
    assert {"help", "book", "gpu", "lab", "serve", "lint", "pdf", "clean", "constraints"} | tests == listed


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); sys.version = \'3.9.2 x\'; exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    command = ["make", "-s", f"PYTHON={old}", f"VENV={tmp_path}/venv", "book"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Kinetics Lab needs Python 3.11 or newer; this one is 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()
