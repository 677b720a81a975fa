"""What a plan chooses among: traces or their summary, model shapes, policies as a user can run them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.models import MODELS, find_model
from kinetics_lab.cost.policies import POLICIES, TopK, parse_policy
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.data import read_table
from kinetics_lab.errors import check_name, lookup, require, unknown
from kinetics_lab.laws.frontier import SETTING, SUMMARY
from kinetics_lab.traces.counts import read_counts
from kinetics_lab.traces.read import read_traces
from kinetics_lab.traces.table import check_traces, summary_of

EMBEDDED = "aime24_qwen3_best_of_n"
#: What can be planned from without traces of one's own: table, task, layers that stay dense, and whose shape prices which model.
PUBLIC: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "aime24": (EMBEDDED, "aime24", 1, {}),  # the engine behind it keeps the first layer dense unless told otherwise
    "otis": ("epoch_runs", "otis_mock_aime_2024_2025", 0, {
        "deepseek-reasoner": "deepseek-v3.2", "gpt-oss-120b": "gpt-oss-120b", "kimi-k2-thinking-turbo": "kimi-k2-thinking",
        "kimi-k2p5": "kimi-k2.5", "kimi-k2.6": "kimi-k2.5", "qwen3-235b-a22b-thinking-2507": "qwen3-235b-a22b",
    }),
    "ladder": ("ladder_traces", "walk", 1, {}),
}  # fmt: skip
TOPK = {
    "scan": "oracle top-k scores every key and pays for it",
    "free": "oracle top-k finds its tokens for nothing, as in the paper",
    "out": "oracle top-k left out",
}


def load(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None) -> pd.DataFrame:
    """Traces in any format that ``read_traces`` knows, or the summary or counts that one file holds (``read_counts``).

    Without files the embedded summary: Qwen3 on AIME24.
    """
    paths = [files] if isinstance(files, str | os.PathLike) else list(files or ())
    if not paths:
        return read_table(EMBEDDED)
    first = Path(paths[0])
    if len(paths) == 1 and first.is_file() and (found := read_counts(first)) is not None:
        return found
    return read_traces(paths)


def public(name: str, shapes: Mapping[str, ModelShape] = MODELS) -> tuple[pd.DataFrame, dict[str, ModelShape], int]:  # fmt: skip
    """The summary of a set of ``PUBLIC``, the shapes of its models (of those that ``shapes`` or the set name), and its dense layers."""
    table, task, dense, named = lookup(PUBLIC, name, "data")
    data = read_table(table)
    data = data[(data.task == task) & data.model.isin(list(named or shapes))]
    data = summary_of(check_traces(data)) if "trial" in data else data
    data = data.assign(policy=data.policy if "policy" in data else "dense", tokens_in=data.tokens_in.round())
    return data[[*SUMMARY]].reset_index(drop=True), {**shapes, **own_models(named)}, dense


def with_predicted(data: pd.DataFrame) -> pd.DataFrame:
    """The embedded summary, and settings that were never run, as the law of difficulty predicts them (chapter 39).

    A column ``drawn`` has the right answers of forty draws of what their traces could have shown; lengths are means over the draws.
    """
    known = {*read_table(EMBEDDED).model}
    alone = "trial" not in data and {*data.model} <= known and {*data.task} == {"aime24"}
    rule = "predicted settings are those of the embedded summary; the data are of"
    require(alone, rule, sorted({*data.task}))
    draws = read_table("aime24_never_run").groupby([*SUMMARY[:6]], sort=False)
    more = draws[["mean_tokens", "mean_sq_tokens"]].mean().round(3)
    more = more.assign(n_correct=draws.n_correct.median().astype(int), drawn=draws.n_correct.agg(tuple))
    return pd.concat([data, more.reset_index()], ignore_index=True)


def own_models(given: Mapping[str, str]) -> dict[str, ModelShape]:
    """MODELS and yours: a name in the traces -> a name in MODELS, or the path of a ``config.json``."""
    return MODELS | {name: find_model(source) for name, source in given.items()}


def name_models(given: Iterable[str], data: pd.DataFrame) -> dict[str, str]:
    """Texts NAME=SHAPE as NAME -> SHAPE; a ``config.json`` without NAME is for the one model nothing else tells of."""
    parts = [text.partition("=") for text in given]
    shapes = {name: shape for name, _, shape in parts if shape}
    for name, equals, shape in parts:
        if equals and name and shape:
            continue
        alone = not equals and name.endswith(".json")
        require(alone, "--model must read NAME=SHAPE, or be a config.json alone", name + equals + shape)
        open_ = sorted({*map(str, data.model.unique())} - {*MODELS, *shapes})
        rule = "--model must read NAME=SHAPE unless the traces hold exactly one model without a shape"
        held = f"{len(open_)} ({', '.join(open_)})" if open_ else "none"
        require(len(open_) == 1, f"{rule}; they hold {held}", name)
        shapes[open_[0]] = name
    return shapes


def checked(data: pd.DataFrame) -> pd.DataFrame:
    """A trace table (it has a column ``trial``) or a summary, or one ValueError that says what is wrong.

    A model and policy all of whose answers are empty is refused: at no tokens, it would cost nothing.
    """
    length = "tokens_out" if "trial" in data else "mean_tokens"
    data = check_traces(data) if "trial" in data else _summary(data)
    longest = data.groupby(["task", "model", "policy"], observed=True, sort=False)[length].max()
    for task, model, policy in longest.index[longest == 0]:
        raise ValueError(
            f"{length} must be above 0 somewhere for a model and policy, or it would cost nothing; "
            f"got 0 in every row of {model}, {policy} ({task})"
        )
    return data


def _summary(data: pd.DataFrame) -> pd.DataFrame:
    """A summary with its numbers as numbers; the first row that breaks a rule is named."""
    for column in SUMMARY:
        rule = f"data must be a trace table or a summary, and a summary has a column {column!r}"
        require(column in data, rule, [*data])
    caps, given = ["cap"] if "cap" in data else [], data
    keys = ["model", "task", "policy", "problem", *caps]
    numbers = ["tokens_in", "n_traces", "n_correct", "mean_tokens", "mean_sq_tokens", *caps]
    data = data.assign(**{name: pd.to_numeric(data[name], errors="coerce") for name in numbers})

    def refuse(column: str, right: pd.Series, rule: str) -> None:
        if not right.all():
            i = int(np.flatnonzero(~right)[0])
            where = ", ".join(f"{name} {given[name].iloc[i]}" for name in keys)
            got = f"{given[column].tolist()[i]!r} in row {data.index[i]} ({where})"
            raise ValueError(f"summary: {column} must be {rule}; got {got}")

    for column in keys[:4]:
        refuse(column, data[column].notna(), "given")
    for column in keys[:3]:
        for name in data[column].unique():
            check_name(name, f"summary: {column}")
    for column, least in (("tokens_in", 0), ("n_traces", 1), ("n_correct", 0)):
        refuse(column, (data[column] % 1 == 0) & (data[column] >= least), f"a whole number >= {least}")
    refuse("n_correct", data.n_correct <= data.n_traces, "at most n_traces")
    for column in ("mean_tokens", "mean_sq_tokens"):
        refuse(column, data[column].between(0, np.inf, inclusive="left"), "a number >= 0")
    square = data.mean_tokens**2 * (1 - 1e-9)  # equal but for rounding, for answers of one length
    refuse("mean_sq_tokens", data.mean_sq_tokens >= square, "at least mean_tokens squared (it is E[L^2])")
    for column in caps:
        refuse(column, given[column].isna() | (data[column] > 0), "a length > 0 or empty")
    refuse("problem", ~data.duplicated(keys), f"in one row for each ({', '.join(keys)})")
    return data


def offered(data: pd.DataFrame, topk: str) -> pd.DataFrame:
    """The data with oracle top-k as ``topk`` says (a key of ``TOPK``); "scan" renames topk:B to topk:B:false."""
    lookup(TOPK, topk, "topk")
    policies = {text: parse_policy(str(text)) for text in data.policy.unique()}
    oracles = {text: p for text, p in policies.items() if isinstance(p, TopK) and p.oracle}
    if topk == "scan":
        policies |= {text: replace(policy, oracle=False) for text, policy in oracles.items()}
    if topk == "out":
        data = data[~data.policy.isin(list(oracles))]
        require(len(data) > 0, "topk='out' must leave a policy; the data have only", [*oracles])
    names = {text: str(policy) for text, policy in policies.items()}
    both = len(set(names.values())) < len(names)
    require(not both, "topk='scan' needs traces of topk:B or of topk:B:false, not of both", [*names])
    return data.assign(policy=data.policy.map(names))


def wanted(known: Iterable[str], policies: Sequence[str]) -> set[str]:
    """Those of the known policies that are named by kind ("block_topk") or in full ("topk:512"); all for none."""
    choices, chosen = sorted(known), set[str]()
    for text in policies:
        name = str(parse_policy(text)) if ":" in text else text
        lookup(POLICIES, name.split(":")[0], "policy")
        found = {p for p in choices if name in (p, p.split(":")[0], p.removesuffix(":false"))}
        if not found:
            raise unknown("policies: among those of the data", text, choices)
        chosen |= found
    return chosen or set(choices)


def with_caps(data: pd.DataFrame, caps: Sequence[int]) -> pd.DataFrame:
    """The summary of a trace table, of whole answers and of answers cut at ``caps``; a summary as it is."""
    if "trial" in data:
        whole = summary_of(data)
        return pd.concat([whole, summary_of(data, caps)], ignore_index=True) if len(caps) else whole
    require(len(caps) == 0, "caps must be empty for a summary, which cannot be cut anew", list(caps))
    return data


def with_votes(summary: pd.DataFrame, traces: pd.DataFrame) -> pd.DataFrame:
    """A column ``votes`` beside the summary of traces that have an ``answer``; one that was cut, or is missing, is no vote.

    Raises ``ValueError`` where traces of a problem gave one answer and differ in whether it is right.
    """
    group = ["model", "task", "policy", "problem"]
    held = {tuple(map(str, key)): rows for key, rows in traces.groupby(group, observed=True)}
    found = list[tuple[tuple[int, bool | None], ...]]()
    for row in summary.to_dict("records"):
        rows = held[tuple(str(row[name]) for name in group)]
        whole = rows.tokens_out <= row.get("cap", np.nan) if row.get("cap", np.nan) > 0 else ~rows.truncated
        given = rows[whole & rows.answer.notna() & (rows.answer != "")]
        named = given.groupby("answer", observed=True).correct
        both = named.nunique()
        if (both > 1).any():
            told = f"answer {both.idxmax()!r} to problem {row['problem']}"
            raise ValueError(f"{told} must be right or wrong in all traces; got both")
        sizes = zip(named.size().tolist(), named.first().tolist(), strict=True)
        none = (len(rows) - int(named.size().sum()), None)
        found.append((*((int(n), bool(right)) for n, right in sizes), none))
    return summary.assign(votes=pd.Series(found, index=summary.index, dtype=object))


def who(table: pd.DataFrame) -> pd.Series:
    """Model and policy: what one deploys."""
    return table.model.astype(str) + ", " + table.policy.astype(str)


def never_run(data: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Task -> "kind with models" -> reason: kinds of attention that the task's traces have, but not for these models."""
    told, data = dict[str, dict[str, str]](), data[["task", "model", "policy"]].drop_duplicates()
    kinds = data.policy.astype(str).str.split(":").str[0]
    for task, rows in data.assign(kind=kinds).groupby("task", observed=True):
        for kind, tried in rows.groupby("kind").model:
            if lacks := [str(name) for name in rows.model.unique() if name not in set(tried)]:
                told.setdefault(str(task), {})[f"{kind} with {', '.join(lacks)}"] = "never run"
    return told


def comparable(
    rows: pd.DataFrame, priced: pd.DataFrame, names: set[str], trials: np.ndarray,
    refused: Mapping[tuple[Any, ...], str],
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:  # fmt: skip
    """The prices of settings that every problem of a task has: of the policies ``names``, and of dense attention.

    ``rows`` is the task's summary, ``priced`` its prices. With them what was left out and why: "model, policy" (a
    model alone for all its policies) -> reason, which is for some numbers of answers only if it begins with "N > ".
    """
    size = rows.problem.nunique()
    table = priced[priced.groupby([*SETTING], dropna=False).problem.transform("nunique") == size]
    why_not = {(*map(str, key[1:3]), np.nan_to_num(key[3])): why for key, why in refused.items()}
    left_out = _left_out(rows, trials, why_not)
    chosen, dense = (table[table.policy.isin(some)] for some in (names, {"dense"}))
    if chosen.empty:
        lacks = f"task {rows.task.iloc[0]!r}: no setting covers all {size} problems, as a comparison must"
        raise ValueError(f"{lacks}; {' | '.join(by_reason(left_out, most=3))}")
    return chosen, dense, left_out


def _left_out(
    rows: pd.DataFrame, trials: np.ndarray, refused: Mapping[tuple[str, str, float], str]
) -> dict[str, str]:
    """What of a task's summary cannot be chosen, or not for all ``trials``, and why."""
    problems, told = rows.problem.unique(), dict[str, str]()
    rows = rows.assign(cap=rows.cap.fillna(0) if "cap" in rows else 0)  # a cap of 0 stands for none
    cuts = rows.cap.nunique() > 1
    for name, own in rows.groupby("model", sort=False, observed=True):
        reasons = dict[str, str]()
        for key, part in own.groupby(["policy", "cap"], sort=False, observed=True):
            policy, cap = map(str, key)
            no = refused.get((str(name), policy, float(cap)), "")
            cut = (f", cap {float(cap):.0f}" if float(cap) else ", whole answers") if cuts else ""
            traces = part.set_index("problem").n_traces
            reasons[f"{name}, {policy}{cut}"] = why_not_all(traces, problems, no, trials)
        alike = len(reasons) > 1 and len({*reasons.values()}) == 1
        told |= {str(name): next(iter(reasons.values()))} if alike else reasons
    return {who_: why for who_, why in told.items() if why}


def why_not_all(n_traces: pd.Series, problems: np.ndarray, refused: str, trials: np.ndarray) -> str:
    """Why a setting with these traces, by problem, is not offered for all ``trials``; "" where it is."""

    def some(names: list[Any]) -> str:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return "each problem" if len(names) == len(problems) else f"problem {names[0]}{more}"

    if lacks := [name for name in problems if name not in n_traces.index]:
        return f"no traces of {some(lacks)}"
    fewest = int(n_traces.min())
    each = f"({fewest} of {some(list(n_traces.index[n_traces == fewest]))})"
    if fewest < trials[0]:
        return f"too few traces for N = {', '.join(map(str, trials))} {each}"
    return refused or (f"N > {fewest} takes more traces {each}" if fewest < trials[-1] else "")


def by_reason(left_out: Mapping[str, str], most: int | None = None) -> list[str]:
    """A line for each reason with the names it holds for, the first ``most`` of them where they are many."""
    reasons: dict[str, list[str]] = {}
    for who, why in left_out.items():
        reasons.setdefault(why, []).append(who)
    found = list[str]()
    for why, names in reasons.items():
        more = f" and {len(names) - most} more" if most and len(names) > most else ""
        found.append(f"{why}: {'; '.join(names[:most])}{more}")
    return found
