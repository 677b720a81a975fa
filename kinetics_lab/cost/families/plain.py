"""Readers of families whose layers all attend alike: Llama, Qwen2, Qwen3, OPT, DeepSeek-V3."""

from __future__ import annotations

from kinetics_lab.cost.families.build import decoder, gqa, mla, mlp, moe
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import FeedForward, Part


def llama(c: Fields, *, qk_norm: bool = False, bias: bool = False) -> ModelShape:
    own = c.flag("attention_bias")
    attention = gqa(c, bias=bias or own, out_bias=own, qk_norm=qk_norm)
    return decoder(c, [(attention, mlp(c, c("intermediate_size"), bias=c.flag("mlp_bias")))] * c.layers())


def qwen3_moe(c: Fields) -> ModelShape:
    routed = moe(
        c,
        count=c("num_local_experts", "num_experts", default=128),  # its newer name first
        chosen=c("num_experts_per_tok", default=8),
        width=c("moe_intermediate_size", default=768),
    )
    attention = gqa(c, qk_norm=True, bias=c.flag("attention_bias"))
    step, only = c("decoder_sparse_step", default=1), c.values.get("mlp_only_layers") or []
    dense = [i in only or (i + 1) % step > 0 for i in range(c.layers())]
    return decoder(c, [(attention, mlp(c, c("intermediate_size")) if plain else routed) for plain in dense])


def opt(c: Fields) -> ModelShape:
    hidden = c("hidden_size")
    embed = c("word_embed_proj_dim", default=hidden)
    attention = gqa(c, bias=True, out_bias=True, norms=2)  # a norm has a bias, too
    layer = (attention, mlp(c, c("ffn_dim"), gated=False, bias=True, norms=2))
    projections = (FeedForward(matrices=2 * embed * hidden),) if embed != hidden else ()
    last = (Part(vectors=2 * hidden),) if c.flag("do_layer_norm_before", default=True) else ()
    return decoder(
        c, [layer] * c.layers(), tied=True, outside=(*projections, *last), final_norm=False,
        embed_dim=0 if embed == hidden else embed,
        lookup=(c("max_position_embeddings") + 2) * hidden,  # its table has an offset of two
    )  # fmt: skip


def deepseek_v3(c: Fields) -> ModelShape:
    width = c("moe_intermediate_size")
    routed = moe(
        c, count=c("n_routed_experts"), chosen=c("num_experts_per_tok"), width=width, router_bias=True,
        shared=width * c("n_shared_experts", default=0, least=0),
    )  # fmt: skip
    attention, dense = mla(c), mlp(c, c("intermediate_size"))
    first = c("first_k_dense_replace", least=0)
    return decoder(c, [(attention, dense if i < first else routed) for i in range(c.layers())])
