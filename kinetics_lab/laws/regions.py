"""The best fit of a power law, and the region of curves around it that the data do not rule out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kinetics_lab.laws.likelihood import LOG_SIGMA, SIGMA_PLACE, Data, rise


def _minimise(data: Data, start: np.ndarray, held: int = 0) -> np.ndarray:
    """The best fit near ``start`` with its last ``held`` numbers held."""
    from scipy.optimize import least_squares, minimize

    k = len(start) - held
    free, tail = start[:k], start[k:]
    if data.bounds is None:
        done = least_squares(
            lambda f: (data.target - data.curve(np.r_[f, tail][None]))[0], free, method="lm",
            xtol=1e-14, ftol=1e-14, gtol=1e-14,
        )  # fmt: skip
    else:
        done = minimize(lambda f: float(data.loss(np.r_[f, tail][None])[0]), free, method="BFGS")
    found = np.r_[done.x, tail]
    return found if data.loss(found[None])[0] <= data.loss(start[None])[0] else start


def best_fit(data: Data) -> np.ndarray:
    """The maximum-likelihood fit: solved for the first two numbers on a grid of exponents, then polished."""
    if not data.offset and data.log:
        slope, level = np.polyfit(data.t, data.target, 1)
        best = np.array([level, slope])
    else:
        y = np.exp(data.target) if data.log else data.target
        weight = 1 / y if data.log else np.ones_like(y)
        cap = data.steepest / 2
        starts = []
        for b in np.linspace(-cap, cap, 61) if data.power is None else [data.power]:
            design = [np.ones_like(data.t), rise(data.t, b)] if data.offset else [np.exp(b * data.t)]
            solved = np.linalg.lstsq(np.stack(design, 1) * weight[:, None], y * weight, rcond=None)[0]
            starts.append(np.r_[solved, [] if data.power is not None else b])
        plain = replace(data, bounds=None)
        starts.sort(key=lambda fit: plain.squares(fit[None])[0])
        tried = [_minimise(plain, fit) for fit in starts[:3]]
        best = min(tried, key=lambda fit: plain.squares(fit[None])[0])
    if data.bounds is None:
        return best
    spread = np.sqrt(replace(data, bounds=None).squares(best[None])[0] / data.n)
    start = np.insert(best, SIGMA_PLACE, np.clip(np.log(spread), *LOG_SIGMA))
    return _minimise(data, start)


def threshold(data: Data, best: np.ndarray, level: float) -> float:
    """The loss up to which a curve is not ruled out: Student's t for one parameter, exact for a straight line."""
    from scipy.stats import t as student

    spare = data.n - data.k
    bound = student.ppf((1 + level) / 2, spare) ** 2 / spare
    return float(data.loss(best[None])[0] + data.n / 2 * np.log1p(bound))


def region(data: Data, best: np.ndarray, target: float, held: int = 0) -> np.ndarray:
    """Fits on the boundary of the region loss <= target: slices in the last number, rays in the first two."""
    if data.loss(best[None])[0] >= target:  # the end of a slice
        return best[None]
    if len(best) - held == 2:
        return _rays(data, best, target, 360 if len(best) == 2 else 48)
    place = len(best) - held - 1
    ends = [_end(data, best, target, held, sign) for sign in (-1, 1)]
    middle = best[place]
    slices = []
    for end in ends:
        fit = best
        steps = np.sin(np.linspace(0, np.pi / 2, 6 if held else 10))
        for share in steps if end != middle else steps[:1]:
            fit = fit.copy()
            fit[place] = (1 - share) * middle + share * end  # exactly the end at last: it may be the cap
            fit = _minimise(data, fit, held + 1)
            slices.append(region(data, fit, target, held + 1))
    return np.concatenate(slices)


def _end(data: Data, best: np.ndarray, target: float, held: int, sign: int) -> float:
    """How far the last free number can go up (or down) before even the best fit exceeds the target."""
    from scipy.optimize import brentq

    place = len(best) - held - 1
    is_sigma = data.bounds is not None and place == SIGMA_PLACE
    cap = LOG_SIGMA[(sign + 1) // 2] if is_sigma else sign * data.steepest
    warm = best

    def excess(value: float) -> float:
        nonlocal warm
        fit = warm.copy()
        fit[place] = value
        warm = _minimise(data, fit, held + 1)
        return float(np.expm1((data.loss(warm[None])[0] - target) / data.n))

    inside, step = float(best[place]), 0.05
    while True:
        value = sign * min(sign * (inside + sign * step), sign * cap)
        if excess(value) > 0:
            return float(brentq(excess, inside, value, xtol=1e-4 * abs(value - inside)))
        if value == cap:
            return cap
        inside, step = value, 2 * step


def _rays(data: Data, best: np.ndarray, target: float, n_rays: int) -> np.ndarray:
    """Where rays from ``best`` in its first two numbers reach the target, by bisection."""
    step = 1e-6 * np.maximum(np.abs(best[:2]), 1e-3)
    moved = np.repeat(best[None], 4, 0)
    moved[[0, 1], [0, 1]] += step
    moved[[2, 3], [0, 1]] -= step
    curves = data.curve(moved)
    tangent = (curves[:2] - curves[2:]) / (2 * step[:, None])
    axes = np.linalg.inv(np.linalg.cholesky(tangent @ tangent.T)).T  # the region is nearly a circle in these
    angle = np.arange(n_rays) * (2 * np.pi / n_rays)
    ways = np.zeros((n_rays, len(best)))
    ways[:, :2] = np.stack([np.cos(angle), np.sin(angle)], 1) @ axes.T
    far = np.full(n_rays, float(np.sqrt(replace(data, bounds=None).squares(best[None])[0])))
    for _ in range(80):
        short = data.loss(best + far[:, None] * ways) <= target
        if not short.any():
            break
        far[short] *= 2
    near = np.zeros(n_rays)
    for _ in range(26):
        middle = (near + far) / 2
        inside = data.loss(best + middle[:, None] * ways) <= target
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return best + near[:, None] * ways
