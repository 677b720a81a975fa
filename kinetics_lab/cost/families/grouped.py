"""Readers of families with grouped heads in every layer, whole or through a window, dense or with experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kinetics_lab.cost.families.build import decoder, gqa, mlp, moe, routed, stack, window
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Experts, FeedForward, Part
from kinetics_lab.errors import require


def grouped(
    c: Fields, *, every: int = 1, bias: str | bool = "attention_bias", out_bias: str | bool | None = None, qk: str = "",
    qk_if: str = "", norms: tuple[int, int] = (1, 1), gated: bool = True, mlp_bias: str | bool = "mlp_bias",
    experts: Mapping[str, Any] | None = None, near: Mapping[str, Any] | None = None, head_bias: bool = False,
    final_norm: int = 1, first: int = 0, **attention: Any,
) -> ModelShape:  # fmt: skip
    """Any of them. ``every``: each so many-th layer is whole where the file lists no layers (0: all have a window, if any).

    ``bias``, ``out_bias``, ``mlp_bias``: a key of the file, or whether there is one. ``qk_if``: a key that switches off
    the norms of queries and keys. ``experts``, ``near``: what differs in layers with experts, or with a window.
    """

    def said(what: Any) -> Any:
        return c.flag(what) if isinstance(what, str) else what

    pattern = c.get("sliding_window_pattern", default=None)[1]
    if isinstance(pattern, str) and pattern:  # as LLLG, over and over
        c.suppose(layer_types=[pattern[i % len(pattern)] for i in range(c.count())])
    elif every > 1:
        every = c("sliding_window_pattern", "global_attn_every_n_layers", default=every)
    attention |= {"norms": norms[0], "bias": said(bias), "qk": qk if not qk_if or c.flag(qk_if) else ""}
    attention["out_bias"] = said(bias if out_bias is None else out_bias)
    near = attention | {"window": window(c)} | dict(near or {})
    mixers = {"full": gqa(c, **attention), "near": gqa(c, **near)}
    if experts is not None:
        experts = {name: c(key, least=0) if isinstance(key, str) else key for name, key in experts.items()}
    dense = None
    if experts is None or not gated or norms[1] != 1 or said(mlp_bias):
        dense = mlp(c, gated=gated, bias=said(mlp_bias), norms=norms[1])
    return stack(
        c, c.kinds("layer_types", every=every, known=set(mixers)), mixers, dense=dense, first=first, final_norm=final_norm,
        experts=None if experts is None else moe(c, norms=norms[1], **experts),
        outside=(Part(vectors=c("vocab_size")),) if head_bias else (),
    )  # fmt: skip


def qwen(c: Fields, **traits: Any) -> ModelShape:
    """Qwen2 and Qwen3: windows from ``max_window_layers`` on, where they are switched on."""
    whole = c("max_window_layers", default=0, least=0)
    if c.flag("use_sliding_window"):
        c.suppose(layer_types=["*L"[i >= whole] for i in range(c.count())])
    return grouped(c, **traits)


def llama4(c: Fields) -> ModelShape:
    """Chunks in all layers but those without rotary embedding; dense layers have a width of their own."""
    rope = c.get("no_rope_layers", default=[])[1] and c.numbers("no_rope_layers")
    c.suppose(layer_types=["*L"[bool(rope[i] if rope else (i + 1) % 4)] for i in range(c.count())])
    near = {"chunk": c("attention_chunk_size", default=math.inf)}
    return grouped(c, near=near, experts={"width": "intermediate_size", "shared": "intermediate_size"})


def mimo_v2(c: Fields) -> ModelShape:
    """Windows with heads of their own; keys are wider than values."""
    n = c.count()
    near = c.numbers("hybrid_layer_pattern", default=[int(i > 0 and (i + 1) % 6 > 0) for i in range(n)])
    c.suppose(layer_types=["*L"[bool(one)] for one in near])
    heads, dim, v_dim = c("num_attention_heads"), c("head_dim"), c("v_head_dim")
    other = {
        "heads": c("swa_num_attention_heads", default=heads), "kv_heads": c("swa_num_key_value_heads", default=2 * c("num_key_value_heads")),
        "head_dim": c("swa_head_dim", default=dim), "v_dim": c("swa_v_head_dim", default=v_dim), "sinks": True,
    }  # fmt: skip
    return grouped(c, near=other, v_dim=v_dim, first=1, experts={"routing_bias": True})


def step3(c: Fields) -> ModelShape:
    """Layers with a window may have more heads; each head has a gate."""
    heads, other = c("num_attention_heads"), c.inner("attention_other_setting")
    near = other("num_attention_heads", default=c("num_sliding_attention_heads", default=heads))
    return grouped(
        c, qk="head", gate=heads, near={"heads": near, "gate": near}, first=3,
        experts={"shared": c("share_expert_dim", "share_expert_dims"), "routing_bias": True},
    )  # fmt: skip


def step3_mfa(c: Fields) -> ModelShape:
    """Step3 of 321B: one KV head, and queries of many heads made from one short vector that they share."""
    rank, q = c("share_q_dim"), c("num_attention_heads") * c("head_dim")
    c.suppose(moe_layers_enum=list(range(4, 60)))  # the class's own
    return grouped(
        c, kv_heads=1, matrices=rank * (c("hidden_size") + q) - q * c("hidden_size"), vectors=rank,
        experts={"shared": "share_expert_dim"},
    )  # fmt: skip


def hunyuan_large(c: Fields) -> ModelShape:
    """Layers that read the cache of the one before (cross-layer attention); they still have a norm of keys."""
    share = c("cla_share_factor", default=1) if c.flag("use_cla") else 1
    c.suppose(layer_types=["*L"[i % share > 0] for i in range(c.count())])
    norm = c("head_dim", "attention_head_dim", default=c("hidden_size") // c("num_attention_heads"))
    reads = {"owns": False, "vectors": norm * c.flag("use_qk_norm")}
    return grouped(c, qk="head", qk_if="use_qk_norm", near=reads, experts={"width": "intermediate_size"})


def ernie_vl(c: Fields) -> ModelShape:
    """Experts for text beside smaller ones for pictures, which text never reaches: they are stored and not read."""

    def pair(key: str, least: int = 1, **default: Any) -> list[int]:
        given = c.get(key, **default)[1]
        both = given if isinstance(given, list) else [given] * 2
        require(len(both) == 2, f"{c.where}: {key} must give a number for text and one for pictures", given)
        return [Fields({key: one}, c.where, c.needs)(key, least=least) for one in both]

    counts, widths = pair("moe_num_experts"), pair("moe_intermediate_size", default=[1536, 512])
    starts, last = pair("moe_layer_start_index", 0, default=1), c.count() - 1
    ends = [min(one, last) for one in pair("moe_layer_end_index", -1, default=-1)]
    text, pictures = (
        Fields({**c.values, "moe_num_experts": counts[i], "moe_intermediate_size": widths[i],
                "moe_layer_start_index": starts[i], "moe_layer_end_index": ends[i]}, c.where, c.needs, c.defaults)
        for i in range(2)
    )  # fmt: skip
    shape = grouped(text, bias="use_bias", mlp_bias="use_bias", experts={"routing_bias": True})
    # Of text none is sent to them, nor do their router and its biases see it.
    each = 3 * c("hidden_size") * widths[1]
    unread = Experts(count=counts[1], chosen=0, width=widths[1], each=each + c("hidden_size") + 1)
    beside = [(unread,) if has else () for has in routed(pictures)]
    return replace(shape, layers=tuple(one + more for one, more in zip(shape.layers, beside, strict=True)))


def trinity(c: Fields) -> ModelShape:
    gate = c("num_attention_heads") * c("head_dim")
    return grouped(c, every=4, qk="head", norms=(2, 2), gate=gate, experts={"routing_bias": True})


def minimax_m3(c: Fields) -> ModelShape:
    """Block-sparse attention: an index chooses blocks of keys, for each KV head its own."""
    sparse, kinds = c.inner("sparse_attention_config"), c.kinds("layer_types")
    heads = sparse("sparse_num_index_heads", default=c("index_n_heads", default=4))
    width = sparse("sparse_index_dim", default=c("index_head_dim", default=128))
    blocks = sparse("sparse_topk_blocks", default=c("index_topk_blocks", default=16))
    topk = blocks * sparse("sparse_block_size", default=c("index_block_size", default=128))
    index = {"matrices": c("hidden_size") * width * (heads + 1), "vectors": 2 * width}
    chooses = gqa(c, qk="head", topk=topk, index=width, index_heads=heads, **index)
    mixers = {"full": gqa(c, qk="head"), "sparse": chooses}
    if "sparse_attention_freq" in sparse.values:
        sparse.suppose(num_hidden_layers=c.count())
        kinds = ["sparse" if one else "full" for one in sparse.numbers("sparse_attention_freq")]
    width, shared = c("moe_intermediate_size", "intermediate_size"), c("shared_intermediate_size")
    experts = moe(c, width=width, shared=shared, routing_bias=True)
    return stack(c, kinds, mixers, experts=experts)


def opt(c: Fields) -> ModelShape:
    hidden = c("hidden_size")
    embed = c("word_embed_proj_dim", default=hidden)
    attention = gqa(c, bias=True, out_bias=True, norms=2)  # a norm has a bias, too
    layer = (attention, mlp(c, c("ffn_dim"), gated=False, bias=True, norms=2))
    return decoder(
        c, [layer] * c.count(), final_norm=2 if c.flag("do_layer_norm_before", default=True) else 0,
        outside=(FeedForward(matrices=2 * embed * hidden),) if embed != hidden else (),
        embed_dim=0 if embed == hidden else embed,
        lookup=(c("max_position_embeddings") + 2) * hidden,  # its table has an offset of two
    )  # fmt: skip


def gemma(c: Fields, *, mix: bool = False) -> ModelShape:
    """Gemma 3n and 4: the last layers read caches of earlier ones, and each layer has its own small embedding.

    ``mix``: Gemma 3n's alternating updates of several streams, with a low-rank branch.
    """
    n, hidden, own = c.count(), c("hidden_size"), c("hidden_size_per_layer_input", default=0, least=0)
    kinds = c.kinds("layer_types", every=5 if mix else 6, known={"full", "near"})
    kinds[-1] = kinds[-1] if mix else "full"
    same, routes = c.flag("attention_k_eq_v"), c.flag("enable_moe_block")
    whole = {"head_dim": c("global_head_dim", default=c("head_dim") if mix else 512), "same_kv": same}
    whole["kv_heads"] = c("num_global_key_value_heads", default=0) if same else 0
    streams, rank = (c("altup_num_inputs"), c("laurel_rank")) if mix else (0, 0)
    extra = Part(
        matrices=2 * hidden * (own + rank) + streams * (hidden + streams**2 + streams),
        vectors=(own > 0) * hidden + mix * 3 * hidden,
    )
    experts = moe(c, shared=0, norms=4, extra=c("num_experts")) if routes else None
    shared, layers = n - c("num_kv_shared_layers", default=0, least=0), []
    listed = isinstance(c.get("intermediate_size")[1], list)
    widths = c.numbers("intermediate_size", least=1) if listed else [c("intermediate_size")] * n
    rule = f"{c.where}: num_kv_shared_layers must leave each kind of layer a cache"
    require(set(kinds) <= set(kinds[:shared]), rule, n - shared)
    for i, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        seen = {"window": window(c)} if kind == "near" else whole
        wide = 2 if c.flag("use_double_wide_mlp") and i >= shared else 1
        mixer = gqa(c, owns=i < shared, qk="head", norms=2, **seen)
        layers.append((mixer, mlp(c, wide * width, norms=2), experts, extra))
    outside = Part(matrices=hidden * own * n + 2 * max(streams - 1, 0) * hidden**2, vectors=own)
    lookup = c("vocab_size_per_layer_input", default=0) * own * n
    return decoder(c, layers, outside=(outside,), lookup=lookup)


def deci(c: Fields) -> ModelShape:
    """Nemotron of a search over architectures: each layer has its own attention and feed-forward block, or none."""
    heads, hidden, layers = c("num_attention_heads"), c("hidden_size"), []
    for i, block in enumerate(c.each("block_configs")):
        one = Fields({"block": block}, f"{c.where}: block_configs[{i}]", c.needs).inner("block")
        parts: list[Part | None] = []
        for part in (one.inner("attention"), one.inner("ffn")):
            if part.flag("no_op"):
                parts.append(None)
            elif part.flag("replace_with_linear"):
                parts.append(Part(matrices=hidden**2, vectors=hidden))
            elif part.values.get("intermediate_size"):
                parts.append(mlp(c, part("intermediate_size")))
            elif "ffn_mult" in part.values:
                parts.append(mlp(c, -(-int(2 * part.number("ffn_mult") * hidden / 3) // 256) * 256))
            else:
                groups = heads // part("n_heads_in_group", most=heads)
                parts.append(gqa(c, kv_heads=groups, window=part("window_length", default=math.inf)))
        layers.append(parts)
    return decoder(c, layers)
