"""The command ``cost``: what fits, what an answer costs by part, how long it takes, and what was assumed."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kinetics_lab.cli.shared import Hardware, Policy, names

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
    reserve: Annotated[float, Option(help="share of the memory kept free")] = 0.1,
    share_prompt: Annotated[bool, Option(help="answers to one prompt read its cache once")] = True,
    cached: Annotated[float, Option(help="share of the prompt whose cache is there already")] = 0.0,
    combine: Annotated[str, Option(help="compute and traffic: their sum (add) or the larger one (max)")] = "add",
    clock: Annotated[str | None, Option(help="time the answers, too, by kernels that NVIDIA's collector measured: h200:vllm, "
                                        "h200:sglang:fp8 (weights), h200:trtllm:fp8:fp8 (and KV cache)")] = None,
    as_json: Annotated[bool, Option("--json", help="one JSON line")] = False,
) -> None:  # fmt: skip
    """Price one setting. What fits, FLOP and bytes by part, seconds, and what was assumed."""
    given = dict(locals())
    import kinetics_lab as lab
    from kinetics_lab.cost.fit import fit, prefill_flops
    from kinetics_lab.cost.precision import find_precision

    shape, device, rule = lab.find_model(model), lab.find_hardware(hardware), lab.parse_policy(policy)
    precision = find_precision(weights, kv, model)
    wanted = _batch(batch)
    room = fit(shape, device, precision, max(n_in + n_out, 1), wanted, reserve=reserve, devices=devices)
    together = None if batch == "endless" else wanted or max(room.batch, 1)
    options: dict[str, Any] = {"counting": counting, "bytes_per_element": precision.sizes, "share_prompt": share_prompt}
    parts = lab.cost_parts(shape, rule, n_in, n_out, n_trials, batch=together, **options)
    whole = sum(parts.values(), lab.Cost(0.0, 0.0))
    found = {
        "fits": _told(room),
        "batch": together,
        "flops": float(whole.flops),
        "bytes": float(whole.bytes),
        "eflops": float(whole.eflops(device, combine)),
        "parts": {name: {"flops": float(part.flops), "bytes": float(part.bytes)} for name, part in parts.items()},
        "seconds": _seconds(parts, device, precision, combine),
        "prefill_flops": float(sum(prefill_flops(shape, n_in, cached).values())) * (1 if share_prompt else n_trials),
    }
    if room.reason:
        warnings.warn(f"priced as if it fitted: {room.reason}", stacklevel=2)
    if together is not None:
        found["step"] = _step(room, rule, n_in, n_out, together, combine, cached)
    if clock is not None:
        found["clock"] = _timed(clock, shape, rule, n_in, n_out, int(together or n_trials))
    found["assumed"] = _assumed(room, precision, together, combine, share_prompt, cached)
    print(json.dumps(found | {"arguments": given}) if as_json else "\n".join(_lines(shape.name, given, found)))


def _batch(text: str) -> float | None:
    if text in ("fits", "endless"):
        return None
    try:
        return float(int(text))
    except ValueError:
        raise ValueError(f"--batch must be a whole number, fits or endless; got {text!r}") from None


def _told(room: Fit) -> dict[str, Any]:
    told = {"devices": 0 if room.reason else room.devices, "layout": str(room.layout), "batch": room.batch}
    told |= {"weight_bytes": room.weights, "sequence_bytes": room.sequence, "reason": room.reason}
    return told


def _seconds(parts: dict[str, Any], device: Any, precision: Any, combine: str) -> float:
    """Device-seconds of the request at datasheet rates."""
    from kinetics_lab.cost.fit import step_seconds

    return float(sum(step_seconds(device, precision, parts, combine).values()))


def _step(room: Fit, policy: Any, n_in: int, n_out: int, batch: float, combine: str, cached: float) -> dict[str, Any]:
    """A step at the answer's middle, and how long a whole answer takes beside the others of its batch."""
    from kinetics_lab.cost.clock import Datasheet, answer_seconds
    from kinetics_lab.cost.fit import prefill_seconds

    clock = Datasheet(room.hardware, combine, room.precision, room.layout)
    parts = {name: float(part) for name, part in clock.step(room.shape, batch, n_in + n_out / 2, policy).items()}
    whole = answer_seconds(clock, room.shape, n_in, n_out, batch, policy)
    first = prefill_seconds(room.shape, room.hardware, n_in, precision=room.precision, layout=room.layout, cached=cached)
    step, answer = sum(parts.values()), float(sum(whole.values()))
    return {"context": n_in + n_out / 2, "seconds": step, "parts": parts, "tokens_per_second_a_user": 1 / step,
            "tokens_per_second_a_device": batch / step / room.devices, "seconds_to_first_token": float(first),
            "seconds_to_an_answer": float(first) + answer}  # fmt: skip


def _timed(clock: str, shape: Any, policy: Any, n_in: int, n_out: int, batch: int) -> dict[str, Any]:
    """What a clock says of ``batch`` answers side by side: its label, whether it was measured, seconds by part."""
    from kinetics_lab.cost.clock import answer_seconds, parse_clock

    timer = parse_clock(clock)
    found = answer_seconds(timer, shape, n_in, n_out, batch, policy)
    parts = {name: float(seconds) for name, seconds in found.items()}
    return {"name": timer.label, "measured": timer.measured, "batch": batch, "seconds": sum(parts.values()), "parts": parts}


def _assumed(
    room: Fit, precision: Any, batch: float | None, combine: str, share_prompt: bool, cached: float
) -> list[str]:
    rates = "the larger of compute and traffic, a bound" if combine == "max" else "compute and traffic added, no bound"
    told = [str(precision), f"{room.hardware.name} at its datasheet's rates: {rates}"]
    told.append("an endless batch: weights cost no traffic" if batch is None else "all sequences of the batch alike")
    told.append("answers share their prompt's cache" if share_prompt else "each answer reads its own prompt")
    told.append(f"{cached:.0%} of the prompt cached when it is read; one prompt is read at a time")
    return told + [f"that it fits on {room.devices} devices, which it does not"] * bool(room.reason)


def _lines(name: str, given: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The answer as a person reads it."""
    fits, step, timed = found["fits"], found.get("step"), found.get("clock")
    answers = f"{given['n_trials']} answer{'s' * (given['n_trials'] > 1)} of {given['n_out']:,} tokens"
    lines = [f"{name}, {given['policy']}: {answers} to a prompt of {given['n_in']:,}", ""]
    if fits["reason"]:
        lines.append(f"fits     no: {fits['reason']}")
    else:
        many = f"{fits['devices']} x {given['hardware']} ({fits['layout']})" if fits["devices"] > 1 else f"one {given['hardware']}"
        held = f"{fits['weight_bytes'] / 1e9:,.1f} GB of weights and {fits['sequence_bytes'] / 1e9:,.2f} GB a sequence on each"
        lines.append(f"fits     {many}: {held}, room for {fits['batch']:,} sequences")
    lines.append(f"cost     {'':<12}{'Tera-FLOP':>14}{'GB moved':>14}")
    rows = [*found["parts"].items(), ("decoding", {"flops": found["flops"], "bytes": found["bytes"]})]
    lines += [f"         {part:<12}{work['flops'] / 1e12:>14,.2f}{work['bytes'] / 1e9:>14,.2f}" for part, work in rows]
    lines.append(f"         {found['eflops'] / 1e12:,.1f} Tera-eFLOPs, {found['seconds']:,.3f} device-seconds; "
                 f"prefill takes {found['prefill_flops'] / 1e12:,.2f} Tera-FLOP more")  # fmt: skip
    if step:
        split = ", ".join(f"{part} {1e3 * seconds:,.2f}" for part, seconds in step["parts"].items() if seconds)
        lines.append(f"step     {1e3 * step['seconds']:,.2f} ms at {step['context']:,.0f} tokens, batch {found['batch']:,.0f}: {split}")
        lines.append(f"speed    {step['tokens_per_second_a_user']:,.1f} tokens/s a user, "
                     f"{step['tokens_per_second_a_device']:,.0f} a device")  # fmt: skip
        lines.append(f"time     {step['seconds_to_first_token']:,.3f} s to the first token, "
                     f"{step['seconds_to_an_answer']:,.1f} s to an answer")  # fmt: skip
    if timed:
        lines.append(f"clock    {timed['seconds']:,.1f} s for {timed['batch']:,} answers side by side ({timed['name']})")
    return [*lines, *(f"{'assumed' if i == 0 else '':<9}{text}" for i, text in enumerate(found["assumed"]))]
