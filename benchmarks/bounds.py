"""What large inputs take: `python benchmarks/bounds.py [MEASURE ...]`, rows of `bounds.csv` on stdout.

dry run: `sweep --dry-run` of 100,000 points. plan: `plan --caps` on 4,000,000 traces, of 2 models, 500 problems each. Each is a
command of its own; seconds of a processor and of the clock, and the most memory that it held.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent
LIMITS = {"dry run": (5, 2000), "plan": (60, 2000)}


def dry_run(folder: Path) -> list[str]:
    """The command, its grid written."""
    chapter = ROOT / "notebooks" / "10_what_does_a_token_cost.ipynb"
    axes = "{n_in: {from: 1, to: 100, step: 1}, n_out: {from: 1, to: 1000, step: 1}}"
    (folder / "grid.yml").write_text(f"notebook: {chapter}\naxes: {axes}\n")
    return ["sweep", str(folder / "grid.yml"), "--dry-run", "-o", str(folder / "out")]


def plan(folder: Path) -> list[str]:
    """The command, its traces written."""
    draw, problem = np.random.default_rng(0), np.repeat(np.arange(500), 4000)
    parts = []
    for model in ("qwen3-0.6b", "qwen3-4b"):
        rows = {
            "model": model,
            "task": "t",
            "problem": [f"p{i}" for i in problem],
            "trial": np.tile(np.arange(4000), 500),
            "policy": "dense",
        }
        long = np.minimum(draw.lognormal(8.5, 0.7, len(problem)), 32768).astype(np.int32)
        right = draw.random(len(problem)) < draw.random(500)[problem]
        parts.append(
            pd.DataFrame(
                rows | {"tokens_in": 100, "tokens_out": long, "correct": right, "truncated": long == 32768}
            )
        )
    pd.concat(parts).to_parquet(folder / "traces.parquet", index=False)
    return [
        "plan",
        "--traces",
        str(folder / "traces.parquet"),
        "--budget",
        "1",
        "--caps",
        "1024",
        "4096",
        "16384",
    ]


def main() -> None:
    out = csv.writer(sys.stdout)
    out.writerow(["what", "cpu_s", "limit_s", "wall_s", "memory_mb", "limit_mb"])
    for what, make in {"dry run": dry_run, "plan": plan}.items():
        if sys.argv[1:] and what not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            words, began = make(Path(folder)), time.perf_counter()
            command = [sys.executable, "-m", "kinetics_lab.cli", *words]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
            )
            _, status, used = os.wait4(process.pid, 0)
            wall, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
            assert status == 0, f"{what}: status {status}"
        seconds, memory = LIMITS[what]
        out.writerow([what, round(cpu, 1), seconds, round(wall, 1), round(used.ru_maxrss / 1024), memory])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
