"""Reasoning traces: the trace table, its summary (counts and moments, at any length cap), and pass@k.

A *trace table* has one row per sampled answer. ``COLUMNS`` names its columns: ``policy`` is text that
``policies.parse_policy`` reads, ``truncated`` says that the generation limit cut the answer. It may have a column
``answer`` as well: the final answer as text (``normal_answer``), "" where there is none; equal texts are equal answers,
which is what voting counts. ``check_traces`` is the one check of such a table; ``read_traces`` gives a checked one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import check_name, require
from kinetics_lab.files import write_table

GROUP = ["model", "task", "policy", "problem"]  # traces that agree in these are exchangeable
COLUMNS = ["model", "task", "problem", "trial", "policy", "tokens_in", "tokens_out", "correct", "truncated"]

Complaints = Iterator[tuple[int, str]]  # a row's label in the index, and what is wrong with it


def whole(name: str, value: ArrayLike, least: int) -> np.ndarray:
    """``value`` as int64, refused unless every number is whole and at least ``least``."""
    given = np.asarray(value)
    rule = f"{name} must be a whole number >= {least}"
    require(given.dtype.kind in "iuf", rule, value)
    require(np.all((given == np.floor(given)) & (given >= least) & (given < 2**53)), rule, given)
    return given.astype(np.int64)


def counted(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three counts of pass@k, checked and broadcast against each other."""
    names = ("n (traces)", "c (correct traces)", "k (trials)")
    n, c, k = np.broadcast_arrays(*map(whole, names, (n, c, k), (1, 0, 1)))
    for value, what in ((c, names[1]), (k, names[2])):
        if (over := value > n).any():
            raise ValueError(f"{what} must not exceed n={n[over][0]} (traces); got {value[over][0]}")
    return n, c, k


def _log_all_wrong(n: np.ndarray, c: np.ndarray, k: np.ndarray) -> np.ndarray:
    """log of C(n - c, k) / C(n, k): the log-probability that k traces out of n, c of them right, are all wrong.

    The ratio is symmetric in c and k, a product of min(c, k) factors 1 - max(c, k) / (n - i). Summing their
    logs keeps full relative precision where little is right; a difference of log-gammas (each about 1e6 at
    n = 1e5) would lose six digits.
    """
    shape = n.shape
    n, c, k = n.ravel(), c.ravel(), k.ravel()
    few, many = np.minimum(c, k), np.maximum(c, k)
    possible = c + k <= n
    few = np.where(possible, few, 0)
    total = np.zeros(n.size)
    step = max(1, min(int(few.max(initial=0)), 2**20 // max(n.size, 1)))
    for start in range(0, int(few.max(initial=0)), step):
        i = np.arange(start, start + step)[:, None]
        live = i < few  # (step, size)
        total += np.log1p(-np.where(live, many / np.maximum(n - i, 1), 0)).sum(axis=0)
    return np.where(possible, total, -np.inf).reshape(shape)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Any:
    """Unbiased estimate of the probability that at least one of k trials is right (Section 3 of the paper).

    n: traces sampled, c: right ones among them, k: trials a user draws; arrays broadcast. Returns
    1 - C(n - c, k) / C(n, k), a float or a float64 array. Up to n = 1e5 the relative error of pass@k is below
    1e-13 and that of 1 - pass@k below 1e-11 (or 1e-15 absolute, all that a float near 1 can hold). Work grows
    with min(c, k).

    Raises ValueError where a count is negative or not whole, k is 0, or c or k exceeds n.
    """
    n, c, k = counted(n, c, k)
    # A single factor is the plain share, free of rounding: pass@1 is c / n to the last digit.
    found = np.where(np.minimum(c, k) == 1, np.maximum(c, k) / n, -np.expm1(_log_all_wrong(n, c, k)))
    return float(found) if found.ndim == 0 else found


def _variance(n: int, k: int, p: np.ndarray) -> np.ndarray:
    """Exact sampling variance of pass@k from n traces, each right with probability p (one value per p).

    Let R be the share of k-subsets that are all wrong. R^2 averages over PAIRS of k-subsets; a pair that
    shares j traces is all wrong with probability q^(2k - j), and j is hypergeometric:
    Var = E[q^(2k - j)] - q^(2k), with q = 1 - p.
    """
    from scipy.stats import hypergeom

    j = np.arange(max(0, 2 * k - n), k + 1)  # traces that a pair of k-subsets shares
    log_q = np.log1p(-p)[:, None]
    # q^(2k-j) - q^(2k), written so that nothing cancels
    return (np.exp((2 * k - j) * log_q) * -np.expm1(j * log_q)) @ hypergeom.pmf(j, n, k, k)


def pass_at_k_std(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Any:
    """Standard error of ``pass_at_k`` for ONE problem: how far it would scatter over new sets of n traces.

    Arguments, shapes and errors as for ``pass_at_k``. The exact standard deviation over binomial counts, at the
    success rate (c + 1/2) / (n + 1), the posterior mean under Jeffreys' prior; c / n would claim certainty where
    none or all traces are right. In the root mean square over repeated experiments with 32 traces it is nowhere
    more than 16 % too small, at any rate and k (c / n: up to 50 %), and too large where the error is tiny. For a
    mean over fixed problems take the root of the sum of squares over their number; scatter BETWEEN problems is
    not in it (bootstrap over problems for that).
    """
    n, c, k = counted(n, c, k)
    found = np.empty(n.shape)
    for traces, trials in np.unique(np.stack([n.ravel(), k.ravel()]), axis=1).T.tolist():
        here = (n == traces) & (k == trials)
        rates, index = np.unique(c[here], return_inverse=True)
        found[here] = np.sqrt(_variance(traces, trials, (rates + 0.5) / (traces + 1)))[index.ravel()]
    return float(found) if found.ndim == 0 else found


def _row(table: pd.DataFrame, label: int) -> str:
    row = table.loc[label]
    return f"row {label} (model {row['model']}, problem {row['problem']}, trial {row['trial']})"


def _texts(table: pd.DataFrame, name: str) -> pd.Categorical:
    """A text column as a Categorical without unused categories; policies in their one spelling."""
    column = table[name].astype(str) if name == "problem" and table[name].dtype.kind in "iu" else table[name]
    made = pd.Categorical(column).remove_unused_categories()
    if (empty := made.codes < 0).any():
        raise ValueError(f"trace table: {name} is empty in row {empty.argmax()}")
    for value in made.categories:
        require(isinstance(value, str) and value.strip() != "", f"trace table: {name} must be text", value)
        if name != "problem":
            check_name(value, f"trace table: {name}")
    if name == "policy":  # topk:512:true is topk:512
        made = pd.Categorical([str(parse_policy(value)) for value in made.categories]).take(made.codes)
    return made


def _numbers(table: pd.DataFrame, name: str, least: int, most: int) -> np.ndarray:
    """A column as int32 or bool, refused unless whole numbers from ``least`` to ``most``."""
    rule = "true or false (1 or 0)" if most == 1 else f"a whole number from {least} to {most}"
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float, na_value=np.nan)
    bad = ~((values == np.floor(values)) & (values >= least) & (values <= most))
    if bad.any():
        got = table[name].tolist()[first := int(bad.argmax())]
        raise ValueError(f"trace table: {name} must be {rule}; got {got!r} in {_row(table, first)}")
    return values.astype(bool if most == 1 else np.int32)


def normal_answer(value: Any) -> str:
    """A final answer in one spelling: no blanks, dollar signs or box around it, plain numbers as Python writes them."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    text = " ".join(str(value).split()).strip("$. ")
    if boxed := re.fullmatch(r"\\boxed\{([^{}]*)\}", text):
        text = boxed[1].strip("$. ")
    if re.fullmatch(r"[+-]?\d{1,15}(\.\d*)?|[+-]?\d{1,3}(,\d{3}){1,4}", text):
        number = float(text.replace(",", ""))
        return str(int(number)) if number.is_integer() else str(number)
    return text


def check_traces(table: pd.DataFrame) -> pd.DataFrame:
    """The trace table in its own form, or one ValueError naming column, row, value and what would be right.

    Returns a new DataFrame: columns in the order of ``COLUMNS``, then ``answer`` where there is one; text columns as
    category, ``trial``, ``tokens_in``, ``tokens_out`` as int32, ``correct`` and ``truncated`` as bool. Raises for missing columns, an empty table, numbers
    out of range, a (model, task, policy, problem, trial) that occurs twice, and prompts of different length within one
    problem.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"trace table: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    if not len(table):
        raise ValueError("trace table: no rows; at least one trace is needed")
    table = table.reset_index(drop=True)  # rows are named by their place
    made: dict[str, Any] = {name: _texts(table, name) for name in GROUP}
    for name, least in (("trial", 0), ("tokens_in", 1), ("tokens_out", 0)):
        made[name] = _numbers(table, name, least, 2**31 - 1)
    made |= {name: _numbers(table, name, 0, 1) for name in ("correct", "truncated")}
    if "answer" in table:
        codes, texts = pd.factorize(table["answer"].astype(object), use_na_sentinel=False)
        plain = np.array([normal_answer(text) for text in texts], object)
        made["answer"] = pd.Series(plain[codes], dtype="category")
    result = pd.DataFrame({name: made[name] for name in [*COLUMNS, "answer"] if name in made})
    for row, what in chain(repeats(result, partial(_row, result)), uneven_prompts(result)):
        raise ValueError(f"trace table: {_row(result, row)}: {what}")
    return result


def uneven_prompts(table: pd.DataFrame) -> Complaints:
    """Rows whose prompt has not the length of the problem's first one."""
    problems = table.groupby(["model", "task", "problem"], observed=True, sort=False)
    first = problems["tokens_in"].transform("first")
    for row in table.index[table["tokens_in"] != first]:
        problem, got = table.loc[row, ["problem", "tokens_in"]]
        rule = f"tokens_in must be the same in all traces of problem {problem}"
        yield row, f"{rule}, {first[row]} so far; got {got}"


def repeated(marks: np.ndarray) -> int:
    """How many marks, other than 0, an earlier row has, too."""
    marks = np.sort(marks)
    return int(((marks[1:] == marks[:-1]) & (marks[1:] != 0)).sum())


def again(keys: pd.DataFrame, what: str, where: Callable[[int], str]) -> Complaints:
    """Rows whose keys an earlier row has, too."""
    for row in keys.index[keys.duplicated()]:
        yield row, f"{what} as {where((keys == keys.loc[row]).all(axis=1).idxmax())}"


def repeats(table: pd.DataFrame, where: Callable[[int], str]) -> Complaints:
    """Rows whose trial was there before."""
    return again(table[[*GROUP, "trial"]], "the same trial of the same problem", where)


def summarize(traces: pd.DataFrame, caps: Iterable[int] | None = None) -> pd.DataFrame:
    """Counts and moments of a trace table: one row per (model, task, policy, problem[, cap]).

    Columns ``model, task, policy, problem, [cap,] tokens_in, n_traces, n_correct, mean_tokens,
    mean_sq_tokens``: E[L] (tokens) and E[L^2] (tokens squared) over the traces, what Eq. 10 puts into the cost. A trace
    that was truncated counts as right where it is marked so.

    caps: Long-CoT length caps in tokens. At cap n a trace costs min(tokens_out, n) tokens and is right if it
    was right and ended within n; it did not know its cap, and a model that did might have answered earlier.

    Raises ValueError for what ``check_traces`` refuses, caps that are not positive or repeat, and a cap beyond
    the generation limit: a trace truncated at fewer than n tokens would have gone on, so that its length and
    verdict at n are unknown (E[L] would come out too small).
    """
    return summary_of(check_traces(traces), caps)


def summary_of(table: pd.DataFrame, caps: Iterable[int] | None = None) -> pd.DataFrame:
    """``summarize`` for rows of a table that has been checked already; they are not checked again."""
    groups = table.groupby(GROUP, observed=True, sort=True)
    rows = groups["tokens_in"].first().reset_index().astype(dict.fromkeys(GROUP, str) | {"tokens_in": int})
    group = groups.ngroup().to_numpy()
    n_traces = np.bincount(group)

    def summary(tokens: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
        mean, mean_sq = (np.bincount(group, tokens.astype(float) ** power) / n_traces for power in (1, 2))
        right = np.bincount(group, correct).astype(np.int64)
        return rows.assign(n_traces=n_traces, n_correct=right, mean_tokens=mean, mean_sq_tokens=mean_sq)

    tokens, correct, truncated = (table[name].to_numpy() for name in ("tokens_out", "correct", "truncated"))
    if caps is None:
        return summary(tokens, correct)
    wanted = whole("caps (tokens)", list(caps), 1)
    each_once = 0 < np.unique(wanted).size == wanted.size
    require(each_once, "caps must be different numbers", wanted)
    if (unknown := truncated & (tokens < wanted.max())).any():
        raise ValueError(
            f"cap {wanted.max()} is beyond the generation limit: {unknown.sum()} of the traces were truncated earlier, "
            f"{_row(table, table.index[unknown][0])} at {tokens[unknown][0]} tokens; caps up to {tokens[truncated].min()} are known"
        )
    frames = []
    for cap in np.sort(wanted).tolist():
        made = summary(np.minimum(tokens, cap), correct & (tokens <= cap))
        made.insert(len(GROUP), "cap", cap)
        frames.append(made)
    return pd.concat(frames).sort_values([*GROUP, "cap"], kind="stable", ignore_index=True)


def write_traces(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Check the trace table and write it as Parquet, whole or not at all; returns the path."""
    return write_table(Path(path), check_traces(table))
