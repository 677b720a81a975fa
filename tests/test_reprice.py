"""length_at is the inverse of decode_cost, for every counting, policy and price."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.cost.request import decode_cost
from kinetics_lab.laws.reprice import cost_at, ladder, length_at, lengths, price

SHAPE, B200 = MODELS["qwen3-4b"], HARDWARE["b200-paper"]
DENSE = parse_policy("dense")


@pytest.mark.parametrize("counting", ["exact", "paper", "released"])
@pytest.mark.parametrize("policy", ["dense", "topk:512", "block_topk:512:32"])
@pytest.mark.parametrize(("hardware", "combine"), [(None, "add"), (B200, "add"), (B200, "max")])
@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-32b"])
def test_it_finds_the_length_that_was_priced(counting, policy, hardware, combine, model):
    shape, rule = MODELS[model], parse_policy(policy)
    n_out = np.array([1.0, 300, 2048, 16384, 32768])
    cost = decode_cost(shape, rule, 600, n_out, counting=counting)
    paid = cost.eflops(hardware, combine) if hardware else cost.flops
    found = length_at(shape, rule, paid, 600, hardware=hardware, combine=combine, counting=counting)
    # The released search rounds blocks down: its cost jumps, and the length is right to one block.
    jumps = 32 if (policy, counting) == ("block_topk:512:32", "released") else 0
    assert found == pytest.approx(n_out, rel=1e-8, abs=jumps)
    assert found.shape == n_out.shape


@given(
    flops=st.floats(1e9, 1e17),
    n_in=st.floats(0, 1e5),
    n_trials=st.integers(1, 64),
    params=st.floats(1e8, 1e12),
)
def test_pricing_the_length_gives_the_cost_back(flops, n_in, n_trials, params):
    options = {"n_trials": n_trials, "params": params, "counting": "released"}
    n_out = length_at(SHAPE, DENSE, flops, n_in, **options)
    assert decode_cost(SHAPE, DENSE, n_in, n_out, **options).flops == pytest.approx(flops, rel=1e-8)


def test_without_attention_the_length_is_cost_over_two_params():
    # One key in one layer beside 10^15 parameters: attention is nothing.
    assert length_at(SHAPE, DENSE, 2e18, 0, params=1e15) == pytest.approx(1000, rel=1e-6)


def test_arguments_broadcast_and_more_cost_is_more_tokens():
    found = length_at(SHAPE, DENSE, np.geomspace(1e12, 1e15, 5)[:, None], np.array([0, 500, 4000]))
    assert found.shape == (5, 3)
    assert (np.diff(found, axis=0) > 0).all()
    assert (np.diff(found, axis=1) < 0).all()


def test_no_cost_is_no_token():
    assert length_at(SHAPE, DENSE, 0, 100) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        (np.nan, {}, r"cost must be finite \(FLOP, or eFLOPs with hardware\); got nan"),
        (-1.0, {}, "cost must be at least 0, that of no token; got -1.0"),
        (1e40, {}, "cost must pay for at most 1e9 tokens; got 1e[+]40"),
        (1e12, {"n_out_sq": 4.0}, "n_out_sq cannot be given: length_at looks for one length"),
        (1e12, {"counting": "exat"}, "counting 'exat' is not known; did you mean exact"),
        (1e12, {"hardware": B200, "combine": "mix"}, "combine 'mix' is not known"),
    ],
)
def test_bad_input_is_refused(cost, options, message):
    with pytest.raises(ValueError, match=message):
        length_at(SHAPE, DENSE, cost, 100, **options)


def test_a_cost_below_what_no_token_costs_is_refused():
    # The released top-k adds half the square of (budget - prompt) once, even for an empty answer.
    with pytest.raises(ValueError, match=r"cost must be at least 7\.73e\+10, that of no token; got 1000\.0"):
        length_at(SHAPE, parse_policy("topk:512"), 1e3, 0, counting="released")


def test_a_table_is_read_and_priced_model_by_model():
    table = pd.DataFrame({"model": ["qwen3-4b", "qwen3-14b", "qwen3-4b"], "tokens": [100.0, 2000, 30000]})
    own = price(table, 200, params={"qwen3-14b": 14.33e9}, counting="released")
    for row, flops, moved in zip(table.itertuples(), own.flops, own.bytes, strict=True):
        params = 14.33e9 if row.model == "qwen3-14b" else None
        one = decode_cost(MODELS[row.model], DENSE, 200, row.tokens, params=params, counting="released")
        assert (flops, moved) == (one.flops, one.bytes)
    work = price(table, 200)
    found = lengths(table.assign(flops=work.flops, eflops=work.eflops(B200)), "flops", 200)
    assert found == pytest.approx(table.tokens.to_numpy(), rel=1e-8)
    found = lengths(table.assign(eflops=work.eflops(B200)), "eflops", 200, hardware=B200)
    assert found == pytest.approx(table.tokens.to_numpy(), rel=1e-8)


def test_the_ladder_says_from_where_on_no_smaller_name_wins():
    #       small wins, large wins, small once more, large for good; middle only where small wins again later
    name = ["s", "m", "l", "s", "l", "l", "s"]
    cost = np.array([1.0, 2, 3, 4, 5, 8, 9])
    accuracy = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.55])  # the last point is below the frontier
    found = ladder(cost[::-1], accuracy[::-1], name[::-1], ["s", "m", "l"])
    assert found.winner.tolist() == ["s", "l"]
    assert found.from_cost.tolist() == [1, 5]
    assert found.to_cost.tolist() == [4, 8]
    assert found.times.tolist() == [4, 1.6]
    assert found.accuracy.tolist() == [0.1, 0.5]
    with pytest.raises(ValueError, match="name 'l' is not known"):
        ladder(cost, accuracy, name, ["s", "m"])


def test_cost_at_reads_between_points_on_a_log_axis():
    cost, accuracy = [1.0, 100, 200, 400], [0.0, 0.2, 0.2, 0.1]
    found = cost_at(cost, accuracy, [-0.1, 0, 0.1, 0.2, 0.3])
    assert found == pytest.approx([np.nan, 1, 10, 100, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match="cost must be positive and ascending"):
        cost_at([2.0, 1], [0, 1], 0.5)
