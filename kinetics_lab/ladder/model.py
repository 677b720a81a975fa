"""The model: a plain pre-norm decoder in Qwen3's form (RMSNorm, GQA, QK-norm, rotary embedding, SwiGLU).

Three departures, all for learning in minutes. A token's embedding is the sum of its label's and its role's. Only half
of each head rotates, so that the other half can match content at any distance. And in every layer but the first a key
is made from the token BEFORE the one whose value it unlocks (the smeared keys of Olsson et al., "In-context learning
and induction heads", 2022, at their simplest): looking up what followed a token then takes one head. Plain keys learn
it, too, but when is a matter of luck. Costs are the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from kinetics_lab.ladder import Size

ROPE_BASE = 100.0


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotary embedding, first half of ``x [rows, tokens, heads, head_dim]``; ``angle [tokens, 1, head_dim / 4]``."""
    a, b, rest = x.split([angle.shape[-1], angle.shape[-1], x.shape[-1] // 2], -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class Layer(nn.Module):
    def __init__(self, size: Size, shifted: bool) -> None:
        super().__init__()
        d, heads, kv, hd = size.width, size.n_q_heads, size.n_kv_heads, size.head_dim
        self.shifted, self.group, self.hd = shifted, heads // kv, hd
        self.norm1, self.norm2, self.q_norm, self.k_norm = (nn.RMSNorm(n, eps=1e-6) for n in (d, d, hd, hd))
        self.q, self.k, self.v = (nn.Linear(d, n * hd, bias=False) for n in (heads, kv, kv))
        self.o = nn.Linear(heads * hd, d, bias=False)
        self.gate, self.up = (nn.Linear(d, 2 * size.width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * size.width, d, bias=False)
        nn.init.constant_(self.q_norm.weight, 1.5)
        nn.init.normal_(self.o.weight, std=0.3 / math.sqrt(heads * hd))
        nn.init.normal_(self.down.weight, std=0.3 / math.sqrt(2 * size.width))

    def queries(self, x: Tensor, angle: Tensor) -> Tensor:
        """``[rows, tokens, heads, head_dim]``"""
        return rotate(self.q_norm(self.q(self.norm1(x)).unflatten(-1, (-1, self.hd))), angle)

    def keys_values(self, x: Tensor, angle: Tensor, before: Tensor | None = None) -> tuple[Tensor, ...]:
        """Keys and values ``[rows, tokens, KV heads, head_dim]`` for the cache, and what the next key is made of.

        before: the third result for the token before ``x``; none stands before the first.
        """
        y = keyed = self.norm1(x)
        if self.shifted:
            keyed = torch.cat([torch.zeros_like(y[:, :1]) if before is None else before, y[:, :-1]], 1)
        k, v = (f(z).unflatten(-1, (-1, self.hd)) for f, z in ((self.k, keyed), (self.v, y)))
        return rotate(self.k_norm(k), angle), v, y[:, -1:]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer, given the heads' outputs ``[..., heads * head_dim]``."""
        x = x + self.o(attended)
        y = self.norm2(x)
        return x + self.down(silu(self.gate(y)) * self.up(y))


class Reasoner(nn.Module):
    """A rung of the ladder for a world of ``labels`` labels."""

    layers: Any  # a ModuleList of Layer

    def __init__(self, size: Size, labels: int) -> None:
        super().__init__()
        self.size, self.labels = size, labels
        self.label, self.role = nn.Embedding(labels, size.width), nn.Embedding(3, size.width)
        self.layers = nn.ModuleList(Layer(size, i > 0) for i in range(size.n_layers))
        self.norm, self.head = nn.RMSNorm(size.width, eps=1e-6), nn.Linear(size.width, labels, bias=False)
        nn.init.normal_(self.label.weight, std=0.5)
        nn.init.normal_(self.role.weight, std=0.5)

    def angles(self, start: int, stop: int) -> Tensor:
        """Rotary angles of positions start .. stop - 1."""
        pairs, device = self.size.head_dim // 4, self.head.weight.device
        rates = ROPE_BASE ** (-torch.arange(pairs, device=device) / pairs)
        return (torch.arange(start, stop, device=device)[:, None] * rates)[:, None]

    def embed(self, tokens: Tensor) -> Tensor:
        return self.label(tokens % self.labels) + self.role(tokens // self.labels)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def forward(self, tokens: Tensor, first: int = 0, caches: list[Any] | None = None) -> Tensor:
        """Logits of the next node at the positions from ``first`` on: ``[rows, tokens - first, labels]``.

        caches: a list that receives each layer's :meth:`Layer.keys_values`. The last layer asks only from ``first`` on.
        """
        n = tokens.shape[1]
        x, angle = self.embed(tokens), self.angles(0, n)
        for i, layer in enumerate(self.layers):
            skip = first if i + 1 == len(self.layers) else 0
            k, v, last = layer.keys_values(x, angle)
            if caches is not None:
                caches.append((k, v, last))
            x = x[:, skip:]
            q = layer.queries(x, angle[skip:]).transpose(1, 2)
            k, v = (z.transpose(1, 2).repeat_interleave(layer.group, 1) for z in (k, v))
            mask = torch.ones(n - skip, n, dtype=torch.bool, device=x.device).tril(skip) if skip else None
            y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            x = layer.finish(x, y.transpose(1, 2).flatten(2))
        return self.logits(x)
