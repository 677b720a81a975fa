"""A law that predicts (`kinetics_lab.laws.difficulty`), chosen on one half of the problems and scored on the other.

    python benchmarks/difficulty.py split  # which problems choose the law's form, and which score it
    python benchmarks/difficulty.py score  # its scores beside simple baselines; about ten minutes

Everything that somebody decided by looking at scores was decided on the problems marked ``choose``; all scores
are on those marked ``score``. A score is the mean negative log-likelihood of held-out trials, in nats a trial.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaln, expit

from kinetics_lab import parse_policy, pass_at_k, read_table
from kinetics_lab.data import data_dir
from kinetics_lab.files import write_whole
from kinetics_lab.laws.difficulty import (
    Features,
    Law,
    Setting,
    counts,
    expected,
    features,
    fit_law,
    wide,
)

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


def log_lengths(
    summary: pd.DataFrame, names: Sequence[Setting], power: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Log of E[L^power] (power 1 or 2) and its precision, both [problem, setting]; precision 0 where not run.

    The variance of a mean of n is about power^2 times the squared coefficient of variation (taken as 0.01 at least) over n.
    """
    mean, square, n = (wide(summary, c, names) for c in ("mean_tokens", "mean_sq_tokens", "n_traces"))
    noise = power**2 * (square / mean**2 - 1).clip(lower=0.01)
    logs = np.log((mean if power == 1 else square).to_numpy())
    return np.nan_to_num(logs), (n / noise).fillna(0).to_numpy()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = {"split": split, "score": score}
    parser.add_argument("what", choices=list(jobs))
    print(jobs[parser.parse_args().what]())


if __name__ == "__main__":
    main()
