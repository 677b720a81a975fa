"""The values of a ``config.json``, each checked as it is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kinetics_lab.errors import require

MOST = 10**15  # of any width or count
MOST_LAYERS = 10**4
_NONE: Any = object()


class Fields:
    """The values of one configuration; every method takes the names a value goes by, the first that is given wins.

    A key that is missing or null takes ``default``; without one it is an error. Errors name the file, the key and the value.
    """

    def __init__(self, values: Mapping[str, Any], where: str, needs: str) -> None:
        self.values, self.where, self.needs = values, where, needs

    def get(self, *keys: str, default: Any = _NONE) -> tuple[str, Any]:
        """The key that is given and its value."""
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        if default is _NONE:
            raise ValueError(f"{self.where}: key {keys[0]!r} is missing; {self.needs} needs it")
        return keys[0], default

    def __call__(self, *keys: str, default: Any = _NONE, least: int = 1, most: int = MOST) -> int:
        """A whole number from ``least`` to ``most``."""
        key, value = self.get(*keys, default=default)
        if value is default:
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(
            whole and least <= value <= most,
            f"{self.where}: {key} must be a whole number {least}..{most:g}",
            value,
        )
        return value

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false."""
        key, value = self.get(*keys, default=default)
        require(isinstance(value, bool), f"{self.where}: {key} must be true or false", value)
        return value

    def layers(self) -> int:
        """How many layers the decoder has."""
        return self("num_hidden_layers", "n_layers", most=MOST_LAYERS)

    def each(self, *keys: str, known: Collection[Any], default: Sequence[Any] = _NONE) -> list[Any]:
        """A list with one of ``known`` for each layer (a longer one may go on to layers that are not decoded)."""
        key, value = self.get(*keys, default=default)
        n = self.layers()
        listed = isinstance(value, list | tuple | str) and len(value) >= n
        require(listed, f"{self.where}: {key} must list {n} layers, as num_hidden_layers says", value)
        for one in value[:n]:
            require(
                one in known,
                f"{self.where}: a layer of {key} must be one of {', '.join(map(str, known))}",
                one,
            )
        return list(value[:n])

    def inner(self, *keys: str) -> Fields:
        """The values of a nested configuration; of this one where there is none."""
        key, value = self.get(*keys, default=self.values)
        require(isinstance(value, Mapping), f"{self.where}: {key} must be an object", value)
        return Fields(value, self.where, self.needs)
