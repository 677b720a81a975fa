"""What the law says of every device, model and policy of the catalogue: a number, or one sentence."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

import kinetics_lab
from kinetics_lab import (  # fmt: skip
    HARDWARE,
    MODELS,
    Dense,
    cost_parts,
    cost_table,
    decode_cost,
    find_hardware,
    find_model,
    max_batch,
    parse_policy,
    plan,
    prefill_cost,
    read_table,
)
from kinetics_lab.cost import fit, step
from kinetics_lab.cost.clock import Datasheet, answer_seconds
from kinetics_lab.cost.precision import find_precision
from kinetics_lab.cost.silicon.modules import law_growth
from kinetics_lab.laws.reprice import length_at

POLICIES = ("dense", "topk:512", "topk:512:false", "block_topk:512:32", "block_topk:512:32:1", "quest:512:16",
            "local:512:4", "strided_block_topk:512:32:4")  # fmt: skip
MODEL, DEVICE, ONE = MODELS["qwen3-8b"], HARDWARE["h200"], read_table("aime24_qwen3_best_of_n")
FIRST = {shape.family: name for name, shape in reversed(MODELS.items())}.values()  # of each family
FEW = ONE[ONE.problem.isin(ONE.problem.unique()[:2]) & (ONE.model == "qwen3-8b")]


def asked(function, *values, **options):
    """What a function says, warnings as errors; None where it refuses in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return function(*values, **options)
        except ValueError as error:
            told = str(error)
    assert 10 < len(told) < 400
    assert "\n" not in told
    return None


def is_number(found):
    """Whether all that was answered are numbers above zero, or at least not below it."""
    parts = found.values() if isinstance(found, dict) else [found]
    return all((np.asarray(getattr(part, "flops", part)) >= 0).all() for part in parts)


def of_a_device(device):
    """Each question that takes a device, and whether every one of the catalogue has an answer."""
    shapes = dict.fromkeys(FEW.model.unique(), MODEL)
    yield max_batch(MODEL, device, [1, 10**5]), True
    yield decode_cost(MODEL, Dense(), 100, 1000).eflops(device), True
    yield cost_table(FEW, device, (1, 2), shapes=shapes).eflops, True
    yield plan(FEW, device, [1, 50], n_boot=20, n_splits=1, shapes=shapes).accuracy.fillna(0), True
    yield length_at(MODEL, Dense(), 1e16, 100, hardware=device), True
    yield asked(law_growth, device), "bf16" in device.peaks
    for model in (None, "gpt-oss-120b", "deepseek-v3.2"):
        stored = find_precision(model=model)
        parts = step.step_parts(MODEL, 8, 4096, Dense(), precision=stored)
        yield asked(step.step_seconds, device, stored, parts), None
        yield asked(step.prefill_seconds, MODEL, device, 4096, precision=stored), None
        yield asked(answer_seconds, Datasheet(device, precision=stored), MODEL, 100, 1000, 8), None


@pytest.mark.parametrize("name", HARDWARE)
def test_every_question_takes_every_device(name):
    device = find_hardware(name)
    assert device == HARDWARE[name]
    for precision in device.peaks:
        there = find_hardware(name, precision)
        assert there.title in there.label
        assert there.intensity * there.bandwidth == pytest.approx(there.peak_flops)
    for number, (found, answered) in enumerate(of_a_device(device)):
        assert answered is None or (found is not None) == answered, number
        assert found is None or is_number(found), number


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in MODELS],
)
def test_every_question_takes_every_model(name):
    shape, stored = find_model(name), find_precision(model=name)
    assert shape is MODELS[name]
    assert prefill_cost(shape, 1000).flops > 0
    assert fit.weight_bytes(shape, stored) > 0
    assert fit.cache_bytes(shape, 1000.0, stored) >= 0
    assert step.prefill_flops(shape, 1000)
    found = fit.fit(shape, DEVICE, stored)
    assert bool(found.reason) != (found.batch >= 1)
    for text in POLICIES:
        for counting in ("exact", "paper", "released"):
            given = (shape, parse_policy(text), [100, 1], [1000, 600], 8)
            whole, parts = (asked(f, *given, counting=counting) for f in (decode_cost, cost_parts))
            assert (whole is None) == (parts is None)
            assert counting != "exact" or whole is not None
            assert whole is None or is_number(whole)
    shapes = dict.fromkeys(FEW.model.unique(), shape)
    assert is_number(cost_table(FEW, DEVICE, (1, 2), shapes=shapes).eflops)
    found = asked(plan, FEW, DEVICE, [1, 1e5], n_boot=20, n_splits=1, shapes=shapes)
    assert found is None or found.accuracy.iloc[-1] > 0


def test_every_public_name_that_takes_a_device_or_a_model_is_asked():
    signatures = {
        name: str(inspect.signature(made))
        for name in kinetics_lab.__all__
        if inspect.isfunction(made := getattr(kinetics_lab, name))
    }
    takes = {name for name, said in signatures.items() if "Hardware'" in said or "ModelShape'" in said}
    assert len(takes) >= 8
    assert takes <= {*globals()}
