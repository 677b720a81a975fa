"""Training: one function, reproducible for a seed on a CPU, resumable to the same weights.

What it took: Muon for the matrices, small graphs without noise first, then all of it once most steps are valid.
Batch i depends on (seed, i) alone, so a resumed run needs no state of a generator.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kinetics_lab.errors import require
from kinetics_lab.files import write_whole
from kinetics_lab.ladder import SIZES, Preset, model_name
from kinetics_lab.ladder.model import Reasoner
from kinetics_lab.ladder.task import World, make, teach

MUON_LR, ADAM_LR = 0.02, 3e-3  # the second at width 64
WARM, DECAY = 1 / 40, 0.6  # shares of the training in which the learning rate rises, and falls
EASY_NODES, EASY_STEPS = 12, 32  # largest graphs and length of the walks before there is noise
PATIENCE = 20  # batches between two sizes of graph before there is noise
SAVE_S = 60.0  # between two times that a training is written down
GATE, NOISY_GATE = 0.7, 0.8  # share of valid steps to go on at; who cannot count reaches 0.75 with noise


def orthogonal(x: Tensor) -> Tensor:
    """Five Newton-Schulz steps, the core of Muon: all singular values brought near 1."""
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: a matrix moves by the same amount in all directions, whatever its width."""

    def __init__(self, params: Any, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                move = orthogonal(p.grad.lerp(mean, group["momentum"]))
                scale = group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1]))
                p.mul_(1 - group["lr"] * group["decay"]).add_(move, alpha=-scale)


def lesson(world: World, state: dict[str, Any], rng: np.random.Generator) -> tuple[World, int, int]:
    """What the next batch is made of: the world, nodes of its graphs, steps of its walks.

    First every record is true, graphs and walks are small: looking up a record by its source has to be found first,
    and long walks offer a shortcut, to copy what followed a node earlier in the walk.
    """
    if state["noisy"]:
        least = max(world.first, state["nodes"] // 2)
        return world, int(rng.integers(least, state["nodes"] + 1)), world.cap
    state["nodes"] = min(EASY_NODES, world.nodes, world.first + state["step"] // PATIENCE)
    return replace(world, votes=(1,) * world.degree), state["nodes"], EASY_STEPS


def grow(world: World, state: dict[str, Any]) -> None:
    """Noise, then larger graphs, once most steps are valid; a moment's grace after each change."""
    gate = GATE if not state["noisy"] else NOISY_GATE if state["nodes"] < world.nodes else math.inf
    if state["valid"] > gate:
        state["nodes"] = min(state["nodes"] + max(1, state["nodes"] // 32), world.nodes)
        state["noisy"] = True
        state["valid"] -= 0.05


class Training:
    """A training under way: its model, its optimizers, and in ``state`` all else that a resumed one needs."""

    def __init__(self, preset: Preset, size: str, seed: int, device: str) -> None:
        self.preset, self.seed, self.device = preset, seed, device
        self.recipe = repr((preset.world, preset.tokens, preset.batch, SIZES[size]))
        torch.manual_seed(seed)
        self.model = Reasoner(SIZES[size], preset.world.nodes).to(device)
        matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if all(p is not m for m in matrices)]
        self.rates = MUON_LR, ADAM_LR * math.sqrt(64 / self.model.size.width)
        self.optimizers = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0)
        self.state: dict[str, Any] = dict.fromkeys(("step", "seen", "noisy", "nodes", "valid", "seconds"), 0)
        self.state["curve"] = []

    def load(self, path: Path) -> None:
        """Go on from a file; ``ValueError`` where it belongs to another recipe."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        if saved["recipe"] != self.recipe:
            raise ValueError(f"{path} belongs to another recipe: {saved['recipe']}, not {self.recipe}")
        self.state = saved["state"]
        self.model.load_state_dict(saved["model"])
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)

    def save(self, path: Path) -> None:
        learnt = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        whole = {"recipe": self.recipe, "state": self.state, **learnt}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: torch.save(whole, part))

    def step(self) -> float:
        """Learn from the next batch; its loss, nats per token."""
        preset, state, model = self.preset, self.state, self.model
        rng = np.random.default_rng([self.seed, state["step"]])
        world, nodes, length = lesson(preset.world, state, rng)
        problems = make(world, preset.batch, nodes, rng)
        walk = teach(world, problems, length, rng)
        text = np.concatenate([problems.tokens, walk], 1)
        tokens = torch.from_numpy(text).to(self.device)
        n_in, done = problems.tokens.shape[1], state["seen"] / preset.tokens
        logits = model(tokens[:, :-1], n_in - 1)
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, n_in:].flatten())
        model.zero_grad()
        loss.backward()
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (done + 1e-3) / WARM, (1 - done) / DECAY)
            optimizer.step()
        near = problems.edges[np.arange(preset.batch)[:, None], text[:, n_in - 1 : -1]]  # true edges
        valid = logits.detach().softmax(-1).gather(-1, torch.from_numpy(near).to(self.device)).sum(-1)
        state["valid"] += 0.1 * (valid.mean().item() - state["valid"])
        grow(preset.world, state)
        state["step"] += 1
        state["seen"] += tokens.numel()
        return loss.item()


def train(
    preset: Preset, size: str, seed: int, folder: str | os.PathLike[str], *, device: str = "cpu", progress: bool = False
) -> tuple[Reasoner, list[dict[str, float]]]:  # fmt: skip
    """Train one rung of a preset on ``preset.tokens`` tokens, or load it from ``folder`` where that is done.

    ``folder/SIZE-sSEED.pt`` is written every minute and at the end; a stopped training goes on from it. progress: a
    line a second on stderr. ``ValueError`` where the file belongs to another recipe, or for a missing device.

    Returns the model and its learning curve, about 100 points: ``tokens`` seen, ``loss`` (nats per token), ``valid``
    (share of probability on true edges, smoothed), ``nodes`` of the largest graphs so far, ``seconds`` of training.
    """
    here = device == "cpu" or (device.split(":")[0] == "cuda" and torch.cuda.is_available())
    require(here, "device must be cpu, or cuda where PyTorch finds a GPU", device)
    name = model_name(size, seed)
    path, run = Path(folder, f"{name}.pt"), Training(preset, size, seed, device)
    if path.is_file():
        run.load(path)
    state, saved_at, shown_at = run.state, time.monotonic(), 0.0
    first, begun = state["step"], saved_at - state["seconds"]
    while state["seen"] < preset.tokens:
        done, loss, now = state["seen"] / preset.tokens, run.step(), time.monotonic()
        state["seconds"] = now - begun
        if state["seen"] * 100 // preset.tokens > done * 100 // 1:
            known = {key: state[key] for key in ("valid", "nodes", "seconds")}
            state["curve"].append({"tokens": state["seen"], "loss": loss, **known})
        if progress and now - shown_at > 1:
            shown_at, rest = now, f"{done:4.0%}, loss {loss:.3f}, valid {state['valid']:.3f}"
            print(f"\r{name}: {rest}, {state['seconds']:.0f} s ", end="", file=sys.stderr, flush=True)
        if now - saved_at > SAVE_S:
            saved_at = now
            run.save(path)
    if state["step"] > first:
        run.save(path)
        print(end="\n" if progress else "", file=sys.stderr)
    return run.model, state["curve"]
