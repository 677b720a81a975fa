"""A law that predicts (`kinetics_lab.laws.difficulty`), chosen on one half of the problems and scored on the other.

    python benchmarks/difficulty.py split      # which problems choose the law's form, and which score it
    python benchmarks/difficulty.py score      # its scores beside simple baselines; about ten minutes
    python benchmarks/difficulty.py never_run  # what settings that nobody ran could have shown, drawn forty times
    python benchmarks/difficulty.py allocate   # what knowing the difficulty would save, and what few draws tell of it
    python benchmarks/difficulty.py frozen     # what is predicted for two benchmarks whose traces are not at hand

Everything that somebody decided by looking at scores was decided on the problems marked ``choose``; all scores
are on those marked ``score``. A score is the mean negative log-likelihood of held-out trials, in nats a trial.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaln, expit

from kinetics_lab import cost_table, find_hardware, parse_policy, pass_at_k, read_table
from kinetics_lab.book.claims import load_claims
from kinetics_lab.data import data_dir
from kinetics_lab.files import write_table, write_whole
from kinetics_lab.laws.difficulty import (
    OUTCOMES,
    Features,
    Law,
    counts,
    expected,
    features,
    fit_law,
    impute,
    log_lengths,
    outcomes,
)
from kinetics_lab.laws.frontier import TRIALS
from kinetics_lab.laws.resample import interval, problem_weights

TABLES = {"aime24_qwen3_best_of_n": "aime24", "pythia_math": "math"}
PYTHIA = {"70m": 70e6, "160m": 160e6, "410m": 410e6, "1b": 1e9, "2.8b": 2.8e9, "6.9b": 6.9e9, "12b": 12e9}
FLOOR = 1e-4  # no method may be surer than this of a trial
Row = tuple[str, str, str, str, float]  # task, what was held out, method, statistic, value


def write(name: str, table: pd.DataFrame) -> Path:
    path = data_dir() / "predictions" / f"{name}.csv"
    return write_whole(path, lambda part: table.to_csv(part, index=False))


def split() -> Path:
    """Problems in the order of a hash of their names, every other one to score: no draw that one could repeat."""
    rows = []
    for name, task in TABLES.items():
        names = sorted(read_table(name).problem.astype(str).unique())
        names.sort(key=lambda problem: hashlib.sha256(f"{task} {problem}".encode()).hexdigest())
        rows += [(task, problem, ("choose", "score")[k % 2]) for k, problem in enumerate(names)]
    return write("difficulty_split", pd.DataFrame(rows, columns=["task", "problem", "part"]))


def scoring(task: str, problems: pd.Index) -> np.ndarray:
    """Which of the problems score."""
    part = read_table("difficulty_split").query("task == @task").set_index("problem").part
    return (part[problems.astype(str)] == "score").to_numpy()


def aime() -> tuple[pd.DataFrame, Features, np.ndarray, np.ndarray, np.ndarray]:
    """The summary, what is known of its settings, right answers and traces [problem, setting], who scores."""
    summary = read_table("aime24_qwen3_best_of_n")
    known = features(list(summary[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None)))
    problems, y, n = counts(summary, known.names)
    return summary, known, y, n, scoring("aime24", problems)


def nats(y: np.ndarray, n: np.ndarray, p: np.ndarray, where: np.ndarray) -> float:
    p = np.clip(p, FLOOR, 1 - FLOOR)
    return float(-(y * np.log(p) + (n - y) * np.log(1 - p))[where].sum() / n[where].sum())


# --- simple rivals: chances [problem, setting] from the counts that are left -------------------------


def setting_mean(y: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.broadcast_to((y.sum(0) + 0.5) / (n.sum(0) + 1), y.shape)


def problem_mean(y: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.broadcast_to(((y.sum(1) + 0.5) / (n.sum(1) + 1))[:, None], y.shape)


def additive(y: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Ability minus difficulty and nothing else, each N(0, 3^2)."""
    problems = len(y)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        f = x[problems:] - x[:problems, None]
        slope = y - n * expit(f)
        value = (n * np.logaddexp(0, f) - y * f).sum() + (x**2).sum() / 18
        return value, np.r_[slope.sum(1), -slope.sum(0)] + x / 9

    x = minimize(loss, np.zeros(sum(y.shape)), jac=True, method="L-BFGS-B").x
    return expit(x[problems:] - x[:problems, None])


def nearest(known: Features, y: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The counts of the setting most like it that was run: in size first, then in kind and budget."""
    reads = np.log2([min(parse_policy(policy).tokens_read, 2**15) for _, policy in known.names])
    kind = np.array([policy.split(":")[0] for _, policy in known.names])
    away = 10 * np.abs(known.mean[:, None, 1] - known.mean[None, :, 1]) + np.abs(reads[:, None] - reads)
    away = away + 3 * (kind[:, None] != kind) + 1e9 * (n.sum(0) == 0)
    np.fill_diagonal(away, np.inf)
    other = away.argmin(1)
    return (y[:, other] + 0.5) / (n[:, other] + 1)


def beta_binomial(y: np.ndarray, n: np.ndarray, trials: list[int]) -> np.ndarray:
    """Pass@N [N, setting], each setting by itself: one beta law of chances for its problems, and what it has seen."""
    made = []
    for c, s in zip(y.T, n.T, strict=True):

        def loss(z: np.ndarray, c: np.ndarray = c, s: np.ndarray = s) -> float:
            a, b = np.exp(z)
            return float((betaln(a, b) - betaln(a + c, b + s - c)).sum())

        a, b = np.exp(minimize(loss, [0.0, 0.0], method="Nelder-Mead").x)
        wrong = [np.exp(betaln(a + c, b + s - c + k) - betaln(a + c, b + s - c)).mean() for k in trials]
        made.append(1 - np.array(wrong))
    return np.array(made).T


# --- what is held out ------------------------------------------------------------------------------


def held_out(known: Features, scores: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What is held out, and the cells: random fifths, problems by fifths, settings and models one at a time."""
    rng = np.random.default_rng(0)
    shape = len(scores), len(known.names)
    fold = rng.integers(0, 5, shape)
    order = np.zeros(len(scores), int) - 1
    order[scores] = np.arange(scores.sum()) % 5
    for k in range(5):
        yield "cells", (fold == k) & scores[:, None]
        yield "problems", np.broadcast_to((order == k)[:, None], shape)
    models = np.array([model for model, _ in known.names])
    for s in range(len(known.names)):
        yield "settings", np.broadcast_to(np.arange(len(known.names)) == s, shape)
    for model in dict.fromkeys(models):
        yield "models", np.broadcast_to(models == model, shape)


def predictions() -> Iterator[Row]:
    """Scores of held-out trials, and whether intervals of settings that were held out hold what was counted."""
    summary, known, y, n, scores = aime()
    full = fit_law(known, y[~scores], n[~scores])  # where fits begin: it has seen none of what is scored
    tokens = log_lengths(summary, known.names)
    long = fit_law(known, *(one[~scores] for one in tokens), normal=True)
    rivals: dict[str, Callable[..., np.ndarray]] = {
        "setting mean": setting_mean, "problem mean": problem_mean, "ability - difficulty": additive,
        "nearest setting": partial(nearest, known),
    }  # fmt: skip
    lost: dict[tuple[str, str], list[tuple[float, float]]] = {}
    inside: dict[tuple[str, str, float], list[bool]] = {}
    errors: dict[tuple[str, str], list[float]] = {}
    for what, cells in held_out(known, scores):
        left_y, left_n = np.where(cells, 0, y), np.where(cells, 0, n)
        judged = cells & scores[:, None]
        draws = _held(full, left_y, left_n).draws(size=1000)
        guesses = {name: rival(left_y, left_n) for name, rival in rivals.items()}
        for name, chance in ({"law": draws.mean(0)} | guesses).items():
            lost.setdefault((what, name), []).append((nats(y, n, chance, judged), n[judged].sum()))
            if what in ("settings", "models"):
                gap = [(chance - y / n)[scores, s].mean() for s in np.flatnonzero(cells.any(0))]
                errors.setdefault((what, name), []).extend(gap)
        if what in ("settings", "models"):
            left = (np.where(cells, 0, one) for one in tokens)
            lengths = _held(long, *left).draws(size=1000)
            seen = np.random.default_rng(1).binomial(n.astype(int), draws) / n
            for s in np.flatnonzero(cells.any(0)):
                mean = np.minimum(np.exp(lengths[:, scores, s]), 30767).mean(1)
                pairs = {"Pass@1": (seen[:, scores, s].mean(1), (y / n)[scores, s].mean())}
                pairs["mean length"] = mean, np.exp(tokens[0][scores, s]).mean()
                errors.setdefault((what, "length"), []).append(
                    np.log(np.median(mean) / pairs["mean length"][1])
                )
                for level in (0.5, 0.8, 0.95):
                    for name, (drawn, true) in pairs.items():
                        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
                        inside.setdefault((what, name, level), []).append(low <= true <= high)
    for (what, name), found in lost.items():
        value, weight = np.array(found).T
        yield "aime24", what, name, "nats a trial", value @ weight / weight.sum()
    yield (
        "aime24",
        "nothing",
        "saturated",
        "nats a trial",
        nats(y, n, y / n, np.broadcast_to(scores[:, None], y.shape)),
    )
    for (what, name), gap in errors.items():
        unit = "log error of the mean length (rms)" if name == "length" else "error of Pass@1 (rms)"
        yield (
            "aime24",
            what,
            "law" if name == "length" else name,
            unit,
            float(np.sqrt(np.mean(np.square(gap)))),
        )
    for (what, name, level), held in inside.items():
        yield "aime24", what, "law", f"{name}: {level:.0%} intervals that hold it", float(np.mean(held))


def _held(full: Law, y: np.ndarray, n: np.ndarray) -> Law:
    """The law fitted again without what is held out."""
    seen = n.sum(1) > 0
    law = fit_law(full.features, y[seen], n[seen], full.normal, start=full, rounds=4)
    return law if seen.all() else Law(**(vars(law) | {"y": y, "n": n}))


# --- Pass@N from few traces ------------------------------------------------------------------------


def few_traces(repeats: int = 10) -> Iterator[Row]:
    """Pass@N of the problems that score, predicted from some of their traces and counted from all of them."""
    _, known, y, n, scores = aime()
    yield from _few("aime24", known, y[scores], n[scores], [8], [8, 16, 32], repeats)
    table = read_table("pythia_math").assign(policy="dense")
    names = list(table[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None))
    known = features(names, [PYTHIA[model.split("-")[1]] for model, _ in names])
    problems, y, n = counts(table, names)
    scores = scoring("math", problems)
    yield from _few("math", known, y[scores], n[scores], [8, 32, 128], [32, 100, 1000, 10000], repeats)


def _few(
    task: str, known: Features, y: np.ndarray, n: np.ndarray, sizes: list[int], trials: list[int], repeats: int
) -> Iterator[Row]:  # fmt: skip
    start = fit_law(known, y, n)
    for size in sizes:
        gaps: dict[tuple[str, int], list[float]] = {}
        for seed in range(repeats):
            rng = np.random.default_rng(seed)
            few = rng.hypergeometric(y.astype(int), (n - y).astype(int), size).astype(float)
            draws = fit_law(known, few, np.full_like(few, size)).draws(size=400, seed=seed)
            beta = beta_binomial(few, np.full_like(few, size), trials)
            for k, by_beta in zip(trials, beta, strict=True):
                enough = n.min(0) >= k
                true = pass_at_k(n[:, enough].astype(int), y[:, enough].astype(int), k).mean(0)
                for name, found in (("law", expected(draws, k).mean(0)), ("beta-binomial", by_beta)):
                    gaps.setdefault((name, k), []).extend(found[enough] - true)
        for (name, k), gap in gaps.items():
            yield task, f"all but {size} traces", name, f"error of Pass@{k} (mean)", float(np.mean(gap))
            yield (
                task,
                f"all but {size} traces",
                name,
                f"error of Pass@{k} (rms)",
                float(np.sqrt(np.mean(np.square(gap)))),
            )
    for rank, share in enumerate(start.walls[1:], 1):
        yield task, "nothing", "law", f"share behind wall {rank} of {len(start.walls) - 1}", float(share)


def score() -> Path:
    rows = [*predictions(), *few_traces()]
    table = pd.DataFrame(rows, columns=["task", "held_out", "method", "statistic", "value"])
    return write("difficulty_scores", table.assign(value=table.value.round(5)))


# --- what nobody has run ---------------------------------------------------------------------------

BUDGETS = ("topk:128", "topk:256", "topk:512", "topk:1024", "block_topk:128:128", "block_topk:256:64", "block_topk:512:32", "block_topk:1024:16")  # fmt: skip
N_DRAWS = 40


def never_run() -> Path:
    """Draws of the settings that are missing from the grid of models and budgets (budgets as the others had them)."""
    summary = read_table("aime24_qwen3_best_of_n")
    run = list(summary[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None))
    wanted = [(m, p) for m in summary.model.unique() for p in BUDGETS if (m, p) not in run]
    known = features([*run, *wanted])
    _, y, n = counts(summary, known.names)
    lengths = [log_lengths(summary, known.names, power) for power in (1, 2)]
    laws = [fit_law(known, y, n), *(fit_law(known, *one, normal=True) for one in lengths)]
    parts = [impute(summary, wanted, laws, seed).assign(draw=seed) for seed in range(N_DRAWS)]
    table = pd.concat(parts, ignore_index=True).drop(columns="predicted")
    table["mean_tokens"] = table.mean_tokens.round().astype(np.int32)
    least = table.mean_tokens.astype(float) ** 2
    table["mean_sq_tokens"] = np.maximum(table.mean_sq_tokens.round(-3), least)
    path = data_dir() / "predictions" / "aime24_never_run.parquet"
    return write_table(path, table.astype({"n_correct": np.int8, "n_traces": np.int8, "draw": np.int8}))


# --- what knowing the difficulty would save ---------------------------------------------------------

CHEAP = ("qwen3-4b", "block_topk:512:32")  # the cheapest setting that solves more than half with one answer
PRICES = np.geomspace(3e-3, 0.3, 25)  # accuracy that a second must buy, a rate for every point of a curve


def allocate(repeats: int = 20, few: int = 2) -> Path:
    """Five ways to spend seconds where a judge says at once which answer is right, each for a range of rates.

    A rate is the accuracy that a second must buy. Whatever is chosen is chosen on one half of the problems and paid on the other; "in
    hindsight" knows the chances of the problem itself.
    """
    base = read_table("aime24_qwen3_best_of_n")
    base = base[~base.policy.str.startswith("topk")]
    device = find_hardware("b200", "bf16")
    table = cost_table(base, device, TRIALS, dense_layers=1)
    n, c = table.n_traces.to_numpy(), table.n_correct.to_numpy()
    one = cost_table(base, device, (1,), dense_layers=1).set_index(["model", "policy", "problem"]).eflops
    table["second"] = (
        one.loc[list(zip(table.model, table.policy, table.problem, strict=True))].to_numpy()
        / device.peak_flops
    )
    missed = [
        np.where(table.n_trials > k, 1 - pass_at_k(n, c, np.minimum(np.maximum(k, 1), n)), 0)
        for k in range(1, 32)
    ]
    table["stopped"] = table.second * (1 + np.sum(missed, 0))
    table["paid"] = table.second * table.n_trials
    keys = ["model", "policy", "n_trials"]
    solved, stopped, paid = (
        table.pivot(index="problem", columns=keys, values=v) for v in ("accuracy", "stopped", "paid")
    )
    choose = ~scoring("aime24", solved.index)
    ways = {
        "one setting, all answers paid": (solved.to_numpy(), paid.to_numpy()),
        "one setting, stops when right": (solved.to_numpy(), stopped.to_numpy()),
        "escalates": _escalations(solved, stopped),
    }
    rows = [(way, *point) for way, (a, t) in ways.items() for point in _crossed(a, t, choose)]
    a, t = ways["escalates"]
    for rate in PRICES:
        best = (a - rate * t).argmax(1)[:, None]
        rows.append(
            (
                "in hindsight",
                rate,
                np.take_along_axis(t, best, 1).mean(),
                np.take_along_axis(a, best, 1).mean(),
            )
        )
    rows += _foreseen(base, solved, stopped, choose, repeats, few)
    found = pd.DataFrame(rows, columns=["way", "rate", "seconds", "accuracy"])
    return write("allocation", found.groupby(["way", "rate"], sort=False, as_index=False).mean().round(5))


def _crossed(a: np.ndarray, t: np.ndarray, choose: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Rate, mean seconds, mean accuracy: the column that is best on one half of the problems, paid on the other."""
    for rate in PRICES:
        spent, right = np.empty(len(a)), np.empty(len(a))
        for half in (choose, ~choose):
            j = (a - rate * t)[half].mean(0).argmax()
            spent[~half], right[~half] = t[~half, j], a[~half, j]
        yield rate, spent.mean(), right.mean()


def _escalations(solved: pd.DataFrame, stopped: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Up to N1 answers of one setting, and where none is right up to N2 of another (or of none): accuracy and seconds."""
    a, t = solved.to_numpy(), stopped.to_numpy()
    pairs = [
        (i, j) for i, first in enumerate(solved) for j, then in enumerate(solved) if first[:2] != then[:2]
    ]
    i, j = np.array(pairs).T
    both = 1 - (1 - a[:, i]) * (1 - a[:, j]), t[:, i] + (1 - a[:, i]) * t[:, j]
    return np.hstack([0 * a[:, :1], a, both[0]]), np.hstack([0 * t[:, :1], t, both[1]])


def _foreseen(
    base: pd.DataFrame, solved: pd.DataFrame, stopped: pd.DataFrame, choose: np.ndarray, repeats: int, few: int
) -> Iterator[tuple[str, float, float, float]]:  # fmt: skip
    """A few cheap answers first. Where none is right, the law (from that) or their length says what to do next, or to give up."""
    known = features(list(base[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None)))
    _, y, n = counts(base, known.names)
    cheap = known.names.index(CHEAP)
    length = log_lengths(base, known.names)[0][:, cheap]
    later = [k for k, column in enumerate(solved) if column[:2] != CHEAP]
    setting = [known.names.index(solved.columns[k][:2]) for k in later]
    trials = np.array([solved.columns[k][2] for k in later])
    a, t = solved.to_numpy()[:, later], stopped.to_numpy()[:, later]
    second = stopped[(*CHEAP, 1)].to_numpy()
    told = {
        "a few cheap answers, then by the law": np.zeros(a.shape),
        "a few cheap answers, then by length": np.zeros(a.shape),
    }
    for half in (choose, ~choose):
        law = fit_law(known, y[half], n[half])
        tried = np.zeros_like(n[~half])
        tried[:, cheap] = few
        wrong = law.draws(np.zeros_like(tried), tried, size=400)
        told["a few cheap answers, then by the law"][~half] = expected(wrong[:, :, setting], trials)
        unsolved = (1 - (y / n)[half, cheap]) ** few  # how likely the few are all wrong
        for k in range(a.shape[1]):
            line = np.polyfit(length[half], a[half, k], 1, w=np.sqrt(unsolved + 1e-3))
            told["a few cheap answers, then by length"][~half, k] = np.clip(
                np.polyval(line, length[~half]), 0, 1
            )
    means = np.where(choose[:, None], t[~choose].mean(0), t[choose].mean(0))
    for seed in range(repeats):
        right = np.random.default_rng(seed).hypergeometric(
            y[:, cheap].astype(int), (n - y)[:, cheap].astype(int), few
        )
        first = (
            np.where(right > 0, (few + 1) / (right + 1), few) * second
        )  # mean place of the first right of few
        for way, guess in told.items():
            for rate in PRICES:
                value = guess - rate * means
                j = value.argmax(1)
                go = (right == 0) & (value.max(1) > 0)
                at = np.arange(len(a)), j
                yield (
                    way,
                    rate,
                    (first + np.where(go, t[at], 0)).mean(),
                    np.where(right > 0, 1, np.where(go, a[at], 0)).mean(),
                )


DATE = "2026-11-30"  # when the predictions were made
ANCHORS = {
    "aime25": ["0.6b", "1.7b", "4b", "8b", "14b", "32b"],
    "livecodebench": ["1.7b", "4b", "8b", "14b", "32b"],
}
LEVELS = (0.4, 0.5, 0.6)  # accuracies to reach


def mixed(z: np.ndarray, dense: np.ndarray, weight: np.ndarray, published: np.ndarray) -> np.ndarray:
    """Weights of the problems, tilted by ease and its square until dense models solve the published shares (least squares)."""

    def tilt(x: np.ndarray) -> np.ndarray:
        logs = x[0] * z + x[1] * z**2
        made = weight * np.exp(logs - logs.max())
        return made / made.sum()

    def loss(x: np.ndarray) -> float:
        return float(((tilt(x) @ dense - published) ** 2).sum() + 1e-3 * (x**2).sum())

    return tilt(minimize(loss, np.zeros(2), method="Nelder-Mead").x)


def frozen(n_boot: int = 400) -> Path:
    """Another benchmark is taken for the same kinds of problems in another mix, so that dense models solve what was published.

    Each resample of the problems takes one draw of the settings never run, and mixes anew. AIME 2025 has thirty problems, a sample
    itself: its resamples are drawn anew from resamples. LiveCodeBench has hundreds.
    """
    device = find_hardware("b200", "bf16")
    base = read_table("aime24_qwen3_best_of_n")
    drawn = read_table("aime24_never_run")
    claims, rows = load_claims(), []
    every = [
        {name: table.pivot(index="problem", columns=["model", "policy"], values=name) for name in OUTCOMES}
        for _, own in drawn.groupby("draw")
        for table in [outcomes(pd.concat([base, own.drop(columns="draw")]), device, dense_layers=1)]
    ]
    names, problems = every[0]["Pass@1"].columns, every[0]["Pass@1"].index
    logit = (base.n_correct + 0.5) / (base.n_traces - base.n_correct + 0.5)
    ease = (
        base.assign(z=np.log(logit))
        .query("policy == 'dense'")
        .pivot(index="problem", columns="model", values="z")
    )
    z = ease.loc[problems].mean(axis=1).to_numpy()
    z = (z - z.mean()) / z.std()
    weights = np.vstack([np.full(len(z), 1 / len(z)), problem_weights(len(z), n_boot, 0)])
    rng = np.random.default_rng(1)
    for task, models in ANCHORS.items():
        if task == "aime25":
            twice = np.vstack([weights[:1], rng.multinomial(len(z), weights[1:]) / len(z)])
        published = np.array([claims[f"ref-{task}-{m}"].published / 100 for m in models])
        anchors = [(f"qwen3-{m}", "dense") for m in models]
        found: dict[str, list[np.ndarray]] = {}
        for b, weight in enumerate(twice if task == "aime25" else weights):
            tables = (
                every[b % N_DRAWS] if b else {k: sum(one[k] for one in every) / N_DRAWS for k in every[0]}
            )
            mix = mixed(z, tables["Pass@1"][anchors].to_numpy(), weight, published)
            for name, table in tables.items():
                found.setdefault(name, []).append(mix @ table.to_numpy())
        arrays = {name: np.array(values) for name, values in found.items()}
        for name, values in arrays.items():
            low, high = interval(values[1:], len(z))
            for k, (model, policy) in enumerate(names):
                given = name == "Pass@1" and (model, policy) in anchors
                kind = "fitted to what was published" if given else "predicted"
                never = (model, policy) in set(zip(drawn.model, drawn.policy, strict=True))
                rows.append(
                    (DATE, task, name, model, policy, never, values[0, k], low[k], high[k], np.nan, kind)
                )
        rows += _cheapest(task, names, arrays)
    columns = [
        "date",
        "task",
        "quantity",
        "model",
        "policy",
        "never_run",
        "value",
        "low",
        "high",
        "share",
        "kind",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return write("frozen", table.assign(**{c: table[c].round(4) for c in ("value", "low", "high", "share")}))


def _cheapest(task: str, names: pd.Index, found: dict[str, np.ndarray]) -> Iterator[tuple[object, ...]]:
    """Of the settings that engines can run, the cheapest to reach a level by stopping at the first right answer of 8."""
    real = np.array([not policy.startswith("topk") for _, policy in names])
    for level in LEVELS:
        cost = np.where(real & (found["Pass@8"] >= level), found["seconds until right, at most 8"], np.inf)
        best = cost.argmin(1)
        low, high = interval(cost.min(1)[1:], 30)
        model, policy = names[best[0]]
        what = f"cheapest to solve {level:.0%} by stopping"
        yield (
            DATE,
            task,
            what,
            model,
            policy,
            None,
            cost[0].min(),
            low,
            high,
            (best[1:] == best[0]).mean(),
            "predicted",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = {"split": split, "score": score, "never_run": never_run, "allocate": allocate, "frozen": frozen}
    parser.add_argument("what", choices=list(jobs))
    print(jobs[parser.parse_args().what]())


if __name__ == "__main__":
    main()
