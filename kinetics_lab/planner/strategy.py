"""What is done with answers: how many are drawn, when to stop, which one is given; what that is worth and costs.

A strategy with N answers maps counts, n traces of a problem of which c are right, to an :class:`Outcome`: the chance of
a right answer and the number of answers drawn, both in the mean. The traces stand for N independent draws, so every
estimate averages over ALL ordered choices of N traces out of n: unbiased, like Pass@N, for every whole N up to n.

What the draws cost is their mean number times the mean cost of one. That is Wald's identity: whether to go on depends on answers
that are there already, never on the next one, so it holds even where wrong answers are longer. Only the time until
the answer comes needs the lengths of right and of wrong answers apart (:func:`latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from kinetics_lab.errors import among, lookup, require
from kinetics_lab.traces.table import counted, whole

Votes = tuple[tuple[int, bool | None], ...]  # of a problem: traces that gave an answer, if right (None: none)


@dataclass(frozen=True)
class Outcome:
    """What a strategy comes to, in the mean; arrays of one shape.

    ``right``: chance that an answer was accepted (or voted for) and is right; ``last``: that none was accepted and the last one
    drawn, which is given then, is right; ``left``: that none was accepted. ``draws``: answers drawn, in ``waves`` of answers side
    by side; ``paid``: their cost and that of checking them, in units of the cost of one answer.
    """

    right: np.ndarray
    last: np.ndarray
    left: np.ndarray
    draws: np.ndarray
    paid: np.ndarray
    waves: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """Chance that the answer given is right."""
        return self.right + self.last


@dataclass(frozen=True)
class Verified:
    """Answers are checked; the first accepted one is given, else the last one drawn.

    ``trials``: N, the most that are drawn, a whole number or an array of them. ``hit``, ``false_alarm``: chance that a right and that a wrong answer is accepted, each check by itself. ``cost``: of a check, as a
    share of the cost of an answer. ``at_once``: answers drawn side by side before any is checked; N for all.
    """

    trials: Any
    hit: float
    false_alarm: float
    cost: float = 0.0
    at_once: Any = 1

    def of(self, n: ArrayLike, c: ArrayLike, votes: Sequence[Votes] | None = None) -> Outcome:
        """The outcome for problems with ``c`` right traces of ``n``; all broadcast, N at most n.

        Raises ``ValueError`` for counts, chances or a cost out of range.
        """
        for name in ("hit", "false_alarm"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be a chance between 0 and 1", value)
        least = "cost must be >= 0 (of a check, as a share of an answer's)"
        require(0 <= self.cost < np.inf, least, self.cost)
        traces, right_ones, trials, wave = _counts(n, c, self.trials, self.at_once)
        pairs, far = traces.ravel() << 32 | right_ones.ravel(), int(trials.max())
        _, first, place = np.unique(pairs, return_index=True, return_inverse=True)
        cases, place = (traces.flat[first], right_ones.flat[first]), place.reshape(traces.shape)
        none, right, last = _checked_one_by_one(*cases, far, self.hit, self.false_alarm)
        draws, waves = np.zeros(trials.shape), np.zeros(trials.shape)
        for side in np.unique(wave):
            here = wave == side
            # chances that a wave starts, of this one and all before; the last wave may be smaller than those before it
            started = np.cumsum(none[:, :far:side], 1)
            case, whole = place[here], (trials[here] - 1) // side
            waves[here] = started[case, whole]
            draws[here] = side * waves[here] - none[case, whole * side] * ((whole + 1) * side - trials[here])
        found = right[place, trials], last[place, trials], none[place, trials]
        return Outcome(*found, draws, draws * (1 + self.cost), waves)


@dataclass(frozen=True)
class UntilRight(Verified):
    """A perfect judge for nothing: draw until an answer is right, at most N times, ``at_once`` side by side."""

    hit: float = field(default=1.0, init=False)
    false_alarm: float = field(default=0.0, init=False)
    cost: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class BestOf(UntilRight):
    """The paper's rule: all N answers are drawn and paid for, and a perfect judge picks a right one if there is any."""

    at_once: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_once", self.trials)


@dataclass(frozen=True)
class Majority:
    """All N answers are drawn, and the most frequent one is given; of equally frequent ones any, at random.

    Counts do not tell which answers agree. Without ``votes`` the accuracy is a bound: ``wrong`` "agree" (all wrong answers are the
    same: no vote does worse) or "differ" (no two are: none does better).
    """

    trials: Any
    wrong: str = "agree"

    @property
    def at_once(self) -> Any:
        """All of them."""
        return self.trials

    def of(self, n: ArrayLike, c: ArrayLike, votes: Sequence[Votes] | None = None) -> Outcome:
        """As for `Verified`; ``votes``: the answers of each problem, along the first axis of ``n``, for the exact value."""
        among(("agree", "differ"), self.wrong, "wrong")
        n_, c_, trials = counted(n, c, self.trials)
        if votes is None:
            r = np.arange(int(trials.max()) + 1)
            chance = hypergeom.pmf(r, n_[..., None], c_[..., None], trials[..., None])  # of r right ones
            wrong = trials[..., None] - r
            agree = np.where(r > wrong, 1.0, np.where(r == wrong, 0.5, 0.0))
            differ = np.where(r == 1, 1 / trials[..., None], (r > 1) * 1.0)
            right = (chance * (agree if self.wrong == "agree" else differ)).sum(-1)
        else:
            require(len(votes) == len(n_), f"votes must be given for each of {len(n_)} problems", len(votes))
            right = np.stack([vote(one, int(trials.max()))[trials[i]] for i, one in enumerate(votes)])
        zero, draws = np.zeros(n_.shape), trials.astype(float)
        return Outcome(right, zero, zero, draws, draws, zero + 1)


@dataclass(frozen=True)
class Escalate:
    """One setting after another, each tried by its own strategy, until an answer is accepted: small first, then larger."""

    stages: Sequence[Verified]

    def of(self, counts: Sequence[tuple[ArrayLike, ArrayLike]], costs: Sequence[ArrayLike]) -> Outcome:
        """The outcome for problems with these (n, c) and this cost of an answer, for each stage.

        ``paid`` is in the unit of ``costs``. Different settings' traces are independent given the problem, so products are unbiased.
        """
        sizes = [len(self.stages), len(counts), len(costs)]
        rule = "stages, counts and costs must be equally many, at least one"
        require(sizes[0] > 0 and len(set(sizes)) == 1, rule, sizes)
        right, draws, paid, waves, left = 0.0, 0.0, 0.0, 0.0, np.ones(())
        for stage, (n, c), cost in zip(self.stages, counts, costs, strict=True):
            one = stage.of(n, c)
            right, last = right + left * one.right, left * one.last
            draws, paid = draws + left * one.draws, paid + left * one.paid * np.asarray(cost, float)
            waves, left = waves + left * one.waves, left * one.left
        return Outcome(*np.broadcast_arrays(right, last, left, draws, paid, waves))


Strategy = Verified | Majority
STRATEGIES: dict[str, tuple[Callable[..., Strategy], str]] = {
    "best-of": (BestOf, "all N answers are paid for, and a perfect judge picks a right one"),
    "until-right": (UntilRight, "a perfect judge stops at the first right answer"),
    "verified": (Verified, "an imperfect judge stops at the first answer it accepts"),
    "majority": (Majority, "the most frequent of N answers"),
}


def parse_strategy(text: str) -> Callable[[Any], Strategy]:
    """N -> strategy, from text: ``best-of``, ``until-right``, ``majority``, ``verified:HIT:FALSE_ALARM[:COST]``."""
    name, *rest = text.split(":")
    make, _ = lookup(STRATEGIES, name, "strategy")
    rule = "strategy must read verified:HIT:FALSE_ALARM or verified:HIT:FALSE_ALARM:COST, and the others have no numbers"
    require(len(rest) in ((2, 3) if name == "verified" else (0,)), rule, text)
    try:
        numbers = dict(zip(("hit", "false_alarm", "cost"), map(float, rest), strict=False))
    except ValueError:
        raise ValueError(f"{rule}; got {text!r}") from None
    made = partial(make, **numbers)
    made(1).of(1, 1)  # chances out of range are refused here
    return made


def _counts(n: ArrayLike, c: ArrayLike, trials: ArrayLike, wave: ArrayLike) -> list[np.ndarray]:
    """The counts as whole numbers of one shape, checked."""
    return [*np.broadcast_arrays(*counted(n, c, trials), whole("at_once", wave, 1))]


def _checked_one_by_one(
    n: np.ndarray, c: np.ndarray, most: int, hit: float, false_alarm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For j = 0..most draws: chance that none is accepted; that a right one is; that none is and the j-th is right.

    Shapes [case, most + 1]. ``waiting[case, r]``: chance that the draws so far were all rejected, r right ones among
    them; drawing without replacement makes the estimate unbiased.
    """
    none, right, last = (np.zeros((len(n), most + 1)) for _ in range(3))
    none[:, 0] = 1
    r = np.arange(most + 1 if hit < 1 else 1)
    waiting = np.zeros((len(n), len(r)))
    waiting[:, 0] = 1
    for j in range(most):
        rest = np.maximum(n - j, 1)[:, None]
        of_right = waiting * np.clip(c[:, None] - r, 0, None) / rest
        of_wrong = waiting * np.clip(n[:, None] - c[:, None] - (j - r), 0, None) / rest
        right[:, j + 1] = right[:, j] + hit * of_right.sum(1)
        last[:, j + 1] = (1 - hit) * of_right.sum(1)
        waiting = (1 - false_alarm) * of_wrong
        waiting[:, 1:] += (1 - hit) * of_right[:, :-1]
        none[:, j + 1] = waiting.sum(1)
    return none, right, last


@lru_cache(maxsize=4096)
def vote(votes: Votes, most: int) -> np.ndarray:
    """Chance that the most frequent of N = 0..``most`` drawn answers is right, ties broken at random; exact.

    A right answer given by m of the N wins where every other one was given by fewer; with t others given as often, it wins once in 1 + t.
    Counted for all m and N by a product of polynomials: the power is the number of draws, a second axis the ties.
    """
    total = sum(count for count, _ in votes)
    require(most <= total <= 1000, "votes must hold at least N and at most 1,000 traces", total)
    named, blank = [v for v in votes if v[1] is not None], sum(n for n, right in votes if right is None)
    found = np.zeros(most + 1)
    for i, (mine, right) in enumerate(named):
        others = [count for j, (count, _) in enumerate(named) if j != i]
        for m in range(1, min(mine, most) + 1) if right else ():
            ways = np.zeros((most + 1, most // m + 2))
            ways[m, 0] = comb(mine, m)
            for count, votes_ in [*((count, True) for count in others), (blank, False)]:
                old, ways = ways, np.zeros_like(ways)
                for j in range(min(count, m if votes_ else count, most) + 1):
                    tied = int(j == m and votes_)
                    ways[j:, tied:] += old[: most + 1 - j, : old.shape[1] - tied] * comb(count, j)
            found += (ways / (1 + np.arange(ways.shape[1]))).sum(1)
    return found / [comb(total, k) for k in range(most + 1)]


def latency(tokens: ArrayLike, correct: ArrayLike, trials: int, at_once: int = 1) -> tuple[float, float]:
    """Mean tokens until the answer of ``UntilRight`` is there, and mean tokens generated until then; of one problem.

    ``tokens``, ``correct``: of its traces. ``at_once`` answers are drawn side by side; where one of them ends and is right, the
    others are dropped, so Wald's identity does not hold. Averages over all ordered choices of ``trials`` traces, exactly.
    """
    tokens, correct = np.asarray(tokens, float), np.asarray(correct, bool)
    n, _, trials, at_once = (int(x) for x in _counts(len(tokens), correct.sum(), trials, at_once))
    right, wrong = np.sort(tokens[correct]), np.sort(tokens[~correct])
    waited = spent = 0.0
    for start in range(0, min(trials, len(wrong) + 1), at_once):
        k, left, others = min(at_once, trials - start), n - start, len(wrong) - start
        before = comb(len(wrong), start) / comb(n, start)  # all so far are wrong
        for i, mine in enumerate(right, 1):  # the i-th shortest right one is drawn, and none that is shorter
            chance = before * comb(left - i, k - 1) / comb(left, k)
            dropped = (len(right) - i) * mine + (others * np.minimum(wrong, mine).mean() if others else 0)
            waited += chance * mine
            spent += chance * (mine + (k - 1) * dropped / max(left - i, 1))
        if others >= k:
            chance = before * comb(others, k) / comb(left, k)
            ways = [comb(j, k - 1) for j in range(len(wrong))]  # the j-th shortest wrong one is the longest
            waited += chance * float(np.dot(ways, wrong)) / comb(len(wrong), k)
            spent += chance * k * wrong.mean()
    return waited, spent
