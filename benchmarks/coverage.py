"""How often the 95 % intervals of `kinetics_lab.laws.powerlaw` hold the truth, on synthetic data at fixed seeds.

    python benchmarks/coverage.py [--runs 2000] [--workers 2] [--case NAME ...]

Prints a row per case and quantity: the share of runs whose interval holds the true value. It should lie between
93 and 97 %; with 2000 runs the share itself is known to about 0.5 %. Each case takes from seconds to a few minutes.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from kinetics_lab.laws.powerlaw import fit_power_law, grid_bounds
from kinetics_lab.laws.resample import bootstrap

GRID = (32, 64, 128, 256, 512, 1024)
#: name -> (a, b, c), points, x from, x to, residual scale, options of the fit
CASES = {
    "log": ((90.0, 0.8, 0.0), 12, 150, 1e4, 0.25, {}),
    "linear": ((90.0, 0.8, 0.0), 20, 150, 1e4, 6000.0, {"space": "linear"}),
    "log, offset": ((30.0, 0.35, -100.0), 40, 150, 1e4, 0.1, {"offset": True}),
    "linear, offset": ((30.0, 0.35, -100.0), 40, 150, 1e4, 15.0, {"offset": True, "space": "linear"}),
    "censored": ((5.5, 0.5, 0.0), 30, 150, 1e4, 0.3, {}),
    "censored, wide scatter": ((20.0, 0.3, 0.0), 30, 150, 1e4, 0.6, {}),
    "problems": ((90.0, 0.8, 0.0), 30, 150, 1e4, 0.5, {}),
}


def one_run(case: str, run: int, seed: int = 0) -> dict[str, bool]:
    """Draw data from a known law, fit it, and say which intervals hold the truth."""
    (a, b, c), n, low, high, scale, options = CASES[case]
    rng = np.random.default_rng([seed, sorted(CASES).index(case), run])
    x = np.geomspace(low, high, n)
    truth = a * x**b + c
    far = np.array([2 * high])
    beyond = a * far**b + c
    middle = np.sqrt(low * high)
    doubling = (a * (2 * middle) ** b + c) / (a * middle**b + c)
    if case == "problems":
        return _problems(rng, (a, b), n, scale)
    noise = rng.normal(0, scale, n)
    y = truth + noise if options.get("space") == "linear" else truth * np.exp(noise)
    if case.startswith("censored"):
        steps = np.log(GRID)
        y = np.asarray(GRID, float)[np.abs(np.log(y)[:, None] - steps).argmin(1)]
        options = {"censored": grid_bounds(y, GRID)}
    law = fit_power_law(x, y, **options)
    checks = {"a": (law.intervals["a"], a), "b": (law.intervals["b"], b)}
    if options.get("offset"):
        checks["c"] = law.intervals["c"], c
    checks["y at twice the largest x"] = law.band(far), beyond
    checks["doubling factor"] = law.doubling_interval(middle), doubling
    return {
        name: bool(np.all((ends[0] <= value) & (value <= ends[1]))) for name, (ends, value) in checks.items()
    }


def _problems(
    rng: np.random.Generator, law: tuple[float, float], n_problems: int, scale: float
) -> dict[str, bool]:
    """Each problem follows a law of its own (level and exponent vary); the fitted one goes through their mean."""
    x = np.geomspace(150, 1e4, 8)
    level = rng.normal(0, scale, n_problems)
    exponent = law[1] + rng.normal(0, 0.1, n_problems)
    logs = np.log(law[0]) + level[:, None] + exponent[:, None] * np.log(x)  # [problem, cost]

    def fit(chosen: np.ndarray) -> list[float]:
        slope, intercept = np.polyfit(np.log(x), logs[chosen].mean(0), 1)
        return [intercept, slope]

    found = bootstrap(fit, n_problems, n_boot=400, seed=int(rng.integers(2**31)))
    held = (found.low <= [np.log(law[0]), law[1]]) & ([np.log(law[0]), law[1]] <= found.high)
    return {"a": bool(held[0]), "b": bool(held[1])}


def coverage(case: str, runs: int, workers: int = 1, first: int = 0) -> dict[str, float]:
    """Share of runs whose interval holds the truth, by quantity."""
    numbers = range(first, first + runs)
    if workers == 1:
        found = [one_run(case, run) for run in numbers]
    else:
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(partial(one_run, case), numbers, chunksize=50))
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    print(f"{'case':24}{'quantity':28}{'coverage':>9}{'seconds':>9}")
    for case in options.case:
        start = time.perf_counter()
        found = coverage(case, options.runs, options.workers)
        took = time.perf_counter() - start
        for name, share in found.items():
            print(f"{case:24}{name:28}{share:9.1%}{took:9.0f}", flush=True)


if __name__ == "__main__":
    main()
