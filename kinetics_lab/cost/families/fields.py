"""The values of a ``config.json``, each checked as it is read; what the file leaves out is its class's default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kinetics_lab.errors import require

MOST = 10**15  # of any width or count
MOST_LAYERS = 10**4
_NEEDED: Any = object()
_ABSENT: Any = object()
_COUNT = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
#: What files call a layer -> what it does. One that has several stores, or an index, is told by other keys.
KINDS = {
    "full_attention": "full", "attention": "full", "indexed_attention": "full", "minimax_m3_sparse": "sparse",
    "sliding_attention": "near", "chunked_attention": "near", "linear_attention": "linear", "mamba": "linear",
    "conv": "linear", "moe": "moe", "mlp": "mlp", "sparse": "moe", "hash_moe": "moe", "dense": "mlp", "full": "full",
    "shared": "shared",
    "M": "linear", "E": "moe", "*": "full", "-": "mlp", "L": "near", "G": "full", "F": "full", "S": "shared",
    "compressed_sparse_attention": "often", "CSA": "often", "heavily_compressed_attention": "seldom", "HCA": "seldom",
}  # fmt: skip


class Fields:
    """The values of one configuration. A method takes all names that a value goes by; null means not given.

    ``defaults``: the class's own, which count where the file has none of the names. Errors name the file, the key and the value.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, needs: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values, self.where, self.needs, self.defaults = values, where, needs, defaults or {}

    def suppose(self, **values: Any) -> None:
        """Values that a class computes where the file has none."""
        own = {key: one for key, one in self.values.items() if one is not None or key not in values}
        self.values = values | own

    def get(self, *keys: str, default: Any = _NEEDED) -> tuple[str, Any]:
        """The name under which the value stands, and the value. Without ``default`` it has to stand somewhere."""
        given = any(key in self.values for key in keys)
        for source in (self.values, {} if given else self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return key, source[key]
        if default is _NEEDED:
            raise ValueError(f"{self.where}: key {keys[0]!r} is missing; {self.needs} needs it")
        return keys[0], default

    def __call__(
        self, *keys: str, default: Any = _NEEDED, least: int = 1, most: int = MOST, auto: bool = False
    ) -> Any:
        """A whole number from ``least`` to ``most``; a list of one number over and over is that number.

        ``auto``: the text "auto" stands for the default.
        """
        key, value = self.get(*keys, default=default if default is _NEEDED else _ABSENT)
        if value is _ABSENT or (auto and value == "auto"):
            return default
        if isinstance(value, list) and value and key not in _COUNT and value == [value[0]] * self.count():
            value = value[0]
        whole = isinstance(value, int) and not isinstance(value, bool)
        rule = f"{self.where}: {key} must be a whole number from {least} to {most:g}"
        require(whole and least <= value <= most, rule, value)
        return value

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false."""
        key, value = self.get(*keys, default=default)
        require(isinstance(value, bool), f"{self.where}: {key} must be true or false", value)
        return value

    def number(self, key: str, default: Any = _NEEDED) -> float:
        """A positive number."""
        value = self.get(key, default=default)[1]
        positive = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST
        require(positive, f"{self.where}: {key} must be a positive number", value)
        return value

    def count(self) -> int:
        """How many layers the decoder has; those that only predict further tokens are not decoded."""
        return self(*_COUNT, most=MOST_LAYERS)

    def each(self, *keys: str, default: Any = _NEEDED) -> list[Any]:
        """One value for each layer; a list may go on to layers that only predict further tokens."""
        key, value = self.get(*keys, default=default)
        n, more = self.count(), self("num_nextn_predict_layers", "num_mtp_layers", default=0, least=0)
        fits = isinstance(value, list | str) and len(value) in (n, n + more)
        require(fits, f"{self.where}: {key} must list {n} layers, as num_hidden_layers says", value)
        return list(value[:n])

    def numbers(self, *keys: str, default: Any = _NEEDED, least: int = 0) -> list[int]:
        """A whole number for each layer."""
        key, listed = self.get(*keys, default=default)[0], self.each(*keys, default=default)
        return [Fields({key: one}, self.where, self.needs)(key, least=least) for one in listed]

    def indices(self, key: str, start: int = 0) -> set[int]:
        """The numbers of some layers, counted from ``start``; none where the file has none."""
        listed, layers = self.get(key, default=[])[1], range(start, self.count() + start)
        if isinstance(listed, str):  # as in "3,4,5"
            listed = [int(one) if one.isdecimal() else one for one in listed.split(",")]
        fits = isinstance(listed, list) and all(type(one) is int and one in layers for one in listed)
        rule = f"{self.where}: {key} must list layers, numbers from {start} to {layers[-1]}"
        require(fits, rule, listed)
        return set(listed)

    def kinds(
        self, *keys: str, every: int = 1, other: str = "near", known: Collection[str] = frozenset(KINDS.values())
    ) -> list[str]:  # fmt: skip
        """What each layer does (values of ``KINDS``): as the file lists it, else every ``every``-th is "full"."""
        key, listed = self.get(*keys, default=None)
        if listed is None:
            return ["full" if every and (i + 1) % every == 0 else other for i in range(self.count())]
        letters = isinstance(listed, str)  # a pattern has one for each layer
        names = [name for name, kind in KINDS.items() if kind in known and (len(name) == 1 or not letters)]
        said = ", ".join(name for name in names if letters or len(name) > 1)
        for one in (listed := self.each(*keys)):
            fits = isinstance(one, str) and one in names
            require(fits, f"{self.where}: a layer of {key} must be one of {said}", one)
        return [KINDS[one] for one in listed]

    def inner(self, key: str) -> Fields:
        """The values of a nested configuration, or of an empty one."""
        value = self.get(key, default={})[1]
        require(isinstance(value, Mapping), f"{self.where}: {key} must be an object", value)
        return Fields(value, self.where, self.needs)
