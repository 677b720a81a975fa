"""Other people's results as data of this project: `python benchmarks/public_results.py TABLES data/published`.

TABLES is a folder of per-problem counts and lengths, counted from the public files that data/MANIFEST.toml names. This script
says which rows the project keeps and why the others are left out, gives the columns the names of a summary of traces
(kinetics_lab.traces.table), writes Parquet, and prints the SHA-256 of each file for the manifest.
"""

import argparse
import hashlib
from pathlib import Path

import pandas as pd

SUMMARY = {
    "benchmark": "task",
    "n_samples": "n_traces",
    "mean_tokens_in": "tokens_in",
    "mean_tokens_out": "mean_tokens",
    "mean_sq_tokens_out": "mean_sq_tokens",
    "setting": "effort",
}
RUNS = {
    "otis_mock_aime_2024_2025": "epoch_otis_aime.csv.gz",
    "gpqa_diamond": "epoch_gpqa.csv.gz",
}
# A call that failed or ran out of time was probably a long one. Where more than this share of a run's answers is missing, its
# accuracy depends on what one makes of them (GLM-4.7 on OTIS: 0.92 without them, 0.83 with them as wrong), its lengths too.
MOST_MISSING = 0.05
LEFT_OUT = {
    "epoch_counts_only.csv.gz": "earlier runs without lengths: they cannot be priced",
    "gemma4_12b_seeds.csv": "100 problems chosen by how one seed went: no sample of the benchmark",
    "gemma4_12b_seeds_forced.csv": "175 problems chosen by how one seed went: no sample of the benchmark",
}


def epoch(folder):
    """A row for each model, effort and problem; and a line about each run that is left out."""
    runs = pd.read_csv(folder / "epoch_runs.csv").set_index("run")
    asked = runs.n_samples + runs.n_dropped
    runs["missing"] = 1 - runs.n_samples / asked
    rows = pd.concat([pd.read_csv(folder / name) for name in RUNS.values()])
    rows = rows.join(runs[["date", "missing"]], on="run")
    gone = rows[rows.missing > MOST_MISSING].groupby(["benchmark", "model"]).missing.first()
    notes = [
        f"{task}, {model}: {share:.1%} of its answers are missing" for (task, model), share in gone.items()
    ]
    kept = rows[rows.missing <= MOST_MISSING].rename(columns=SUMMARY)
    columns = (
        "model effort task problem tokens_in n_traces n_correct mean_tokens mean_sq_tokens n_dropped run date"
    )
    return kept[columns.split()].sort_values(["task", "model", "effort", "problem"], ignore_index=True), notes


def pythia(folder):
    """Counts of the Pythia family, smallest model first; there are no lengths."""
    rows = pd.read_csv(folder / "monkeys_pythia_math.csv").rename(columns=SUMMARY)
    size = rows.model.str.extract(r"([\d.]+)([mb])$")
    order = size[0].astype(float) * size[1].map({"m": 1e6, "b": 1e9})
    return rows.assign(order=order).sort_values(["order", "problem"], ignore_index=True).drop(columns="order")


def forced(folder):
    """Answers forced along one trace a problem."""
    rows = pd.read_csv(folder / "gemma4_12b_gpqa_forced.csv")
    names = {"benchmark": "task", "decile": "percent", "prefix_tokens": "tokens"}
    return rows.rename(columns=names).astype({"correct": bool})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, help="folder of the counted tables")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    runs, notes = epoch(options.tables)
    made = {"epoch_runs": runs, "pythia_math": pythia(options.tables), "gemma_forced": forced(options.tables)}
    for name, table in made.items():
        path = options.out / f"{name}.parquet"
        table.to_parquet(path, index=False, compression="zstd")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{name}: {len(table):,} rows, {path.stat().st_size:,} bytes, sha256 {digest}")
    for line in [*notes, *(f"{name}: {why}" for name, why in LEFT_OUT.items())]:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
