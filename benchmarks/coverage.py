"""How often the book's 95 % intervals hold the truth, on synthetic data at fixed seeds.

    python benchmarks/coverage.py [--runs 2000] [--workers 2] [--case NAME ...]
    python benchmarks/coverage.py --headline [--runs 200]    # writes data/predictions/coverage.csv

The first line tests the fits of `kinetics_lab.laws.powerlaw`. Prints a row per case and quantity: the share of runs whose interval holds the true value. It should lie between
93 and 97 %; with 2000 runs the share itself is known to about 0.5 %. Each case takes from seconds to a few minutes.

The second tests the headline statistics of Part III. The 30 problems of AIME 2024, with the rates that were counted, are taken for
the whole population; a run draws 30 of them with replacement, and their answers anew by these rates. The truth is what an
oracle that knows the rates would find in the population. The table of the first page, one setting for all, is tested so as well.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab import (
    HARDWARE,
    advantage,
    cheapest,
    cost_table,
    find_hardware,
    pass_at_k,
    read_table,
    winners,
)
from kinetics_lab.data import data_dir
from kinetics_lab.files import write_whole
from kinetics_lab.laws.frontier import SETTING, curves
from kinetics_lab.laws.growth import SharedBudget, growth_exponents
from kinetics_lab.laws.powerlaw import fit_power_law, grid_bounds
from kinetics_lab.laws.resample import bootstrap, cost_to_solve, interval, problem_weights
from kinetics_lab.planner.price import answers, drawn
from kinetics_lab.planner.strategy import BestOf, UntilRight

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


@cache
def single_answers() -> tuple[pd.DataFrame, np.ndarray]:
    """What one answer costs in each setting (a row for each problem; problems vary fastest), as chapter 36 prices it; the rates."""
    summary = read_table("aime24_qwen3_best_of_n").sort_values(["model", "policy", "problem"], kind="stable")
    terms: dict[str, Any] = {"batch": "endless", "dense_layers": 1, "share_prompt": True}
    table = answers(summary, find_hardware("h200", "bf16"), **terms)[0]
    return table, (table.n_correct / table.n_traces).to_numpy()


def several(one: pd.DataFrame, way: Any, rate: np.ndarray | None = None) -> pd.DataFrame:
    """Settings of several answers, as their counts say; with ``rate``, the chances of the rows of ``one``, as one who knows them says."""
    table = drawn(one.assign(chance=np.nan if rate is None else rate), way)
    if rate is None:
        return table
    chance, n = table.chance.to_numpy(), table.n_trials.to_numpy()
    solved = 1 - (1 - chance) ** n
    draws = n if way is BestOf else np.where(chance > 0, solved / np.maximum(chance, 1e-12), n)
    paid = draws * table.each + (1 if way is BestOf else draws) * table.wave + table.once
    return table.assign(accuracy=solved, eflops=paid)


def another_thirty(one: pd.DataFrame, chance: np.ndarray, taken: np.ndarray, *seed: int) -> pd.DataFrame:
    """Answers to the problems ``taken`` of thirty, drawn anew by their chances."""
    rows = (np.arange(0, len(one), 30)[:, None] + taken).ravel()
    again = np.random.default_rng(seed).binomial(one.n_traces.to_numpy()[rows], chance[rows])
    names = np.tile(np.arange(30), len(one) // 30)
    return one.iloc[rows].reset_index(drop=True).assign(problem=names, n_correct=again)


def one_for_all(
    one: pd.DataFrame, n_boot: int, seed: int, rate: np.ndarray | None = None
) -> dict[str, tuple[float, float, float]]:
    """Value, low and high of the first page's table; with ``rate``, the chances of the rows of ``one``, as one who knows them finds it."""
    found, weights, levels = {}, problem_weights(30, n_boot, seed), (0.5, 0.7, 0.8, 0.9)
    stated: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for rule, way in {"all paid": BestOf, "stopping": UntilRight}.items():
        table = several(one, way, rate)
        kind = table.policy.str.split(":").str[0]
        costs = {
            name: cost_to_solve(table[kind == kinds], levels, weights)
            for name, kinds in {"dense": "dense", "block top-k": "block_topk", "oracle top-k": "topk"}.items()
        }
        stated[f"{rule}, cost of {{:.0%}}, dense"] = costs["dense"]
        for other in ("block top-k", "oracle top-k"):
            stated[f"{rule}, dense over {other} at {{:.0%}}"] = _over(costs["dense"], costs[other])
    stopped, paid = (stated[f"{rule}, cost of {{:.0%}}, dense"] for rule in ("stopping", "all paid"))
    stated["stopping over all paid, dense, at {:.0%}"] = _over(stopped, paid)
    for name, (values, draws) in stated.items():
        for i, level in enumerate(levels):
            known = draws[~np.isnan(draws[:, i]), i]
            low, high = interval(np.minimum(known, 1e99), 30) if len(known) > 1 else (np.nan, np.nan)
            found[f"one setting, {name.format(level)}"] = (float(values[i]), float(low), float(high))
    return found


def _over(
    above: tuple[np.ndarray, np.ndarray], below: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of two costs, and of their resamples; nothing where neither is reached."""
    with np.errstate(invalid="ignore"):
        return above[0] / below[0], above[1] / below[1]


def headline_run(run: int, n_boot: int = 300) -> list[tuple[str, float]]:
    """For each statistic whether the interval holds the truth; for winners, shares and whether they are right."""
    table, rate = population()
    truth = _truth()
    rng = np.random.default_rng([7, run])
    taken = rng.integers(0, 30, 30)
    rows = (np.arange(0, len(table), 30)[:, None] + taken).ravel()
    redrawn = table.iloc[rows].reset_index(drop=True).assign(problem=np.tile(np.arange(30), len(table) // 30))
    key = redrawn.groupby(["model", "policy", "problem"], sort=False).ngroup().to_numpy()
    first = np.unique(key, return_index=True)[1]  # the same answers stand behind every N
    redrawn["n_correct"] = rng.binomial(redrawn.n_traces.to_numpy()[first], rate[rows][first])[key]
    redrawn["accuracy"] = pass_at_k(redrawn.n_traces, redrawn.n_correct, redrawn.n_trials)
    found, made = headline(redrawn, n_boot, run), []
    found |= one_for_all(another_thirty(*single_answers(), taken, 7, run, 1), n_boot, run)
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
            if np.isnan([value, low]).any() or not np.isfinite(true[0]):
                continue  # nothing was said, or there is nothing to find
            made += [(name, low <= true[0] <= high)]
            if true[0] and np.isfinite(value):
                made += [(f"{name}: mean of value / truth", value / true[0])]
            made += [(f"{name}: misses above", low > true[0])]
    return made


@cache
def _truth() -> dict[str, Any]:
    table, rate = population()
    exact = table.assign(accuracy=1 - (1 - rate) ** table.n_trials)
    found: dict[str, Any] = headline(exact, 2, 0)
    found |= one_for_all(single_answers()[0], 2, 0, single_answers()[1])
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
