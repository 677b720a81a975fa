"""The command ``cost``: what fits, what an answer costs by part, how long it takes, and what was assumed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kinetics_lab.cli.shared import Hardware, Policy, names
from kinetics_lab.errors import require

if TYPE_CHECKING:
    from kinetics_lab.cost.fit import Fit


def cost(
    *,
    model: Annotated[str, Option(help="a model's name, or its config.json or folder", autocompletion=names("cost.models", "MODELS"))],
    policy: Policy = "dense",
    n_in: Annotated[int, Option(help="prompt tokens")],
    n_out: Annotated[int, Option(help="tokens generated per trial")],
    n_trials: Annotated[int, Option(help="answers to the same prompt")] = 1,
    counting: Annotated[str, Option(help="what is counted: exact, paper or released")] = "exact",
    hardware: Hardware = "h200",
    weights: Annotated[str | None, Option(help="how weights are stored: bf16, fp8, nvfp4, mxfp4, int4 (as the checkpoint)")] = None,
    kv: Annotated[str | None, Option(help="how the KV cache is stored (as the checkpoint says, else bf16)")] = None,
    batch: Annotated[str, Option(help="sequences decoded together: a number, fits, or endless (the paper's)")] = "fits",
    devices: Annotated[int | None, Option(help="how many (the fewest that hold the model)")] = None,
    layout: Annotated[str | None, Option(help="how they share the model: tensor:8, or tensor:1,data:8 (the one with room for most sequences)")] = None,
    reserve: Annotated[float, Option(help="share of the memory kept free")] = 0.1,
    share_prompt: Annotated[bool, Option(help="answers to one prompt read its cache once")] = True,
    cached: Annotated[float, Option(help="share of the prompt whose cache is there already")] = 0.0,
    combine: Annotated[str, Option(help="compute and traffic: their sum (add) or the larger one (max)")] = "add",
    clock: Annotated[str | None, Option(help="time the answers, too, by kernels that NVIDIA's collector measured: h200:vllm, "
                                        "h200:sglang:fp8 (weights), h200:trtllm:fp8:fp8 (and KV cache); "
                                        "fitted:h200:vllm takes four constants fitted to them")] = None,
    as_json: Annotated[bool, Option("--json", help="one JSON line")] = False,
) -> None:  # fmt: skip
    """Price one setting. What fits, FLOP and bytes by part, seconds, and what was assumed."""
    found = _answer(given := dict(locals()))
    print(json.dumps(found | {"arguments": given}) if as_json else "\n".join(_lines(given, found)))


def _answer(given: dict[str, Any]) -> dict[str, Any]:
    """All that is to be said of the arguments."""
    import kinetics_lab as lab
    from kinetics_lab.cost.clock import Datasheet
    from kinetics_lab.cost.fit import fit, parse_layout
    from kinetics_lab.cost.precision import find_precision
    from kinetics_lab.cost.step import prefill_flops, step_seconds

    model, n_in, n_out, n_trials = (given[name] for name in ("model", "n_in", "n_out", "n_trials"))
    shape, device = lab.find_model(model), lab.find_hardware(given["hardware"])
    policy = lab.parse_policy(given["policy"])
    precision, wanted = find_precision(given["weights"], given["kv"], model), _batch(given["batch"])
    options = {name: given[name] for name in ("counting", "share_prompt")}
    batch = None if given["batch"] == "endless" else wanted or 1
    options |= {"batch": batch}
    lab.cost_parts(shape, policy, n_in, n_out, n_trials, **options)  # refuses what cannot be priced
    longest = max(n_in + n_out, 1)
    layout = parse_layout(given["layout"]) if given["layout"] else None
    fitted = partial(fit, shape, device, precision, longest, wanted, reserve=given["reserve"])
    room = fitted(devices=given["devices"], layout=layout)
    if given["batch"] == "fits":
        batch = options["batch"] = max(room.batch, 1)
    if why := room.layout.why_not(shape):
        raise ValueError(f"{model}: {why}")
    if room.reason:
        warnings.warn(f"priced as if it fitted: {room.reason}", stacklevel=2)
    options |= {"bytes_per_element": precision.sizes}
    parts = lab.cost_parts(shape, policy, n_in, n_out, n_trials, **options)
    rule = "--counting released takes (budget - n_in)^2 / 2 off the reads of block top-k, more than there are: --n-out must be larger"
    require(all(part.bytes >= 0 for part in parts.values()), rule, n_out)
    whole = sum(parts.values(), lab.Cost(0.0, 0.0))
    prompts = 1 if given["share_prompt"] else n_trials
    found = {
        "fits": {"device": device.title, "devices": 0 if room.reason else room.devices, "layout": str(room.layout), "batch": room.batch,
                 "weight_bytes": room.weights, "sequence_bytes": room.sequence, "reason": room.reason},
        "batch": batch, "flops": float(whole.flops), "bytes": float(whole.bytes),
        "parts": {name: {"flops": float(part.flops), "bytes": float(part.bytes)} for name, part in parts.items()},
        "seconds": float(sum(step_seconds(device, precision, parts, given["combine"]).values())),
        "prefill_flops": prompts * float(sum(prefill_flops(shape, n_in, given["cached"]).values())),
    }  # fmt: skip
    found["eflops"] = found["seconds"] * device.peak_flops
    timer = _timer(given["clock"], room)
    if batch is not None and n_out > 0:
        ideal = Datasheet(device, given["combine"], precision, room.layout)
        clock = timer if timer and not timer.measured else ideal
        step = found["step"] = _step(clock, room, policy, batch, given)
        found["cheaper"] = _cheaper(clock, room, fitted, policy, wanted, given, step["device_seconds"])
    if timer and n_out > 0:
        found["clock"] = _timed(timer, room, policy, n_in, n_out, int(batch or n_trials))
    return found | {"assumed": _assumed(room, batch, given, timer)}


def _timer(text: str | None, room: Fit) -> Any:
    """The clock that was asked for; one that computes times this layout, and bytes as stored unless its name tells."""
    from kinetics_lab.cost.clock import parse_clock

    clock: Any = parse_clock(text) if text else None
    if clock is None or clock.measured:
        return clock
    named = str(text).count(":") > 2  # fitted:h200:vllm:fp8
    return replace(clock, layout=room.layout, precision=clock.precision if named else room.precision)


def _batch(text: str) -> float | None:
    if text in ("fits", "endless"):
        return None
    try:
        return float(int(text))
    except (ValueError, OverflowError):
        raise ValueError(f"--batch must be a whole number, fits or endless; got {text!r}") from None


def _step(clock: Any, room: Fit, policy: Any, batch: float, given: dict[str, Any]) -> dict[str, Any]:
    """A step at the answer's middle, how long a whole answer takes beside the others of its batch, and what the answers take of a device."""
    from kinetics_lab.cost.clock import answer_seconds

    n_in, n_out, n_trials = (given[name] for name in ("n_in", "n_out", "n_trials"))
    timed = clock.step(room.shape, batch, n_in + n_out / 2, policy)
    parts = {name: float(part) for name, part in timed.items()}
    whole = answer_seconds(clock, room.shape, n_in, n_out, batch, policy)
    first = float(clock.prefill(room.shape, n_in, cached=given["cached"]))
    step, answer = sum(parts.values()), float(sum(whole.values()))
    read = (1 if given["share_prompt"] else n_trials) * first * room.layout.tensor  # by one group
    return {"context": n_in + n_out / 2, "seconds": step, "parts": parts, "tokens_per_second_a_user": 1 / step,
            "tokens_per_second_a_device": batch / step / room.devices, "seconds_to_first_token": first,
            "seconds_to_an_answer": first + answer, "seconds_to_all": first + -(-n_trials // max(batch, 1)) * answer, "device_seconds": read + n_trials * answer / batch * room.devices}  # fmt: skip


def _cheaper(
    clock: Any, room: Fit, fitted: Callable[..., Fit], policy: Any, wanted: float | None, given: dict[str, Any], spent: float
) -> dict[str, Any] | None:  # fmt: skip
    """The layout by which the answers would take least of a device, if that is 1 % below what they take at least."""
    from kinetics_lab.cost.fit import COUNTS, layouts

    least, best = spent, room
    for other in (fitted(layout=way) for count in COUNTS for way in layouts(room.shape, count)):
        if not (room.reason or other.reason):
            there = _step(replace(clock, layout=other.layout), other, policy, wanted or other.batch, given)
            least, best = min((least, best), (there["device_seconds"], other), key=lambda pair: pair[0])
    told = {"devices": best.devices, "layout": str(best.layout), "less": 1 - least / spent}
    return told if least <= 0.99 * spent else None


def _timed(timer: Any, room: Fit, policy: Any, n_in: int, n_out: int, batch: int) -> dict[str, Any]:
    """What a clock says of ``batch`` answers side by side: its label, whether it was measured, seconds by part."""
    from kinetics_lab.cost.clock import answer_seconds

    found = answer_seconds(timer, room.shape, n_in, n_out, batch, policy, room.devices)
    parts = {name: float(seconds) for name, seconds in found.items()}
    told = {"name": timer.label, "measured": timer.measured, "batch": batch}
    return told | {"seconds": sum(parts.values()), "parts": parts}


def _assumed(room: Fit, batch: float | None, given: dict[str, Any], timer: Any) -> list[str]:
    bound = given["combine"] == "max"
    rates = "the larger of compute and traffic, a bound" if bound else "compute and traffic added, no bound"
    told = [str(room.precision), f"{room.hardware.name} at its datasheet's rates: {rates}"]
    told += [f"step, speed and time by {timer.label}"] if timer and not timer.measured else []
    if timer and not timer.measured and any(getattr(m, "index", 0) for m in room.shape.mixers):
        told.append("the kernels were of dense attention: a search over tokens starts more of them")
    alike, shared = "all sequences of the batch alike", "answers share their prompt's cache"
    told.append("an endless batch: weights cost no traffic" if batch is None else alike)
    told.append(shared if given["share_prompt"] else "each answer reads its own prompt")
    told.append(f"{given['cached']:.0%} of the prompt cached when it is read; one prompt is read at a time")
    return told + [f"that it fits on {room.devices} devices, which it does not"] * bool(room.reason)


def _lines(given: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The answer as a person reads it."""
    fits, step, timed, device = found["fits"], found.get("step"), found.get("clock"), found["fits"]["device"]
    answers = f"{given['n_trials']} answer{'s' * (given['n_trials'] > 1)} of {given['n_out']:,} tokens"
    head = f"{given['model']}, {given['policy']}: {answers} to a prompt of {given['n_in']:,}"
    where = f"one {device}" if fits["devices"] == 1 else f"{fits['devices']} × {device} ({fits['layout']})"
    weights, sequence = fits["weight_bytes"] / 1e9, fits["sequence_bytes"] / 1e9
    held = f"{where}: {weights:,.1f} GB of weights and {sequence:,.2f} GB a sequence on each, room for {fits['batch']:,}"
    lines = [("fits", f"no: {fits['reason']}" if fits["reason"] else held)]
    lines.append(("cost", f"{'':<12}{'Tera-FLOP':>14}{'GB moved':>14}"))
    parts = {name: work for name, work in found["parts"].items() if work["flops"] or work["bytes"]}
    for name, work in [*parts.items(), ("decoding", found)]:
        lines.append(("", f"{name:<12}{work['flops'] / 1e12:>14,.2f}{work['bytes'] / 1e9:>14,.2f}"))
    lines.append(("", f"{'prefill':<12}{found['prefill_flops'] / 1e12:>14,.2f}"))
    spent = f"{found['eflops'] / 1e12:,.1f} Tera-eFLOPs, {found['seconds']:,.3f} device-seconds"
    lines.append(("", f"decoding: {spent}"))
    if step:
        split = ", ".join(f"{name} {1e3 * part:,.2f}" for name, part in step["parts"].items() if part)
        at = f"at {step['context']:,.0f} tokens, batch {found['batch']:,.0f}"
        user, each = step["tokens_per_second_a_user"], step["tokens_per_second_a_device"]
        first, answer = step["seconds_to_first_token"], step["seconds_to_an_answer"]
        lines.append(("step", f"{1e3 * step['seconds']:,.2f} ms {at}: {split}"))
        lines.append(("speed", f"{user:,.1f} tokens/s a user, {each:,.0f} a device"))
        every = f"{step['seconds_to_all']:,.1f} s to all; " * (given["n_trials"] > 1)
        spent = f"{every}{step['device_seconds']:,.3g} device-seconds, the prompt included"
        lines.append(("time", f"{first:,.3f} s to the first token, {answer:,.1f} s to an answer; {spent}"))
    if other := found.get("cheaper"):
        where = f"{other['devices']} devices ({other['layout']})" if other["devices"] > 1 else "one device"
        lines.append(("", f"on {where} an answer would cost {100 * other['less']:.0f} % less"))
    if timed:
        told = f"{timed['seconds']:,.1f} s for {timed['batch']:,} answers side by side ({timed['name']})"
        lines.append(("clock", told))
    lines += [("assumed" if i == 0 else "", text) for i, text in enumerate(found["assumed"])]
    return [head, "", *(f"{label:<9}{text}" for label, text in lines)]
