"""Bytes proved: every address that a kernel touches, counted, against what the cost law says it must move.

Law and kernel prove each other: the law is an integral over a decode, so at a context of n its rate is taken.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kinetics_kernels import (
    PagedKVCache,
    configs,
    dense_decode,
    ladder,
    score_blocks,
    select_top,
    sparse_decode,
)

from kinetics_lab import BlockTopK, Dense, ModelShape, cost_parts, read_table
from kinetics_lab.cost.shapes.parts import Attention
from kinetics_lab.measure.bench import CPU, Bench
from kinetics_lab.measure.limits import Rates, attention_case, block_topk_case, lengths_of
from kinetics_lab.measure.suites import SUITES
from kinetics_lab.measure.suites.attention import attend_of, filled_cache
from kinetics_lab.measure.timers import WallTimer

pytestmark = pytest.mark.skipif(not configs.interpreted(), reason="only the interpreter shows addresses")

_spec = importlib.util.spec_from_file_location(
    "kernel_bytes", Path(__file__).parents[2] / "benchmarks" / "kernel_bytes.py"
)
kernel_bytes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernel_bytes)
STEP = kernel_bytes.STEP


def law(policy, n, *, kv_heads, group, head_dim):
    """Bytes of keys and values, and of search keys, that the cost law counts for a step at ``n`` tokens, one layer."""
    one = Attention(heads=kv_heads * group, kv_heads=kv_heads, qk=head_dim, v=head_dim)
    shape = ModelShape(name="one layer", family="qwen3", hidden=64, vocab=64, layers=((one,),))
    parts = cost_parts(shape, policy, n - 0.5, 1)
    return float(parts["attention"].bytes), float(parts["search"].bytes)


@pytest.fixture(scope="module")
def counted():
    """asked, distinct and sectors of the book's step, by call, tensor and operation."""
    return kernel_bytes.step(**STEP).set_index(["call", "tensor", "op"])


@pytest.fixture(scope="module")
def expected():
    """The same step's bytes by the law: dense, searched, sparse; one layer, the whole batch."""
    heads = {name: STEP[name] for name in ("kv_heads", "group", "head_dim")}
    sparse = BlockTopK(STEP["chosen"] * STEP["block"], STEP["block"])
    dense, (attended, searched) = (
        law(Dense(), STEP["context"], **heads),
        law(sparse, STEP["context"], **heads),
    )
    return {
        "dense": STEP["batch"] * dense[0],
        "score": STEP["batch"] * searched,
        "attend": STEP["batch"] * attended,
    }


@pytest.mark.parametrize(
    ("call", "part", "tensors"),
    [
        ("dense", "dense", ["keys", "values"]),
        ("attend", "attend", ["keys", "values"]),
        ("score", "score", ["mean keys"]),
        ("grouped", "dense", ["keys", "values"]),
        ("split", "dense", ["keys", "values"]),
        ("paged", "dense", ["keys", "values"]),
    ],
)
def test_kernels_load_what_the_law_counts_and_each_byte_once(counted, expected, call, part, tensors):
    rows = counted.loc[[(call, name, "loaded") for name in tensors]].sum()
    assert rows["asked"] == expected[part]
    assert (
        rows["distinct"] == rows["sectors"] == rows["asked"]
    )  # none twice, and no sector for less than all of it


def test_the_limits_of_the_suites_are_the_same_bytes(counted, expected):
    case = attention_case(
        *(STEP[name] for name in ("batch", "kv_heads", "group", "head_dim", "context", "page"))
    )
    case |= block_topk_case(STEP["chosen"] * STEP["block"], STEP["block"], 0)
    found = SUITES["topk"].predict(case, Rates(1.0, 1.0, "to count with"))
    assert (found["score_bytes"], found["attend_bytes"]) == (expected["score"], expected["attend"])
    append = counted.loc["append"]["asked"]
    moved = [("new key", "loaded"), ("new value", "loaded"), ("keys", "stored"), ("values", "stored"), ("mean keys", "stored"),
             ("sum of the open block", "loaded"), ("sum of the open block", "stored")]  # fmt: skip
    rows = STEP["batch"] * STEP["kv_heads"]
    assert append[moved].sum() == found["append_bytes"] == rows * 18 * STEP["head_dim"]
    lookups = (
        4 * STEP["batch"]
    )  # one page number and one length a request, of which the length is written, too
    assert append.drop(moved).to_dict() == dict.fromkeys(
        [("page table", "loaded"), ("lengths", "loaded"), ("lengths", "stored")], lookups
    )


@pytest.mark.parametrize("call", ["dense", "paged"])
def test_the_page_table_is_read_once_a_token_from_four_bytes_a_page(counted, call):
    table = counted.loc[(call, "page table", "loaded")]
    assert table["asked"] == 4 * STEP["batch"] * STEP["kv_heads"] * STEP["context"]
    assert table["distinct"] == 4 * STEP["batch"] * STEP["context"] // STEP["page"]


def test_one_query_at_a_time_asks_for_a_group_of_copies(counted, expected):
    rows = counted.loc[[("one query", name, "loaded") for name in ("keys", "values")]].sum()
    assert rows["asked"] == STEP["group"] * expected["dense"]
    assert rows["distinct"] == expected["dense"]


@pytest.mark.parametrize("rung", ["one query", "grouped", "split"])
def test_no_rung_reads_beyond_the_tokens(make, rung):
    q, cache = make([100], group=3)  # not whole tiles
    k, v = (part[None].contiguous() for part in kernel_bytes.reference.context(cache, 0, q.dtype))
    with kernel_bytes.traced({"keys": k, "values": v}) as rows:
        ladder.attend(rung, q, k, v)
    found = {row["tensor"]: row["asked"] for row in rows if row["tensor"] != kernel_bytes.REST}
    assert found == dict.fromkeys(("keys", "values"), k.nbytes * (3 if rung == "one query" else 1))


@pytest.mark.parametrize(
    ("lengths", "page_size", "block_size", "head_dim", "dtype"),
    [
        ([0, 1, 100], 16, 32, 64, torch.float16),
        ([257, 16, 31], 1, 8, 16, torch.float16),
        ([64, 700], 64, 64, 32, torch.float32),
    ],
)
def test_ragged_requests_pay_for_the_tokens_they_hold(make, lengths, page_size, block_size, head_dim, dtype):
    heads = {"kv_heads": 2, "group": 3, "head_dim": head_dim}
    q, cache = make(
        lengths, group=3, head_dim=head_dim, page_size=page_size, block_size=block_size, dtype=dtype
    )
    scale = q.element_size() / 2  # the law's elements have two bytes
    stored = {"keys": cache.k, "values": cache.v, "means": cache.key_means, "table": cache.page_table}

    def loaded(call, *tensors):
        with kernel_bytes.traced(stored) as rows:
            result = call()
        rows = pd.DataFrame(rows).groupby(["tensor", "op"]).sum()  # "the rest" has elements of several sizes
        found = rows.reindex([(name, "loaded") for name in tensors]).sum()
        assert found["asked"] == found["distinct"]
        if head_dim * q.element_size() >= kernel_bytes.SECTOR:  # a token's row is whole sectors
            assert found["sectors"] == found["distinct"]
        return found["asked"], rows, result

    want = sum(law(Dense(), n, **heads)[0] for n in lengths if n) * scale
    asked, rows, _ = loaded(lambda: dense_decode(q, cache), "keys", "values")
    assert asked == want
    pages = sum(-(-n // page_size) for n in lengths)
    assert rows.loc[("table", "loaded"), "distinct"] == 4 * pages
    got, _, _ = loaded(
        lambda: ladder.attend("paged", q, cache.k, cache.v, cache.page_table, cache.lengths), "keys", "values"
    )
    assert got == want
    blocks = sum(
        -(-n // block_size) for n in lengths
    )  # the law has n / block_size: an open block counts in part
    got, _, scores = loaded(lambda: score_blocks(q, cache), "means")
    assert got == cache.n_kv_heads * blocks * head_dim * q.element_size()
    selection = select_top(scores, cache, 2, window_blocks=1)
    got, _, _ = loaded(lambda: sparse_decode(q, cache, selection), "keys", "values")
    assert got == 2 * int(selection.tokens.sum()) * head_dim * q.element_size()


@pytest.mark.parametrize(
    "case", SUITES["ragged"].cases(False), ids=lambda case: f"{case['lengths']}-{case['budget']}"
)
def test_the_suite_of_unequal_lengths_counts_what_is_read(case):
    q, cache, resets = filled_cache(case, Bench(CPU, CPU, WallTimer(), code={}))
    assert cache.lengths.tolist() == lengths_of(case)
    used = [
        int(page)
        for row, n in zip(cache.page_table, lengths_of(case), strict=True)
        for page in row[: -(-n // cache.page_size)]
    ]
    assert sorted(used) == list(range(len(cache.k)))  # every page has one owner
    with kernel_bytes.traced({"keys": cache.k, "values": cache.v, "means": cache.key_means}) as rows:
        attend_of(case, cache)(q)
    asked = sum(row["asked"] for row in rows if row["tensor"] != kernel_bytes.REST)
    assert asked == SUITES["ragged"].predict(case, Rates(1.0, 1.0, "to count with"))["bytes"]
    resets["append"]()
    assert cache.lengths.tolist() == [n - 1 for n in lengths_of(case)]
    resets[""]()
    assert cache.lengths.tolist() == lengths_of(case)


def test_a_block_that_opens_has_no_sum_to_read():
    cache = PagedKVCache(1, 1, 64, 32, page_size=16, device="cpu")
    k = torch.randn(1, 1, 64).half()
    found = []
    for _ in range(17):
        with kernel_bytes.traced({"sum": cache.open_sum}) as rows:
            cache.append(k, k)
        found.append({row["op"]: row["asked"] for row in rows if row["tensor"] == "sum"})
    assert found == [{"stored": 256}] + 15 * [{"loaded": 256, "stored": 256}] + [{"stored": 256}]


def test_the_count_tells_repeats_and_overfetch():
    def row(addresses):
        (found,) = kernel_bytes.counted("x", "loaded", 2, np.array(addresses))
        return found["asked"], found["distinct"], found["sectors"]

    assert row(range(0, 64, 2)) == (64, 64, 64)
    assert row(range(16, 80, 2)) == (64, 64, 96)  # not aligned
    assert row(range(0, 128, 4)) == (64, 64, 128)  # every second element
    assert row([0, 0, 2]) == (6, 4, 32)


def test_the_books_table_is_what_is_counted(counted):
    stale = "data/kernel_bytes.csv is stale: python benchmarks/kernel_bytes.py"
    pd.testing.assert_frame_equal(read_table("kernel_bytes"), counted.reset_index(), obj=stale)
