"""What an answer costs, how long it takes and what it runs on; and what a strategy makes of that.

The cost of an answer comes from the law at a device's peak rates, a lower bound, or from a clock of measured kernels. Costs are
eFLOPs: the FLOP that the device could have done in the time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.clock import Calibrated, Clock, Measured
from kinetics_lab.cost.fit import ALONE, Fit, fit
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import CONFIGS, MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.precision import Precision, find_precision
from kinetics_lab.cost.request import cost_parts
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon.grid import OutsideGridWarning
from kinetics_lab.cost.step import prefill_flops, prefill_seconds, step_parts, step_seconds
from kinetics_lab.errors import NothingFitsError, lookup, require
from kinetics_lab.planner.strategy import BestOf, Majority, Strategy

Stored = Precision | Mapping[str, Precision] | None  # of all models, or by model
SERVER = ["task", "model", "policy", "cap"]  # what answers on one server have in common


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
    strategy: Callable[[Any], Strategy] = BestOf, hourly: float = np.nan, **terms: Any,
) -> tuple[pd.DataFrame, dict[tuple[Any, ...], str]]:  # fmt: skip
    """`drawn` of `answers`, and what cannot be served: SERVER -> why. ``hourly``: dollars an hour a device, for a column ``usd``."""
    require(not hourly <= 0, "price must be positive (dollars an hour a device)", hourly)
    least = counts(trials, int(summary.n_traces.max()))[0]
    one, refused = answers(summary[summary.n_traces >= least], hardware, **terms)
    table = drawn(one, strategy, trials)
    return table.assign(usd=table.eflops / hardware.peak_flops * hourly / 3600), refused


def answers(
    summary: pd.DataFrame, hardware: Hardware, *, shapes: Mapping[str, ModelShape] = MODELS, precision: Stored = None,
    batch: float | str = "fits", devices: int | None = None, reserve: float = 0.1, clock: Clock | None = None,
    share_prompt: bool = False, prefill: bool = True, **options: Any,
) -> tuple[pd.DataFrame, dict[tuple[Any, ...], str]]:  # fmt: skip
    """What one answer costs, for each row of the summary, and what cannot be served: SERVER -> why.

    Args:
        hardware: one device. precision: how weights and cache are stored, of all or by model; None: in the hardware's own, or the clock's.
        batch: answers decoded side by side, which share the weights' traffic: "fits" (what the memory holds beside the weights
            and a ``reserve``), "within" (a row for that and for each power of two below it), a number, or "endless", which asks for no memory. devices: that serve a model together; None: the fewest that hold it.
        clock: of measured kernels, or a law fitted to them; None for the law at peak rates. It times every token of a server alike.
        share_prompt: answers to a problem share its prompt, read and stored once; else each reads its own.
        prefill: count the reading of the prompt. options: of ``decode_cost`` (dense_layers, ...), and ``combine``.

    Columns beside the summary's: ``each``, ``wave`` and ``once``, the eFLOPs of an answer, of what answers side by side share, and of what
    all to a problem do; ``devices``, ``batch``, ``groups`` of devices that share the answers out; ``ttft`` and ``tpot``, seconds to the first and per further token; ``inside``, whether
    the clock has measured there.
    """
    number = isinstance(batch, (int, float)) and 0 < batch < np.inf
    rule = "batch must be a number above 0, 'fits', 'within' or 'endless'"
    require(number or batch in ("fits", "within", "endless"), rule, batch)
    combine = options.get("combine", "add")
    rule = "share_prompt needs combine='add', by which shared costs add up"
    require(combine == "add" or not share_prompt, rule, combine)
    summary = (summary if "cap" in summary else summary.assign(cap=np.nan)).reset_index(drop=True)
    parts, refused = list[pd.DataFrame](), dict[tuple[Any, ...], str]()
    for key, rows in summary.groupby(SERVER, dropna=False, sort=False, observed=True):
        shape, kept = lookup(shapes, key[1], "model"), stored(hardware, precision, clock, key[1])
        held = rows.tokens_in * rows.mean_tokens + rows.mean_sq_tokens / 2  # tokens, summed over the steps
        context = float(max(held.sum() / max(rows.mean_tokens.sum(), 1), 1))
        given = max(float(batch), 1) if number else None
        room = fit(shape, hardware, kept, context, given, reserve=reserve, devices=devices)
        why, sides, used = room.reason, [batch if number else room.batch], room.devices
        if batch == "within":
            sides += [2**k for k in range(room.batch.bit_length()) if 2**k < room.batch]
        if batch == "endless":
            why, sides, used = "", [np.inf], devices or 1
        try:
            for side in () if why else sides:
                terms = used, side, room, clock, context, share_prompt, prefill, options
                parts.append(pd.DataFrame(_answer(rows, *terms), rows.index))
        except ValueError as error:
            if clock is None:
                raise
            why = f"{clock.label} cannot price it: {error}"
        if why:
            refused[key] = why
    if not parts:
        raise NothingFitsError(f"no model can be served: {'; '.join(dict.fromkeys(refused.values()))}")
    made = pd.concat(parts)  # a column put into each part by itself would take most of the time
    return pd.concat([summary.loc[made.index], made], axis=1).reset_index(drop=True), refused


def published(sources: Mapping[str, str | None], kv: str | None = None) -> dict[str, Precision]:
    """How each model is published, of names in MODELS or paths of a ``config.json`` (BF16 where neither says); its cache in ``kv``, if given."""
    plain = {*MODELS} - {*CONFIGS}
    return {name: find_precision(None, kv, None if one in plain else one) for name, one in sources.items()}


def stored(hardware: Hardware, precision: Stored, clock: Clock | None, model: Any = "") -> Precision:
    """How weights and cache are stored: as told (of ``model``), as the clock's kernels had them, or all in the hardware's own precision."""
    precision = precision.get(model) if isinstance(precision, Mapping) else precision
    if (told := getattr(clock, "silicon", None)) is not None:
        same = f"the clock is of {told.gpu}, and hardware must be the same"
        require(hardware.name == told.gpu, same, hardware.name)
        kept = precision is None or not clock.measured  # type: ignore[union-attr]
        require(kept, f"precision must be left to the clock ({told})", str(precision))
        return precision or Precision(told.weights, told.kv, source="as measured")
    own = hardware.precision
    return precision or Precision(own, own, embedding=own)


def _answer(
    rows: pd.DataFrame, devices: int, batch: Any, room: Fit, clock: Clock | None, context: float, share_prompt: bool,
    prefill: bool, options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Columns of `answers` for the rows of one server, which holds ``context`` tokens of each answer in the mean."""
    shape, hardware, precision, layout = room.shape, room.hardware, room.precision, room.layout
    n_in, length = rows.tokens_in.to_numpy(float), rows.mean_tokens.to_numpy(float)
    policy, inside = parse_policy(rows.policy.iloc[0]), True
    served, batch = {"devices": devices, "batch": batch, "groups": layout.data}, float(batch)
    prompt = ttft = wave = np.zeros(len(rows))
    if isinstance(clock, Calibrated):
        held = clock.precision if precision.source == "as measured" else precision
        clock = replace(clock, layout=layout, precision=held)
    if isinstance(clock, Measured | Calibrated):
        require(np.isfinite(batch), "batch must be finite with a clock", batch)
        share = options.get("dense_layers", 0) / shape.n_layers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideGridWarning)  # `inside` says it
            timed = (clock.step(shape, batch, context, p, devices) for p in (policy, Dense()))
            own, dense = (float(np.nansum([*step.values()])) for step in timed)
            ttft = clock.prefill(shape, n_in, devices) if prefill else ttft
        readers = layout.tensor if isinstance(clock, Calibrated) else devices  # of a prompt, side by side
        tpot, prompt = (1 - share) * own + share * dense, ttft * readers
        each, inside = length * tpot * devices / batch, bool(clock.inside(shape, batch, context, devices))
    else:
        law = {"bytes_per_element": precision.sizes, **options, "share_prompt": share_prompt}
        square, sides = rows.mean_sq_tokens.to_numpy(float), batch if np.isfinite(batch) else None
        law |= {"batch": sides, "n_out_sq": square}
        combine = law.pop("combine", "add")

        def whole(parts: dict[str, Any]) -> Any:
            return np.nansum([*step_seconds(hardware, precision, parts, combine).values()], 0)

        first, both = (whole(cost_parts(shape, policy, n_in, length, n, **law)) for n in (1, 2))
        if devices > 1 and np.isfinite(batch):  # what several devices copy, and what goes over their link
            step = partial(step_parts, shape, batch, context, policy, precision=precision)
            spread, alone = (whole(step(layout=one)) for one in (layout, ALONE))
            first, both = (seconds * devices * spread / alone for seconds in (first, both))
        each, wave = both - first, 2 * first - both  # two side by side share a part of what they read
        tpot = float(first.sum() / max(length.sum(), 1) * batch / devices)
        if prefill:
            work = prefill_flops(shape, n_in)
            prompt = work["parameters"] / precision.peak(hardware) + work["attention"] / hardware.peak_flops
            ttft = prefill_seconds(shape, hardware, n_in, precision=precision, layout=layout)
    each = each + (0 if share_prompt else prompt)
    seconds = {"each": each, "wave": wave, "once": prompt if share_prompt else 0 * prompt}
    eflops = {name: value * hardware.peak_flops for name, value in seconds.items()}
    return {**served, **eflops, "ttft": ttft, "tpot": tpot, "inside": inside}


def drawn(one: pd.DataFrame, strategy: Callable[[Any], Strategy], trials: Sequence[int] = ()) -> pd.DataFrame:
    """What the strategy makes of answers: a row for each of them and each N (see `counts`) up to its traces.

    Columns beside those of `answers`: ``n_trials``, ``accuracy``, ``best_case`` (of a vote whose answers are not known; ``accuracy`` is the
    worst then), ``draws``, ``tokens`` and ``eflops`` of a problem, ``answer_s``: seconds to the answer, at most. A wave of k answers side by
    side takes as long as its longest, which is at most sqrt(Var) (k - 1) / sqrt(2k - 1) above the mean length, whatever the distribution
    (Hartley and David 1954, Gumbel 1954); for k = 1 the mean time is exact. A wave larger than the batch takes several such rounds.
    """
    if "drawn" in one:  # predicted: the mean over what could have been drawn
        each = one.explode("drawn", ignore_index=True)
        each["n_correct"] = each.drawn.fillna(each.n_correct).astype(int)
        rows = drawn(each.drop(columns="drawn"), strategy, trials)
        keys = [*SERVER, "batch", "problem", "n_trials"]
        group = rows.groupby(keys, dropna=False, sort=False, observed=True)
        means = group[["accuracy", "best_case", "draws", "tokens", "eflops", "answer_s"]].mean()
        return group.first().assign(**means.round({"accuracy": 12, "best_case": 12})).reset_index()
    wanted = counts(trials, int(one.n_traces.max()))
    table = one.loc[one.index.repeat(len(wanted))].assign(n_trials=np.tile(wanted, len(one)))
    table = table[table.n_trials <= table.n_traces].reset_index(drop=True)
    cases, votes = np.stack([table.n_traces, table.n_correct, table.n_trials]).astype(int), table.get("votes")
    alike = cases.T @ [10**12, 10**6, 1]  # most counts occur many times
    key = alike if votes is None else np.arange(len(table))
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    n, c, most = cases[:, first]
    plan = strategy(most)
    found = plan.of(n, c, None if votes is None else votes.tolist())
    accuracy = best = found.accuracy.round(12)  # equal but for rounding is equal
    if isinstance(plan, Majority) and votes is None:
        best = Majority(most, "differ").of(n, c).accuracy.round(12)
    wave, mean = np.broadcast_to(plan.at_once, n.shape)[place], table.mean_tokens.to_numpy(float)
    k = np.minimum(wave, np.maximum(np.floor(table.batch.to_numpy(float)), 1))
    rounds = np.ceil(wave / k)  # of a wave that is larger than the batch
    spread: Any = np.sqrt(np.maximum(table.mean_sq_tokens - mean**2, 0)) * (k - 1) / np.sqrt(2 * k - 1)
    draws, paid, waves = (values[place] for values in (found.draws, found.paid, found.waves))
    return table.assign(
        accuracy=accuracy[place], best_case=best[place], draws=draws, tokens=draws * mean,
        eflops=paid * table.each + waves * table.wave + table.once,
        answer_s=waves * rounds * (table.ttft + (mean + spread) * table.tpot),
    )  # fmt: skip
