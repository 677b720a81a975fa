"""What the law of difficulty says of settings and benchmarks that nobody has run here.

python benchmarks/unseen.py never_run  # what settings that nobody ran could have shown, drawn forty times
python benchmarks/unseen.py frozen     # what is predicted for two benchmarks whose traces are not at hand
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from difficulty import log_lengths, write
from scipy.optimize import minimize

from kinetics_lab import find_hardware, read_table
from kinetics_lab.book.claims import load_claims
from kinetics_lab.data import data_dir
from kinetics_lab.errors import require
from kinetics_lab.files import write_table
from kinetics_lab.laws.difficulty import (
    OUTCOMES,
    Law,
    Setting,
    counts,
    features,
    fit_law,
    outcomes,
)
from kinetics_lab.laws.resample import interval, problem_weights

BUDGETS = ("topk:128", "topk:256", "topk:512", "topk:1024", "block_topk:128:128", "block_topk:256:64", "block_topk:512:32", "block_topk:1024:16")  # fmt: skip
N_DRAWS = 40


def impute(
    summary: pd.DataFrame, wanted: Sequence[Setting], laws: Sequence[Law], seed: int = 0, n_traces: int = 32, limit: float = 30767
) -> pd.DataFrame:  # fmt: skip
    """Rows of a summary for settings that were never run, drawn from the laws of answers, of lengths and of squares.

    One draw of what ``n_traces`` traces could have shown, marked in a column ``predicted``: take many seeds, and what they
    differ by is what is not known. No length is over ``limit`` tokens.
    """
    problems, names = sorted(summary.problem.unique()), laws[0].features.names
    prompts = summary.groupby("problem").tokens_in.first()[problems].to_numpy()
    chance, mean, square = (law.draws(size=1, seed=seed + k)[0] for k, law in enumerate(laws))
    mean = np.minimum(np.exp(mean), limit)
    square = np.clip(np.exp(square), mean**2, limit * mean)
    right = np.random.default_rng(seed).binomial(n_traces, chance)
    parts = []
    for model, policy in wanted:
        require((model, policy) in names, "the laws must know the setting", (model, policy))
        s = names.index((model, policy))
        columns = {"model": model, "task": summary.task.iloc[0], "policy": policy, "problem": problems}
        drawn = {"n_correct": right[:, s], "mean_tokens": mean[:, s], "mean_sq_tokens": square[:, s]}
        parts.append(pd.DataFrame(columns | {"tokens_in": prompts, "n_traces": n_traces} | drawn))
    return pd.concat(parts, ignore_index=True).assign(predicted=True)


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
    jobs = {"never_run": never_run, "frozen": frozen}
    parser.add_argument("what", choices=list(jobs))
    print(jobs[parser.parse_args().what]())


if __name__ == "__main__":
    main()
