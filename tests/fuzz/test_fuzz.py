"""Whatever is given to the commands ends in an answer that an oracle confirms, or in one sentence: no traceback, no NaN.

Twenty examples of each by default, three hundred in the slow set; ``benchmarks/fuzz.py`` takes as many as it is told.
"""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

_spec = importlib.util.spec_from_file_location("fuzz_inputs", Path(__file__).with_name("inputs.py"))
inputs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inputs)


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", inputs.TARGETS)
def test_any_input_is_answered_rightly_or_refused_in_a_sentence(name: str, examples: int) -> None:
    strategy, target = inputs.TARGETS[name]
    ended: list[str] = []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(strategy)
    def one(value: Any) -> None:
        ended.append(target(value))

    one()
    if examples > 20:
        assert {*ended} == {"refused", "right", *["compared"] * (name == "config.json")}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", inputs.oracle.TYPES)
def test_transformers_counts_the_same_for_any_sizes(model_type: str) -> None:
    """A few models of every class, so that none depends on the draw above."""
    dice = random.Random(model_type)
    for _ in range(int(os.environ.get("FUZZ_SETS", "4"))):
        drawn = {name: dice.choice(values) for name, values in inputs.oracle.SIZES.items()}
        inputs.sized(model_type, drawn, {})


def test_the_exact_count_is_independent_and_strict() -> None:
    """The oracle's own numbers, by hand: Qwen3-8B has 8,190,735,360 parameters, of which 622,329,856 are looked up."""
    flops, read = inputs.dense_work("qwen3-8b", 0, 1, 1, True)
    attention = 4 * 36 * 32 * 128 / 2  # half a token is seen in the mean
    assert flops == 2 * (8_190_735_360 - 622_329_856) + attention
    assert read == 4 * 36 * 8 * 128 / 2
    with pytest.raises(inputs.WrongError, match="NaN"):
        inputs.strict('{"x": NaN}')
