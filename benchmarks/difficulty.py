"""A law that predicts (`kinetics_lab.laws.difficulty`), chosen on one half of the problems and scored on the other.

    python benchmarks/difficulty.py split      # which problems choose the law's form, and which score it

Everything that somebody decided by looking at scores was decided on the problems marked ``choose``; the numbers
that the book quotes are on those marked ``score``.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pandas as pd

from kinetics_lab import read_table
from kinetics_lab.data import data_dir
from kinetics_lab.files import write_whole

TABLES = {"aime24_qwen3_best_of_n": "aime24", "pythia_math": "math"}


def split() -> Path:
    """Problems in the order of a hash of their names, every other one to score: no draw that one could repeat."""
    rows = []
    for name, task in TABLES.items():
        names = sorted(read_table(name).problem.astype(str).unique())
        names.sort(key=lambda problem: hashlib.sha256(f"{task} {problem}".encode()).hexdigest())
        rows += [(task, problem, ("choose", "score")[k % 2]) for k, problem in enumerate(names)]
    table = pd.DataFrame(rows, columns=["task", "problem", "part"])
    path = data_dir() / "predictions" / "difficulty_split.csv"
    return write_whole(path, lambda part: table.to_csv(part, index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["split"])
    parser.parse_args()
    print(split())


if __name__ == "__main__":
    main()
