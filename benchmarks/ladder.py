"""The committed files of the ladder, made anew: traces, learning curves and some walks, step by step.

    python benchmarks/ladder.py FOLDER OUT [PRESET [DEVICE]]

FOLDER keeps models and parts (`kinetics-lab ladder`); what is missing is trained and sampled. OUT gets
traces.parquet, training.parquet and walks.parquet.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from kinetics_lab.ladder.tables import KINDS, make_table


def main(folder: str, out: str, name: str = "cpu", device: str = "cpu") -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        make_table(kind, name, folder, out=Path(out, f"{kind}.parquet"), device=device, progress=True)
    keys = ["task", "policy", "model"]
    rates = pd.read_parquet(Path(out, "traces.parquet")).groupby(keys, observed=True).correct.mean()
    print(rates.unstack().round(3).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
