"""The rules arguments must keep. Each broken rule is one ``ValueError``: the argument, the rule, the value.

None of these checks reads a tensor's contents, so none of them waits for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FP8 = torch.float8_e4m3fn  # of stored keys and values only
HEAD_DIMS = (16, 32, 64, 128, 256)
MAX_GROUP = 16  # query heads per KV head; more do not fit the 16 rows of one matrix instruction


def require(ok: bool, rule: str, value: object) -> None:
    """``ValueError`` with the rule and the value that breaks it, unless ``ok``."""
    if not ok:
        raise ValueError(f"{rule}, got {value}")


def whole(name: str, value: object, least: int) -> None:
    """``value`` must be an integer of at least ``least``."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(ok, f"{name} must be an integer >= {least}", repr(value))


def tensor(
    name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | tuple[torch.dtype, ...], device: torch.device
) -> None:  # fmt: skip
    """``x`` must be a contiguous tensor of this shape and (one) dtype, on this device."""
    require(isinstance(x, Tensor), f"{name} must be a torch.Tensor", type(x).__name__)
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    require(x.dtype in dtypes, f"{name} must have dtype {' or '.join(map(str, dtypes))}", x.dtype)
    require(x.device == device, f"{name} must be on {device}, where the cache is", x.device)
    require(tuple(x.shape) == shape, f"{name} must have shape {shape}", tuple(x.shape))
    require(x.is_contiguous(), f"{name} must be contiguous (call .contiguous())", f"strides {x.stride()}")


def gpu(device: torch.device, *, fp8: bool) -> None:
    """A GPU must be able to copy while it multiplies (sm_80), and to convert fp8 (sm_89) where that is stored."""
    if device.type == "cuda":
        capability, least = torch.cuda.get_device_capability(device), (8, 9) if fp8 else (8, 0)
        what = "an fp8 cache" if fp8 else "the cache"
        rule = f"{what} must be on a GPU of compute capability {least[0]}.{least[1]} or newer"
        require(capability >= least, rule, ".".join(map(str, capability)))


def query(q: Tensor, n_kv: int) -> int:
    """``q [B, Hq, D]`` must have a group of query heads for each of the ``n_kv`` KV heads; returns Hq / Hkv."""
    require(isinstance(q, Tensor), "q must be a torch.Tensor", type(q).__name__)
    require(q.dim() == 3, "q must have 3 dimensions (batch, query heads, head_dim)", tuple(q.shape))
    n_q = q.shape[1]
    require(n_q >= 1 and n_q % n_kv == 0, f"q must have a multiple of {n_kv} query heads (the KV heads)", n_q)
    require(n_q // n_kv <= MAX_GROUP, f"q must have at most {MAX_GROUP} query heads per KV head", n_q // n_kv)
    return n_q // n_kv


def softmax_scale(scale: float | None, head_dim: int) -> float:
    """``scale``, or 1 / sqrt(head_dim) where it is None."""
    if scale is None:
        return head_dim**-0.5
    require(0 < scale < float("inf"), "scale must be a positive number", scale)
    return float(scale)
