"""Whether two checkouts give the same numbers: every chapter's result and every claim, to the last digit.

    python benchmarks/same_results.py OTHER_CHECKOUT [THIS_CHECKOUT]

Both must have built their book (``kinetics-lab book``). Prints a line for each chapter that differs; exit code 1 then.
"""

import sys
from pathlib import Path

import pandas as pd

FILES = ("result.parquet", "result.json", "claims.jsonl")


def newest_runs(checkout: Path) -> dict[str, Path]:
    """Folder of the newest whole run of each chapter."""
    found: dict[str, Path] = {}
    runs = (checkout / "_build" / "runs").glob("*/run.json")
    for record in sorted(runs, key=lambda path: path.parent.stat().st_mtime):
        stem = record.parent.name.rpartition("-")[0]
        if not record.parent.name.endswith(".part"):
            found[stem] = record.parent
    if not found:
        raise SystemExit(f"{checkout} has no runs: build its book first")
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two files say the same: tables by value and type, texts by the letter."""
    if one.suffix == ".parquet":
        return pd.read_parquet(one).equals(pd.read_parquet(other))
    return one.read_bytes() == other.read_bytes()


def main(other: str, here: str = ".") -> int:
    """Compare and tell; the exit code."""
    old, new = newest_runs(Path(other)), newest_runs(Path(here))
    differ = [f"{stem}: in one checkout only" for stem in sorted(set(old) ^ set(new))]
    for stem in sorted(set(old) & set(new)):
        for name in FILES:
            a, b = old[stem] / name, new[stem] / name
            if a.exists() != b.exists() or (a.exists() and not same(a, b)):
                differ.append(f"{stem}: {name} differs")
    print(
        "\n".join(differ)
        or f"{len(new)} chapters: every result and every claim is the same to the last digit"
    )
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
