"""The four small kernels of chapter 27 against the reference: each alone, and one through pages."""

from __future__ import annotations

import pytest
import torch
from kinetics_kernels import dense_decode, ladder, reference


def contiguous(cache):
    """``k, v [B, Hkv, n, D]`` of a cache whose requests are of one length."""
    pairs = [reference.context(cache, b, cache.k.dtype) for b in range(cache.batch)]
    return [torch.stack(part).contiguous() for part in zip(*pairs, strict=True)]


@pytest.mark.pairs(
    n=[1, 63, 64, 65, 200],
    group=[1, 4, 5, 16],
    head_dim=[16, 64],
    rung=["one query", "grouped", "split"],
    dtype=[torch.float16, torch.float32],
)
def test_each_rung_is_dense_attention(make, close, n, group, head_dim, rung, dtype):
    q, cache = make([n, n], group=group, head_dim=head_dim, dtype=dtype)
    close(ladder.attend(rung, q, *contiguous(cache)), reference.dense_decode(q, cache)[0])


@pytest.mark.pairs(
    lengths=[(0, 1, 16), (17, 64, 200)], group=[1, 5], page_size=[1, 8, 64], dtype=[torch.float16, torch.float32]
)  # fmt: skip
def test_the_last_rung_reads_pages(make, close, lengths, group, page_size, dtype):
    q, cache = make(list(lengths), group=group, page_size=page_size, dtype=dtype)
    got = ladder.attend("paged", q, cache.k, cache.v, cache.page_table, cache.lengths)
    close(got, reference.dense_decode(q, cache)[0])


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_parts_without_tokens_weigh_nothing(make, close, parts):
    q, cache = make([65, 65])  # two tiles
    close(ladder.attend("split", q, *contiguous(cache), parts=parts), reference.dense_decode(q, cache)[0])


def test_the_last_rung_and_the_shipped_kernel_agree(make, close):
    q, cache = make([130, 7])
    close(
        ladder.attend("paged", q, cache.k, cache.v, cache.page_table, cache.lengths), dense_decode(q, cache)
    )


@pytest.mark.parametrize(
    ("rung", "dtype", "message"),
    [
        ("pages", torch.float16, "rung must be one query, grouped, split or paged, got pages"),
        ("grouped", torch.bfloat16, "q must be of fp16 or fp32, got torch.bfloat16"),
    ],
)
def test_wrong_input_is_one_sentence(make, rung, dtype, message):
    q, cache = make([16], dtype=dtype)
    with pytest.raises(ValueError, match=message):
        ladder.attend(rung, q, cache.k, cache.v)
