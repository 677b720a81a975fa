"""The parts of a layer: attention, a state, a feed-forward block, routed experts; and what one of them holds and reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from kinetics_lab.errors import require


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a layer. ``matrices``: parameters that multiply every token; ``vectors``: norms, biases, small filters."""

    kind: ClassVar[str] = "other"  # of its matrices, a name in ``PARAMETER_KINDS``
    matrices: int = 0
    vectors: int = 0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            require(value >= 0, f"{type(self).__name__}: {one.name} must not be negative", value)


@dataclass(frozen=True, kw_only=True)
class Attention(Part):
    """Attention over a cache. An entry holds ``kv_heads`` keys of width ``qk`` and, unless ``latent``, values of width ``v``.

    ``latent``: values are a part of the keys' entry (MLA in its absorbed form: ``qk`` = latent + rotary part, ``v`` =
    latent); ``unabsorbed`` is then the width of one head's key and value together when a prompt is read.
    """

    kind: ClassVar[str] = "mixer"
    heads: int
    kv_heads: int
    qk: int
    v: int
    latent: bool = False
    unabsorbed: int = 0
    window: float = math.inf  # tokens seen, the newest included
    chunk: float = math.inf  # tokens of a chunk: each sees its own chunk only
    stride: int = 1  # tokens compressed into one entry
    topk: float = math.inf  # entries read at most, chosen by an index
    index: int = 0  # elements of an entry's index key; 0 with a topk: another layer's choice is used
    index_heads: int = 0
    owns: bool = True  # False: reads the cache of another layer

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "kv_heads", "qk", "v", "window", "chunk", "stride", "topk"):
            require(getattr(self, name) >= 1, f"Attention: {name} must be at least 1", getattr(self, name))
        rule = f"Attention: heads must be a multiple of kv_heads={self.kv_heads}"
        require(self.heads % self.kv_heads == 0, rule, self.heads)

    @property
    def ratio(self) -> int:
        """Query heads that share one cached head."""
        return self.heads // self.kv_heads

    @property
    def keys(self) -> int:
        """Elements of an entry that scoring reads."""
        return self.kv_heads * self.qk

    @property
    def entry(self) -> int:
        """Elements of an entry."""
        return self.keys + (0 if self.latent else self.kv_heads * self.v)

    @property
    def whole(self) -> bool:
        """Whether a step reads every token of the context: what a published policy may thin out."""
        return self.stride == 1 and self.window == self.chunk == self.topk == math.inf

    @property
    def score_flops(self) -> int:
        """FLOP to score one entry."""
        return 2 * self.heads * self.qk

    @property
    def flops(self) -> int:
        """FLOP to attend to one entry: its scores and its share of the weighted values."""
        return self.score_flops + 2 * self.heads * self.v

    def held(self, n: np.ndarray) -> np.ndarray:
        """Entries kept for a context of ``n`` tokens, whoever owns them."""
        return np.floor(np.minimum(n, min(self.window, self.chunk)) / self.stride)

    def chosen(self, n: np.ndarray) -> np.ndarray:
        """Entries that the step at context ``n`` attends to."""
        chunks = np.maximum(np.ceil(n / self.chunk) - 1, 0)  # that are closed
        seen = np.minimum(n if self.chunk == math.inf else n - chunks * self.chunk, self.window)
        return np.minimum(np.floor(seen / self.stride), self.topk)

    def stored(self, n: np.ndarray) -> dict[str, Any]:
        """Elements held, by kind."""
        held = self.owns * self.held(n)
        return {"kv": self.entry * held, "index": self.index * held}

    def read(self, n: np.ndarray) -> dict[str, Any]:
        """Elements read by the step at context ``n``, by kind: an index is scanned whole."""
        return {"kv": self.entry * self.chosen(n), "index": self.index * self.held(n)}

    def step_flops(self, n: np.ndarray) -> Any:
        """FLOP of the step at context ``n``."""
        return self.flops * self.chosen(n) + 2 * self.index_heads * self.index * self.held(n)


@dataclass(frozen=True, kw_only=True)
class State(Part):
    """Linear attention or a state space: elements that stay as many at any context. ``flops``: of one step."""

    kind: ClassVar[str] = "mixer"
    recurrent: int
    conv: int = 0
    flops: int = 0

    def stored(self, n: np.ndarray) -> dict[str, Any]:
        """Elements held, by kind."""
        return {"state": self.recurrent, "conv": self.conv}

    read = stored  # and written again, which the cost law adds

    def step_flops(self, n: np.ndarray) -> Any:
        """FLOP of one step."""
        return self.flops


@dataclass(frozen=True, kw_only=True)
class FeedForward(Part):
    """A block that every token passes. ``width``: its hidden units."""

    kind: ClassVar[str] = "ffn"
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class Experts(Part):
    """Routed experts; ``matrices`` are those of the shared experts, ``each`` the parameters of a routed one.

    ``chosen``: routed experts a token is sent to; a mean, no whole number, where some choices lead to no expert.
    """

    kind: ClassVar[str] = "shared"
    count: int
    chosen: float
    each: int
    width: int
    router: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"Experts: chosen must not exceed count={self.count}"
        require(self.chosen <= self.count, rule, self.chosen)


Mixer = Attention | State
Layer = tuple[Part, ...]
