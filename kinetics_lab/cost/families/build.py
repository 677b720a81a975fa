"""The parts that families share, built from a configuration's values, and the stack made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts, FeedForward, Layer, Part, State
from kinetics_lab.errors import require

# The names that a value goes by.
_WIDTHS = ("dense_intermediate_size", "intermediate_size_mlp", "ffn_hidden_size", "intermediate_size")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
_STEPS = ("decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step", "moe_layer_freq")


def gqa(
    c: Fields, *, heads: int = 0, kv_heads: int = 0, head_dim: int = 0, v_dim: int = 0, bias: bool = False,
    out_bias: bool = False, qk: str = "", gate: int = 0, same_kv: bool = False, norms: int = 1, sinks: bool = False,
    matrices: int = 0, vectors: int = 0, **more: Any,
) -> Attention:  # fmt: skip
    """Attention with grouped heads. ``norms``: vectors of the hidden width; ``bias``: of queries, keys and values.

    ``qk``: norms of queries and keys, one width for each "head", or "wide" over all. ``gate``: outputs of a further
    projection. ``same_kv``: values are projected with the keys. With ``owns=False`` there are no keys and values to project.
    """
    hidden = c("hidden_size")
    heads = heads or c("num_attention_heads")
    kv_heads = kv_heads or c("num_key_value_heads", "num_attention_groups", default=heads)
    rule = f"{c.where}: num_attention_heads must be a multiple of num_key_value_heads={kv_heads}"
    require(heads % kv_heads == 0, rule, heads)
    # Only where the file gives none is it derived, as the model code itself does.
    head_dim = head_dim or c("head_dim", "attention_head_dim", default=hidden // heads)
    v_dim, owns = v_dim or head_dim, more.get("owns", True)
    q, k, v = heads * head_dim, kv_heads * head_dim * owns, kv_heads * v_dim * owns
    vectors += {"": 0, "head": head_dim * (1 + owns), "wide": q + k}[qk] + norms * hidden
    vectors += bias * (q + k + v) + out_bias * hidden + sinks * heads
    matrices += hidden * (q + k + v * (not same_kv) + gate) + heads * v_dim * hidden
    more |= {"matrices": matrices, "vectors": vectors}
    return Attention(heads=heads, kv_heads=kv_heads, qk=head_dim, v=v_dim, **more)


def mla(c: Fields, *, gate: int = 0, index: bool = False, **more: Any) -> Attention:
    """Multi-head latent attention; queries pass through a latent vector where ``q_lora_rank`` says so.

    ``index``: the layer has an index of its own, which chooses ``index_topk`` tokens.
    """
    hidden, heads, latent = c("hidden_size"), c("num_attention_heads"), c("kv_lora_rank")
    rope, nope, v = c("qk_rope_head_dim"), c("qk_nope_head_dim"), c("v_head_dim")
    rank, query = c("q_lora_rank", default=0, least=0), heads * (nope + rope)
    matrices = rank * (hidden + query) if rank else hidden * query
    matrices += hidden * (latent + rope + gate) + latent * heads * (nope + v) + heads * v * hidden
    vectors = hidden + rank + latent + c.flag("attention_bias") * ((rank or query) + latent + rope + hidden)
    if index:
        width, index_heads = c("index_head_dim"), c("index_n_heads")
        # Projections of queries and key, and weights of the index's heads.
        matrices += rank * index_heads * width + hidden * (width + index_heads)
        vectors += 2 * width
        more |= {"index": width, "index_heads": index_heads}
    return Attention(
        heads=heads, kv_heads=1, qk=latent + rope, v=latent, latent=True, unabsorbed=nope + rope + v,
        matrices=matrices, vectors=vectors, **more,
    )  # fmt: skip


def mlp(c: Fields, width: int = 0, *, gated: bool = True, bias: bool = False, norms: int = 1) -> FeedForward:
    """A feed-forward block: three matrices, or two where it has no gate."""
    width = width or c(*_WIDTHS)
    hidden, each = c("hidden_size"), 3 if gated else 2
    vectors = norms * hidden + bias * ((each - 1) * width + hidden)
    return FeedForward(width=width, matrices=each * hidden * width, vectors=vectors)


def moe(
    c: Fields, *, width: int = 0, shared: int | None = None, gated: bool = True, bias: bool = False, latent: int = 0,
    extra: int = 0, norms: int = 1, idle: int = 0, routing_bias: bool = False,
) -> Experts:  # fmt: skip
    """Routed experts. ``shared``: the summed width of experts that every token meets; ``extra``: more vectors.

    ``latent``: the width that routed experts read and write where it is not the model's. ``idle``: experts that do
    nothing, to which a share of the choices leads. ``routing_bias``: a number beside each expert's score.
    """
    hidden, each = c("hidden_size"), 3 if gated else 2
    count = c("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    chosen = c(*_CHOSEN)
    require(chosen <= count + idle, f"{c.where}: a token cannot be sent to more than {count} experts", chosen)
    width = width or c("moe_intermediate_size", "expert_ffn_hidden_size")
    if shared is None:
        keys = "n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"
        shared = width * c(*keys, default=0, least=0)
    return Experts(
        count=count, chosen=chosen * count / (count + idle) if idle else chosen, width=width,
        each=each * (latent or hidden) * width + bias * ((each - 1) * width + hidden),
        router=(count + idle) * hidden, matrices=each * hidden * shared + 2 * hidden * latent,
        vectors=norms * hidden + extra + routing_bias * (count + idle),
    )  # fmt: skip


def state(recurrent: int, conv: int, each: int, **more: Any) -> State:
    """A part with a state, of which each element takes ``each`` FLOP a step, and the window of a convolution."""
    return State(recurrent=recurrent, conv=conv, flops=each * recurrent + 2 * conv, **more)


def delta(*, heads: int, width: int, values: int, groups: int, kernel: int, **more: Any) -> State:
    """Gated delta rule: ``heads`` states of ``width`` times ``values``; queries and keys of ``groups`` heads."""
    conv = 2 * groups * width + heads * values
    # Of an element of the state: decay, what it recalls for the key, the correction, the answer to the query.
    return state(heads * width * values, conv * kernel, 7, **more)


def mamba2(
    hidden: int, *, heads: int, dim: int, states: int, groups: int, kernel: int, norm: bool = True
) -> State:
    """A state space with one decay a head (Mamba-2), its convolution with bias."""
    inner = heads * dim
    conv = inner + 2 * groups * states
    return state(
        inner * states, conv * kernel, 5, matrices=hidden * (inner + conv + heads) + inner * hidden,
        vectors=3 * heads + conv * (kernel + 1) + norm * inner + hidden,
    )  # fmt: skip


def mamba1(hidden: int, *, inner: int, states: int, rank: int, kernel: int, norms: bool = False) -> State:
    """A state space with a decay for each element (Mamba), its convolution with bias."""
    return state(
        inner * states, inner * kernel, 6, matrices=3 * hidden * inner + inner * (2 * rank + 2 * states),
        vectors=inner * (states + kernel + 3) + norms * (rank + 2 * states) + hidden,
    )  # fmt: skip


def window(c: Fields) -> float:
    """Tokens that a layer with a window sees; endless where the file switches windows off."""
    return c("sliding_window", default=math.inf) if c.flag("use_sliding_window", default=True) else math.inf


def routed(c: Fields, first: int = 0) -> list[bool]:
    """Which layers have experts, by whichever keys the file says it with; all but the ``first`` where it says nothing."""
    n = c.count()
    if c.values.get("mlp_layer_types") is not None:
        return [kind == "moe" for kind in c.kinds("mlp_layer_types", known={"moe", "mlp"})]
    if isinstance(c.values.get("moe_layer_freq"), list):
        return [one > 0 for one in c.numbers("moe_layer_freq")]
    if c.values.get("is_moe_layer") is not None:
        return [bool(one) for one in c.each("is_moe_layer")]
    for key in ("moe_layers", "moe_layers_enum"):
        if c.values.get(key) is not None:
            return [i in c.indices(key) for i in range(n)]
    step = c(*_STEPS, default=1)
    start = c("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", default=first, least=0)
    last, dense = c("moe_layer_end_index", default=-1, least=-1) % n, c.indices("mlp_only_layers")
    return [start <= i <= last and i not in dense and (i + 1) % step == 0 for i in range(n)]


def stack(
    c: Fields, kinds: Sequence[str], mixers: Mapping[str, Part], *, dense: Part | None = None,
    experts: Part | None = None, first: int = 0, beside: Part | None = None, **more: Any,
) -> ModelShape:  # fmt: skip
    """Layers with the mixer of their kind and a dense block, or ``experts`` where the file says so."""
    strange = sorted(set(kinds) - set(mixers))
    require(not strange, f"{c.where}: layers of {c.needs} must be one of {', '.join(mixers)}", strange)
    has = routed(c, first) if experts else [False] * len(kinds)
    if dense is None and False in has:
        dense = mlp(c)
    layers = [(mixers[kind], experts if one else dense, beside) for kind, one in zip(kinds, has, strict=True)]
    return decoder(c, layers, **more)


def decoder(
    c: Fields, layers: Iterable[Sequence[Part | None]], *, outside: Layer = (), final_norm: int = 1, **more: Any
) -> ModelShape:  # fmt: skip
    """The shape of these layers, a part that is None left out. ``final_norm``: vectors of the hidden width after the last."""
    hidden = c("hidden_size")
    kept = tuple(tuple(part for part in layer if part is not None) for layer in layers)
    last = (Part(vectors=final_norm * hidden),) if final_norm else ()
    return ModelShape(
        name=c.where, family="", hidden=hidden, vocab=c("vocab_size"), layers=kept,
        tied=c.flag("tie_word_embeddings", "tie_embedding"), outside=(*outside, *last), **more,
    )  # fmt: skip
