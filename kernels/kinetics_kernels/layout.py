"""The paged KV cache: where keys and values live, and what is appended to it.

Pages are stored ``[page, KV head, token, head_dim]`` ("HND"), so that one page of one head is one contiguous
run of memory, whichever page the table names. Beside the pages lie the search keys, one mean key per block
and head, in the order of the context: scoring streams them without a page table.
"""

from __future__ import annotations

import copy

import torch
import triton
from torch import Tensor

from kinetics_kernels import checks, configs
from kinetics_kernels.append import append_prompt_kernel, append_step_kernel
from kinetics_kernels.fp8 import check_scale, find_scale


class PagedKVCache:
    """Keys and values of a batch of requests in pages, with one search key per block and KV head.

    Parameters: ``batch`` requests, ``n_kv_heads``, ``head_dim`` (16, 32, 64, 128 or 256), ``max_tokens`` a
    request may reach (rounded up to whole blocks); ``page_size`` tokens a page (a power of two up to 128);
    ``block_size`` tokens a selection block (a multiple of ``page_size``, by default one page); ``bounds``
    keeps the smallest and largest key of each block as well (Quest needs them); ``page_table`` int32
    ``[batch, pages per request]`` names each request's pages (by default 0, 1, 2, ...), of ``n_pages`` in the
    pool; ``debug`` lets every call check the table and the lengths, which waits for the GPU.

    ``dtype`` float16, bfloat16 or float32 is also that of q, k and v; float8_e4m3fn stores k / k_scale and
    v / v_scale, halfway cases to even and what exceeds 448 as 448, for q, k and v of any of the three. The
    scales, fp32 ``[Hkv]`` above 0 and at most 128, are given here or found by :meth:`calibrate`. Search keys
    are then fp16, of the keys as stored, with the scale applied.

    Tensors: ``k, v [n_pages, Hkv, page_size, D]``, ``page_table``, ``lengths [B]`` int32, ``key_means [B,
    Hkv, max_blocks, D]``, ``key_min, key_max`` likewise, ``open_sum [B, Hkv, D]`` fp32 (the block being
    filled), and of an fp8 cache ``k_scale, v_scale [Hkv]``. All of them stay where they are for the cache's
    life, so a captured CUDA graph keeps working while lengths, contents and page table change between replays.
    """

    def __init__(
        self, batch: int, n_kv_heads: int, head_dim: int, max_tokens: int, *, page_size: int = 16,
        block_size: int | None = None, bounds: bool = False, page_table: Tensor | None = None,
        n_pages: int | None = None, dtype: torch.dtype = torch.float16, device: torch.device | str = "cuda",
        debug: bool = False, k_scale: Tensor | None = None, v_scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        block_size = page_size if block_size is None else block_size
        for name, value in dict(batch=batch, n_kv_heads=n_kv_heads, max_tokens=max_tokens).items():
            checks.whole(name, value, 1)
        checks.require(head_dim in checks.HEAD_DIMS, f"head_dim must be one of {checks.HEAD_DIMS}", head_dim)
        powers = tuple(2**i for i in range(8))
        checks.require(page_size in powers, f"page_size must be one of {powers}", page_size)
        checks.whole("block_size", block_size, 1)
        rule = f"block_size must be a multiple of page_size={page_size}"
        checks.require(block_size % page_size == 0, rule, block_size)
        dtypes, fp8 = (*checks.DTYPES, checks.FP8), dtype == checks.FP8
        checks.require(dtype in dtypes, f"dtype must be one of {dtypes}", dtype)
        checks.gpu(torch.device(device), fp8=fp8)

        self.batch, self.n_kv_heads, self.head_dim = batch, n_kv_heads, head_dim
        self.is_part = False  # rows of another cache, whose scales it shares
        self.page_size, self.block_size, self.dtype, self.debug = page_size, block_size, dtype, debug
        self.pages_per_block = block_size // page_size
        self.max_blocks = triton.cdiv(max_tokens, block_size)
        self.max_tokens = self.max_blocks * block_size
        width = self.max_blocks * self.pages_per_block  # pages per request
        n_pages = batch * width if n_pages is None else n_pages
        checks.whole("n_pages", n_pages, 1)

        self.k = torch.empty(n_pages, n_kv_heads, page_size, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.device = self.k.device  # with its index: "cuda" has become "cuda:0"
        if page_table is None:
            needed = batch * width
            rule = f"n_pages must be at least {needed} (batch * pages per request) without a page_table"
            checks.require(n_pages >= needed, rule, n_pages)
            page_table = torch.arange(needed, dtype=torch.int32, device=self.device).view(batch, width)
        checks.tensor("page_table", page_table, (batch, width), torch.int32, self.device)
        self.page_table = page_table
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=self.device)
        searched = (batch, n_kv_heads, self.max_blocks, head_dim)
        self.key_means = torch.empty(searched, dtype=torch.float16 if fp8 else dtype, device=self.device)
        self.key_min = torch.empty_like(self.key_means) if bounds else None
        self.key_max = torch.empty_like(self.key_means) if bounds else None
        self.open_sum = torch.empty(batch, n_kv_heads, head_dim, dtype=torch.float32, device=self.device)
        self.input_dtypes = checks.DTYPES if fp8 else (dtype,)
        self.scaled = not fp8  # whether there are scales, where they are needed
        self.k_scale = torch.ones(n_kv_heads, dtype=torch.float32, device=self.device) if fp8 else None
        self.v_scale = torch.ones_like(self.k_scale) if self.k_scale is not None else None
        if k_scale is not None or v_scale is not None:
            self._set_scales(k_scale, v_scale)
        if debug:
            self.check()

    @property
    def paging(self) -> tuple[int, int, int]:
        """Tokens a page, tokens a block, pages in the pool: what a selection must agree on with its cache."""
        return self.page_size, self.block_size, self.k.shape[0]

    def calibrate(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> None:
        """Find an fp8 cache's scales from a prompt, ``[B, T, Hkv, D]``, which is still to be appended.

        A power of two per head that leaves at least twice the head's largest value in range. ``counts`` as in
        :meth:`append`. Before anything is appended; waits for the GPU.
        """
        rule = "k must have 4 dimensions (batch, tokens, KV heads, head_dim)"
        checks.require(k.dim() == 4, rule, tuple(k.shape))
        longest = int(self.lengths.max())
        checks.require(longest == 0, "calibrate must come before the first append, at length 0", longest)
        if counts is not None:
            checks.tensor("counts", counts, (self.batch,), torch.int32, self.device)
        for name, x in (("k", k), ("v", v)):
            shape = (self.batch, k.shape[1], self.n_kv_heads, self.head_dim)
            checks.tensor(name, x, shape, self.input_dtypes, self.device)
        self._set_scales(find_scale("k", k, counts), find_scale("v", v, counts))

    def _set_scales(self, k_scale: Tensor | None, v_scale: Tensor | None) -> None:
        checks.require(self.dtype == checks.FP8, "scales must go with an fp8 cache", self.dtype)
        rule = "scales must be set for the whole cache, whose heads share them, not for rows"
        checks.require(not self.is_part, rule, f"rows of it: {self.batch}")
        for name, given, own in (("k_scale", k_scale, self.k_scale), ("v_scale", v_scale, self.v_scale)):
            check_scale(name, given, self.n_kv_heads, self.device)
            own.copy_(given)
        self.scaled = True

    def append(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> None:
        """Append one token, ``[B, Hkv, D]``, or up to T tokens a request, ``[B, T, Hkv, D]``.

        ``counts`` (int32 ``[B]``, on the GPU) says how many of the T each request takes; all, if None.
        Tokens beyond ``max_tokens`` are dropped (in debug mode: ``ValueError``): nothing else is overwritten.
        """
        checks.require(isinstance(k, Tensor) and k.dim() in (3, 4), "k must be a tensor of 3 or 4 dimensions",
                       getattr(k, "shape", k))  # fmt: skip
        new_tokens = 1 if k.dim() == 3 else k.shape[1]
        checks.whole("k.shape[1] (tokens)", new_tokens, 1)
        between = () if k.dim() == 3 else (new_tokens,)
        shape = (self.batch, *between, self.n_kv_heads, self.head_dim)
        self.check_scaled()
        checks.tensor("k", k, shape, self.input_dtypes, self.device)
        checks.tensor("v", v, shape, k.dtype, self.device)
        if counts is not None:
            checks.tensor("counts", counts, (self.batch,), torch.int32, self.device)
        if self.debug:
            self.check(new_tokens if counts is None else counts)
        if new_tokens == 1:
            self._step(k, v, counts)
            return
        if counts is None:
            counts = torch.full_like(self.lengths, new_tokens)
        counts = counts.clamp(0, new_tokens)
        blocks = triton.cdiv(new_tokens - 1, self.block_size) + 1  # as many as T tokens can touch
        self._per_block(k, v, counts, min(blocks, self.max_blocks))
        self.lengths.add_(counts).clamp_(max=self.max_tokens)

    def rows(self, start: int, stop: int) -> PagedKVCache:
        """Requests ``start`` to ``stop - 1`` as a cache of their own that shares this one's memory."""
        checks.whole("start", start, 0)
        checks.whole("stop", stop, start + 1)
        checks.require(stop <= self.batch, f"stop must be at most batch={self.batch}", stop)
        part = copy.copy(self)
        part.batch, part.is_part = stop - start, True
        for name in ("page_table", "lengths", "key_means", "key_min", "key_max", "open_sum"):
            whole = getattr(self, name)
            setattr(part, name, None if whole is None else whole[start:stop])
        return part

    def only(self, active: Tensor) -> PagedKVCache:
        """The cache as it is for the requests that ``active [B]`` (int32 or bool) marks: the others' length is 0.

        So nothing of theirs is scored, selected or attended to. Memory is shared, but for the lengths.
        """
        checks.tensor("active", active, (self.batch,), (torch.int32, torch.bool), self.device)
        part = copy.copy(self)
        part.lengths = torch.where(active > 0, self.lengths, 0)
        return part

    def refresh(self) -> None:
        """All search keys anew from the pages, for whoever writes ``k``, ``v`` and ``lengths`` directly."""
        self.check_scaled()
        if self.debug:
            self.check()
        self._per_block(None, None, None, self.max_blocks)

    def check_scaled(self) -> None:
        """``ValueError`` for an fp8 cache without scales."""
        rule = "an fp8 cache must have k_scale and v_scale: give both, or call calibrate(k, v)"
        checks.require(self.scaled, rule, "none")

    def check_query(self, q: Tensor) -> int:
        """Check ``q [B, Hq, D]`` against the cache; returns the group, Hq / Hkv."""
        group = checks.query(q, self.n_kv_heads)
        checks.tensor("q", q, (self.batch, q.shape[1], self.head_dim), self.input_dtypes, self.device)
        self.check_scaled()
        return group

    def check(self, new_tokens: int | Tensor = 0) -> None:
        """``ValueError`` for a page id or a length out of range. Reads both back: this waits for the GPU."""
        first, last = int(self.page_table.min()), int(self.page_table.max())
        rule = f"page_table must hold page ids 0 to {self.k.shape[0] - 1}"
        checks.require(first >= 0 and last < self.k.shape[0], rule, f"{first} to {last}")
        shortest, longest = int(self.lengths.min()), int((self.lengths + new_tokens).max())
        rule = f"lengths must stay within 0 and max_tokens={self.max_tokens}"
        checks.require(shortest >= 0 and longest <= self.max_tokens, rule, f"{shortest} to {longest}")

    def _state(self) -> tuple[Tensor | None, ...]:
        stored = (self.k, self.v, self.k_scale, self.v_scale)
        search = (self.key_means, self.key_min, self.key_max, self.open_sum)
        return *stored, *search, self.page_table, self.lengths

    def _step(self, k: Tensor, v: Tensor, counts: Tensor | None) -> None:
        heads, warps = configs.step_launch(self.n_kv_heads, self.head_dim, self.k.dtype)
        append_step_kernel[(self.batch,)](
            k, v, counts, *self._state(), self.max_blocks, self.n_kv_heads, HEADS=heads, D=self.head_dim,
            PAGE=self.page_size, BLOCK=self.block_size, num_warps=warps,
        )  # fmt: skip

    def _per_block(self, k: Tensor | None, v: Tensor | None, counts: Tensor | None, blocks: int) -> None:
        append_prompt_kernel[(self.batch * blocks, self.n_kv_heads)](
            k, v, counts, *self._state(), self.max_blocks, blocks, None if k is None else k.shape[1],
            D=self.head_dim, PAGE=self.page_size, BLOCK=self.block_size,
            TILE=configs.prompt_tile(self.head_dim, self.k.dtype), num_warps=4,
        )  # fmt: skip
