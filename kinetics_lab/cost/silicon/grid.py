"""Measured times between and beyond the points of a grid: the ratio to a law is interpolated, not the time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.errors import require

Law = Callable[..., np.ndarray]


class OutsideGridWarning(UserWarning):
    """A time was asked for outside what was measured; the nearest ratio to the law was used."""


class Grid:
    """log(measured / law) over logarithmic axes: linear between grid points, the nearest outside, holes filled."""

    def __init__(self, axes: dict[str, Any], seconds: Any, law: Law) -> None:
        from scipy.interpolate import RegularGridInterpolator

        self.law, self.names = law, list(axes)
        at = [np.asarray(values, float) for values in axes.values()]
        self.points = [np.unique(values) for values in at]
        index = tuple(np.searchsorted(points, values) for points, values in zip(self.points, at, strict=True))
        ratios = np.full([len(points) for points in self.points], np.nan)
        ratios[index] = np.log(np.asarray(seconds, float) / law(*at))
        self.holes = np.isnan(ratios)
        for axis in reversed(range(ratios.ndim)):
            ratios = _filled(ratios, axis)
        logs = [np.log(points) for points in self.points]
        if any(len(points) == 1 for points in logs):
            raise ValueError(f"an axis of {self.names} has one point; an interpolation needs two")
        self.ratio = RegularGridInterpolator(logs, ratios)

    def inside(self, *at: ArrayLike) -> np.ndarray:
        """Whether points lie within the measured range of every axis, and not in a hole that was filled."""
        values = np.broadcast_arrays(*(np.asarray(value, float) for value in at))
        pairs = list(zip(values, self.points, strict=True))
        ok = np.all([(x >= p[0] * (1 - 1e-9)) & (x <= p[-1] * (1 + 1e-9)) for x, p in pairs], axis=0)
        logs = ((np.log(np.maximum(x, 1e-9))[..., None], np.log(p)) for x, p in pairs)
        nearest = tuple(np.abs(x - p).argmin(-1) for x, p in logs)
        return np.asarray(ok & ~self.holes[nearest])

    def __call__(self, what: str, *at: ArrayLike) -> np.ndarray:
        """Seconds; ``what`` names the kernel in the warning for points outside."""
        values = np.broadcast_arrays(*(np.asarray(value, float) for value in at))
        for name, value in zip(self.names, values, strict=True):
            require((value > 0) & np.isfinite(value), f"{what}: {name} must be positive and finite", value)
        outside = ~self.inside(*values)
        if outside.any():
            ranges = zip(self.names, self.points, strict=True)
            said = ", ".join(f"{name} {p[0]:,.0f} to {p[-1]:,.0f}" for name, p in ranges)
            warnings.warn(
                f"{what}: {outside.sum()} of {outside.size} points lie outside what was measured ({said}); "
                "their times are extrapolated",
                OutsideGridWarning,
                stacklevel=3,
            )
        logs = [np.log(np.clip(value, p[0], p[-1])) for value, p in zip(values, self.points, strict=True)]
        ratio = self.ratio(np.stack(logs, -1)).reshape(values[0].shape)
        return np.asarray(np.exp(ratio) * self.law(*values))


def _filled(values: np.ndarray, axis: int) -> np.ndarray:
    """Holes filled along one axis: linear between neighbours, the nearest beyond the ends."""
    lines = np.moveaxis(values, axis, -1).copy()
    place = np.arange(lines.shape[-1])
    for line in lines.reshape(-1, lines.shape[-1]):
        known = ~np.isnan(line)
        if known.any() and not known.all():
            line[~known] = np.interp(place[~known], place[known], line[known])
    return np.moveaxis(lines, -1, axis)
