"""The parts that families share, built from a configuration's values: attention, feed-forward blocks, the whole decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts, FeedForward, Layer, Part
from kinetics_lab.errors import require


def gqa(
    c: Fields, *, heads: int = 0, kv_heads: int = 0, head_dim: int = 0, bias: bool = False, out_bias: bool = False,
    qk_norm: bool = False, norms: int = 1, window: float = math.inf, **more: Any,
) -> Attention:  # fmt: skip
    """Attention with grouped heads. ``norms``: vectors of the hidden width; ``bias``: of queries, keys and values."""
    hidden = c("hidden_size")
    heads = heads or c("num_attention_heads")
    kv_heads = kv_heads or c("num_key_value_heads", default=heads)
    rule = f"{c.where}: num_attention_heads must be a multiple of num_key_value_heads={kv_heads}"
    require(heads % kv_heads == 0, rule, heads)
    # Only where the file gives none is it derived, as the model code itself does.
    head_dim = head_dim or c("head_dim", default=0) or hidden // heads
    q, kv = heads * head_dim, kv_heads * head_dim
    vectors = norms * hidden + bias * (q + 2 * kv) + out_bias * hidden + qk_norm * 2 * head_dim
    return Attention(
        heads=heads, kv_heads=kv_heads, qk=head_dim, v=head_dim, window=window,
        matrices=hidden * (2 * q + 2 * kv), vectors=vectors, **more,
    )  # fmt: skip


def mla(c: Fields, **more: Any) -> Attention:
    """Multi-head latent attention: queries through a latent vector where ``q_lora_rank`` says so."""
    hidden, heads, latent = c("hidden_size"), c("num_attention_heads"), c("kv_lora_rank")
    rope, nope, v = c("qk_rope_head_dim"), c("qk_nope_head_dim"), c("v_head_dim")
    rank = c("q_lora_rank", default=0)
    query = heads * (nope + rope)
    matrices = rank * (hidden + query) if rank else hidden * query
    matrices += hidden * (latent + rope) + latent * heads * (nope + v) + heads * v * hidden
    return Attention(
        heads=heads, kv_heads=1, qk=latent + rope, v=latent, latent=True, unabsorbed=nope + rope + v,
        matrices=matrices, vectors=hidden + rank + latent, **more,
    )  # fmt: skip


def mlp(
    c: Fields, width: int, *, gated: bool = True, bias: bool = False, norms: int = 1, hidden: int = 0
) -> FeedForward:
    """A feed-forward block: three matrices, or two where it has no gate."""
    hidden = hidden or c("hidden_size")
    each = 3 if gated else 2
    vectors = norms * hidden + bias * ((each - 1) * width + hidden)
    return FeedForward(width=width, matrices=each * hidden * width, vectors=vectors)


def moe(
    c: Fields, *, count: int, chosen: float, width: int, shared: int = 0, gated: bool = True, router_bias: bool = False,
    norms: int = 1, router: int = 0, latent: int = 0, vectors: int = 0,
) -> Experts:  # fmt: skip
    """Routed experts of hidden ``width``. ``shared``: the summed width of the experts that every token meets;
    ``latent``: the width that routed experts read and write where it is not the model's; ``vectors``: more of them."""
    hidden, each = c("hidden_size"), 3 if gated else 2
    projections = 2 * hidden * latent
    return Experts(
        count=count, chosen=chosen, width=width, each=each * (latent or hidden) * width,
        router=router or count * hidden, matrices=each * hidden * shared + projections,
        vectors=norms * hidden + router_bias * count + vectors,
    )  # fmt: skip


def decoder(
    c: Fields,
    layers: Iterable[Layer],
    *,
    tied: bool = False,
    outside: Layer = (),
    final_norm: bool = True,
    **more: Any,
) -> ModelShape:
    """The shape of these layers. ``tied``: the default of ``tie_word_embeddings``."""
    hidden = c("hidden_size")
    return ModelShape(
        name=c.where, family="", hidden=hidden, vocab=c("vocab_size"), layers=tuple(layers),
        tied=c.flag("tie_word_embeddings", default=tied),
        outside=(*outside, Part(vectors=hidden)) if final_norm else outside, **more,
    )  # fmt: skip
