"""Strategies against every order in which answers can come, and against simulated users."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.planner.strategy import (
    BestOf,
    Escalate,
    Majority,
    UntilRight,
    Verified,
    latency,
    parse_strategy,
    vote,
)
from kinetics_lab.traces.table import pass_at_k

COUNTS = [(n, c) for n in (1, 3, 5) for c in range(n + 1)]


def orders(n, c):
    """All orders of n traces, the first c of them right."""
    return [[i < c for i in order] for order in permutations(range(n))]


def played(order, trials, hit, false_alarm, at_once):
    """Chance of a right answer, chance that none is accepted, mean draws: every verdict of the judge in turn."""
    right = left = draws = waves = 0.0
    for verdicts in product((True, False), repeat=trials):
        chance = 1.0
        for is_right, accepted in zip(order, verdicts, strict=False):
            yes = hit if is_right else false_alarm
            chance *= yes if accepted else 1 - yes
        first = verdicts.index(True) if True in verdicts else None
        given_ = order[trials - 1 if first is None else first]
        used = trials if first is None else min(trials, (first // at_once + 1) * at_once)
        right, left, draws = right + chance * given_, left + chance * (first is None), draws + chance * used
        waves += chance * -(-used // at_once)
    return right, left, draws, waves


@pytest.mark.parametrize(("n", "c"), COUNTS)
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_judge_is_what_all_orders_and_verdicts_say(n, c, at_once):
    for trials in range(1, min(n, 4) + 1):
        for hit, false_alarm in ((0.8, 0.3), (1, 0), (0.4, 0.9)):
            found = Verified(trials, hit, false_alarm, 0.25, at_once).of(n, c)
            want = np.mean([played(one, trials, hit, false_alarm, at_once) for one in orders(n, c)], axis=0)
            assert [found.accuracy, found.left, found.draws, found.waves] == pytest.approx(
                list(want), abs=1e-12
            )
            assert found.paid == pytest.approx(1.25 * want[2])


@given(n=st.integers(1, 80), data=st.data())
def test_a_perfect_judge_is_pass_at_k_and_draws_follow(n, data):
    c = data.draw(st.integers(0, n))
    trials = np.arange(1, n + 1)
    stop, best = UntilRight(trials).of(n, c), BestOf(trials).of(n, c)
    solved = pass_at_k(n, c, trials)
    for found in (stop, best):
        assert found.accuracy == pytest.approx(solved)
        assert found.left == pytest.approx(1 - solved, abs=1e-12)
    # before each draw all the earlier ones were wrong
    assert stop.draws == pytest.approx(np.cumsum(np.r_[1, 1 - solved[:-1]]))
    assert list(best.draws) == list(trials)


@given(
    n=st.integers(2, 40), hit=st.floats(0, 1), low=st.floats(0, 1), at_once=st.integers(1, 5), data=st.data()
)
def test_more_answers_cost_more_and_a_useful_judge_makes_them_better(n, hit, low, at_once, data):
    c, trials = data.draw(st.integers(0, n)), np.arange(1, n + 1)
    false_alarm = hit * low  # a judge that takes right answers at least as readily as wrong ones
    found = Verified(trials, hit, false_alarm, 0.1, at_once).of(n, c)
    assert (np.diff(found.paid) >= -1e-12).all()
    assert (np.diff(found.accuracy) >= -1e-12).all()
    assert (found.draws <= trials + 1e-12).all()
    assert (UntilRight(trials, at_once).of(n, c).accuracy >= found.accuracy - 1e-12).all()


def test_wald_holds_for_lengths_that_tell_right_from_wrong():
    """Users who draw until right, with wrong answers three times as long: they pay draws times the mean length."""
    rng, share, most = np.random.default_rng(0), 0.3, 5
    right = rng.random((200_000, most)) < share
    length = np.where(right, 100, 300) * rng.uniform(0.5, 1.5, right.shape)
    first = np.where(right.any(1), right.argmax(1), most - 1)
    paid = (length * (np.arange(most) <= first[:, None])).sum(1).mean()
    draws = UntilRight(most).of(100_000, 30_000).draws
    assert draws * length.mean() == pytest.approx(paid, rel=0.01)
    given_last = length[np.arange(len(length)), first].mean()
    assert abs(draws * given_last / paid - 1) > 0.2  # the lengths do tell


def test_estimates_from_few_traces_are_unbiased():
    """Mean over all counts that 6 traces can have, weighted by their chance, is the value for endless traces."""
    from scipy.stats import binom

    share, n, trials = 0.35, 6, np.arange(1, 7)
    c = np.arange(n + 1)
    found = Verified(trials, 0.7, 0.2).of(n, c[:, None])
    chance = binom.pmf(c, n, share)
    silent = 0.3 * share + 0.8 * (1 - share)  # an answer is rejected
    assert chance @ found.draws == pytest.approx((1 - silent**trials) / (1 - silent))
    accepted = 0.7 * share * (1 - silent**trials) / (1 - silent)
    assert chance @ found.accuracy == pytest.approx(accepted + silent ** (trials - 1) * 0.3 * share)


# --- voting --------------------------------------------------------------------------------------


def elected(answers, right):
    """Chance that a most frequent one of these answers is right; None is no answer."""
    named = [a for a in answers if a is not None]
    most = max(map(named.count, named), default=0)
    top = {a for a in named if named.count(a) == most}
    return len(top & right) / len(top) if top else 0.0


@pytest.mark.parametrize(
    ("answers", "right"),
    [("aaabb", "a"), ("abbcd", "a"), ("aabb-", "a"), ("a-b--", "a"), ("aabbc", "ab"), ("bbc", ""), ("aaa", "a"), ("---", "")],
)  # fmt: skip
def test_a_vote_is_what_all_orders_say(answers, right):
    held = [None if a == "-" else a for a in answers]
    votes = tuple((held.count(a), None if a is None else a in right) for a in dict.fromkeys(held))
    found = vote(votes, len(held))
    for trials in range(1, len(held) + 1):
        want = np.mean([elected(order[:trials], set(right)) for order in permutations(held)])
        assert found[trials] == pytest.approx(want)
    n, c = len(held), sum(a in right for a in held if a)
    exact = Majority(np.arange(1, n + 1)).of(np.full((1, n), n), np.full((1, n), c), [votes])
    assert exact.accuracy[0] == pytest.approx(found[1:])
    if len(right) <= 1:  # two different right answers may split the vote: outside the bounds
        low, high = (Majority(np.arange(1, n + 1), wrong).of(n, c).accuracy for wrong in ("agree", "differ"))
        assert (low <= found[1:] + 1e-12).all()
        assert "-" in answers or (found[1:] <= high + 1e-12).all()


@pytest.mark.parametrize(("wrong", "names"), [("agree", "aaxxx"), ("differ", "aaxyz")])
def test_the_bounds_of_a_vote_are_votes(wrong, names):
    trials = np.arange(1, 6)
    found = Majority(trials, wrong).of(5, 2).accuracy
    want = [np.mean([elected(order[:k], {"a"}) for order in permutations(names)]) for k in trials]
    assert found == pytest.approx(want)


# --- one setting after another -------------------------------------------------------------------


def test_escalation_is_each_stage_for_those_that_the_former_left():
    stages = [UntilRight(2), Verified(3, 0.8, 0.1, 0.5)]
    counts, costs = [(4, 1), (5, 3)], [2.0, 7.0]
    found = Escalate(stages).of(counts, costs)
    first, second = (stage.of(*count) for stage, count in zip(stages, counts, strict=True))
    assert found.accuracy == pytest.approx(first.right + first.left * second.accuracy)
    assert found.paid == pytest.approx(2 * first.draws + first.left * 7 * 1.5 * second.draws)
    assert found.left == pytest.approx(first.left * second.left)
    same = Escalate([UntilRight(2), UntilRight(3)]).of([(10**6, 3 * 10**5)] * 2, [1.0, 1.0])
    whole = UntilRight(5).of(10**6, 3 * 10**5)
    assert [same.accuracy, same.paid] == pytest.approx([whole.accuracy, whole.paid], rel=1e-5)


# --- time ----------------------------------------------------------------------------------------


@given(tokens=st.lists(st.integers(1, 50), min_size=1, max_size=6), at_once=st.integers(1, 4), data=st.data())
def test_the_time_to_an_answer_is_what_all_orders_say(tokens, at_once, data):
    correct = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    trials = data.draw(st.integers(1, len(tokens)))
    waited, spent = [], []
    for order in permutations(zip(tokens, correct, strict=True)):
        time = paid = 0
        for start in range(0, trials, at_once):
            wave = order[start : min(start + at_once, trials)]
            done = [length for length, right in wave if right]
            end = min(done, default=max(length for length, _ in wave))
            time, paid = time + end, paid + sum(min(length, end) for length, _ in wave)
            if done:
                break
        waited.append(time)
        spent.append(paid)
    assert latency(tokens, correct, trials, at_once) == pytest.approx((np.mean(waited), np.mean(spent)))


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("until-wrong", "strategy 'until-wrong' is not known; did you mean until-right?"),
        ("verified:0.8", "strategy must read verified:HIT:FALSE_ALARM or"),
        ("verified:0.8:x", "and the others have no numbers; got 'verified:0.8:x'"),
        ("best-of:3", "and the others have no numbers; got 'best-of:3'"),
        ("verified:1.2:0.1", "hit must be a chance between 0 and 1; got 1.2"),
        ("verified:0.8:nan", "false_alarm must be a chance between 0 and 1; got nan"),
        ("verified:0.8:0.1:-1", "cost must be >= 0 (of a check, as a share of an answer's); got -1.0"),
    ],
)
def test_a_wrong_strategy_is_named(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_strategy(text)
    assert message in str(error.value)


def test_a_strategy_is_read_from_text():
    assert parse_strategy("verified:0.8:0.3:0.1")(4) == Verified(4, 0.8, 0.3, 0.1)
    assert parse_strategy("until-right")(4) == UntilRight(4)
    assert parse_strategy("best-of")(4).of(8, 2).draws == 4
    assert parse_strategy("majority")(3) == Majority(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UntilRight(5).of(4, 2), r"k \(trials\) must not exceed n=4 \(traces\); got 5"),
        (lambda: UntilRight(0).of(4, 2), r"k \(trials\) must be a whole number >= 1; got 0"),
        (lambda: BestOf(1.5).of(4, 2), r"k \(trials\) must be a whole number >= 1; got 1.5"),
        (lambda: Majority(2).of(4, 5), r"c \(correct traces\) must not exceed n=4 \(traces\); got 5"),
        (lambda: UntilRight(2, 0).of(4, 2), "at_once must be a whole number >= 1; got 0"),
        (lambda: Majority(2, "some").of(4, 2), "wrong .some. is not known; known: agree, differ"),
        (lambda: Majority([2]).of([4], [2], []), "votes must be given for each of 1 problems; got 0"),
        (lambda: vote(((2, True),), 3), "votes must hold at least N"),
        (lambda: Escalate([]).of([], []), "equally many, at least one; got .0, 0, 0."),
        (lambda: Escalate([UntilRight(1)]).of([], [1]), "equally many, at least one; got .1, 0, 1."),
    ],
)  # fmt: skip
def test_wrong_counts_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
