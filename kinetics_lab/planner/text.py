"""A plan to read in a terminal. As a chapter with figures: ``notebooks/35_plan_your_own.ipynb``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from textwrap import wrap
from typing import Any

import pandas as pd

from kinetics_lab.cost.fit import COUNTS
from kinetics_lab.planner.offers import by_reason
from kinetics_lab.planner.plan import FRUGAL, TIE, UNITS, plan
from kinetics_lab.planner.serve import AS_IT_IS, ROOM, commands
from kinetics_lab.planner.strategy import STRATEGIES

ALLOCATED = {
    "uniform": "one setting for all problems",
    "oracle": "an oracle's choice for each problem, its cost capped",
    "hindsight": "a choice in hindsight for each problem, the mean cost capped",
}
LEGEND = """
accuracy  share of problems (%) that are solved, and its {level:.0%} interval (bootstrap over problems)
halves    setting chosen on half of the answers, scored on the same / on the other half (N <= half)
dense     the most that dense attention reaches for the same budget, allocated the same way
answers   drawn per problem, on average; "7 x" a model draws at most seven"""
UNIFORM = f"""
again     share of resamples (%) that choose this model and policy again; below: what else wins most
          often, of another model or policy, its cost, and the share in which the choice beats it;
          and the cheapest setting that solves at most {100 * FRUGAL:.0f} points less"""
ORACLE = "\nIt knows the traces' success rates, which no user does; capping each cost can even solve fewer."
VOTE = "\nThe answers are not known: accuracy is what a vote reaches at least, if all wrong answers agree."
SCAN = "\ntopk:B:false scores every cached key to find its B tokens, which no serving engine offers"
ASSUMED = "\nsparse    was measured in no engine: it is given the efficiency of dense attention"
FEWER = "\nAnswers count as they were sampled: what fewer bits do to their accuracy is not counted."
SPARSE: Any = {"sparse, which no engine serves": {"policies": []}}  # a way of `elsewhere`
FREE = "\n*         finds its tokens for nothing, which no engine can do"


def percent(share: float, decimals: int = 1) -> str:
    """A share as a percentage, without the sign; "-" for none."""
    return "-" if pd.isna(share) else f"{100 * share:.{decimals}f}"


def often(share: float) -> str:
    """A share of resamples as a whole percentage; ">99" for what only rounds to all, a decimal for what only rounds to no tie."""
    return ">99" if 0.995 <= share < 1 else percent(share, int(TIE - 0.005 <= share < TIE))


def rounded(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.12g}"


def served(row: Mapping[Any, Any]) -> str:
    """What a setting runs on, how long it takes and what it costs in money, as far as that is known."""
    if row["batch"] == float("inf"):
        parts = ["endless batch"]
    else:
        times = f"{row['ttft_s']:.2g} s to the first token, {row['tpot_s']:.2g} s a token, {row['answer_s']:.3g} s a problem"
        parts = [f"{row['devices']:.0f} device{'s' * (row['devices'] != 1)}, batch {row['batch']:.0f}", times]
    if row["usd"] > 0:
        parts.append(f"${row['usd']:.3g} (${row['usd_per_mtok']:.3g}/Mtok)")
    return "; ".join(parts)


def advice(row: Mapping[Any, Any], run: str) -> str:
    """What to ``run``, in bold; then whether it is a tie, and whether its times lie beyond those measured."""
    beyond = " Its times are extrapolated from those measured." * ("extrapolated" in row["note"])
    if not row["rivals"]:
        return f"**Run {run}.**{beyond}"
    turn = f"it wins again in {often(row['again'])} % of resamples, so other problems may turn the order."
    return f"**Run {run}.** This is a tie with {row['rivals']}: {turn}{beyond}"


def decided(row: Mapping[Any, Any], problems: int = 1000) -> dict[str, str]:
    """A row of a plan in seconds as a decision: what to run, what that solves and costs, how sure it is; later lines are asides.

    The bill is for so many ``problems``. Where nothing fits, the first text says so and the others are empty.
    """
    if not row["setting"]:
        return {"run": row["note"], "solves": "", f"bill for {problems:,}": "", "how sure": ""}
    many, cut = row["n_trials"], "" if pd.isna(row["cap"]) else f", cut at {row['cap']:,.0f} tokens"
    tries = f"{'up to ' * (row['draws'] < many)}{many} answer{'s' * (many != 1)} a problem{' at once' * (row['draws'] >= many > 1 and row['batch'] >= many)}{cut}"
    best = f"; at best {percent(row['best_case'])} %" if row["best_case"] > row["accuracy"] else ""
    money = f"${rounded(row['usd'] * problems)}\n" if row["usd"] > 0 else ""
    hours = f"{rounded(row['cost_s'] * problems / 3600)} device-hours"
    beyond = "\n(times extrapolated)" * ("extrapolated" in row["note"])
    sure = f"chosen in {often(row['again'])} % of resamples"
    sure = f"a tie with {row['rivals']}" if row["rivals"] else sure
    second = row["runner_up"] and f"\nnext: {row['runner_up']}, {percent(row['runner_up_accuracy'])} %"
    return {
        "run": f"{row['model']}, {row['policy']}\n{tries}\n{served(row).split(';')[0]}",
        "solves": f"{percent(row['accuracy'])} %\n{percent(row['low'], 0)} to {percent(row['high'], 0)} %{best}",
        f"bill for {problems:,}": f"{money}{hours}\nanswered after {rounded(row['answer_s'])} s{beyond}",
        "how sure": sure + second,
    }  # fmt: skip


def bill(row: Mapping[Any, Any], problems: int, devices: int) -> dict[str, str]:
    """What a setting of a plan in seconds comes to for so many problems, on so many devices that are all kept busy."""
    hours = row["cost_s"] * problems / 3600
    likely = (row[name] * problems for name in ("accuracy", "low", "high"))
    found = {
        "problems": f"{problems:,}",
        "solved": "{:,.0f}, 95 % for others like these: {:,.0f} to {:,.0f}".format(*likely),
        "answers drawn": f"{row['draws'] * problems:,.0f}",
        "tokens written": f"{rounded(row['tokens'] * problems / 1e6)} million",
        "device-hours": rounded(hours),
        f"hours on {devices} device{'s' * (devices != 1)}, every place filled": rounded(hours / devices),
    }
    return found | ({"dollars": f"${rounded(row['usd'] * problems)}"} if row["usd"] > 0 else {})


def text(found: pd.DataFrame) -> str:
    """The plan as a table of at most 100 columns (more for long names), with a legend and what to start."""
    about = found.attrs
    unit, uniform, name = about["unit"], about["allocation"] == "uniform", about["strategy"].split(":")[0]
    lines = []
    for task, rows in found.groupby("task", sort=False):
        lines.append(f"{task} on {about['device']}, weights {about['weights']}, KV cache {about['kv']};")
        lines += [f"{ALLOCATED[about['allocation']]};", f"{about['strategy']}: {STRATEGIES[name][1]};"]
        lines.append(f"budget and cost in {UNITS[unit]} per problem, by {about['clock']}")
        head = f"{'budget':>7}  {'accuracy':15}{'halves':>11}{'dense':>7}{'cost':>9}{'answers':>8}"
        lines.append(head + (f"{'again':>6}  run" if uniform else "  most frequent setting"))
        for row in rows.to_dict("records"):
            lines += _told(row, f"{row[f'budget_{unit}']:>7.4g}  ", row[f"cost_{unit}"], uniform)
        lines.append("")
    sparse = about["measured"] and not found.policy.isin(["dense", ""]).all()
    legend = [LEGEND, UNIFORM if uniform else ORACLE, VOTE * (name == "majority"), ASSUMED * bool(sparse)]
    legend += [SCAN * bool(found.policy.str.contains(":false").any()), FREE * bool(found.oracle.any())]
    legend.append(FEWER * (not {about["weights"], about["kv"]} <= {*AS_IT_IS}))
    return "\n".join(lines) + "".join(legend).format(level=about["level"]) + _start(found) * uniform


def _told(row: Mapping[Any, Any], start: str, cost: float, uniform: bool) -> Iterator[str]:
    """The lines of one budget."""
    if row["setting"]:
        spread = f"{percent(row['accuracy'])} ({percent(row['low'], 0)}-{percent(row['high'], 0)})"
        halves = f"{percent(row['seen'])}/{percent(row['unseen'])}"
        start += f"{spread:15}{halves:>11}{percent(row['dense']):>7}{cost:>9.3g}{row['draws']:>8.3g}"
        share = f"{often(row['again']):>6}  " if uniform else f"  {percent(row['share'], 0)}%: "
        yield start + share + row["setting"] + " *" * row["oracle"]
        start = " " * 9
        if row["best_case"] > row["accuracy"]:
            yield f"{start}{percent(row['best_case'])} if no two wrong answers agree"
        if uniform:
            yield start + served(row)
    beaten = f", beaten in {often(row['beats'])}%"
    for name in (name for name in ("runner_up", "frugal") if row[name]):
        said = f"{percent(row[name + '_accuracy'])} for {row[name + '_cost']:.3g}{beaten * (name == 'runner_up')}"
        yield f"{start}{said:55}  {row[name]}"
    for i, part in enumerate(wrap(row["note"], 90, break_long_words=False)):
        yield (" " * 9 if i else start) + part
    yield from (" " * 9 + row[name] for name in ("beside", "elsewhere") if row.get(name))


def _start(found: pd.DataFrame) -> str:
    """What to start for each model and policy of a plan with one setting for all."""
    about, lines = found.attrs, list[str]()
    for row in found[found.setting != ""].drop_duplicates(["model", "policy", "cap"]).to_dict("records"):
        each = commands(row, about["weights"], about["kv"], about["reserve"])
        lines.append(f"\n{row['model']}, {row['policy']}")
        lines += [f"  {engine}: {line}" for engine, line in each.items()]
    lines += ["", ROOM] * any("--dtype" in line for line in lines)
    return "\n\nTo start:" + "\n".join(lines) if lines else ""


def today(asked: Mapping[str, Any]) -> pd.DataFrame:
    """``plan(**asked)``, of dense attention if no policy is asked for; beside it what any attention would give, and more devices."""
    now = not asked["policies"] and {"dense"} < {*asked["data"].policy}
    found = plan(**(asked := {**asked, "policies": ["dense"] if now else asked["policies"]}))
    beside = elsewhere(found, asked, SPARSE) if now else ""
    return found.assign(beside=beside, elsewhere=elsewhere(found, asked))


def elsewhere(found: pd.DataFrame, asked: Mapping[str, Any], ways: Any = None) -> list[str]:
    """For each row of ``plan(**asked)``, the best by other ``ways`` (on so many devices), where that solves more or costs 1 % less; else ""."""
    counts = () if asked.get("devices") else COUNTS
    ways = ways or {f"on {n} device{'s' * (n > 1)}": {"devices": n} for n in counts}
    cost, told, others = f"cost_{found.attrs['unit']}", list[str](), dict[str, pd.DataFrame]()
    for where, way in ways.items():
        with suppress(ValueError):  # nothing fits so
            others[where] = plan(**{**asked, **way, "n_boot": 2, "n_splits": 1})
    for i, row in enumerate(found.to_dict("records")):
        rows = [{**other.iloc[i], "where": where} for where, other in others.items() if other.setting.iloc[i]]
        best = max(rows, key=lambda one: (round(one["accuracy"], 9), -one[cost]), default=row | {"where": ""})
        gain = best["accuracy"] - row["accuracy"] if row["setting"] else len(rows)
        better = gain > 1e-9 or (gain > -1e-9 and best[cost] <= 0.99 * row[cost])
        said = f"{best['where']}: {best['accuracy']:.1%} for {best[cost]:.3g} by {best['setting']}"
        said += " (predicted)" * (f"{best['model']}, {best['policy']}" in best["note"])
        told.append(said if better else "")
    return told


def left_out(found: pd.DataFrame) -> list[str]:
    """What the plan did not consider, a line for each reason."""
    return by_reason(found.attrs["left_out"])
