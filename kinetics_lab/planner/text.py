"""A plan to read in a terminal. As a chapter with figures: ``notebooks/35_plan_your_own.ipynb``."""

from __future__ import annotations

import pandas as pd

from kinetics_lab.planner.offers import by_reason
from kinetics_lab.planner.plan import UNITS

ALLOCATED = {"uniform": "one setting for all problems", "oracle": "an oracle's choice for each problem"}
LEGEND = """
accuracy  share of problems (%) that any of the N answers solves, and its {level:.0%} interval (bootstrap
          over problems)
halves    setting chosen on half of the answers, scored on the same / on the other half (N <= half)
dense     the most that dense attention reaches for the same budget, allocated the same way"""
UNIFORM = """
again     share of resamples (%) that choose this model and policy again; below: the best setting of
          another model or policy, and the share in which the choice beats it"""
SCAN = "\ntopk:B:false scores every cached key to find its B tokens"
FREE = "\n*         finds its tokens for nothing, which no engine can do"


def percent(share: float, decimals: int = 1) -> str:
    """A share as a percentage, without the sign; "-" for none."""
    return "-" if pd.isna(share) else f"{100 * share:.{decimals}f}"


def often(share: float) -> str:
    """A share of resamples as a whole percentage; ">99" for what only rounds to all."""
    return ">99" if 0.995 <= share < 1 else percent(share, 0)


def text(found: pd.DataFrame) -> str:
    """The plan as a table of at most 100 columns (more for long names), with a legend."""
    about = found.attrs
    unit, uniform = about["unit"], about["allocation"] == "uniform"
    lines = []
    for task, rows in found.groupby("task", sort=False):
        lines.append(f"{task} on {about['device']}, {ALLOCATED[about['allocation']]};")
        lines.append(f"budget and cost in {UNITS[unit]} per problem, at peak rates")
        head = f"{'budget':>7}  {'accuracy':15}{'halves':>11}{'dense':>7}{'cost':>9}{'tokens':>7}"
        lines.append(head + (f"{'again':>6}  run" if uniform else "  most frequent setting"))
        for row in rows.to_dict("records"):
            start = f"{row[f'budget_{unit}']:>7.4g}  "
            if row["setting"]:
                spread = f"{percent(row['accuracy'])} ({percent(row['low'], 0)}-{percent(row['high'], 0)})"
                halves = f"{percent(row['seen'])}/{percent(row['unseen'])}"
                tokens = f"{row['tokens'] / 1000:.3g}K" if row["tokens"] >= 1000 else f"{row['tokens']:.0f}"
                start += f"{spread:15}{halves:>11}{percent(row['dense']):>7}"
                start += f"{row[f'cost_{unit}']:>9.3g}{tokens:>7}"
                run = row["setting"] + (" *" if row["oracle"] else "")
                share = f"{often(row['again']):>6}  {run}"
                lines.append(start + (share if uniform else f"  {percent(row['share'], 0)}%: {run}"))
                if row["runner_up"]:
                    other = f"{percent(row['runner_up_accuracy'])}, beaten in {often(row['beats'])}%"
                    lines.append(f"{'':9}{other:55}  {row['runner_up']}")
            if row["note"]:
                lines.append((" " * 9 if row["setting"] else start) + row["note"])
        lines.append("")
    scans = bool(found.policy.str.contains(":false").any())
    legend = LEGEND + UNIFORM * uniform + SCAN * scans + FREE * bool(found.oracle.any())
    return "\n".join(lines) + legend.format(level=about["level"])


def left_out(found: pd.DataFrame) -> list[str]:
    """What the plan did not consider, a line for each reason."""
    return by_reason(found.attrs["left_out"])
