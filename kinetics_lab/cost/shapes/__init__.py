"""Model shapes: a decoder as a stack of layers, and what it holds, reads and multiplies, counted from its parts.

Parameters are never copied from a model card: they are counted matrix by matrix, because the cost law needs three
different counts (all, active for one token, and those that really multiply). Counts of the cache are elements; bytes
come in with a precision. Functions of the context ``n`` (tokens, the newest one included) broadcast over arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.shapes.parts import Attention, Experts, FeedForward, Layer, Mixer, Part, State
from kinetics_lab.errors import counts, require

#: Kinds of cached elements: keys and values, index keys, recurrent state (often fp32), the window of a convolution.
CACHE_KINDS = ("kv", "index", "state", "conv")
#: Kinds of parameters; ``embedding`` and ``lookup`` are looked up, all others are read by every step that meets them.
PARAMETER_KINDS = (
    "mixer", "ffn", "shared", "router", "experts", "other", "vectors", "head", "embedding", "lookup",
)  # fmt: skip


def _one(kind: type[Part], name: str, doc: str) -> Any:
    """The value that all parts of a kind share; 0 where a model has none."""

    def value(shape: ModelShape) -> Any:
        values = {getattr(part, name) for part in shape.parts if isinstance(part, kind)}
        if len(values) > 1:
            found = ", ".join(map(str, sorted(values)))
            raise ValueError(f"{shape.name}: {name} differs from layer to layer ({found}); ask its layers")
        return values.pop() if values else 0

    return property(value, doc=doc)


def _summed(name: str, doc: str) -> Any:
    """The sum over layers of what attention does for each cached token, where every layer reads them all."""

    def total(shape: ModelShape) -> int:
        if not shape._reads_all:
            raise ValueError(
                f"{shape.name}: not every layer keeps and reads the whole context, so nothing is the same for each "
                "cached token; use stored(n), read(n) and flops(n)"
            )
        return sum(count * getattr(one, name) for one, count in shape.mixers.items())

    return property(total, doc=doc)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder: its layers in order, the vocabulary's matrices, and parts outside the layers (``outside``).

    Attributes that need one value for all layers (``n_q_heads``, ``kv_elements_per_token`` and their like) raise
    ``ValueError`` for a model whose layers differ; ``stored``, ``read`` and ``flops`` answer for any.
    """

    name: str
    family: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...] = field(repr=False)
    outside: Layer = ()
    tied: bool = False  # input embedding and output head are one matrix
    embed_dim: int = 0  # width of the vocabulary's matrices where it is not `hidden`
    lookup: int = 0  # parameters of other tables that are looked up: positions, embeddings of each layer
    released_params: float | None = None  # P in the paper's released code

    def __post_init__(self) -> None:
        for name in ("hidden", "vocab", "n_layers"):
            require(getattr(self, name) >= 1, f"{self.name}: {name} must be at least 1", getattr(self, name))

    @cached_property
    def groups(self) -> tuple[tuple[int, Layer], ...]:
        """For each run of equal layers in order, how many they are and the parts of one."""
        return tuple((len(list(run)), layer) for layer, run in groupby(self.layers))

    @cached_property
    def parts(self) -> Counter[Part]:
        """All parts, each with how often it occurs."""
        found: Counter[Part] = Counter(self.outside)
        for count, layer in self.groups:
            for part in layer:
                found[part] += count
        return found

    @cached_property
    def mixers(self) -> dict[Mixer, int]:
        """What attends or carries a state, each with how often it occurs."""
        return {part: count for part, count in self.parts.items() if isinstance(part, Attention | State)}

    # --- what a sequence holds, and what a step reads and computes ------------------------------

    def _by_kind(self, what: str, n: ArrayLike) -> dict[str, np.ndarray]:
        n = counts(n, "the context", unit=" (tokens)")
        total = {kind: np.zeros_like(n) for kind in CACHE_KINDS}
        for mixer, count in self.mixers.items():
            for kind, elements in getattr(mixer, what)(n).items():
                total[kind] = total[kind] + count * elements
        return total

    def stored(self, n: ArrayLike) -> dict[str, np.ndarray]:
        """Elements held for one sequence of ``n`` tokens, by kind (``CACHE_KINDS``)."""
        return self._by_kind("stored", n)

    def read(self, n: ArrayLike) -> dict[str, np.ndarray]:
        """Elements that one decode step at context ``n`` reads, by kind (``CACHE_KINDS``)."""
        return self._by_kind("read", n)

    def flops(self, n: ArrayLike) -> np.ndarray:
        """FLOP of the attention, indices and states of one decode step at context ``n``; matrices left out."""
        n = np.asarray(n, float)
        return sum((count * mixer.step_flops(n) for mixer, count in self.mixers.items()), np.zeros_like(n))

    @property
    def n_whole(self) -> int:
        """How many layers attend to their whole cache and so may be thinned out by a published policy."""
        return sum(count for one, count in self.mixers.items() if isinstance(one, Attention) and one.whole)

    def told(self, n: float, bytes_per_element: float = 2) -> str:
        """What stands in for D and r where layers differ: the bytes of ``n`` tokens, held and read by a step, in words."""
        kinds = self.stored(n), self.read(n)
        held, read = (sum(map(float, kind.values())) * bytes_per_element / 1e6 for kind in kinds)
        return (
            f"{self.name} has no D and no r: {self.n_whole} of its {self.n_layers} layers attend to the whole context. Formulas "
            "with D or r, and their squares, are those of equal full layers; its own numbers are summed over its layers. "
            f"At {n:,.0f} tokens a sequence of it holds {held:,.{2 * (held < 10)}f} MB, and its step reads {read:,.{2 * (read < 10)}f} MB."
        )

    # --- parameters -----------------------------------------------------------------------------

    def _count(self, met: Callable[[Experts], Any]) -> dict[str, Any]:
        """Parameters by kind, when ``met`` says how many routed experts of a part count."""
        total: dict[str, Any] = dict.fromkeys(PARAMETER_KINDS, 0)
        for part, count in self.parts.items():
            total[part.kind] += count * part.matrices
            total["vectors"] += count * part.vectors
            if isinstance(part, Experts):
                total["router"] += count * part.router
                total["experts"] = total["experts"] + count * part.each * met(part)
        total["head"] = self.head_params
        return total | {"embedding": 0 if self.tied else self.head_params, "lookup": self.lookup}

    @property
    def parameters(self) -> dict[str, int]:
        """All parameters by kind (``PARAMETER_KINDS``); a tied matrix counts once, as the head."""
        return self._count(lambda part: part.count)

    def parameters_read(self, batch: ArrayLike) -> dict[str, Any]:
        """Parameters by kind that one decode step of ``batch`` sequences reads from memory (expected, for MoE).

        A routed expert is read once when any sequence of the batch is sent to it; with uniform, independent routing
        a share 1 - (1 - k/E)^batch of them is. Real routing is uneven and touches fewer. Look-ups are left out.
        """
        batch = np.asarray(batch, float)
        require(batch > 0, "batch must be positive (sequences decoded together)", batch)
        met = self._count(lambda part: part.count * (1 - (1 - part.chosen / part.count) ** batch))
        return met | {"embedding": 0, "lookup": 0}

    @property
    def head_params(self) -> int:
        """Parameters of the vocabulary matrix, which is the output head and (tied or not) the input embedding."""
        return self.vocab * (self.embed_dim or self.hidden)

    @cached_property
    def n_params(self) -> int:
        """All parameters, a tied matrix once."""
        return sum(self.parameters.values())

    @cached_property
    def n_active_params(self) -> int:
        """Parameters one token meets, of the routed experts only those it is sent to."""
        return round(sum(self._count(lambda part: part.chosen).values()))

    @property
    def n_matmul_params(self) -> int:
        """Active parameters without look-ups (untied input embedding, learned positions), 2 FLOP each."""
        return self.n_active_params - self.lookup - (0 if self.tied else self.head_params)

    # --- one value for all layers, where there is one -------------------------------------------

    def _layers_with(self, kind: type[Part]) -> int:
        return sum(count for part, count in self.parts.items() if isinstance(part, kind))

    @property
    def _reads_all(self) -> bool:
        return all(isinstance(one, Attention) and one.whole and one.owns for one in self.mixers)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers attend alike, each to its own cache of the whole context."""
        return len(self.mixers) == 1 and self._reads_all

    n_layers = property(lambda self: len(self.layers), doc="Decoder layers.")
    n_dense_layers = property(lambda self: self._layers_with(FeedForward), doc="Layers with a dense block.")
    n_q_heads = _one(Attention, "heads", "Query heads.")
    n_kv_heads = _one(Attention, "kv_heads", "Cached heads; 1 for a latent cache.")
    head_dim = _one(Attention, "qk", "Width of a cached key; never hidden / n_q_heads.")
    gqa_ratio = _one(Attention, "ratio", "Query heads that share one cached head (r).")
    is_mla = _one(Attention, "latent", "Whether the cache is latent.")
    ffn = _one(FeedForward, "width", "Hidden width of the dense feed-forward blocks.")
    n_experts = _one(Experts, "count", "Routed experts of a layer.")
    n_active_experts = _one(Experts, "chosen", "Routed experts a token is sent to.")
    expert_ffn = _one(Experts, "width", "Hidden width of a routed expert.")
    kv_elements_per_token = _summed("entry", "Cached elements for one token, all layers (D in Table 1).")
    attention_flops_per_token = _summed("flops", "FLOP to attend to one cached token, all layers (2 r D).")

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> float:
        """KV cache of one token, all layers, in bytes."""
        return self.kv_elements_per_token * bytes_per_element
