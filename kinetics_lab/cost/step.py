"""One decode step, or a prompt, on one device of a layout: FLOP and bytes by part, and seconds at datasheet rates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.fit import ALONE, BF16, Layout, cache_bytes, weight_bytes
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.request import COMBINES, Cost, cost_parts, prefill_cost
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Experts, FeedForward, Part
from kinetics_lab.errors import among, require

DENSE = Dense()
ACTIVATION = 2  # bytes of an activation on a link (BF16)


def step_parts(
    shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, *,
    precision: Precision = BF16, layout: Layout = ALONE, **options: Any,
) -> dict[str, Cost]:  # fmt: skip
    """One decode step of ``batch`` sequences at ``context`` cached tokens, on ONE device of the layout, by part.

    ``parameters``, ``attention``, ``search``, ``state``, and ``communication``, whose bytes go over the link: two
    all-reduces a layer over the tensor parallel group (a ring: each device sends 2 (t - 1) / t of the vector), and where
    attention is data parallel each token's way to its experts and back.
    """
    batch, context = np.asarray(batch, float), np.asarray(context, float)
    if why := layout.why_not(shape):
        raise ValueError(f"{shape.name}: {why}")
    here, share = batch / layout.data, layout.matrices(shape)  # sequences of a group
    sizes = precision.sizes
    parts = cost_parts(shape, policy, context, 1, bytes_per_element=sizes, **options)
    read = shape.parameters_read(batch)
    moved = sum(share[kind] * sizes[kind] * count for kind, count in read.items())
    flops = 2 * here * shape.n_matmul_params / layout.tensor  # of experts, too: batch / devices each
    found = {"parameters": Cost(flops, moved * np.ones_like(context))}
    kept, full = (cache_bytes(shape, context, precision, one, read=True) for one in (layout, ALONE))
    for name in ("attention", "search", "state"):
        if name in parts:
            held = 1 / layout.tensor if name == "state" else kept / np.where(full > 0, full, 1)
            found[name] = Cost(here * parts[name].flops / layout.tensor, here * parts[name].bytes * held)
    return found | {"communication": Cost(0.0, sent(shape, here, layout))}


def blocks(shape: ModelShape) -> int:
    """Attention and feed-forward blocks of all layers: each ends in an all-reduce."""
    kinds = (
        {isinstance(one, FeedForward | Experts) for one in layer if type(one) is not Part}
        for _, layer in shape.groups
    )
    return sum(n * len(found) for (n, _), found in zip(shape.groups, kinds, strict=True))


def routed(shape: ModelShape) -> float:
    """Experts that one token is sent to, over all layers."""
    return sum(count * one.chosen for one, count in shape.parts.items() if isinstance(one, Experts))


def sent(shape: ModelShape, tokens: ArrayLike, layout: Layout) -> Any:
    """Bytes that one device sends for ``tokens`` tokens of its group."""
    vector = np.asarray(tokens, float) * shape.hidden * ACTIVATION
    reduced = blocks(shape) * vector * 2 * (layout.tensor - 1) / layout.tensor
    if layout.data == 1:
        return reduced
    return reduced + 2 * routed(shape) * vector / layout.tensor * (1 - 1 / layout.devices)


def step_seconds(
    hardware: Hardware, precision: Precision, parts: dict[str, Cost], combine: str = "max"
) -> dict[str, np.ndarray]:
    """Seconds of each part of :func:`step_parts` at datasheet rates; NaN for communication over an unknown link.

    Matrices run at the peak of the activations, attention in the hardware's own precision whatever the cache is stored in.
    """
    among(COMBINES, combine, "combine")
    found = {}
    for name, part in parts.items():
        if name == "communication":
            found[name] = over_link(hardware.link, part.bytes)
            continue
        peak = precision.peak(hardware) if name == "parameters" else hardware.peak_flops
        computed, moved = part.flops / peak, part.bytes / hardware.bandwidth
        found[name] = computed + moved if combine == "add" else np.maximum(computed, moved)
    return found


def prefill_flops(shape: ModelShape, n_in: ArrayLike, cached: float = 0.0) -> dict[str, np.ndarray]:
    """FLOP to read a prompt of ``n_in`` tokens, of which a share ``cached`` is there: ``parameters``, ``attention``."""
    require(0 <= cached < 1, "cached must be in [0, 1) (share of the prompt)", cached)
    n_in = np.asarray(n_in, float)
    body = shape.n_matmul_params - shape.head_params

    def attention(n: np.ndarray) -> np.ndarray:
        return prefill_cost(shape, n).flops - 2 * (body * n + shape.head_params * np.minimum(n, 1))

    new = 2 * body * n_in * (1 - cached) + 2 * shape.head_params * np.minimum(n_in, 1)
    return {"parameters": new, "attention": attention(n_in) - attention(cached * n_in)}


def prefill_seconds(
    shape: ModelShape, hardware: Hardware, n_in: ArrayLike, *, precision: Precision = BF16, layout: Layout = ALONE,
    cached: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Seconds to read one prompt of ``n_in`` tokens at datasheet rates, of which a share ``cached`` is there already.

    The larger of its arithmetic and one pass over the weights, and what goes over the link. One group reads it.
    """
    flops = prefill_flops(shape, n_in, cached)
    computed = flops["parameters"] / precision.peak(hardware) + flops["attention"] / hardware.peak_flops
    moved = weight_bytes(shape, precision, layout) / hardware.bandwidth
    new = np.asarray(n_in, float) * (1 - cached)
    return np.maximum(computed / layout.tensor, moved) + over_link(hardware.link, sent(shape, new, layout))


def over_link(link: float, moved: ArrayLike) -> np.ndarray:
    """Seconds of bytes over a link of that rate; NaN where it is not known (0)."""
    moved = np.asarray(moved, float)
    return moved / link if link else np.where(moved > 0, np.nan, 0.0)
