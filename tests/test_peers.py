"""The peers' calls, on a CPU: PyTorch's own for real, other libraries by stand-ins that compute what they promise to."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import sys
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "triton"))), reason="needs torch and triton"
)

SHAPES = pytest.mark.parametrize(
    ("lengths", "kv_heads", "group", "page"),
    [([37, 1, 0, 100], 2, 5, 16), ([64, 64], 1, 4, 16), ([16, 17, 15], 3, 1, 8), ([5, 128], 8, 2, 64)],
)


def scattered(lengths, kv_heads, group, page):
    """``q [B, Hq, 16]`` and an fp32 cache whose pages lie in no order, a few of them nobody's; every slot holds something."""
    import torch
    from kinetics_kernels import PagedKVCache

    draw = torch.Generator().manual_seed(0)
    width = -(-max(lengths) // page)
    pool = len(lengths) * width + 3
    table = torch.randperm(pool, generator=draw)[:-3].int().view(len(lengths), width)
    cache = PagedKVCache(len(lengths), kv_heads, 16, max(lengths), page_size=page, page_table=table, n_pages=pool,
                         dtype=torch.float32, device="cpu")  # fmt: skip
    cache.k.normal_(generator=draw)
    cache.v.normal_(generator=draw)
    cache.lengths.copy_(torch.tensor(lengths))
    return torch.randn(len(lengths), kv_heads * group, 16, generator=draw), cache


def matches(got, q, cache):
    """The output is the reference's."""
    import torch
    from kinetics_kernels import reference

    torch.testing.assert_close(got.double(), reference.dense_decode(q, cache)[0], atol=2e-6, rtol=0)


def by_blocks(q, k, v, block_mask):
    """What the compiled kernel does with a block mask: visits the blocks it names, masks each by ``mask_mod``."""
    torch, size = pytest.importorskip("torch"), block_mask.BLOCK_SIZE[1]
    out = torch.zeros_like(q)
    for b, queries in enumerate(q):
        named = block_mask.kv_indices[b, 0, 0, : int(block_mask.kv_num_blocks[b, 0, 0])].tolist()
        tokens = torch.tensor([block * size + i for block in named for i in range(size)], dtype=torch.long)
        tokens = tokens[block_mask.mask_mod(torch.tensor(b), torch.tensor(0), torch.tensor(0), tokens)]
        if len(tokens):
            weights = (queries @ k[0, :, tokens].mT * q.shape[-1] ** -0.5).softmax(-1)
            out[b] = weights @ v[0, :, tokens]
    return out


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("how", ["PyTorch's, by the mask", "by the blocks"])
@SHAPES
def test_flex_attention_reads_our_pages(monkeypatch, how, lengths, kv_heads, group, page):
    """Uncompiled, PyTorch looks at the mask alone; compiled, at the named blocks as well. Both must be right."""
    import torch

    from kinetics_lab.measure.peers import flex

    if how == "by the blocks":
        monkeypatch.setattr(torch.nn.attention.flex_attention, "flex_attention", by_blocks)
    q, cache = scattered(lengths, kv_heads, group, page)
    matches(flex(q, cache)(), q, cache)


def paged_attention(q, k, v, rows, lengths, scale):
    """Attention of ``q [B, Hq, D]`` over pages ``[page, Hkv, token, D]``; ``rows``: each request's page numbers."""
    import torch

    out = torch.zeros_like(q)
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        keys, values = (x[row].transpose(0, 1).flatten(1, 2)[:, :n] for x in (k, v))  # [Hkv, n, D]
        group = q.shape[1] // k.shape[1]
        s = q[b].unflatten(0, (-1, group)) @ keys.mT * scale
        out[b] = (s.softmax(-1) @ values).flatten(0, 1) if n else 0.0
    return out


class Wrapper:
    """FlashInfer's BatchDecodeWithPagedKVCacheWrapper."""

    def __init__(self, workspace, layout, use_tensor_cores):
        assert layout == "HND"
        assert use_tensor_cores

    def plan(self, start, pages, in_last, q_heads, kv_heads, head_dim, page, q_data_type, kv_data_type):
        assert q_data_type == kv_data_type
        start, self.scale = start.tolist(), head_dim**-0.5
        self.rows = [pages[a:b].long() for a, b in itertools.pairwise(start)]
        self.lengths = [
            max(0, (len(row) - 1) * page + int(n)) for row, n in zip(self.rows, in_last, strict=True)
        ]

    def run(self, q, kv):
        return paged_attention(q, *kv, self.rows, self.lengths, self.scale)


def trtllm(q, kv, workspace, block_tables, seq_lens, max_seq_len, bmm1_scale, bmm2_scale, kv_layout):
    assert (kv_layout, bmm2_scale, max_seq_len) == ("HND", 1.0, int(seq_lens.max()))
    assert not workspace.any()  # XQA's counters
    return paged_attention(q, *kv, block_tables.long(), seq_lens.tolist(), bmm1_scale)


def flash_attention(q, k_cache, v_cache, cache_seqlens, page_table=None):
    """flash_attn_with_kvcache of versions 2 (contiguous) and 3 (pages); ``[.., token, head, D]``."""
    import torch

    k, v = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    rows = torch.arange(len(q))[:, None] if page_table is None else page_table.long()
    return paged_attention(q[:, 0], k, v, rows, cache_seqlens.tolist(), q.shape[-1] ** -0.5)[:, None]


@pytest.fixture
def installed(monkeypatch):
    """``installed(name, **contents)``: a module of that name, as if it were installed."""

    def install(name, **contents):
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.mark.parametrize("name", ["flashinfer", "flashinfer_paged", "flash_attn"])
@SHAPES
def test_other_libraries_are_given_our_pages(installed, name, lengths, kv_heads, group, page):
    from kinetics_lab.measure.peers import PEERS

    installed("flashinfer", BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    installed("flashinfer.decode", trtllm_batch_decode_with_kv_cache=trtllm)
    installed("flash_attn_interface", flash_attn_with_kvcache=flash_attention)
    q, cache = scattered(lengths, kv_heads, group, page)
    matches(PEERS[name](q, cache)(), q, cache)


@pytest.mark.parametrize("name", ["sdpa", "flash_attn"])
def test_what_cannot_read_our_pages_gets_one_contiguous_copy(installed, name):
    from kinetics_lab.measure.peers import PEERS

    installed("flash_attn", flash_attn_with_kvcache=flash_attention)
    q, cache = scattered([40, 40], 2, 3, 16)
    matches(PEERS[name](q, cache)(), q, cache)
    copy = cache.contiguous
    PEERS["sdpa"](q, cache)
    assert cache.contiguous is copy
    _, cache = scattered([40, 7], 2, 3, 16)
    with pytest.raises(ValueError, match="FlashAttention 2 was left out: its pages have 256 tokens"):
        PEERS["flash_attn"](q, cache)


@pytest.mark.parametrize("name", ["flashinfer", "flashinfer_paged", "flash_attn"])
def test_a_peer_that_is_not_installed_says_so(monkeypatch, name):
    from kinetics_lab.measure.peers import PEERS

    for module in ("flashinfer", "flashinfer.decode", "flash_attn", "flash_attn_interface"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    q, cache = scattered([16], 1, 1, 16)
    if not importlib.util.find_spec(name.split("_paged")[0]):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name.split('_paged')[0]}'"):
            PEERS[name](q, cache)
