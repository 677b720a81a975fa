"""How often the book's 95 % intervals hold the truth, on synthetic data at fixed seeds.

    python benchmarks/coverage.py [--runs 2000] [--workers 2] [--case NAME ...]
    python benchmarks/coverage.py --headline [--runs 200]    # writes data/predictions/coverage.csv

The first line tests the fits of `kinetics_lab.laws.powerlaw`. Prints a row per case and quantity: the share of runs whose interval holds the true value. It should lie between
93 and 97 %; with 2000 runs the share itself is known to about 0.5 %. Each case takes from seconds to a few minutes.

The second tests the headline statistics of Part III. The 30 problems of AIME 2024, with the rates that were counted, are taken for
the whole population; a run draws 30 of them with replacement, and their answers anew by these rates. The truth is what an
oracle that knows the rates would find in the population.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab import HARDWARE, advantage, cheapest, cost_table, pass_at_k, read_table, winners
from kinetics_lab.data import data_dir
from kinetics_lab.files import write_whole
from kinetics_lab.laws.frontier import SETTING, curves
from kinetics_lab.laws.growth import SharedBudget, growth_exponents
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


# --- headline statistics ---------------------------------------------------------------------------


@cache
def population() -> tuple[pd.DataFrame, np.ndarray]:
    """The cost table of AIME 2024, a row for each setting and problem, and the rates; problems vary fastest."""
    summary = read_table("aime24_qwen3_best_of_n")
    table = cost_table(summary, HARDWARE["b200-paper"]).sort_values([*SETTING, "problem"], kind="stable")
    table["cap"] = np.nan
    return table.reset_index(drop=True), (table.n_correct / table.n_traces).to_numpy()


def headline(table: pd.DataFrame, n_boot: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Value, low and high of each statistic; winners and cheapest: the share that is claimed."""
    kind = table.policy.str.split(":").str[0]
    costs = np.geomspace(2e13, 1e17, 150)
    sides = [curves(table[kind == name], costs) for name in ("dense", "topk")]
    values = [{name: one.values("accuracy") for name, one in side.items()} for side in sides]
    ratios, gap = advantage(*values, costs, [0.5, 0.8], n_boot, seed)
    found = {f"dense over top-k at {r.level:.0%}": (r.ratio, r.low, r.high) for r in ratios.itertuples()}
    found["largest gap"] = gap["gap"], gap["low"], gap["high"]
    found["largest gap, split sample"] = gap["split"], gap["split_low"], gap["split_high"]
    best, _ = cheapest(sides[0], [0.5, 0.7], n_boot, seed)
    found |= {f"cost of {r.level:.0%}, dense": (r.cost, r.low, r.high) for r in best.itertuples()}
    won = winners(sides[0], n_boot, seed)
    for place in (60, 90, 120):
        row = won.iloc[place]
        found[f"accuracy of the best, dense, at {row.cost / 1e12:.3g} Tera-eFLOPs"] = (
            row.accuracy,
            row.low,
            row.high,
        )
    if n_boot < 10 or seed % 5 == 0:  # slow, so in every fifth run, and in the population
        own = table[(table.model == "qwen3-8b") & (kind == "topk")]
        grown = growth_exponents(
            SharedBudget.of(own, np.logspace(0, 4, 100)[55:] * 1e12), 196.0, max(n_boot // 5, 2), seed
        )
        for k, name in enumerate(("tokens", "KV budget")):
            found[f"growth exponent of {name}, qwen3-8b"] = grown.value[k], grown.low[k], grown.high[k]
    names = list(sides[0])
    found["winners"] = [(row.winner, max((row[name], name) for name in names)) for _, row in won.iterrows()]  # type: ignore[assignment]
    return found


def headline_run(run: int, n_boot: int = 300) -> list[tuple[str, float]]:
    """For each statistic whether the interval holds the truth; for winners, shares and whether they are right."""
    table, rate = population()
    truth = _truth()
    rng = np.random.default_rng([7, run])
    taken = rng.integers(0, 30, 30)
    rows = (np.arange(0, len(table), 30)[:, None] + taken).ravel()
    drawn = table.iloc[rows].reset_index(drop=True).assign(problem=np.tile(np.arange(30), len(table) // 30))
    key = drawn.groupby(["model", "policy", "problem"], sort=False).ngroup().to_numpy()
    first = np.unique(key, return_index=True)[1]  # the same answers stand behind every N
    drawn["n_correct"] = rng.binomial(drawn.n_traces.to_numpy()[first], rate[rows][first])[key]
    drawn["accuracy"] = pass_at_k(drawn.n_traces, drawn.n_correct, drawn.n_trials)
    found, made = headline(drawn, n_boot, run), []
    for name, true in truth.items():
        if name == "winners":
            claims = [
                (share, said == real)
                for (_, (share, said)), (real, _) in zip(found[name], true, strict=True)
                if real
            ]
            made += [
                ("winners with a share of 90 % or more that are right", right)
                for share, right in claims
                if share >= 0.9
            ]
        elif name in found:
            value, low, high = found[name]
            made += [(name, low <= true[0] <= high)]
            made += [(f"{name}: mean of value / truth", value / true[0])] if true[0] else []
            made += [(f"{name}: misses above", low > true[0])]
    return made


@cache
def _truth() -> dict[str, Any]:
    table, rate = population()
    exact = table.assign(accuracy=1 - (1 - rate) ** table.n_trials)
    found = headline(exact, 2, 0)
    return found | {"largest gap, split sample": found["largest gap"]}  # which both mean to find


def headlines(runs: int, workers: int) -> pd.DataFrame:
    """A row per statistic: ``statistic``, ``share`` (or mean), number of ``runs`` behind it."""
    with ProcessPoolExecutor(workers) as pool:
        rows = [row for made in pool.map(headline_run, range(runs), chunksize=5) for row in made]
    table = pd.DataFrame(rows, columns=["statistic", "share"]).astype({"share": float})
    return table.groupby("statistic", sort=False).share.agg(share="mean", runs="size").reset_index().round(4)


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
    parser.add_argument("--headline", action="store_true", help="headline statistics instead of fits")
    options = parser.parse_args()
    if options.headline:
        table = headlines(options.runs, options.workers)
        path = data_dir() / "predictions" / "coverage.csv"
        print(write_whole(path, lambda part: table.to_csv(part, index=False)))
        print(table.to_string(index=False))
        return
    print(f"{'case':24}{'quantity':28}{'coverage':>9}{'seconds':>9}")
    for case in options.case:
        start = time.perf_counter()
        found = coverage(case, options.runs, options.workers)
        took = time.perf_counter() - start
        for name, share in found.items():
            print(f"{case:24}{name:28}{share:9.1%}{took:9.0f}", flush=True)


if __name__ == "__main__":
    main()
