"""pass@k against exact arithmetic, its standard error against simulation, summaries against loops."""

import re
from fractions import Fraction
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.data import read_table
from kinetics_lab.traces.table import (
    COLUMNS,
    GROUP,
    _variance,
    check_traces,
    pass_at_k,
    pass_at_k_std,
    summarize,
    write_traces,
)


def exact_miss(n, c, k):
    return Fraction(comb(n - c, k), comb(n, k))


@st.composite
def counts(draw, most=60):
    n = draw(st.integers(1, most))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(counts())
def test_pass_at_k_is_the_exact_ratio(nck):
    assert pass_at_k(*nck) == pytest.approx(float(1 - exact_miss(*nck)), rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("c", "k"),
    [
        (1, 1),
        (1, 50_000),
        (3, 7),
        (7, 3),
        (700, 500),
        (20_000, 40),
        (60_000, 40_000),
        (99_000, 900),
        (99_999, 1),
    ],
)
def test_pass_at_k_keeps_its_digits_at_a_hundred_thousand_traces(c, k):
    n = 100_000
    miss = exact_miss(n, c, k)
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - miss), rel=1e-13, abs=0)
    if miss > 1e-12:  # below, 1 - pass@k itself has no digits left in a float
        assert 1 - pass_at_k(n, c, k) == pytest.approx(float(miss), rel=1e-11, abs=1e-15)


def test_pass_at_k_broadcasts_and_gives_a_float_for_one_problem():
    c = np.array([0, 1, 16, 32])
    found = pass_at_k(32, c[:, None], [1, 4, 32])
    assert found.shape == (4, 3)
    assert found.tolist() == [[pass_at_k(32, int(i), k) for k in (1, 4, 32)] for i in c]
    assert isinstance(pass_at_k(32, 5, 4), float)
    assert pass_at_k(pd.Series([4, 8]), 2.0, 1).tolist() == [0.5, 0.25]
    assert pass_at_k(np.array([], int), 0, 1).shape == (0,)
    many = pass_at_k(64, np.tile(np.arange(65), 17_000), 32)  # more elements than one block of factors
    assert many[:65].tolist() == many[-65:].tolist() == [pass_at_k(64, i, 32) for i in range(65)]


BAD_COUNTS = [
    ((4, 1, 5), "k (trials) must not exceed n=4 (traces); got 5"),
    ((4, 5, 1), "c (correct traces) must not exceed n=4 (traces); got 5"),
    (([8, 4], [1, 1], [8, 5]), "k (trials) must not exceed n=4"),
    ((4, -1, 1), "c (correct traces) must be a whole number >= 0; got -1"),
    ((0, 0, 1), "n (traces) must be a whole number >= 1; got 0"),
    ((4, 1, 0), "k (trials) must be a whole number >= 1; got 0"),
    ((4, 1.5, 1), "c (correct traces) must be a whole number >= 0; got 1.5"),
    ((float("nan"), 1, 1), "n (traces) must be a whole number >= 1; got nan"),
    (("32", 1, 1), "n (traces) must be a whole number >= 1; got '32'"),
]


@pytest.mark.parametrize("function", [pass_at_k, pass_at_k_std])
@pytest.mark.parametrize(("arguments", "message"), BAD_COUNTS, ids=str)
def test_counts_that_cannot_be(function, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(*arguments)


@pytest.mark.parametrize(("n", "k"), [(8, 1), (8, 8), (32, 8), (32, 20), (40, 3)])
def test_the_variance_behind_the_standard_error_is_exact(n, k):
    p = np.array([0.01, 0.2, 0.5, 0.97])
    c = np.arange(n + 1)
    weights = np.array([[comb(n, i) * q**i * (1 - q) ** (n - i) for i in c] for q in p])  # (p, c)
    values = pass_at_k(n, c, k)
    brute = weights @ values**2 - (weights @ values) ** 2
    np.testing.assert_allclose(_variance(n, k, p), brute, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize(("n", "k", "p"), [(32, 1, 0.3), (32, 4, 0.2), (32, 8, 0.05), (64, 16, 0.02)])
def test_the_standard_error_is_the_scatter_of_repeated_experiments(n, k, p):
    c = np.random.default_rng(1).binomial(n, p, 20_000)
    claimed = np.sqrt(np.mean(pass_at_k_std(n, c, k) ** 2))
    assert claimed == pytest.approx(np.std(pass_at_k(n, c, k)), rel=0.12)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16, 24, 32])
def test_the_standard_error_is_nowhere_far_too_small(k):
    p, c = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 0.97]), np.arange(33)
    weights = np.array([[comb(32, i) * q**i * (1 - q) ** (32 - i) for i in c] for q in p])  # (p, c)
    claimed = np.sqrt(weights @ pass_at_k_std(32, c, k) ** 2)
    assert (claimed >= 0.84 * np.sqrt(_variance(32, k, p))).all()


def test_no_right_trace_or_only_right_ones_do_not_make_it_certain():
    assert pass_at_k_std(32, [0, 32], 1) == pytest.approx(np.full(2, np.sqrt(0.5 * 32.5 / 33**2 / 32)))
    assert pass_at_k_std(32, 0, 32) > 0.4  # 0 of 32 right says little about the next 32
    assert isinstance(pass_at_k_std(32, 3, 4), float)


def table(**columns):
    """A trace table: one problem, three trials, or the columns given instead. Synthetic."""
    base = {
        "model": "tiny",
        "task": "sums",
        "problem": "p0",
        "trial": [0, 1, 2],
        "policy": "dense",
        "tokens_in": 20,
        "tokens_out": [100, 250, 400],
        "correct": [True, False, True],
        "truncated": False,
    }
    return pd.DataFrame(base | columns)


def test_a_summary_holds_counts_and_moments():
    (row,) = summarize(table()).to_dict("records")
    assert row == {
        "model": "tiny",
        "task": "sums",
        "policy": "dense",
        "problem": "p0",
        "tokens_in": 20,
        "n_traces": 3,
        "n_correct": 2,
        "mean_tokens": 250.0,
        "mean_sq_tokens": (100**2 + 250**2 + 400**2) / 3,
    }


def test_caps_cut_lengths_and_verdicts():
    found = summarize(table(), caps=[400, 100, 399])
    assert found["cap"].tolist() == [100, 399, 400]
    assert found["n_correct"].tolist() == [1, 1, 2]  # the trace of 400 tokens is whole at 400 only
    assert found["mean_tokens"].tolist() == [100, (100 + 250 + 399) / 3, 250]
    assert found["mean_sq_tokens"].tolist() == pytest.approx([1e4, (100**2 + 250**2 + 399**2) / 3, 77500])
    assert list(found) == [
        *GROUP,
        "cap",
        "tokens_in",
        "n_traces",
        "n_correct",
        "mean_tokens",
        "mean_sq_tokens",
    ]


def brute_force(traces, cap):
    found = {}
    for row in traces.to_dict("records"):
        key = tuple(row[name] for name in GROUP)
        length = row["tokens_out"] if cap is None else min(row["tokens_out"], cap)
        n, c, total, squares = found.get(key, (0, 0, 0, 0))
        right = row["correct"] and (cap is None or row["tokens_out"] <= cap)
        found[key] = (n + 1, c + right, total + length, squares + length**2)
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["dense", "topk:512", "topk:512:true"]),
            st.sampled_from(["p", "q", "r"]),
            st.integers(0, 50),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True),
)
def test_a_summary_is_what_a_loop_counts(rows, caps):
    traces = pd.DataFrame(rows, columns=["model", "policy", "problem", "tokens_out", "correct"])
    traces = traces.assign(task="t", trial=range(len(rows)), tokens_in=7, truncated=False)
    normal = traces.assign(policy=traces["policy"].str.removesuffix(":true"))  # one policy, two spellings
    for cap, found in [(None, summarize(traces)), *summarize(traces, caps).groupby("cap")]:
        assert len(found) == len(brute_force(normal, cap))
        for key, (n, c, total, squares) in brute_force(normal, cap).items():
            (row,) = found[(found[GROUP] == list(key)).all(axis=1)].to_dict("records")
            assert (row["n_traces"], row["n_correct"]) == (n, c)
            assert (row["mean_tokens"], row["mean_sq_tokens"]) == pytest.approx((total / n, squares / n))


def test_a_right_answer_at_the_limit_stays_right():
    """Truncated says that the length is not known; whether it was right is the grader's word."""
    cut = table(truncated=[False, True, True], correct=[False, True, True])
    assert summarize(cut)["n_correct"].tolist() == [2]
    assert summarize(cut, caps=[cut["tokens_out"].min()])["n_correct"].sum() <= 1


def test_beyond_the_generation_limit_nothing_is_known():
    cut = table(truncated=[False, True, False])
    assert summarize(cut)["mean_tokens"].tolist() == [250]
    assert summarize(cut, caps=[250])["mean_tokens"].tolist() == [200]
    message = (
        "cap 251 is beyond the generation limit: 1 of the traces were truncated earlier, row 1 "
        "(model tiny, problem p0, trial 1) at 250 tokens; caps up to 250 are known"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        summarize(cut, caps=[100, 251])


@pytest.mark.parametrize("caps", [[], [0], [100, 100], [10.5], ["all"]])
def test_caps_that_make_no_sense(caps):
    with pytest.raises(ValueError, match="caps"):
        summarize(table(), caps)


def test_a_checked_table_has_its_types_and_is_a_fixed_point():
    given_ = table(policy="topk:512:true", problem=7, correct=[1, 0, 1.0])[COLUMNS[::-1]]
    found = check_traces(given_)
    assert list(found) == COLUMNS
    assert [str(found[name].dtype) for name in COLUMNS] == [
        *["category"] * 3,
        "int32",
        "category",
        *["int32"] * 2,
        *["bool"] * 2,
    ]
    assert found["policy"].tolist() == ["topk:512"] * 3
    assert found["problem"].tolist() == ["7"] * 3
    pd.testing.assert_frame_equal(check_traces(found), found)
    few = check_traces(found.assign(model=pd.Categorical(["a"] * 3, ["a", "unused"])))
    assert few["model"].cat.categories.tolist() == ["a"]


BAD_TABLES = [
    (table().drop(columns=["tokens_in", "correct"]), "no column tokens_in, correct; it needs model, task"),
    (table()[:0], "no rows; at least one trace is needed"),
    (table(model=["tiny", None, "tiny"]), "model is empty in row 1"),
    (table(task=3), "task must be text; got 3"),
    (table(problem=" "), "problem must be text; got ' '"),
    (table(policy="topkk:3"), "policy 'topkk' is not known; did you mean topk"),
    (table(tokens_out=[1, -2, 3]), "tokens_out must be a whole number from 0 to 2147483647; got -2 in row 1"),
    (table(tokens_out=[1, 2.5, 3]), "tokens_out must be a whole number from 0 to 2147483647; got 2.5 in row 1"),
    (table(tokens_out=[1, 2**31, 3]), "got 2147483648 in row 1"),
    (table(tokens_in=0), "tokens_in must be a whole number from 1 to 2147483647; got 0 in row 0"),
    (table(tokens_in=["x", 1, 2]), "tokens_in must be a whole number from 1 to 2147483647; got 'x' in row 0"),
    (table(trial=[0, 1, np.nan]), "trial must be a whole number from 0"),
    (table(correct=[1, 100, 0]), "correct must be true or false (1 or 0); got 100 in row 1 (model tiny, problem p0"),
    (table(truncated=[0, 0.5, 0]), "truncated must be true or false (1 or 0); got 0.5 in row 1"),
    (table(trial=[0, 1, 1]), "trace table: row 2 (model tiny, problem p0, trial 1): the same trial of the same problem as row 1 (model"),
    (table(tokens_in=[20, 20, 21]), "row 2 (model tiny, problem p0, trial 2): tokens_in must be the same in all traces of problem p0, 20 so far; got 21"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), BAD_TABLES, ids=[message[:40] for _, message in BAD_TABLES])
def test_tables_that_are_refused(bad, message):
    for function in (check_traces, summarize):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(bad)


def test_traces_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "traces.parquet"
    assert write_traces(table(), path) == path
    back = pd.read_parquet(path)
    pd.testing.assert_frame_equal(summarize(back), summarize(table()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="correct must be"):
        write_traces(table(correct=[1, 100, 0]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_published_summary_has_the_form_of_ours():
    real = read_table("aime24_qwen3_best_of_n")
    assert list(real) == list(summarize(table()))
    accuracy = pass_at_k(real["n_traces"], real["n_correct"], 1)
    np.testing.assert_allclose(accuracy, real["n_correct"] / real["n_traces"])
