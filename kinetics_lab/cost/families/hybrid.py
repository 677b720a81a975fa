"""Readers of families in which layers with a state replace attention: linear attention, state spaces, convolutions."""

from __future__ import annotations

import math

from kinetics_lab.cost.families.build import decoder, delta, gqa, mamba1, mamba2, mla, mlp, moe, stack, state
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Part, State
from kinetics_lab.errors import require


def qwen_next(c: Fields, *, experts: bool = True) -> ModelShape:
    """Qwen3-Next and Qwen3.5: three gated delta rules, then one gated attention."""
    gate = c("num_attention_heads") * c("head_dim")
    whole = gqa(c, qk="head", gate=gate, bias=c.flag("attention_bias"))
    kinds = c.kinds("layer_types", every=c("full_attention_interval", default=4), other="linear")
    routes = moe(c, shared=c("shared_expert_intermediate_size"), extra=c("hidden_size")) if experts else None
    return stack(c, kinds, {"full": whole, "linear": _gated_delta(c)}, experts=routes)


def olmo_hybrid(c: Fields) -> ModelShape:
    heads = c("num_attention_heads")
    c.suppose(linear_num_key_heads=heads, linear_num_value_heads=heads)
    c.suppose(linear_key_head_dim=int(0.75 * c("hidden_size") / c("linear_num_key_heads")))
    c.suppose(linear_value_head_dim=2 * c("linear_key_head_dim"))
    kinds = c.kinds("layer_types", every=min(4, c.count()), other="linear")  # the last of fewer than four
    return stack(c, kinds, {"full": gqa(c, qk="wide"), "linear": _gated_delta(c)})


def _gated_delta(c: Fields) -> State:
    hidden, keys, heads = c("hidden_size"), c("linear_num_key_heads"), c("linear_num_value_heads")
    dk, dv, kernel = c("linear_key_head_dim"), c("linear_value_head_dim"), c("linear_conv_kernel_dim")
    conv, inner = 2 * keys * dk + heads * dv, heads * dv
    return delta(
        heads=heads, width=dk, values=dv, groups=keys, kernel=kernel, vectors=conv * kernel + 2 * heads + dv + hidden,
        matrices=hidden * (conv + 2 * inner + 2 * heads),
    )  # fmt: skip


def kimi(c: Fields) -> ModelShape:
    """Kimi Linear and K3: delta rules with a decay for each channel, then latent attention; K3 gates and narrows."""
    linear = c.inner("linear_attn_config")
    heads = linear("num_heads", default=c("linear_num_heads", default=32))
    dim = linear("head_dim", default=c("linear_head_dim", default=128))
    kernel = linear("short_conv_kernel_size", default=c("linear_conv_kernel_dim", default=4))
    if "full_attn_layers" in linear.values:
        linear.suppose(num_hidden_layers=c.count())
        full, rest = (linear.indices(key, start=1) for key in ("full_attn_layers", "kda_layers"))
        split = not full & rest and len(full | rest) == c.count()
        rule = f"{c.where}: full_attn_layers and kda_layers must share out {c.count()} layers"
        require(split, rule, len(full | rest))
        c.suppose(layer_types=["*" if i + 1 in full else "M" for i in range(c.count())])
    c.suppose(layer_types=["*" if i and i % 4 == 0 else "M" for i in range(c.count())])
    mixer = _kda(c, heads, dim, kernel, full_gate=linear.flag("use_full_rank_gate"))
    gate = c.flag("mla_use_output_gate") * c("num_attention_heads") * c("v_head_dim")
    return _with_latent(c, c.kinds("layer_types"), mixer, mla(c, gate=gate))


def ring(c: Fields) -> ModelShape:
    """Ring and Ling 2.5: as Kimi Linear, with decay and gate projected at full rank."""
    heads, kernel = c("num_attention_heads"), c("short_conv_kernel_size", default=4)
    mixer = _kda(c, heads, c("head_dim"), kernel, full_gate=True, full_decay=True)
    kinds = c.kinds("layer_types", every=c("layer_group_size"), other="linear")
    return _with_latent(c, kinds, mixer, mla(c, gate=heads))


def _kda(c: Fields, heads: int, dim: int, kernel: int, *, full_gate: bool, full_decay: bool = False) -> State:
    hidden, inner = c("hidden_size"), heads * dim
    narrow = dim * (hidden + inner)  # through a vector as wide as a head
    matrices = hidden * (4 * inner + heads)
    matrices += sum(hidden * inner if full else narrow for full in (full_gate, full_decay))
    return delta(
        heads=heads, width=dim, values=dim, groups=heads, kernel=kernel, matrices=matrices,
        vectors=3 * inner * kernel + inner + heads + dim + hidden,
    )  # fmt: skip


def _with_latent(c: Fields, kinds: list[str], linear: State, whole: Attention) -> ModelShape:
    hidden, latent = c("hidden_size"), c("routed_expert_hidden_size", default=0, least=0)
    # Residuals by attention over blocks of layers: a norm and a query before each of the two parts of a layer.
    looks_back = 2 * hidden if c("attn_res_block_size", default=0, least=0) else 0
    experts = moe(c, latent=latent, extra=c.flag("latent_moe_use_norm") * latent, routing_bias=True)
    beside, outside = Part(vectors=2 * looks_back), (Part(vectors=looks_back),)
    mixers = {"full": whole, "linear": linear}
    return stack(c, kinds, mixers, experts=experts, first=1, beside=beside, outside=outside)


def _lightning(c: Fields, vectors: int = 0) -> State:
    """Linear attention with a fixed decay, an output gate and a norm over all heads."""
    hidden, heads = c("hidden_size"), c("num_attention_heads")
    dim = c("head_dim", default=hidden // heads)
    inner = heads * dim
    return state(inner * dim, 0, 5, matrices=5 * hidden * inner, vectors=inner + vectors + hidden)


def ring_linear(c: Fields) -> ModelShape:
    norm = 2 * c("head_dim", default=128) * c.flag("use_qk_norm")
    whole = gqa(c, qk="head" if norm else "", bias=c.flag("use_qkv_bias"))
    kinds = c.kinds("layer_types", every=c("layer_group_size"), other="linear")
    extra = c("num_experts") * c.flag("moe_router_enable_expert_bias")
    return stack(c, kinds, {"full": whole, "linear": _lightning(c, norm)}, experts=moe(c, extra=extra))


def minimax_01(c: Fields) -> ModelShape:
    """MiniMax-Text-01 and M1: linear attention with a fixed decay, each eighth layer whole."""
    if "attn_type_list" in c.values:
        c.suppose(layer_types=["*" if one else "M" for one in c.numbers("attn_type_list")])
    c.suppose(layer_types=["M" if i % 2 else "*" for i in range(c.count())])
    shared = c("shared_intermediate_size", default=0, least=0)
    experts = moe(c, width=c("intermediate_size"), shared=shared)
    return stack(c, c.kinds("layer_types"), {"full": gqa(c), "linear": _lightning(c)}, experts=experts)


def nemotron_h(c: Fields) -> ModelShape:
    """One part a layer: a state space, attention, a dense block or experts, the latter two without gates."""
    key, listed = c.get("hybrid_override_pattern", "layers_block_type", "layer_types")
    c.suppose(num_hidden_layers=len(listed) if isinstance(listed, list | str) else 1)
    kinds = c.kinds(key)
    parts: dict[str, Part] = {"full": gqa(c)}
    if "linear" in kinds:
        parts["linear"] = mamba2(
            c("hidden_size"), heads=c("mamba_num_heads"), dim=c("mamba_head_dim"), states=c("ssm_state_size"),
            groups=c("n_groups", "mamba_n_groups"), kernel=c("conv_kernel", "mamba_d_conv"),
        )  # fmt: skip
    if "moe" in kinds:
        shared = c("moe_shared_expert_intermediate_size") * c("n_shared_experts", default=0, least=0)
        latent = c("moe_latent_size", default=0, least=0)
        parts["moe"] = moe(c, gated=False, shared=shared, latent=latent, routing_bias=True)
    if "mlp" in kinds:
        parts["mlp"] = mlp(c, gated=False)
    return decoder(c, [(parts[kind],) for kind in kinds])


def granite_hybrid(c: Fields) -> ModelShape:
    """Granite 4: a state space or attention, then experts beside a shared block, or that block alone."""
    shared, many = c("shared_intermediate_size"), c("num_local_experts", default=0, least=0)
    block: Part = moe(c, width=c("intermediate_size"), shared=shared) if many else mlp(c, shared)
    kinds = c.kinds("layer_types", "layers_block_type", every=0, other="linear")
    return stack(c, kinds, {"full": gqa(c), "linear": _mamba_v2(c)}, dense=block)


def falcon_h1(c: Fields) -> ModelShape:
    """A state space and attention side by side in every layer, behind one norm."""
    linear = _mamba_v2(c, norm=c.flag("mamba_rms_norm"), inner=c("mamba_d_ssm", default=0))
    return decoder(c, [(gqa(c, norms=0), linear, mlp(c))] * c.count())


def _mamba_v2(c: Fields, *, norm: bool = True, inner: int = 0) -> State:
    heads, hidden = c("mamba_n_heads"), c("hidden_size")
    inner = inner or c("mamba_expand") * hidden
    dim, states = c("mamba_d_head", default=inner // heads, auto=True), c("mamba_d_state")
    groups, kernel = c("mamba_n_groups"), c("mamba_d_conv")
    return mamba2(hidden, heads=heads, dim=dim, states=states, groups=groups, kernel=kernel, norm=norm)


def mamba(c: Fields) -> ModelShape:
    hidden = c("hidden_size", "d_model")
    inner = c("intermediate_size", "d_inner", default=c("expand", default=2) * hidden)
    rank = c("time_step_rank", default=-(-hidden // 16), auto=True)
    part = mamba1(hidden, inner=inner, states=c("state_size"), rank=rank, kernel=c("conv_kernel", default=4))
    return decoder(c, [(part,)] * c.count())


def mamba_2(c: Fields) -> ModelShape:
    sizes = {"heads": c("num_heads"), "dim": c("head_dim"), "states": c("state_size")}
    part = mamba2(c("hidden_size"), groups=c("n_groups"), kernel=c("conv_kernel"), **sizes)
    return decoder(c, [(part,)] * c.count())


def jamba(c: Fields) -> ModelShape:
    hidden, n = c("hidden_size"), c.count()
    inner, rank = c("mamba_expand") * hidden, c("mamba_dt_rank", default=-(-hidden // 16), auto=True)
    states, kernel = c("mamba_d_state"), c("mamba_d_conv")
    linear = mamba1(hidden, inner=inner, states=states, rank=rank, kernel=kernel, norms=True)
    every, at = c("attn_layer_period"), c("attn_layer_offset", least=0)
    period, offset = c("expert_layer_period"), c("expert_layer_offset", least=0)
    if c("num_experts") > 1:
        c.suppose(moe_layers=list(range(offset, n, period)))
    kinds = ["full" if i % every == at else "linear" for i in range(n)]
    experts = moe(c, width=c("intermediate_size")) if c("num_experts") > 1 else None
    return stack(c, kinds, {"full": gqa(c), "linear": linear}, experts=experts)


def lfm2(c: Fields, *, experts: bool = False) -> ModelShape:
    """Short convolutions, some layers attention."""
    hidden, kernel = c("hidden_size"), c("conv_L_cache")
    short = state(0, hidden * kernel, 0, matrices=4 * hidden**2, vectors=hidden * (kernel + 1))
    if "full_attn_idxs" in c.values:
        c.suppose(layer_types=["*" if i in c.indices("full_attn_idxs") else "M" for i in range(c.count())])
    width = c("block_ff_dim", "intermediate_size")
    if not experts and c.flag("block_auto_adjust_ff_dim", default=True):
        step, scale = c("block_multiple_of", default=256), c.number("block_ffn_dim_multiplier", default=1.0)
        width = math.ceil(int(scale * int(2 * width / 3)) / step) * step
    routes = moe(c, routing_bias=c.flag("use_expert_bias", default=True)) if experts else None
    mixers = {"full": gqa(c, qk="head"), "linear": short}
    return stack(c, c.kinds("layer_types"), mixers, dense=mlp(c, width), experts=routes)
