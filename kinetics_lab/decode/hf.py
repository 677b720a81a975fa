"""Hugging Face transformers with our caches: its model code, our attention, decoding any number of requests at once.

Nothing of a model is copied: the library calls the attention registered here, which fills the caches it is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.decode.caches import open_cache
from kinetics_lab.decode.graph import captured
from kinetics_lab.errors import absent, among, lookup, require

try:
    import transformers
    from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError:
    raise absent("transformers") from None

NAME = "kinetics"  # of our attention in the library's registry

#: Families whose attention is plain GQA over the whole context, by the library's names of them.
KNOWN = {"qwen2.5": "qwen2", "qwen3": "qwen3", "qwen3-moe": "qwen3_moe", "llama3": "llama"}


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, caches: PolicyCache | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The registered function: one token a request over ``caches``, or the library's own attention without them.

    query: ``[batch, heads, 1, head_dim]``; returns ``[batch, 1, heads, head_dim]``, as the library wants it.
    """
    if caches is not None:
        return _attend(caches, module, query, key, value, scaling), None
    given = (module, query, key, value, attention_mask)
    return sdpa_attention_forward(*given, scaling=scaling, **kwargs)


# The compiler stays out of what is kept apart from layer to layer: it would compile every layer by itself.
@torch.compiler.disable
def _attend(
    caches: PolicyCache, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    cache = caches.layers[module.layer_idx]
    cache.append(key[:, :, 0], value[:, :, 0], caches.active)
    return cache.attend(query[:, :, 0], scaling)[:, None]


transformers.AttentionInterface.register(NAME, attention)


@dataclass(frozen=True)
class PolicyCache:
    """Caches of all layers; ``active [batch]`` int32 says which requests take the token of the next step."""

    layers: Sequence[Any]
    active: Tensor


class InPlaceLayer(CacheLayerMixin):
    """A layer of the library's own attention: ``keys, values [batch, KV heads, tokens, head_dim]``, all of them full.

    A step overwrites the last token where the library's classes would copy the cache or mask it.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.max_tokens = keys, values, keys.shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to lay out."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys[:, :, -1:], self.values[:, :, -1:] = key_states, value_states
        return self.keys, self.values

    # The library asks these to make masks and positions that a caller did not give.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.max_tokens, 0

    def get_seq_length(self) -> int:
        return self.max_tokens - 1

    def get_max_length(self) -> int:
        return self.max_tokens


class InPlaceCache(Cache):
    """Full caches of all layers for the library's own attention, to be timed beside ours."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(layers=[InPlaceLayer(*layer) for layer in layers])

    @torch.compiler.disable  # as for :func:`_attend`
    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(*args, **kwargs)


@torch.no_grad()
def step(model: Any, tokens: Tensor, positions: Tensor, caches: PolicyCache | InPlaceCache) -> Tensor:
    """Logits ``[batch, vocabulary]`` after one token a request: ``tokens``, ``positions`` are ``[batch, 1]``.

    Attention is ours over a :class:`PolicyCache`, the library's over its own classes.
    """
    ours = isinstance(caches, PolicyCache)
    how = {"caches": caches, "use_cache": False} if ours else {"past_key_values": caches, "use_cache": True}
    out = model(input_ids=tokens, position_ids=positions, **how)
    return out.logits[:, -1]


@dataclass(frozen=True)
class Prompt:
    """A prompt that has been read: each layer's keys and values ``[1, tokens, KV heads, head_dim]``, last logits."""

    layers: list[tuple[Tensor, Tensor]]
    logits: Tensor
    length: int


class Decoder:
    """``slots`` requests side by side on one model, each begun with :meth:`fill`, all moved on by :meth:`step`.

    The first ``dense_layers`` layers stay dense. On a GPU a step is a CUDA graph where the model can be captured
    (``how`` says "graph" or "eager"). Raises ValueError for a model whose attention is not plain GQA.
    """

    def __init__(
        self, model: Any, policy: Policy, slots: int, max_tokens: int, *, dense_layers: int = 0, compiled: bool = False
    ) -> None:  # fmt: skip
        config = model.config
        check_config(config)
        rule = f"dense_layers must be 0 to {config.num_hidden_layers}"
        require(0 <= dense_layers <= config.num_hidden_layers, rule, dense_layers)
        model.set_attn_implementation(NAME)
        self.model, self.device, self.how = model.eval(), model.device, "eager"
        if compiled:
            compile_layers(model)
        shape = shape_of(model)
        sizes = slots, shape.n_kv_heads, shape.head_dim, max_tokens
        reads = [Dense() if i < dense_layers else policy for i in range(config.num_hidden_layers)]
        caches = [open_cache(p, *sizes, dtype=model.dtype, device=self.device) for p in reads]
        self.tokens, self.positions = torch.zeros(2, slots, 1, dtype=torch.int64, device=self.device)
        self.active = torch.zeros(slots, dtype=torch.int32, device=self.device)
        self.cache = PolicyCache(caches, self.active)
        self._graph: Any = self.device.type == "cuda"
        self._logits: Tensor | None = None

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Prompt:
        """Read a prompt with the library's own dense attention."""
        cache = DynamicCache()
        tokens = torch.tensor([list(ids)], device=self.device)
        with torch.compiler.set_stance("force_eager"):  # else every length of prompt would be compiled anew
            out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = [(layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in cache.layers]
        return Prompt(layers, out.logits[0, -1], len(ids))

    def fill(self, slot: int, prompt: Prompt) -> None:
        """Begin the request of this slot anew, after this prompt."""
        for cache, (k, v) in zip(self.cache.layers, prompt.layers, strict=True):
            cache.fill(k, v, slice(slot, slot + 1))

    def step(self, tokens: Sequence[int], positions: Sequence[int], active: Sequence[bool]) -> Tensor:
        """Logits ``[slots, vocabulary]`` after one token for each active slot; others' rows mean nothing.

        positions: tokens that each request holds already. The result is overwritten by the next step.
        """
        held = self.tokens[:, 0], self.positions[:, 0], self.active
        for to, values in zip(held, (tokens, positions, active), strict=True):
            to.copy_(torch.tensor(values, dtype=to.dtype))
        if self._graph is True:
            self._capture()
        if self._graph:
            self._graph.replay()
        else:
            self._logits = step(self.model, self.tokens, self.positions, self.cache)
        assert self._logits is not None
        return self._logits

    def _capture(self) -> None:
        """Record a step without taking one: no slot is active while kernels warm up and are captured."""
        active = self.active.clone()
        self.active.zero_()

        def one() -> None:
            self._logits = step(self.model, self.tokens, self.positions, self.cache)

        self._graph = captured(one)
        if self._graph:
            self.how = "graph"
        else:  # the model plans on the host, as some expert routing does
            told = "decoding without a CUDA graph, which is slower: a step waits for the GPU"
            warnings.warn(told, stacklevel=2)
        self.active.copy_(active)


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Let PyTorch's compiler fuse what lies between matrix products; attention and caches stay as they are.

    Small elementwise kernels cost microseconds each, hundreds of them a step: more than sparse attention takes.
    """
    # Else every layer's number would be a constant of the code, and every layer compiled by itself.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for layer in model.model.layers:
        layer.compile(backend=backend)


def check_config(config: Any) -> None:
    """ValueError unless the model's attention is plain GQA over the whole context."""
    among(sorted(KNOWN.values()), config.model_type, "model_type")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rule = "every layer must be full_attention (no sliding window)"
    require(kinds == {"full_attention"}, rule, sorted(kinds))


def shape_of(model: Any) -> ModelShape:
    """The shape that the cost law prices."""
    return from_hf_config(model.config.to_dict() | {"architectures": [type(model).__name__]})


def config_of(shape: ModelShape) -> Any:
    """The library's config of a shape: Qwen3 (dense and MoE), Qwen2.5, Llama 3. ValueError for other families."""
    kind = lookup(KNOWN, shape.family, "model family")
    values: dict[str, Any] = {
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_q_heads, "vocab_size": shape.vocab,
        "num_key_value_heads": shape.n_kv_heads, "head_dim": shape.head_dim, "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn, "tie_word_embeddings": shape.tied, "max_position_embeddings": 131072,
    }  # fmt: skip
    if shape.n_experts:
        values |= {"num_experts": shape.n_experts, "num_experts_per_tok": shape.n_active_experts,
                   "moe_intermediate_size": shape.expert_ffn, "norm_topk_prob": True,
                   "mlp_only_layers": list(range(shape.n_dense_layers))}  # fmt: skip
    return transformers.AutoConfig.for_model(kind, **values)


def random_model(
    shape: ModelShape, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:  # fmt: skip
    """A model of this shape with random weights, ready for a :class:`Decoder`. Device "meta": no memory at all."""
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config
    with torch.device(device):
        return made(config_of(shape), dtype=dtype, attn_implementation=NAME).eval()


def load_model(name: str, *, device: str | torch.device, dtype: str = "auto") -> tuple[Any, Any]:
    """Model and tokenizer of a folder, or of the hub where the network reaches it.

    Raises ValueError where there is no such model, or where its attention is not plain GQA.
    """
    try:
        check_config(transformers.AutoConfig.from_pretrained(name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation=NAME)
    except OSError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"model {name!r} is no folder here, and the hub did not give it: {why}") from None
    return model.to(device).eval(), tokenizer
