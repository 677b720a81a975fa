"""The example files of data/examples, cut out of the public runs in data/published/epoch_runs.parquet.

    python benchmarks/example_traces.py

``answers.csv`` holds single answers: those of the runs with one answer to each problem, whose mean length is the
answer's own. ``counts.csv`` holds counts of several models on the same problems.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kinetics_lab import read_table

FOLDER = Path(__file__).parent.parent / "data" / "examples"
TASK = "otis_mock_aime_2024_2025"
SHAPES = {
    "gpt-oss-120b": "gpt-oss-120b",
    "qwen3-235b-a22b-thinking-2507": "qwen3-235b-a22b",
    "kimi-k2p5": "kimi-k2.5",
}


def main() -> None:
    runs = read_table("epoch_runs")
    runs = runs[(runs.task == TASK) & runs.model.isin(SHAPES)]
    runs = runs.assign(
        model=runs.model.map(SHAPES), policy="dense", tokens_in=runs.tokens_in.round().astype(int)
    )
    counts = pd.DataFrame({
        "model": runs.model, "task": runs.task, "policy": runs.policy, "problem": runs.problem, "n": runs.n_traces,
        "correct": runs.n_correct, "tokens_in": runs.tokens_in, "mean tokens": runs.mean_tokens,
        "mean square": runs.mean_sq_tokens,
    })  # fmt: skip
    single = runs[(runs.n_traces == 1) & (runs.model == "qwen3-235b-a22b")]
    answers = pd.DataFrame({
        "model": single.model, "task": single.task, "problem": single.problem, "trial": 0, "policy": single.policy,
        "tokens_in": single.tokens_in, "tokens_out": single.mean_tokens.astype(int), "correct": single.n_correct,
    })  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    answers.to_csv(FOLDER / "answers.csv", index=False, lineterminator="\n")
    counts.to_csv(FOLDER / "counts.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
