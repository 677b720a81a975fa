"""Counts beside the traces that they were counted from, and what is assumed where columns are missing."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.planner.offers import load
from kinetics_lab.planner.plan import plan
from kinetics_lab.traces.table import GROUP, check_traces, normal_answer, summarize, write_traces


def traces(lengths, seed=0):
    """A trace table of two models with these lengths (tokens), problem by problem. Synthetic."""
    rng, rows = np.random.default_rng(seed), []
    for model in ("qwen3-0.6b", "qwen3-8b"):
        for place, tokens in enumerate(lengths):
            for trial, length in enumerate(tokens):
                row = {
                    "model": model,
                    "task": "sums",
                    "problem": f"{place:03}",
                    "trial": trial,
                    "policy": "dense",
                }
                rows.append(
                    row | {"tokens_in": 20 + place, "tokens_out": length, "correct": rng.random() < 0.4}
                )
    return check_traces(pd.DataFrame(rows).assign(truncated=False))


def counted(table):
    """The table's counts by a loop, under the names that people use."""
    rows = []
    for (model, task, policy, problem), group in table.groupby(GROUP, observed=True):
        tokens = group.tokens_out.to_numpy(float)
        row = {
            "problem": problem,
            "n": len(group),
            "correct": int(group.correct.sum()),
            "mean tokens": tokens.mean(),
        }
        row |= {"mean square": (tokens**2).mean(), "tokens_in": int(group.tokens_in.iloc[0])}
        rows.append(row | {"model": model, "task": task, "policy": policy})
    return pd.DataFrame(rows)


def write(table, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=path.suffix == ".jsonl", double_precision=15)
    return path


@pytest.mark.parametrize("seed", range(3))
def test_a_count_file_and_its_traces_give_the_same_plan(tmp_path, seed):
    dice = np.random.default_rng(seed)
    lengths = dice.integers(1, 30_001, (dice.integers(2, 5), dice.integers(4, 7))).tolist()
    table = traces(lengths, seed)
    write_traces(table, tmp_path / "traces.parquet")
    found, *others = [
        load(write(counted(table), tmp_path / f"counts.{kind}")) for kind in ("csv", "parquet", "jsonl")
    ]
    for other in others:
        pd.testing.assert_frame_equal(found, other)
    options = {"trials": [1, 2, 4], "n_boot": 50, "n_splits": 3}
    want = plan(load(tmp_path / "traces.parquet"), HARDWARE["h200"], [0.5, 5], **options)
    made = plan(found, HARDWARE["h200"], [0.5, 5], **options)
    # How a choice does on other trials: traces are halved by their trials, counts by chance, those of a file like any others.
    columns = [name for name in want if name not in ("seen", "unseen", "spent_s", "context")]
    assert (
        made.context.fillna(0) >= want.context.fillna(0)
    ).all()  # of counts a bound is known, by Samuelson's inequality
    pd.testing.assert_frame_equal(made[columns], want[columns])
    pd.testing.assert_frame_equal(made, plan(summarize(table), HARDWARE["h200"], [0.5, 5], **options))


def test_what_counts_do_not_say_is_assumed_and_said(tmp_path):
    path = tmp_path / "qwen3-8b.csv"
    pd.DataFrame({"Problem": ["007", "b"], "n": [8, 4], "Correct": [3, 0], "Mean tokens": [100.5, 7]}).to_csv(
        path, index=False
    )
    with pytest.warns(
        UserWarning, match=re.escape(f"{path}: counts without all columns: assumed model 'qwen3-8b'; ")
    ) as told:
        found = load(path)
    for part in (
        "task 'qwen3-8b'",
        "policy 'dense'",
        "prompts of no tokens",
        "answers of one length",
        "E[L^2]",
    ):
        assert part in str(told[-1].message)
    assert found.to_dict("records") == [
        {"model": "qwen3-8b", "task": "qwen3-8b", "policy": "dense", "problem": "007", "tokens_in": 0, "n_traces": 8,
         "n_correct": 3, "mean_tokens": 100.5, "mean_sq_tokens": 100.5**2},
        {"model": "qwen3-8b", "task": "qwen3-8b", "policy": "dense", "problem": "b", "tokens_in": 0, "n_traces": 4,
         "n_correct": 0, "mean_tokens": 7.0, "mean_sq_tokens": 49.0},
    ]  # fmt: skip


def test_the_assumed_square_is_the_least_there_can_be(tmp_path):
    table = traces([[10, 4000, 9000, 20], [5, 5, 5, 5]])
    path = write(counted(table).drop(columns="mean square"), tmp_path / "counts.csv")
    with pytest.warns(UserWarning, match="answers of one length"):
        found = load(path)
    exact = summarize(table).set_index(["model", "problem"]).mean_sq_tokens
    assumed = found.set_index(["model", "problem"]).mean_sq_tokens.reindex(exact.index)
    assert (assumed <= exact * (1 + 1e-12)).all()
    assert (assumed[:, "000"] < 0.6 * exact[:, "000"]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"correct": 9}, "summary: n_correct must be at most n_traces; got 9 in row 0 (model m"),
        ({"n": 2.5}, "summary: n_traces must be a whole number >= 1; got 2.5 in row 0"),
        ({"mean tokens": "many"}, "summary: mean_tokens must be a number >= 0; got 'many' in row 0"),
        ({"n_traces": 8}, "each column of the counts must be there once; got ['n_traces']"),
    ],
)
def test_counts_that_cannot_be(tmp_path, values, message):
    row = {"model": "m", "task": "t", "policy": "dense", "problem": "p", "tokens_in": 5, "n": 8, "correct": 3}
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(row | {"mean tokens": 10, "mean square": 200} | values))
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(load(path), HARDWARE["h200"], [1])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("070", "70"), (70.0, "70"), ("1,234", "1234"), (" $70$. ", "70"), (r"\boxed{70}", "70"), ("-3.50", "-3.5"),
        ("1,2", "1,2"), ("x  +\n1", "x + 1"), (None, ""), (float("nan"), ""), ("B", "B"), (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)  # fmt: skip
def test_one_answer_has_one_spelling(given, wanted):
    assert normal_answer(given) == wanted == normal_answer(wanted)


def test_a_trace_table_may_carry_answers(tmp_path):
    table = traces([[1, 2, 3, 4]])
    with_answers = check_traces(table.assign(answer=["7", "07", "", None, "7", "8", "x", "x"]))
    assert list(with_answers)[-1] == "answer"
    assert with_answers.answer.tolist() == ["7", "7", "", "", "7", "8", "x", "x"]
    assert "answer" not in check_traces(table)
    kept = pd.read_parquet(write_traces(with_answers, tmp_path / "t.parquet"))
    assert kept.answer.tolist() == with_answers.answer.tolist()
    pd.testing.assert_frame_equal(summarize(with_answers), summarize(table))
