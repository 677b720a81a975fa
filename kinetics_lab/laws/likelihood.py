"""The likelihood of power laws y = a x^b + c, its maximum, and the region of curves the data do not rule out.

The curve is handled as ``level + slope * h(t)`` with t = log(x / centre), h(t) = (exp(b t) - 1) / b: its value
and steepness at the middle of the data, and its exponent. That form stays well conditioned where (a, b, c) do
not (a and c run to infinity as b passes 0, the law y = level + slope * t); c = 0 means slope = b * level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.errors import among, require

SPACES = ("log", "linear")
STEEPEST = 30.0  # |b| log(x_max / x_min) beyond which a curve is a step at one end, not a law
LOG_SIGMA = (-6.9, 4.6)  # 0.001 to 100: where censored fits look (bounds that one curve meets want sigma = 0)
SIGMA_PLACE = 2  # of log sigma in the vector of a censored fit


# --- the curve ----------------------------------------------------------------------------------


def log_ratio(x: ArrayLike, centre: float) -> np.ndarray:
    """log(x / centre), x checked."""
    x = np.asarray(x, float)
    require(np.isfinite(x) & (x > 0), "x must be positive and finite", x)
    return np.log(x / centre)


def _rise(t: np.ndarray, b: Any) -> np.ndarray:
    """h(t) = (exp(b t) - 1) / b, and t where b = 0."""
    flat = np.abs(b) < 1e-12
    return np.where(flat, t, np.expm1(b * t) / np.where(flat, 1.0, b))


def values_at(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Curves [..., 3] at log ratios t: shape [..., *t.shape]."""
    level, slope, b = (curve[..., i].reshape(curve.shape[:-1] + (1,) * t.ndim) for i in range(3))
    with np.errstate(over="ignore"):
        return level + slope * _rise(t, b)


def doubling(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """y(2 x) / y(x) of curves [..., 3]; inf where y(x) is not positive and no factor says what happens."""
    now, then = values_at(curve, t), values_at(curve, t + np.log(2))
    return np.where(now > 0, then / np.where(now > 0, now, 1.0), np.inf)


def abc(curve: np.ndarray, centre: float, offset: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c of y = a x^b + c, from curves [..., 3]."""
    level, slope, b = np.moveaxis(curve, -1, 0)
    if not offset:
        return level * centre**-b, b, np.zeros_like(b)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return slope / b * centre**-b, b, level - slope / b


# --- the likelihood -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Points in the space of the errors, and what the likelihood says of fits.

    A fit is a vector: with an offset (level, slope[, log sigma][, b]), without one (log level in log space, else
    level; b[, log sigma]). Sigma is in it only where data are censored (elsewhere the residuals give the best
    one), b not where ``power`` fixes it. Methods take several fits, as rows.
    """

    t: np.ndarray  # log(x / centre)
    target: np.ndarray  # y / unit, its log in log space; the middle of the bounds where censored
    bounds: tuple[np.ndarray, np.ndarray] | None  # in log space
    centre: float
    unit: float
    log: bool
    offset: bool
    power: float | None = None

    @property
    def n(self) -> int:
        return len(self.t)

    @property
    def k(self) -> int:
        """Parameters of the curve."""
        return 3 if self.offset and self.power is None else 2

    @property
    def sigma_unit(self) -> float:
        """What a residual of 1 is worth: in y for linear errors."""
        return 1.0 if self.log else self.unit

    @property
    def steepest(self) -> float:
        return STEEPEST / float(np.ptp(self.t))

    def take(self, index: np.ndarray) -> Data:
        bounds = self.bounds and (self.bounds[0][index], self.bounds[1][index])
        return replace(self, t=self.t[index], target=self.target[index], bounds=bounds)

    def natural(self, fits: np.ndarray) -> np.ndarray:
        """Rows (level, slope, b) of curves in units of y."""
        level, second = fits[:, 0], fits[:, 1]
        if self.offset:
            b = fits[:, -1] if self.power is None else np.full(len(fits), self.power)
            return np.stack([level * self.unit, second * self.unit, b], 1)
        level = (np.exp(level) if self.log else level) * self.unit
        return np.stack([level, level * second, second], 1)

    def curve(self, fits: np.ndarray) -> np.ndarray:
        """Fitted targets, [fits, points]."""
        if not self.offset and self.log:
            return fits[:, :1] + fits[:, 1:2] * self.t
        values = values_at(self.natural(fits) / [self.unit, self.unit, 1], self.t)
        return np.log(np.maximum(values, 1e-300)) if self.log else values

    def squares(self, fits: np.ndarray) -> np.ndarray:
        rest = np.sum((self.target - self.curve(fits)) ** 2, 1)
        return np.maximum(np.nan_to_num(rest, nan=np.inf), self.n * 1e-26)  # rounding, in units of y

    def density(self, fits: np.ndarray, sigma: Any = None) -> np.ndarray:
        """Log-density (log-probability of the bounds, where censored) of each point, [fits, points]."""
        curve = self.curve(fits)
        if self.bounds is None:
            width = sigma * self.sigma_unit * np.sqrt(2 * np.pi)
            return -(((self.target - curve) / sigma) ** 2) / 2 - np.log(width)
        from scipy.special import log_ndtr

        sigma = self.sigma(fits)[:, None]
        low, high = ((bound - curve) / sigma for bound in self.bounds)
        # the tail that keeps its digits
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        exact = self.bounds[0] == self.bounds[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))
        point = -(low**2) / 2 - np.log(sigma * np.sqrt(2 * np.pi))
        return np.nan_to_num(np.where(exact, point, inside), nan=-1e6, neginf=-1e6)

    @property
    def width(self) -> float:
        """Median width of the closed bounds of censored data (0 where none is closed)."""
        low, high = self.bounds or (np.empty(0), np.empty(0))
        closed = np.isfinite(low) & np.isfinite(high)
        return float(np.median(high[closed] - low[closed])) if closed.any() else 0.0

    def sigma(self, fits: np.ndarray) -> np.ndarray:
        """The residual scales in the vectors of fits to censored data."""
        return np.exp(np.clip(fits[:, SIGMA_PLACE], *LOG_SIGMA))

    def loss(self, fits: np.ndarray) -> np.ndarray:
        """Negative log-likelihood, the best sigma put in where data are not censored."""
        if self.bounds is not None:
            return -self.density(fits).sum(1)
        variance = self.squares(fits) / self.n * self.sigma_unit**2
        return self.n / 2 * (np.log(2 * np.pi * variance) + 1)


def checked(x: ArrayLike, y: ArrayLike, offset: bool, space: str, censored: Any) -> Data:
    """The checked input."""
    among(SPACES, space, "space")
    require(censored is None or space == "log", "censored data need space='log'", space)
    x, y = np.asarray(x, float), np.asarray(y, float)
    require(x.ndim == 1 and x.shape == y.shape, "x and y must be lists of one length", (x.shape, y.shape))
    require(np.isfinite(x) & (x > 0), "x must be positive and finite", x)
    require(np.isfinite(y), "y must be finite", y)
    k = 3 if offset else 2
    require(len(x) > k, f"a fit with {k} parameters needs at least {k + 1} points", len(x))
    distinct = len(np.unique(x))
    require(distinct >= k, f"a fit with {k} parameters needs x at {k} different values or more", distinct)
    t = np.log(x)
    centre = float(np.exp((t.min() + t.max()) / 2))
    if space == "linear":
        unit = float(np.abs(y).max()) or 1.0
        return Data(t - np.log(centre), y / unit, None, centre, unit, False, offset)
    require(y > 0, "y must be positive in log space", y)
    unit = float(np.exp(np.log(y).mean()))
    target, bounds = np.log(y / unit), None
    if censored is not None:
        low, high = (np.asarray(bound, float) for bound in censored)
        require(low.shape == high.shape == y.shape, "censored bounds must be as long as y", low.shape)
        wrong = ~((low >= 0) & (low <= high) & (high > 0) & (low < np.inf))
        rule = "censored bounds must be 0 <= lower <= upper"
        require(not wrong.any(), rule, np.stack([low, high], 1)[wrong])
        require((low <= y) & (y <= high), "y must lie within its censored bounds", y)
        with np.errstate(divide="ignore"):
            bounds = np.log(low / unit), np.log(high / unit)
    return Data(t - np.log(centre), target, bounds, centre, unit, True, offset)


# --- the best fit, and the region around it -------------------------------------------------------


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
            design = [np.ones_like(data.t), _rise(data.t, b)] if data.offset else [np.exp(b * data.t)]
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
