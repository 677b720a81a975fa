"""What an answer costs, how long it takes and what it runs on; and what a strategy makes of that.

The cost of an answer comes from the law at a device's peak rates, a lower bound, or from a clock of measured kernels. Costs are
eFLOPs: the FLOP that the device could have done in the time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.clock import Clock, Measured
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.request import decode_cost, max_batch, prefill_cost
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon.grid import OutsideGridWarning
from kinetics_lab.cost.silicon.serving import prefill_seconds
from kinetics_lab.errors import lookup, require
from kinetics_lab.planner.strategy import BestOf, Majority, Strategy

SERVER = ["task", "model", "policy", "cap"]  # what answers on one server have in common
NODE = (1, 2, 4, 8)  # devices that may serve one model together


def counts(trials: Sequence[int], most: int) -> np.ndarray:
    """Numbers of answers N, ascending, each once. For none every one up to 64, and steps of a tenth beyond, up to ``most``."""
    given = np.asarray(list(trials))
    if not given.size:
        far = 64 * 1.1 ** np.arange(1 + np.log(max(most, 64) / 64) / np.log(1.1))
        every = np.unique(np.r_[1:65, far.astype(int), most])
        return every[every <= most]
    whole = given.dtype.kind in "iuf" and bool(((given % 1 == 0) & (given >= 1)).all())
    require(whole, "trials must be whole numbers >= 1", list(trials))
    require(given.min() <= most, f"no row has as many traces as trials={given.tolist()}", most)
    return np.unique(given).astype(int)


def price(
    summary: pd.DataFrame, hardware: Hardware, trials: Sequence[int] = (), *,
    strategy: Callable[[Any], Strategy] = BestOf, shapes: Mapping[str, ModelShape] = MODELS,
    batch: float | str = "fits", reserve: float = 0.1, clock: Clock | None = None,
    share_prompt: bool = False, prefill: bool = True, hourly: float = np.nan, **options: Any,
) -> tuple[pd.DataFrame, dict[tuple[Any, ...], str]]:  # fmt: skip
    """A row for each row of the summary and each N up to its traces, and what cannot be served: SERVER -> why.

    Args:
        trials: numbers of answers N; see `counts`.
        batch, reserve: answers decoded side by side, which share the weights' traffic: "fits" (what the memory holds beside the
            weights and a ``reserve``, on the smallest number of devices that do), a number, or "endless".
        clock: of measured kernels; None for the law. It times every token of a server alike.
        share_prompt: answers to a problem share its prompt, read and stored once; else each reads its own.
        prefill: count the reading of the prompt. hourly: dollars an hour a device.
        options: of ``decode_cost`` (dense_layers, ...), and ``combine``.

    Columns beside the summary's: ``n_trials``, ``accuracy``, ``best_case`` (of a vote whose answers are not known; ``accuracy`` is the
    worst then), ``draws``, ``tokens``, ``eflops`` and ``usd`` (of a problem), ``devices``, ``batch``, ``ttft`` and ``tpot`` (seconds to
    the first and per further token), ``answer_s`` (to the answer, at most: see `_drawn`), ``inside`` (what the clock has measured).
    """
    number = isinstance(batch, (int, float)) and 0 < batch < np.inf
    require(
        number or batch in ("fits", "endless"), "batch must be a number above 0, 'fits' or 'endless'", batch
    )
    require(not hourly <= 0, "price must be positive (dollars an hour a device)", hourly)
    shared = share_prompt and options.get("combine", "add") != "add"
    require(
        not shared, "share_prompt needs combine='add', by which shared costs add up", options.get("combine")
    )
    wanted = counts(trials, int(summary.n_traces.max()))
    summary = summary[summary.n_traces >= wanted[0]]  # the others have nothing to price
    summary = summary if "cap" in summary else summary.assign(cap=np.nan)
    parts, refused = [], dict[tuple[Any, ...], str]()
    for key, rows in summary.groupby(SERVER, dropna=False, sort=False, observed=True):
        shape = lookup(shapes, rows.model.iloc[0], "model")
        held = rows.tokens_in * rows.mean_tokens + rows.mean_sq_tokens / 2  # tokens, summed over the steps
        context = float(max(held.sum() / max(rows.mean_tokens.sum(), 1), 1))
        size = options.get("bytes_per_element", hardware.bytes_per_element)
        devices, fits, why = _room(shape, hardware, context, batch, reserve, size)
        try:
            own = (
                rows
                if why
                else _answer(
                    rows, shape, hardware, devices, fits, clock, context, share_prompt, prefill, options
                )
            )
        except ValueError as error:
            if clock is None:
                raise
            why = f"{clock.label} cannot price it: {error}"
        if why:
            refused[key] = why
            continue
        parts.append(_drawn(own, wanted, strategy))
    if not parts:
        raise ValueError(
            f"no model can be served on {hardware.name}: {'; '.join(dict.fromkeys(refused.values()))}"
        )
    table = pd.concat(parts, ignore_index=True)
    return table.assign(usd=table.eflops / hardware.peak_flops * hardware.n_devices * hourly / 3600), refused


def _room(
    shape: ModelShape, hardware: Hardware, context: float, batch: float | str, reserve: float, size: float
) -> tuple[int, float, str]:
    """Devices, answers side by side, and why none fits. One device stands for the fewest that hold the model."""
    if batch != "fits":
        return hardware.n_devices, np.inf if batch == "endless" else float(batch), ""
    tried = NODE if hardware.n_devices == 1 else (1,)
    for n in tried:
        fits = float(max_batch(shape, hardware.times(n), context, bytes_per_element=size, reserve=reserve))
        if fits >= 1:
            return n * hardware.n_devices, fits, ""
    most = hardware.times(tried[-1])
    weights = f"{shape.n_params * size / 1e9:,.1f} GB of weights and an answer's cache"
    return (
        0,
        0.0,
        f"no room: {weights}, {most.name} has {most.memory / 1e9:,.0f} GB and {reserve:.0%} stay free",
    )


def _answer(
    rows: pd.DataFrame, shape: ModelShape, hardware: Hardware, devices: int, batch: float, clock: Clock | None,
    context: float, share_prompt: bool, prefill: bool, options: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """The rows with the eFLOPs of one more answer (``each``), of what is shared (``wave``, ``once``), and the times."""
    peak, length = hardware.peak_flops / hardware.n_devices, rows.mean_tokens.to_numpy(float)
    inside = True
    if isinstance(clock, Measured):
        require(np.isfinite(batch), "batch must be finite with a clock of measured kernels", batch)
        policies, share = (
            (parse_policy(rows.policy.iloc[0]), Dense()),
            options.get("dense_layers", 0) / shape.n_layers,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideGridWarning)  # `inside` says it
            own, dense = (
                float(sum(clock.step(shape, batch, context, p, devices).values())) for p in policies
            )
            ttft = (
                prefill_seconds(shape, clock.silicon, rows.tokens_in, devices)
                if prefill
                else np.zeros(len(rows))
            )
        tpot = (1 - share) * own + share * dense
        each, wave = length * tpot * devices / batch * peak, 0.0
        inside = bool(clock.silicon.inside(shape, batch, context, devices))
    else:
        law = {"bytes_per_element": hardware.bytes_per_element, **options, "share_prompt": share_prompt}
        combine = law.pop("combine", "add")
        square, batched = rows.mean_sq_tokens.to_numpy(float), batch if np.isfinite(batch) else None
        policy, n_in = parse_policy(rows.policy.iloc[0]), rows.tokens_in.to_numpy(float)
        first, both = (
            decode_cost(shape, policy, n_in, length, n, n_out_sq=square, batch=batched, **law).eflops(
                hardware, combine
            )
            for n in (1, 2)
        )
        each, wave = both - first, 2 * first - both
        tpot = float(first.sum() / max(length.sum(), 1) / peak * batch / devices)
        read = prefill_cost(shape, n_in).eflops(hardware, combine) if prefill else np.zeros(len(rows))
        ttft = np.asarray(read) / peak / devices
    prompt = ttft * devices * peak
    return rows.assign(
        each=each + (0 if share_prompt else prompt), wave=wave, once=prompt if share_prompt else 0.0,
        devices=devices, batch=batch, ttft=ttft, tpot=tpot, inside=inside,
    )  # fmt: skip


def _drawn(one: pd.DataFrame, trials: np.ndarray, strategy: Callable[[Any], Strategy]) -> pd.DataFrame:
    """What the strategy makes of it, for every N.

    A wave of k answers side by side takes as long as its longest. Whatever the lengths, that is at most sqrt(Var) (k - 1) / sqrt(2k - 1)
    above the mean one (Hartley and David 1954, Gumbel 1954), and no time above it for k = 1.
    """
    table = one.loc[one.index.repeat(len(trials))].assign(n_trials=np.tile(trials, len(one)))
    table = table[table.n_trials <= table.n_traces].reset_index(drop=True)
    plan, votes = strategy(table.n_trials.to_numpy()), table.get("votes")
    n, c = table.n_traces.to_numpy(int), table.n_correct.to_numpy(int)
    known = votes is not None and votes.notna().all()
    found = plan.of(n, c, votes.tolist() if votes is not None and known else None)
    accuracy = best = found.accuracy.round(12)  # equal but for rounding is equal
    if isinstance(plan, Majority) and not known:
        best = Majority(plan.trials, "differ").of(n, c).accuracy.round(12)
    k, mean = np.broadcast_to(plan.at_once, n.shape), table.mean_tokens.to_numpy(float)
    spread = np.sqrt(np.maximum(table.mean_sq_tokens - mean**2, 0)) * (k - 1) / np.sqrt(2 * k - 1)
    return table.assign(
        accuracy=accuracy, best_case=best, draws=found.draws, tokens=found.draws * mean,
        eflops=found.paid * table.each + found.waves * table.wave + table.once,
        answer_s=found.waves * (table.ttft + (mean + spread) * table.tpot),
    )  # fmt: skip
