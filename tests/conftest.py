"""What several test files share: the executed notebooks, the built book, and a writer of small notebooks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kinetics_lab.book.build import build_book
from kinetics_lab.book.runs import RunResult, execute_all
from kinetics_lab.cli.chapters import made_for_the_book

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The same examples on every run; CI draws more of them. No test depends on time.
settings.register_profile("default", max_examples=5, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def summary() -> Any:
    """The authors' results per problem: AIME 2024, six Qwen3 models, 42 settings."""
    from kinetics_lab.data import read_table

    return read_table("aime24_qwen3_best_of_n")


@pytest.fixture(scope="session")
def priced(summary: Any) -> Any:
    """Their cost table at the published hardware, all numbers of trials."""
    from kinetics_lab.cost.hardware import HARDWARE
    from kinetics_lab.laws.frontier import cost_table

    return cost_table(summary, HARDWARE["b200-paper"])


@pytest.fixture(scope="session")
def executed() -> dict[str, RunResult]:
    """The book's notebooks, run with its own parameters, by stem; `make book` reuses these runs."""
    return {run.notebook.stem: run for run in execute_all(NOTEBOOKS, None, ROOT / "_build" / "runs")}


@pytest.fixture(scope="session")
def built_book() -> Path:
    """The folder of the book's pages, built strictly where `make book` builds it."""
    return build_book(ROOT, None, ROOT / "_build" / "book", extra=made_for_the_book).parent


@pytest.fixture(scope="session")
def write_notebook() -> Callable[..., Path]:
    """Write a notebook: `write_notebook(path, ("markdown", "# Why?"), ("code", "n = 1", "parameters"), ...)`.

    Each cell is (type, source, *tags); keyword arguments become the notebook's metadata.
    """
    import nbformat

    def write(path: Path, *cells: tuple[str, ...], **metadata: Any) -> Path:
        new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
        made = [
            new[kind](source, id=f"cell-{i}", metadata={"tags": tags} if tags else {})
            for i, (kind, source, *tags) in enumerate(cells)
        ]
        kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        book = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel, **metadata})
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, path)
        return path

    return write
