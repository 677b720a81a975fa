"""Laplace's approximation: the evidence of many rows that share one normal law, and its exact derivatives.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), Algorithms 3.1 and 5.1, for all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit


def log_likelihood(f: np.ndarray, y: np.ndarray, n: np.ndarray, normal: bool) -> tuple[np.ndarray, ...]:
    """Of each cell its value and derivatives by f: the first, minus the second, the third. n: trials or precisions."""
    if normal:
        return -n * (y - f) ** 2 / 2, n * (y - f), n + 0 * f, 0 * f
    p = expit(f)
    w = n * p * (1 - p)
    return y * f - n * np.logaddexp(0, f), y - n * p, w, -w * (1 - 2 * p)


@dataclass(frozen=True)
class Laplace:
    """Of each row (a problem behind a wall): the mode f = mean + a cov, the log evidence ``value`` and its derivatives; ``cov``
    [row, s, s] of f given the abilities; ``pull``: how f follows the abilities; ``info``: the information about them.
    """

    f: np.ndarray
    a: np.ndarray
    value: np.ndarray
    d_mean: np.ndarray
    d_cov: np.ndarray
    cov: np.ndarray
    pull: np.ndarray
    info: np.ndarray


def laplace(
    mean: np.ndarray, cov: np.ndarray, y: np.ndarray, n: np.ndarray, normal: bool, start: np.ndarray | None = None
) -> Laplace:  # fmt: skip
    """Rows f ~ N(mean [s], cov [s, s]) seen through y out of n [row, s]: binomial, or normal with precision n.

    Newton's steps on a = cov^-1 (f - mean), halved where they would go down, from a = ``start``; derivatives include the mode's own shift.
    """
    one, a = np.eye(len(mean)), np.zeros(y.shape) if start is None else start

    def value(a: np.ndarray) -> np.ndarray:
        return log_likelihood(mean + a @ cov, y, n, normal)[0].sum(1) - (a * (a @ cov)).sum(1) / 2

    def curved(a: np.ndarray) -> tuple[np.ndarray, ...]:
        f = mean + a @ cov
        _, slope, w, third = log_likelihood(f, y, n, normal)
        root = np.sqrt(w)
        return f, slope, w, third, root, one + root[:, :, None] * cov * root[:, None, :]

    now = value(a)
    for _ in range(100):
        f, slope, w, _, root, b = curved(a)
        target = w * (f - mean) + slope
        step = target - root * np.linalg.solve(b, (root * (target @ cov))[:, :, None])[:, :, 0] - a
        for _ in range(30):  # halve what would go down
            new = value(a + step)
            if (worse := new < now - 1e-9).any():
                step[worse] /= 2
            else:
                break
        a, gain, now = a + step, np.abs(new - now).max(), new
        if gain < 1e-8:
            break
    f, _, _, third, root, b = curved(a)
    info = root[:, :, None] * np.linalg.inv(b) * root[:, None, :]
    left = cov - cov @ info @ cov
    turn = np.diagonal(left, axis1=1, axis2=2) * third / 2  # of log det, as the mode moves
    moved = turn - np.einsum("rs,rst->rt", turn @ cov, info)
    outer = a[:, :, None] * a[:, None, :] - info
    cross = moved[:, :, None] * a[:, None, :]
    d_cov = (outer + cross + cross.transpose(0, 2, 1)) / 2
    now = now - np.linalg.slogdet(b)[1] / 2
    return Laplace(f, a, now, a + moved, d_cov, left, one - cov @ info, info)
