"""What decides an answer: the settings, a token drawn by a uniform number, and when repetition ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.decode.caches import cache_block
from kinetics_lab.errors import require

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Settings:
    """What decides the answers: a file is continued with the same ones only.

    ``trials`` may grow later. ``max_tokens``: of an answer, its end token included. ``temperature`` 0 takes the
    likeliest token; ``top_k`` 0 and ``top_p`` 1 leave all tokens in. ``repeat_window``: an answer whose last so many
    tokens repeat a block of at most ``repeat_block`` tokens is stopped (0: never). ``dense_layers``: first layers that
    stay dense. ``instruction`` follows the problem in the prompt.
    """

    policy: str = "dense"
    dense_layers: int = 0
    trials: int = 1
    max_tokens: int = 32768
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0
    repeat_window: int = 0
    repeat_block: int = 64
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        cache_block(parse_policy(self.policy))
        for name, least in (("dense_layers", 0), ("trials", 1), ("max_tokens", 1), ("top_k", 0), ("seed", 0),
                            ("repeat_window", 0), ("repeat_block", 1)):  # fmt: skip
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(whole, f"{name} must be a whole number of at least {least}", value)
        require(0 <= self.temperature < np.inf, "temperature must be 0 or more", self.temperature)
        rule = "trials must be 1 where temperature is 0: all of them would be the same answer"
        require(self.temperature > 0 or self.trials == 1, rule, self.trials)
        require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        window, least = self.repeat_window, 2 * self.repeat_block
        rule = f"repeat_window must be 0 or at least twice repeat_block={self.repeat_block}"
        require(window == 0 or window >= least, rule, window)


def draw(logits: Tensor, uniforms: Sequence[float], settings: Settings) -> list[int]:
    """One token for each row of ``logits [rows, vocabulary]``: by inversion, so that a uniform number decides it.

    Temperature first, then the ``top_k`` likeliest, then the fewest of these whose probability reaches ``top_p``.
    """
    if logits.isnan().any():
        raise ValueError(
            "the model's logits are not numbers; where its dtype is float16, try --dtype bfloat16"
        )
    if settings.temperature == 0:
        return [int(i) for i in logits.argmax(-1).tolist()]
    count = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    best, ids = logits.float().topk(count, -1)
    share = (best.double() / settings.temperature).softmax(-1)
    before = share.cumsum(-1) - share
    share = share.masked_fill(before >= settings.top_p, 0)  # the first always stays
    whole = share.cumsum(-1)
    dice = torch.tensor(uniforms, dtype=whole.dtype, device=whole.device)[:, None] * whole[:, -1:]
    kept = (share > 0).sum(-1, keepdim=True)
    at = torch.minimum((whole <= dice).sum(-1, keepdim=True), kept - 1)
    return [int(i) for i in ids.gather(-1, at)[:, 0].tolist()]


def repeats(ids: Sequence[int], window: int, block: int) -> bool:
    """Whether the last ``window`` tokens are one block of at most ``block`` tokens, over and over."""
    if not window or len(ids) < window:
        return False
    last = np.asarray(ids[-window:])
    return any((last[period:] == last[:-period]).all() for period in range(1, block + 1))
