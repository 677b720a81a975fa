"""How long frontiers take: 12 curves x 100 costs x 30 problems, beside a loop that says the same in words.

Run: python benchmarks/frontier.py. Both sides get the same priced table, take turns, and must agree.
"""

from __future__ import annotations

import time

import numpy as np

from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.data import read_table
from kinetics_lab.laws import frontier


def loop(table, costs):
    """Algorithm 1 as one would write it first: for each cost and problem, the best row that fits."""
    accuracy = np.zeros(len(costs))
    problems = [(rows.eflops.to_numpy(), rows.accuracy.to_numpy()) for _, rows in table.groupby("problem")]
    for j, cap in enumerate(costs):
        for eflops, scores in problems:
            fits = [score for price, score in zip(eflops, scores, strict=True) if price <= cap]
            accuracy[j] += max(fits, default=0.0)
    return accuracy / len(problems)


def main(rounds: int = 15) -> None:
    """Print the median time of both, their ratio and its spread."""
    table = frontier.cost_table(read_table("aime24_qwen3_best_of_n"), HARDWARE["b200-paper"])
    table["kind"] = table.model + " " + table.policy.str.split(":").str[0]
    kinds = table.kind.drop_duplicates()[:12]
    table, costs = table[table.kind.isin(kinds)], np.geomspace(2e13, 4e16, 100)
    fast, slow = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        ours = frontier.curves(table, costs, "kind")
        fast.append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = {name: loop(rows, costs) for name, rows in table.groupby("kind", sort=False)}
        slow.append(time.perf_counter() - start)
    for name, found in ours.items():
        np.testing.assert_allclose(found.accuracy, theirs[name], atol=1e-12)
    ratio = np.array(slow) / fast
    low, middle, high = np.quantile(ratio, [0.2, 0.5, 0.8])
    print(
        f"{len(ours)} curves x {len(costs)} costs x {table.problem.nunique()} problems, {len(table):,} settings"
    )
    print(f"ours {1e3 * np.median(fast):.1f} ms, loop {1e3 * np.median(slow):.0f} ms")
    print(f"ratio {middle:.0f} (p20 {low:.0f}, p80 {high:.0f})")


if __name__ == "__main__":
    main()
