"""Item response: how often a setting solves a problem, from its ability and the problem's difficulty.

The chance that setting s (a model under a policy) solves problem i is 1 / (1 + exp(-f)) with

    f = ability_s - difficulty_i + what this problem makes of size, of a small KV budget and of this model,

or 0 behind a *wall*: no model up to some size ever solves the problem. Abilities follow size and KV budget
(:func:`features`); what is a problem's own comes from one normal law for all problems. Counts are binomial; the same
law with normal noise holds for logarithms of lengths. Fits weigh problems, so that a bootstrap over problems is a fit
with other weights.

Maximised is Laplace's approximation of the likelihood (Rasmussen and Williams 2006, Section 3.4) times these priors, in
logits: coefficients N(0, 5^2); logarithms of standard deviations over problems N(0, 1.5^2). Abilities scatter about their law
by standard deviations from expectation-maximisation, two observations of 0.2 added; walls have one problem added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import find_model
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import require
from kinetics_lab.laws.difficulty.laplace import Laplace, laplace
from kinetics_lab.laws.frontier import cost_table
from kinetics_lab.traces.table import pass_at_k

Setting = tuple[str, str]  # model, policy


@dataclass(frozen=True)
class Features:
    """What the law knows of settings: ``mean`` [s, k] of the ability, ``groups`` of effects [s, m] that scatter about
    it, ``spread`` [j, s, s], the kinds of covariance of a problem's own effects, ``rank`` [s] of the model's size.
    """

    names: list[Setting]
    mean: np.ndarray
    groups: list[np.ndarray]
    spread: np.ndarray
    rank: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        return np.hstack([self.mean, *self.groups])

    def table(self, y: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Both as arrays, checked to be [problem, setting]."""
        y, n = np.asarray(y, float), np.asarray(n, float)
        right = y.ndim == 2 and y.shape == n.shape and y.shape[1] == len(self.names)
        rule = f"y and n must be [problem, setting] with {len(self.names)} settings"
        require(right, rule, (y.shape, n.shape))
        return y, n


def features(names: Sequence[Setting], sizes: ArrayLike | None = None) -> Features:
    """Of each setting: size, its square, starvation 256 / B (0 if dense), and starvation by block top-k.

    ``sizes``: parameters of each setting's model, by default those of ``MODELS``. Effects that a problem has of its own:
    difficulty, size, starvation, starvation by blocks, the model, the setting. ``ValueError`` for unknown names.
    """
    require(len(names) > 0, "there must be at least one setting", list(names))
    given = [find_model(model).n_params for model, _ in names] if sizes is None else sizes
    size = np.log2(np.asarray(given, float) / 8e9)  # doublings from 8B
    require(size.shape == (len(names),), "sizes must be one for each setting", size.shape)
    policies = [parse_policy(policy) for _, policy in names]
    starved = np.array([256 / policy.tokens_read for policy in policies])  # 256 tokens: a unit, no more
    block = starved * [str(policy).startswith("block_topk") for policy in policies]
    models = np.array([model for model, _ in names])
    own = (models[:, None] == np.unique(models)).astype(float)
    one, each = np.ones(len(names)), np.eye(len(names))
    columns = np.stack([one, size, starved, block], 1)
    spread = np.stack([*(np.outer(c, c) for c in columns.T), own @ own.T, each])
    mean = np.stack([one, size, size**2, starved, block], 1)
    rank = np.unique(size, return_inverse=True)[1]
    groups = [own, own * starved[:, None], each]
    return Features(list(names), mean, [g for g in groups if g.any()], spread[spread.any((1, 2))], rank)


@dataclass(frozen=True)
class Law:
    """A fitted law. ``mean`` [s]: abilities; ``sd`` over problems by kind of effect; ``scatter`` of abilities about
    their law by group; ``walls`` [rank + 1]: share of problems that no model below this rank ever solves.
    """

    features: Features
    y: np.ndarray = field(repr=False)
    n: np.ndarray = field(repr=False)
    normal: bool
    coefficients: np.ndarray = field(repr=False)
    sd: np.ndarray
    scatter: np.ndarray
    walls: np.ndarray
    unsure: np.ndarray = field(repr=False)  # covariance of the coefficients

    @property
    def mean(self) -> np.ndarray:
        return self.features.matrix @ self.coefficients

    def evidence(
        self, y: np.ndarray, n: np.ndarray, start: np.ndarray | None = None
    ) -> tuple[Laplace, np.ndarray, np.ndarray, np.ndarray]:
        """Of each problem behind each wall that its counts allow: the fit, its share, the problem, what is in front."""
        fronts = self.features.rank >= np.arange(len(self.walls))[:, None]  # [wall, s]
        problem, wall = np.nonzero((y[:, None, :] * ~fronts).sum(2) == 0)
        cov = np.einsum("k,kst->st", self.sd**2, self.features.spread) + 1e-6 * np.eye(len(self.mean))
        front = fronts[wall]
        found = laplace(self.mean, cov, y[problem] * front, n[problem] * front, self.normal, start)
        joint = np.full((len(y), len(self.walls)), -np.inf)
        joint[problem, wall] = found.value + np.log(self.walls[wall])
        return found, joint, problem, front

    def draws(
        self, y: ArrayLike | None = None, n: ArrayLike | None = None, size: int = 400, seed: int = 0
    ) -> np.ndarray:
        """Chances (or logarithms of lengths) that the counts leave possible, [draw, problem, setting].

        ``y`` of ``n`` right, [problem, setting]: by default those that were fitted, else those of other problems; n = 0
        where nothing was tried. Abilities are drawn, too: a setting never run scatters as those that were run did.
        """
        y, n = self.features.table(self.y if y is None else y, self.n if n is None else n)
        rng = np.random.default_rng(seed)
        found, joint, problem, front = self.evidence(y, n)
        chance = np.exp(joint - logsumexp(joint, axis=1)[:, None])[np.isfinite(joint)]
        zero = np.zeros(len(self.unsure))
        moved = rng.multivariate_normal(zero, self.unsure, size, method="eigh") @ self.features.matrix.T
        root = np.linalg.cholesky(found.cov + 1e-9 * np.eye(len(self.mean)))
        made = np.empty((size, *y.shape))
        pick = rng.random((size, len(y)))
        for i in range(len(y)):
            own = np.flatnonzero(problem == i)
            which = own[np.minimum((chance[own].cumsum() < pick[:, i, None]).sum(1), len(own) - 1)]
            noise = np.einsum("dst,dt->ds", root[which], rng.standard_normal((size, len(self.mean))))
            f = found.f[which] + noise + np.einsum("dst,dt->ds", found.pull[which], moved)
            made[:, i] = f if self.normal else np.where(front[which], expit(f), 0)
        return made


def fit_law(
    known: Features, y: ArrayLike, n: ArrayLike, normal: bool = False, weights: ArrayLike | None = None,
    start: Law | None = None, rounds: int = 8,
) -> Law:  # fmt: skip
    """The law of ``y`` right answers out of ``n``, both [problem, setting], n = 0 where a setting was not run.

    ``normal``: y are logarithms of lengths and n their precisions. ``weights`` of problems, for a bootstrap; ``start``: a
    law to begin with; ``rounds`` of expectation-maximisation. Raises ``ValueError`` for counts that cannot be.
    """
    y, n = known.table(y, n)
    require((n >= 0) & (normal | ((y >= 0) & (y <= n))), "y must be right answers out of n, 0 to n", y)
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, float) * len(y) / np.sum(weights)
    width = [known.mean.shape[1], *(one.shape[1] for one in known.groups)]
    group = np.repeat(np.arange(len(width)) - 1, width)  # of each coefficient, -1: of the law
    n_walls = 1 if normal else known.rank.max() + 2
    law = start or Law(
        known, y, n, normal, np.zeros(len(group)), np.ones(len(known.spread)), np.full(len(known.groups), 0.4),
        np.full(n_walls, 1 / n_walls), np.empty(0),
    )  # fmt: skip
    law, matrix, k = replace(law, y=y, n=n), known.matrix, len(group)

    modes: list[np.ndarray] = []  # where the last step ended, the next one begins

    def at(x: np.ndarray) -> tuple[Law, np.ndarray, Laplace, np.ndarray, np.ndarray]:
        now = replace(law, coefficients=x[:k], sd=np.exp(x[k:]))
        found, joint, _, _ = now.evidence(y, n, *modes)
        modes[:] = [found.a]
        total = logsumexp(joint, axis=1)
        share = np.exp(joint - total[:, None])
        return now, weight @ total, found, share, (weight[:, None] * share)[np.isfinite(joint)]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        now, total, found, _, row = at(x)
        of_sd = np.einsum("kst,rst,r->k", known.spread, found.d_cov, row, optimize=True) * 2 * now.sd**2
        slope = np.r_[matrix.T @ (row @ found.d_mean) - x[:k] / prior**2, of_sd - x[k:] / 1.5**2]
        return ((x[:k] / prior) ** 2).sum() / 2 + ((x[k:] / 1.5) ** 2).sum() / 2 - total, -slope

    for turn in range(rounds):
        prior = np.where(group < 0, 5.0, law.scatter[group])
        begin, options = np.r_[law.coefficients, np.log(law.sd)], {"maxiter": 60}
        x = minimize(loss, begin, jac=True, method="L-BFGS-B", options=options).x
        law, _, found, share, row = at(x)
        info = np.einsum("rst,r->st", found.info, row)
        unsure = np.linalg.inv(matrix.T @ info @ matrix + np.diag(prior**-2.0))
        law = replace(law, unsure=unsure)
        if turn < rounds - 1:
            square = law.coefficients**2 + np.diag(unsure)
            size = np.bincount(group + 1)[1:] + 2
            scatter = (np.bincount(group + 1, square)[1:] + 2 * 0.2**2) / size
            walls = (weight @ share + 1 / n_walls) / (weight.sum() + 1)
            law = replace(law, scatter=np.sqrt(scatter), walls=walls)
    return law


def counts(summary: pd.DataFrame, names: Sequence[Setting]) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Problems of a summary, right answers and traces [problem, setting]; zeros where a setting was not run."""
    tables = [wide(summary, column, names).fillna(0) for column in ("n_correct", "n_traces")]
    return tables[0].index, tables[0].to_numpy(float), tables[1].to_numpy(float)


def wide(summary: pd.DataFrame, column: str, names: Sequence[Setting]) -> pd.DataFrame:
    """A column of a summary as [problem, setting]; NaN where a setting was not run."""
    found = summary.pivot(index="problem", columns=["model", "policy"], values=column)
    return found.reindex(columns=pd.MultiIndex.from_tuples(names))


def expected(chance: np.ndarray, n_trials: ArrayLike) -> np.ndarray:
    """Pass@N in the mean over draws: ``chance`` [draw, ...], ``n_trials`` that broadcast against the rest."""
    return -np.expm1(np.asarray(n_trials) * np.log1p(-np.minimum(chance, 1 - 1e-12))).mean(0)


OUTCOMES = ("Pass@1", "Pass@8", "seconds of one answer", "seconds until right, at most 8")


def outcomes(summary: pd.DataFrame, hardware: Hardware, **options: Any) -> pd.DataFrame:
    """The rows of a summary with columns ``OUTCOMES``: what each setting does for each problem, in seconds at peak rates.

    Stopping at the first right answer of N takes 1 + sum over k < N of (1 - Pass@k) answers in the mean, each of
    mean length. ``options``: of ``cost_table``. Raises ``ValueError`` for fewer than eight traces of a problem.
    """
    table = cost_table(summary, hardware, (1,), **options)
    n, c = table.n_traces.to_numpy(), table.n_correct.to_numpy()
    passed = [pass_at_k(n, c, k) for k in range(1, 9)]
    second = table.eflops.to_numpy() / hardware.peak_flops
    draws = 1 + np.sum([1 - one for one in passed[:-1]], 0)
    return table.assign(**dict(zip(OUTCOMES, (passed[0], passed[-1], second, second * draws), strict=True)))
