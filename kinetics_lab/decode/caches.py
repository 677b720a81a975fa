"""One layer's KV cache under a policy: in plain PyTorch anywhere, in the Triton kernels' pages on a GPU.

Both classes take the same calls and mean the same by a policy, requests of any length side by side. Who decodes
(:mod:`kinetics_lab.decode.generate`, the ladder of Part IV) knows no more of attention than these calls.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kinetics_lab.cost.policies import BlockTopK, Dense, Local, Policy, Quest, StridedBlockTopK, TopK
from kinetics_lab.errors import require


def cache_block(policy: Policy) -> int:
    """Tokens a search key stands for: the policy's block, or its stride where blocks overlap; 1 for token policies.

    Raises ValueError where a policy's numbers are no whole blocks.
    """
    if not isinstance(policy, BlockTopK):
        return 1
    block = policy.stride if isinstance(policy, StridedBlockTopK) else policy.block_size
    rule = f"{policy}: block_size and sink must be multiples of {block} tokens to be decoded with; block_size, sink"
    whole = policy.block_size % block == policy.sink % block == 0
    require(whole, rule, (policy.block_size, policy.sink))
    return block


def page_block(policy: Policy) -> int:
    """Tokens a search key stands for in the kernels' cache, which has one for policies that need none, too."""
    return 16 if isinstance(policy, Dense | TopK) else cache_block(policy)


class PlainCache:
    """Keys and values ``[batch, KV heads, max_tokens, head_dim]``; ``lengths [batch]`` int64 of each request."""

    def __init__(
        self, policy: Policy, batch: int, n_kv_heads: int, head_dim: int, max_tokens: int, *,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        cache_block(policy)
        self.policy = policy
        self.k = torch.zeros(batch, n_kv_heads, max_tokens, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.active: Tensor | None = None

    def fill(self, k: Tensor, v: Tensor, rows: slice = slice(None)) -> None:
        """Begin the requests ``rows`` anew with prompts ``k, v [rows or 1, tokens, KV heads, head_dim]``."""
        self.active = None
        self.k[rows, :, : k.shape[1]], self.v[rows, :, : k.shape[1]] = k.transpose(1, 2), v.transpose(1, 2)
        self.lengths[rows] = k.shape[1]

    def append(self, k: Tensor, v: Tensor, active: Tensor | None = None) -> None:
        """One token's ``k, v [batch, KV heads, head_dim]``, for the requests that ``active`` (int32) counts 1.

        The others are not attended to until they take a token again: their length counts as 0.
        """
        self.active = active
        rows = torch.arange(len(k), device=k.device) if active is None else active.nonzero()[:, 0]
        at = self.lengths[rows]
        self.k[rows, :, at], self.v[rows, :, at] = k[rows], v[rows]
        self.lengths[rows] += 1

    def attend(self, q: Tensor, scale: float | None = None) -> Tensor:
        """``q [batch, heads, head_dim]`` over the cached tokens that the policy reads; same shape, 0 for none."""
        lengths = self._seen()
        n = int(lengths.max())
        k, v = self.k[:, :, :n], self.v[:, :, :n]
        grouped = q.unflatten(1, (k.shape[1], -1))
        scores = grouped @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        read = self._read(grouped, k, scores.mean(2))
        if read is not None:
            scores.masked_fill_(~read[:, :, None], -torch.inf)
        out = (scores.softmax(-1) @ v).flatten(1, 2)
        return out.masked_fill_(lengths[:, None, None] == 0, 0)

    def keep(self, rows: Tensor) -> bool:
        """Attend to no other requests (bool mask) any more; says whether it dropped them, which is cheap here."""
        self.k, self.v, self.lengths, self.active = self.k[rows], self.v[rows], self.lengths[rows], None
        return True

    def _seen(self) -> Tensor:
        """The length of each request that took the last token; 0 for the others."""
        return self.lengths if self.active is None else self.lengths * self.active

    def _read(self, q: Tensor, k: Tensor, scores: Tensor) -> Tensor | None:
        """Which tokens are read, bool ``[batch, KV heads or 1, tokens]``, by ``scores`` averaged over the group.

        None where all requests are equally long and all is read.
        """
        policy, n, lengths = self.policy, scores.shape[-1], self._seen()[:, None, None]
        at = torch.arange(n, device=scores.device)
        live = at < lengths
        if n <= policy.tokens_read and not isinstance(policy, StridedBlockTopK):  # its windows may overlap
            return None if int(lengths.min()) == n else live
        if isinstance(policy, Local):
            return live & ((at < policy.sink) | (at >= lengths - policy.window))
        b, blocks = cache_block(policy), scores
        if b > 1:
            blocks = pad(scores * live, (0, -n % b)).unflatten(-1, (-1, b)).sum(-1)
            blocks = blocks / _held(lengths, blocks.shape[-1], b).clamp(min=1)
        if isinstance(policy, Quest):
            blocks = _quest_bounds(q, k, live, b)
        read = choose(policy, blocks, lengths, b)
        return read.repeat_interleave(b, -1)[..., :n] & live if b > 1 else read


def _quest_bounds(q: Tensor, k: Tensor, live: Tensor, b: int) -> Tensor:
    """The largest logit a key between a block's smallest and largest could have, averaged over the group."""
    live, n = live[..., None], k.shape[2]
    low, high = (
        pad(k.masked_fill(~live, end), (0, 0, 0, -n % b), value=end).unflatten(2, (-1, b))
        for end in (torch.inf, -torch.inf)
    )
    low, high = (x.masked_fill(x.isinf(), 0)[:, :, None] for x in (low.amin(3), high.amax(3)))
    q = q[:, :, :, None]
    return torch.maximum(q * low, q * high).sum(-1).mean(2)


def _held(lengths: Tensor, n: int, b: int) -> Tensor:
    """Tokens in each of ``n`` blocks of ``b``, for ``lengths [batch, 1, 1]``; 0 beyond a request's end."""
    return (lengths - b * torch.arange(n, device=lengths.device)).clamp(0, b)


def choose(policy: Policy, scores: Tensor, lengths: Tensor, b: int) -> Tensor:
    """Blocks of ``b`` tokens that a policy reads, bool as ``scores [batch, KV heads, blocks]``.

    lengths: tokens of each request, ``[batch, 1, 1]``. The first and last blocks that the policy always reads come on
    top of those chosen by score; overlapping ones are chosen as windows.
    """
    wide = policy if isinstance(policy, BlockTopK) else None
    span = wide.block_size // b if wide else 1
    count = wide.n_blocks if wide else int(policy.tokens_read)
    first, last = (wide.sink // b, int(wide.last_block)) if wide else (0, 0)
    i, alive = torch.arange(scores.shape[-1], device=scores.device), (lengths + b - 1) // b
    end = torch.minimum(alive - last, (alive - span).clamp(min=0) + 1)
    free = (i + span > first) & (i < end)
    if span > 1:  # a window's mean key is its blocks', weighted by the tokens they hold
        held = _held(lengths, len(i), b)
        sums = [pad(x, (1, span)).cumsum(-1) for x in (scores * held, held)]
        total, weight = (x[..., span : span + len(i)] - x[..., : len(i)] for x in sums)
        scores = total / weight.clamp(min=1)
    ranked = scores.masked_fill(~free, -torch.inf)
    best = ranked.topk(min(count, len(i)), -1).indices
    taken = torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, best, True) & free
    if span > 1:
        taken = torch.stack([pad(taken, (j, 0))[..., : len(i)] for j in range(span)]).any(0)
    if first or last:
        taken = taken | ((i < first) | (i >= alive - last)) & (i < alive)
    return taken


class PagedCache:
    """The same on ``kinetics_kernels.PagedKVCache``: for a GPU, or for the interpreter's proof on a CPU.

    Token policies (topk, local) search every token and so reach contexts of 8192. All calls but
    :meth:`fill` can be captured in a CUDA graph.
    """

    def __init__(
        self, policy: Policy, batch: int, n_kv_heads: int, head_dim: int, max_tokens: int, *,
        dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cuda",
    ) -> None:  # fmt: skip
        import kinetics_kernels

        self.kernels, self.policy = kinetics_kernels, policy
        self.kept: Tensor | None = None  # requests that :meth:`keep` left
        block = page_block(policy)
        if not isinstance(policy, Dense):
            most = kinetics_kernels.configs.MAX_SELECT * (1 if isinstance(policy, TopK) else block)
            rule = f"policy {policy} reaches {most} tokens on a GPU; prompt and answer"
            require(max_tokens <= most, rule, max_tokens)
        page = math.gcd(block, 16)
        self.cache = kinetics_kernels.PagedKVCache(
            batch, n_kv_heads, head_dim, max_tokens, page_size=page, block_size=block,
            bounds=isinstance(policy, Quest), dtype=dtype, device=device,
        )  # fmt: skip
        self.seen = self.cache  # in which requests that took no token have length 0

    def under(self, policy: Policy) -> PagedCache:
        """The same memory under another policy of the same block size."""
        other = copy.copy(self)
        other.policy = policy
        same = isinstance(policy, Dense | TopK) or cache_block(policy) == self.cache.block_size
        require(same, f"policy must have blocks of {self.cache.block_size} tokens, as the cache", str(policy))
        return other

    def fill(self, k: Tensor, v: Tensor, rows: slice = slice(None)) -> None:
        self.kept, self.seen = None, self.cache
        part = self.cache.rows(*rows.indices(self.cache.batch)[:2])
        part.lengths.zero_()
        k, v = (x.expand(part.batch, -1, -1, -1).contiguous() for x in (k, v))
        part.append(k, v) if k.shape[1] > 1 else part.append(k[:, 0], v[:, 0])

    def append(self, k: Tensor, v: Tensor, active: Tensor | None = None) -> None:
        self.cache.append(k.contiguous(), v.contiguous(), active)
        left = self.kept if active is None else active
        self.seen = self.cache if left is None else self.cache.only(left)

    def attend(self, q: Tensor, scale: float | None = None) -> Tensor:
        q, cache, kernels, policy = q.contiguous(), self.seen, self.kernels, self.policy
        if isinstance(policy, Dense):
            return kernels.dense_decode(q, cache, scale=scale)
        if isinstance(policy, TopK):
            return kernels.token_topk_decode(q, cache, policy.budget, scale=scale)
        return kernels.sparse_decode(q, cache, self._select(q), scale=scale)

    def keep(self, rows: Tensor) -> bool:
        self.kept, self.seen = rows, self.cache.only(rows)
        return False  # the others' memory stays, and so do their rows of q

    def _select(self, q: Tensor) -> Any:
        cache, kernels, policy = self.seen, self.kernels, self.policy
        if isinstance(policy, Local):
            return kernels.select_local(cache, policy.window, sink_blocks=policy.sink)
        assert isinstance(policy, BlockTopK)
        always = {"sink_blocks": policy.sink // cache.block_size, "window_blocks": int(policy.last_block)}
        if isinstance(policy, Quest):
            return kernels.select_quest(q, cache, policy.n_blocks, **always)
        if isinstance(policy, StridedBlockTopK):
            span = policy.block_size // cache.block_size
            return kernels.select_strided(q, cache, policy.n_blocks, span, **always)
        return kernels.select_blocks(q, cache, policy.n_blocks, **always)


def open_cache(policy: Policy, *sizes: int, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The cache for a device: paged on a GPU, plain elsewhere. Sizes as for :class:`PlainCache`."""
    kind = PagedCache if torch.device(device).type == "cuda" else PlainCache
    return kind(policy, *sizes, dtype=dtype, device=device)
