"""Attention policies: which cached tokens one decode step reads, in the plain numbers costs and kernels need.

A policy is two numbers to the cost law: ``tokens_read``, the cached tokens (key and value) a step attends
to, and ``keys_scored_per_token``, how many search keys it scores for every token of context.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, astuple, dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.errors import MOST, lookup, require


@dataclass(frozen=True)
class Policy:
    """What all policies have in common. ``str(policy)`` is the text ``parse_policy`` reads."""

    key: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.default == 0 else 1
            if field.type == "bool":
                require(isinstance(value, bool), f"{self.key}: {field.name} must be true or false", value)
                continue
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            rule = f"{self.key}: {field.name} must be an integer >= {least}"
            require(whole and least <= value <= MOST, rule + f", at most {MOST:g}" * (value > MOST), value)

    @property
    def tokens_read(self) -> float:
        """Cached tokens (key and value) one step attends to, where the context has as many."""
        raise TypeError(f"{type(self).__name__} does not say how many tokens it reads")

    @property
    def keys_scored_per_token(self) -> float:
        """Search keys scored in one step, per token of context."""
        return 0.0

    def __str__(self) -> str:
        values, defaults = astuple(self), [field.default for field in fields(self)]
        said = max((i + 1 for i, value in enumerate(values) if value != defaults[i]), default=0)
        texts = [str(value).lower() for value in values[:said]]  # defaults at the end go unsaid
        return ":".join([self.key, *texts])


@dataclass(frozen=True)
class Dense(Policy):
    """Every cached token."""

    key: ClassVar[str] = "dense"

    @property
    def tokens_read(self) -> float:
        return math.inf


@dataclass(frozen=True)
class _Budgeted(Policy):
    budget: int

    @property
    def tokens_read(self) -> float:
        return self.budget


@dataclass(frozen=True)
class TopK(_Budgeted):
    """The ``budget`` tokens of highest score.

    ``oracle``: they are known for nothing, as the paper assumes. Without it every key is scored.
    """

    key: ClassVar[str] = "topk"
    oracle: bool = True

    @property
    def keys_scored_per_token(self) -> float:
        return 0.0 if self.oracle else 1.0


@dataclass(frozen=True)
class BlockTopK(_Budgeted):
    """The ``budget / block_size`` blocks whose mean key scores highest (Appendix D.3).

    ``sink``: first tokens always read on top of the budget. ``last_block``: the block still being filled is
    read on top, too: (block_size - 1) / 2 tokens in the mean. The published engine does both, unpriced.
    """

    key: ClassVar[str] = "block_topk"
    block_size: int
    sink: int = 0
    last_block: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"{self.key}: budget must be a multiple of block_size={self.block_size}"
        require(self.budget % self.block_size == 0, rule, self.budget)

    @property
    def n_blocks(self) -> int:
        return self.budget // self.block_size

    @property
    def tokens_read(self) -> float:
        return self.budget + self.sink + ((self.block_size - 1) / 2 if self.last_block else 0)

    @property
    def keys_scored_per_token(self) -> float:
        return 1 / self.block_size


@dataclass(frozen=True)
class StridedBlockTopK(BlockTopK):
    """Block top-k over overlapping blocks, one every ``stride`` tokens; reads at most the budget."""

    key: ClassVar[str] = "strided_block_topk"
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"{self.key}: stride must not exceed block_size={self.block_size}, or tokens are lost"
        require(self.stride <= self.block_size, rule, self.stride)

    @property
    def keys_scored_per_token(self) -> float:
        return 1 / self.stride


@dataclass(frozen=True)
class Quest(BlockTopK):
    """Blocks ranked by an upper bound from their smallest and largest key: two search keys a block."""

    key: ClassVar[str] = "quest"

    @property
    def keys_scored_per_token(self) -> float:
        return 2 / self.block_size


@dataclass(frozen=True)
class Local(Policy):
    """The last ``window`` tokens and the first ``sink``."""

    key: ClassVar[str] = "local"
    window: int
    sink: int = 0

    @property
    def tokens_read(self) -> float:
        return self.window + self.sink


_ALL: tuple[type[Policy], ...] = (Dense, TopK, BlockTopK, StridedBlockTopK, Quest, Local)
POLICIES = {cls.key: cls for cls in _ALL}


def parse_policy(text: str) -> Policy:
    """A policy from text: its name, then its numbers in order (``dense``, ``topk:512``, ``block_topk:512:32``)."""
    require(len(text) <= 300, "a policy must be at most 300 characters", text)
    name, *values = text.split(":")
    cls = lookup(POLICIES, name, "policy")
    names = [field.name for field in fields(cls)]
    if len(values) > len(names):
        raise ValueError(f"policy {text!r}: {name} takes at most {len(names)} numbers ({', '.join(names)})")
    arguments: dict[str, int | bool] = {}
    for field, value in zip(names, values, strict=False):
        try:
            arguments[field] = value == "true" if value in ("true", "false") else int(value)
        except ValueError:
            raise ValueError(f"policy {text!r}: {field} must be a whole number, got {value!r}") from None
    needed = [field.name for field in fields(cls) if field.default is MISSING]
    if missing := [field for field in needed if field not in arguments]:
        written = ":".join([name, *needed])
        raise ValueError(f"policy {text!r}: {name} needs {', '.join(missing)} (written {written})")
    return cls(**arguments)


def balanced_block_size(context: ArrayLike, budget: ArrayLike) -> np.ndarray:
    """Block size at which scanning block means moves as many bytes as the chosen blocks: context / (2 budget).

    A mean is a key without a value, half a cached token: n / b means cost what n / (2 b) tokens cost. For a
    fixed NUMBER of blocks this size also makes the sum of both smallest (chapter 13). It never exceeds the
    budget, since a block larger than the budget cannot be chosen whole. At 32768 tokens: 16384 / budget.
    """
    context, budget = np.asarray(context, float), np.asarray(budget, float)
    require(context > 0, "context must be positive (tokens)", context)
    require(budget >= 1, "budget must be at least 1 (tokens)", budget)
    return np.clip(context / (2 * budget), 1, budget)
