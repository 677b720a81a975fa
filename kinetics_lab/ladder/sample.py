"""Sampling: batched decode with a KV cache under a policy, and the answers to a preset's test problems.

The prompt is read densely and once for all trials; decode obeys the policy, but for the first ``dense_layers`` layers.
Uniform numbers are made on the host, the same for every model, policy and device.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinetics_lab.cost.policies import Dense, Policy, parse_policy
from kinetics_lab.decode.caches import PagedCache, PlainCache
from kinetics_lab.ladder import Preset
from kinetics_lab.ladder.model import Reasoner
from kinetics_lab.ladder.task import TEST_SEED, exam


@torch.no_grad()
def sample(
    model: Reasoner, prompts: np.ndarray, uniforms: np.ndarray, policy: Policy, *,
    dense_layers: int = 1, paged: bool | None = None,
) -> np.ndarray:  # fmt: skip
    """Answers ``[prompts * trials, cap]`` (-1 after the goal, prompt by prompt) for ``uniforms [prompts, trials, cap]``.

    paged: attention through the Triton kernels (None: where the model is on a GPU).
    """
    (count, trials, cap), n_in = uniforms.shape, prompts.shape[1]
    device = model.head.weight.device
    tokens = torch.from_numpy(prompts).to(device)
    prompt: list[tuple[Tensor, ...]] = []
    model(tokens[:, :-1], n_in - 2, prompt)  # the start is the first token to decode
    cache_of = PagedCache if (device.type == "cuda" if paged is None else paged) else PlainCache
    reads = [Dense() if i < dense_layers else policy for i in range(len(prompt))]
    sizes = count * trials, *prompt[0][0].shape[2:], n_in - 1 + cap
    caches = [cache_of(read, *sizes, dtype=torch.float32, device=device) for read in reads]
    for ((k, v, _), cache), i in product(zip(prompt, caches, strict=True), range(count)):
        cache.fill(k[i : i + 1], v[i : i + 1], slice(i * trials, (i + 1) * trials))
    before = [last.repeat_interleave(trials, 0) for _, _, last in prompt]
    dice = torch.from_numpy(uniforms.reshape(-1, cap)).to(device)
    goal = (tokens[:, -2] - 2 * model.labels).repeat_interleave(trials)
    token, rows = tokens[:, -1].repeat_interleave(trials), torch.arange(count * trials, device=device)
    live, out = rows >= 0, torch.full((len(rows), cap), -1, device=device)
    angles = model.angles(n_in - 1, n_in - 1 + cap)
    for t in range(cap):
        x, angle = model.embed(token)[:, None], angles[t : t + 1]
        for i, (layer, cache) in enumerate(zip(model.layers, caches, strict=True)):
            k, v, before[i] = layer.keys_values(x, angle, before[i])
            cache.append(k[:, 0], v[:, 0])
            x = layer.finish(x, cache.attend(layer.queries(x, angle)[:, 0]).flatten(1)[:, None])
        share = model.logits(x[:, 0]).double().softmax(-1).cumsum(-1)
        token = (share < dice[rows, t, None]).sum(-1).clamp(max=model.labels - 1)
        out[rows[live], t] = token[live]
        live = live & (token != goal)
        if not live.any():
            break
        if live.float().mean() < 0.85 and all([cache.keep(live) for cache in caches]):
            before = [last[live] for last in before]
            rows, goal, token, live = rows[live], goal[live], token[live], live[live]
    return out.cpu().numpy()


def sampled_exam(
    model: Reasoner, preset: Preset, policy: str, trials: int, *, seed: int = TEST_SEED, **how: Any
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """The first trials of all test problems, for each size of graph: ``problem`` and ``trial`` of each row, prompts
    ``[rows, n_in]`` and answers ``[rows, cap]`` (see :func:`sample`, which ``how`` is for).

    Problems and uniform numbers depend on ``seed`` alone, so models and policies can be compared pair by pair.
    Problem ``32-07`` is number 7, in order of difficulty, of those with 32 nodes.
    """
    count, trials, read = preset.per_size, min(trials, preset.trials), parse_policy(policy)
    for nodes in preset.world.sizes:
        given, _ = exam(preset.world, nodes, count, seed)
        dice = np.random.default_rng([seed, nodes, 1]).random((count, preset.trials, preset.world.cap))
        found = sample(model, given.tokens, dice[:, :trials], read, **how)
        names = np.repeat([f"{nodes}-{i:02d}" for i in range(count)], trials)
        rows = {"problem": names, "trial": np.tile(np.arange(trials), count)}
        yield rows, given.tokens.repeat(trials, 0), found
