"""Readers of families with latent attention: DeepSeek, Kimi K2, GLM-5, LongCat."""

from __future__ import annotations

from typing import Any

from kinetics_lab.cost.families.build import decoder, mla, mlp, moe, stack, window
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Part


def deepseek(c: Fields, *, index: bool = False, routing_bias: bool = True, first: int = 0) -> ModelShape:
    """DeepSeek V2 and V3; with ``index`` V3.2 and GLM-5, where one layer's choice may serve the next ones."""
    kinds, mixers = ["full"] * c.count(), {"full": mla(c)}
    if index:
        topk = c("index_topk")
        mixers = {"full": mla(c, index=True, topk=topk), "shared": mla(c, topk=topk)}
        every, skip = c("index_topk_freq", default=1), c("index_skip_topk_offset", default=2, least=0)
        kinds = ["shared" if max(i - skip + 1, 0) % every else "full" for i in range(c.count())]
        if c.get("indexer_types", "index_topk_pattern", default=None)[1] is not None:
            kinds = c.kinds("indexer_types", "index_topk_pattern", known={"full", "shared"})
    return stack(c, kinds, mixers, experts=moe(c, routing_bias=routing_bias), first=first)


def longcat(c: Fields) -> ModelShape:
    """Two attentions and two dense blocks a layer beside its experts, of which some do nothing."""
    experts = moe(c, norms=0, shared=0, idle=c("zero_expert_num", default=0, least=0), routing_bias=True)
    return decoder(c, [(*[mla(c)] * 2, *[mlp(c)] * 2, experts)] * c("num_layers", "num_hidden_layers"))


def deepseek_v4(c: Fields) -> ModelShape:
    """A window beside entries compressed 4 to 1, chosen by an index, or 128 to 1, all read; keys serve as values.

    Left out of what is stored: the tokens that wait in a compressor for their entry, at most one entry's worth.
    """
    hidden, heads, width, n = c("hidden_size"), c("num_attention_heads"), c("head_dim"), c.count()
    rank, groups, out = c("q_lora_rank"), c("o_groups"), c("o_lora_rank")
    index, index_heads = c("index_head_dim"), c("index_n_heads")
    every: dict[str, Any] = {"heads": heads, "kv_heads": 1, "qk": width, "v": width, "latent": True}
    matrices = rank * (hidden + heads * width) + hidden * width + heads * width * out + groups * out * hidden
    near = Attention(window=window(c), matrices=matrices, vectors=rank + width + heads + hidden, **every)
    often = Attention(  # overlapping blocks compress two series
        stride=4, topk=c("index_topk"), index=index, index_heads=index_heads, vectors=9 * width + 9 * index,
        matrices=4 * hidden * (width + index) + (rank * index + hidden) * index_heads, **every,
    )  # fmt: skip
    seldom = Attention(stride=128, matrices=2 * hidden * width, vectors=129 * width, **every)
    mixers: dict[str, tuple[Part, ...]] = {"near": (near,), "often": (near, often), "seldom": (near, seldom)}
    turns = [128, 128][:n] + [4 if i % 2 else 128 for i in range(n - 2)]
    ratios = c.numbers("compress_ratios", default=turns)
    c.suppose(layer_types=[{0: "sliding_attention", 4: "CSA", 128: "HCA"}.get(one, one) for one in ratios])
    streams = c("hc_mult", default=1)  # of the residual, mixed before and after each block
    mixed = (2 + streams) * streams
    mixes = Part(matrices=2 * mixed * streams * hidden, vectors=2 * (mixed + 3))
    outside = Part(matrices=streams**2 * hidden, vectors=streams + 1)
    hashed, experts = c("num_hash_layers", default=3, least=0), (moe(c), moe(c, routing_bias=True))
    kinds = c.kinds("layer_types", known=set(mixers))
    layers = [(*mixers[kind], mixes, experts[i >= hashed]) for i, kind in enumerate(kinds)]
    return decoder(c, layers, outside=(outside,))
