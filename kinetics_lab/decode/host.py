"""A cache for a computer's own processor, in plain PyTorch.

The suites of a GPU time the same calls here (``kinetics-lab measure --device host``), in fp32 and without a kernel of
ours. :class:`kinetics_lab.decode.caches.PlainCache` will not do: it scores every token whatever the policy, which is right and
costs as much as dense attention. Here block top-k scores mean keys, copies the chosen blocks together and attends to
them. Attention itself is PyTorch's, the group as query rows, so that keys and values are read once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kinetics_lab.cost.policies import BlockTopK, Dense, Policy
from kinetics_lab.errors import require


class HostCache:
    """A full cache: keys and values ``[batch, KV heads, tokens, head_dim]`` in fp32, mean keys of blocks of ``block``.

    ``tokens`` is a multiple of ``block``. A step overwrites the last token, so that every repetition is the same.
    """

    def __init__(
        self, policy: Policy, batch: int, n_kv_heads: int, head_dim: int, tokens: int, block: int
    ) -> None:
        require(tokens % block == 0, f"tokens must be a multiple of block={block}", tokens)
        self.policy, self.block = policy, block
        self.k = torch.randn(batch, n_kv_heads, tokens, head_dim)
        self.v = torch.randn_like(self.k)
        self.means = self.k.unflatten(2, (-1, block)).mean(3)  # [batch, KV heads, blocks, head_dim]

    def under(self, policy: Policy) -> HostCache:
        """The same memory under another policy: dense, or block top-k with blocks of this size."""
        other = copy.copy(self)
        other.policy = policy
        return other

    def append(self, k: Tensor, v: Tensor, active: Any = None) -> None:
        """One token's ``k, v [batch, KV heads, head_dim]`` over the last one, and its block's mean anew."""
        self.k[:, :, -1], self.v[:, :, -1] = k, v
        self.means[:, :, -1] = self.k[:, :, -self.block :].mean(2)

    def attend(self, q: Tensor, scale: float | None = None) -> Tensor:
        """``q [batch, heads, head_dim]`` over the tokens that the policy reads; the same shape."""
        grouped = q.unflatten(1, (self.k.shape[1], -1))  # [batch, KV heads, group, head_dim]
        k, v = self.k, self.v
        if not isinstance(self.policy, Dense):
            blocks = self.select(grouped)
            k, v = self._gather(k, blocks), self._gather(v, blocks)
        return scaled_dot_product_attention(grouped, k, v, scale=scale).flatten(1, 2)

    def select(self, grouped: Tensor) -> Tensor:
        """Blocks that block top-k reads, ``[batch, KV heads, chosen]``: the best by score, the last one on top."""
        policy, blocks = self.policy, self.means.shape[2]
        assert isinstance(policy, BlockTopK)
        scores = torch.matmul(self.means, grouped.mean(2)[..., None])[..., 0]
        if policy.last_block:
            scores[..., -1] = torch.inf
        chosen = min(policy.n_blocks + policy.last_block, blocks)
        return scores.topk(chosen, -1, sorted=False).indices

    def _gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The named blocks of every head, one behind the other: ``[batch, KV heads, chosen * block, head_dim]``."""
        heads = torch.arange(x.shape[0] * x.shape[1]).view(*x.shape[:2], 1)
        rows = (heads * self.means.shape[2] + blocks).flatten()
        return x.view(-1, self.block * x.shape[3]).index_select(0, rows).view(*x.shape[:2], -1, x.shape[3])
