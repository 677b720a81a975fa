"""The two numbers of each policy, its text form, and the balanced block size."""

import math

import numpy as np
import pytest

from kinetics_lab.cost import policies
from kinetics_lab.cost.policies import (
    BlockTopK,
    Dense,
    Local,
    Quest,
    StridedBlockTopK,
    TopK,
    balanced_block_size,
    parse_policy,
)
from kinetics_lab.errors import unknown


@pytest.mark.parametrize(
    ("policy", "tokens", "keys"),
    [
        (Dense(), math.inf, 0),
        (TopK(512), 512, 0),
        (TopK(512, oracle=False), 512, 1),
        (BlockTopK(512, 32), 512, 1 / 32),
        (BlockTopK(128, 128, sink=4, last_block=True), 195.5, 1 / 128),  # what the published engine reads
        (StridedBlockTopK(512, 64, stride=16), 512, 1 / 16),
        (Quest(512, 16), 512, 2 / 16),
        (Local(256, sink=4), 260, 0),
    ],
    ids=str,
)
def test_what_a_step_reads_and_scores(policy, tokens, keys):
    assert (policy.tokens_read, policy.keys_scored_per_token) == (tokens, keys)
    assert parse_policy(str(policy)) == policy


def test_text_forms_leave_out_trailing_defaults():
    assert str(TopK(512)) == "topk:512"
    assert str(BlockTopK(512, 32)) == "block_topk:512:32"
    assert str(StridedBlockTopK(512, 64, stride=16)) == "strided_block_topk:512:64:0:false:16"
    assert BlockTopK(512, 32).n_blocks == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topc:3", "policy 'topc' is not known; did you mean topk"),
        ("block_topk:512", r"block_topk needs block_size \(written block_topk:budget:block_size\)"),
        ("topk:many", "budget must be a whole number, got 'many'"),
        ("topk:1:true:3", "topk takes at most 2 numbers"),
        ("topk:0", "topk: budget must be an integer >= 1; got 0"),
        ("block_topk:100:33", "budget must be a multiple of block_size=33; got 100"),
        ("local:8:-1", "sink must be an integer >= 0; got -1"),
        ("strided_block_topk:64:16:0:false:32", "stride must not exceed block_size=16"),
    ],
)
def test_bad_policies_say_what_would_be_right(text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


def test_a_fractional_budget_is_refused():
    with pytest.raises(ValueError, match="budget must be an integer >= 1; got 512.5"):
        TopK(512.5)


def test_every_policy_is_in_the_vocabulary():
    def concrete(cls):
        return [c for s in cls.__subclasses__() for c in ([s] if hasattr(s, "key") else []) + concrete(s)]

    assert set(policies.POLICIES.values()) == set(concrete(policies.Policy))


def test_the_balanced_block_size_is_the_papers_at_32k():
    budgets = np.array([128, 256, 512, 1024, 2048])
    assert balanced_block_size(32768, budgets).tolist() == (16384 / budgets).tolist()


@pytest.mark.parametrize(("context", "n_blocks"), [(32768, 16), (4096, 2), (100_000, 64)])
def test_balance_is_the_cheapest_block_size_for_a_fixed_number_of_blocks(context, n_blocks):
    sizes = np.arange(1, 3000)
    tokens = n_blocks * sizes + context / (2 * sizes)  # chosen tokens plus means, in cached tokens
    best = sizes[np.argmin(tokens)]
    assert balanced_block_size(context, n_blocks * best) == pytest.approx(best, abs=1)


def test_the_balanced_block_never_exceeds_the_budget_nor_falls_below_one():
    assert balanced_block_size(32768, 64) == 64
    assert balanced_block_size(100, 4096) == 1
    with pytest.raises(ValueError, match="context must be positive"):
        balanced_block_size(0, 64)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        balanced_block_size(100, 0)


@pytest.mark.parametrize("text", ["x" * 10**6, "topk:" + "9" * 10**6, "topk:" * 10**6])
def test_what_is_said_of_a_long_text_is_short(text):
    with pytest.raises(ValueError, match="a policy must be at most 300 characters; got '") as refused:
        parse_policy(text)
    assert len(str(refused.value)) < 200
    assert len(str(unknown("model", text, ["qwen3-8b"]))) < 400
