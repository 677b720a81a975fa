"""What a killed sweep loses: `python benchmarks/sweep_kills.py [--kills 20] [--points 90] [--seed 0] [--workers 2]`.

A sweep of a small notebook is started and killed with SIGKILL at random instants, then started once more and left to
end. After each kill: every folder without `.part` is a whole run, what was done before is still there untouched, at
most as many points are under way as there are workers, and no kill is taken for a failure. In the end every point is
done once, and the notebooks that ran in vain are no more than were under way. Exits with 1 otherwise.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd

START = "import sys; from kinetics_lab.book.sweep import sweep; sweep(*sys.argv[1:3], workers=int(sys.argv[3]), summary=False)"
CELLS = """
import os, pathlib, time
from kinetics_lab.book.results import hand_over
hand_over({"square": n * n})
time.sleep(0.1)
with open("ended.txt", "a") as file:
    file.write(f"{n}\\n")
"""


def write_project(folder, points):
    """A project of one notebook and a grid of so many points; returns the grid's path."""
    cells = [nbformat.v4.new_code_cell("n = 0", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(CELLS.strip()))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    metadata |= {"kinetics": {"result": "result.json"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "square.ipynb")
    (folder / "pyproject.toml").touch()
    grid = folder / "grid.yml"
    grid.write_text(f"notebook: square.ipynb\naxes: {{n: {{from: 1, to: {points}, step: 1}}}}\n")
    return grid


def done(out):
    """Name of every point that is done -> when its record was written; fails where one is not whole."""
    found = {}
    for path in (out / "points").glob("square-*"):
        assert path.suffix != ".txt", f"{path}: a kill was taken for a failure"
        if path.suffix != ".part":
            record = json.loads((path / "run.json").read_text())
            square = json.loads((path / "result.json").read_text())["square"]
            nbformat.read(path / "square.ipynb", as_version=4)
            assert record["seconds"] > 0, path
            assert square == record["parameters"]["n"] ** 2, path
            found[path.name] = (path / "run.json").stat().st_mtime_ns
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("kills", 20), ("points", 90), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    chance, began = random.Random(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        grid, out = write_project(Path(folder), args.points), Path(folder, "out")
        command = [sys.executable, "-c", START, str(grid), str(out), str(args.workers)]
        before, pace = {}, time.perf_counter()
        subprocess.run(
            [*command[:3], str(write_project(Path(folder), 1)), f"{out}-one", "1"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        pace = time.perf_counter() - pace  # start and one point, on this machine with its load
        write_project(Path(folder), args.points)
        for number in range(1, args.kills + 1):
            wait = chance.uniform(0.1, 1.5) * pace
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() in (-signal.SIGKILL, 0), "the sweep ended by itself, with an error"
            after = done(out)
            under_way = len(list((out / "points").glob("*.part")))
            assert before.items() <= after.items(), "a point that was done is gone or was run again"
            assert under_way <= args.workers, f"{under_way} points under way"
            print(f"kill {number} after {wait:.2f} s: {len(after)} done, {under_way} under way", flush=True)
            before = after
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        after, table = done(out), pd.read_parquet(out / "results.parquet")
        assert before.items() <= after.items(), "a point that was done is gone or was run again"
        assert sorted(table["param.n"]) == list(range(1, args.points + 1)), "not every point is done"
        assert (table["square"] == table["param.n"] ** 2).all()
        assert sorted(table["sweep.point"]) == sorted(after), "the table is not one row a point"
        ended = len(Path(folder, "ended.txt").read_text().splitlines()) - 1  # the first was for the pace
        assert args.points <= ended <= args.points + args.kills * args.workers, (
            "more was lost than was under way"
        )
        print(
            f"{args.kills} kills: all {args.points} points done, {ended - args.points} ran in vain, "
            f"at most {args.workers} a kill; {time.perf_counter() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
