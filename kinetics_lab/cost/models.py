"""The models this package knows by name, and the one way from a name or a ``config.json`` to a shape."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kinetics_lab.cost.configs import OPT, from_hf_config
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup

# fmt: off
_QWEN3: dict[str, Any] = {"qk_norm": True}
_QWEN3_MOE = _QWEN3 | {"n_experts": 128, "n_active_experts": 8}
_QWEN2: dict[str, Any] = {"qkv_bias": True}
_TIED = {"tied": True}
_FIELDS = ("n_layers", "n_q_heads", "n_kv_heads", "head_dim", "hidden", "ffn", "vocab")
# family, name, the fields above, the rest: from each model's config.json
_ROWS: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
    ("qwen3", "qwen3-0.6b", (28, 16, 8, 128, 1024, 3072, 151936), _QWEN3 | _TIED | {"released_params": 0.752e9}),
    ("qwen3", "qwen3-1.7b", (28, 16, 8, 128, 2048, 6144, 151936), _QWEN3 | _TIED | {"released_params": 2.03e9}),
    ("qwen3", "qwen3-4b", (36, 32, 8, 128, 2560, 9728, 151936), _QWEN3 | _TIED | {"released_params": 4.02e9}),
    ("qwen3", "qwen3-8b", (36, 32, 8, 128, 4096, 12288, 151936), _QWEN3 | {"released_params": 8.19e9}),
    ("qwen3", "qwen3-14b", (40, 40, 8, 128, 5120, 17408, 151936), _QWEN3 | {"released_params": 14.77e9}),
    ("qwen3", "qwen3-32b", (64, 64, 8, 128, 5120, 25600, 151936), _QWEN3 | {"released_params": 32.76e9}),
    ("qwen3-moe", "qwen3-30b-a3b", (48, 32, 4, 128, 2048, 6144, 151936),
     _QWEN3_MOE | {"expert_ffn": 768, "released_params": 3.3e9}),
    ("qwen3-moe", "qwen3-235b-a22b", (94, 64, 4, 128, 4096, 12288, 151936), _QWEN3_MOE | {"expert_ffn": 1536}),
    ("qwen2.5", "qwen2.5-0.5b", (24, 14, 2, 64, 896, 4864, 151936), _QWEN2 | _TIED),
    ("qwen2.5", "qwen2.5-1.5b", (28, 12, 2, 128, 1536, 8960, 151936), _QWEN2 | _TIED),
    ("qwen2.5", "qwen2.5-3b", (36, 16, 2, 128, 2048, 11008, 151936), _QWEN2 | _TIED),
    ("qwen2.5", "qwen2.5-7b", (28, 28, 4, 128, 3584, 18944, 152064), _QWEN2),
    ("qwen2.5", "qwen2.5-14b", (48, 40, 8, 128, 5120, 13824, 152064), _QWEN2),
    ("qwen2.5", "qwen2.5-32b", (64, 40, 8, 128, 5120, 27648, 152064), _QWEN2),
    ("qwen2.5", "qwen2.5-72b", (80, 64, 8, 128, 8192, 29568, 152064), _QWEN2),
    # The distilled reasoners have Qwen2.5's shapes; the smallest one unties its vocabulary matrices.
    ("ds-r1-qwen", "ds-r1-qwen-1.5b", (28, 12, 2, 128, 1536, 8960, 151936), _QWEN2),
    ("ds-r1-qwen", "ds-r1-qwen-7b", (28, 28, 4, 128, 3584, 18944, 152064), _QWEN2),
    ("ds-r1-qwen", "ds-r1-qwen-14b", (48, 40, 8, 128, 5120, 13824, 152064), _QWEN2),
    ("ds-r1-qwen", "ds-r1-qwen-32b", (64, 40, 8, 128, 5120, 27648, 152064), _QWEN2),
    ("llama3", "llama3-1b", (16, 32, 8, 64, 2048, 8192, 128256), _TIED),
    ("llama3", "llama3-3b", (28, 24, 8, 128, 3072, 8192, 128256), _TIED),
    ("llama3", "llama3-8b", (32, 32, 8, 128, 4096, 14336, 128256), {}),
    ("llama3", "llama3-70b", (80, 64, 8, 128, 8192, 28672, 128256), {}),
    ("llama3", "llama3-405b", (126, 128, 8, 128, 16384, 53248, 128256), {}),
    ("opt", "opt-125m", (12, 12, 12, 64, 768, 3072, 50272), OPT),
    ("opt", "opt-350m", (24, 16, 16, 64, 1024, 4096, 50272), OPT | {"embed_dim": 512, "final_norm": False}),
    ("opt", "opt-1.3b", (24, 32, 32, 64, 2048, 8192, 50272), OPT),
    ("opt", "opt-2.7b", (32, 32, 32, 80, 2560, 10240, 50272), OPT),
    ("opt", "opt-6.7b", (32, 32, 32, 128, 4096, 16384, 50272), OPT),
    ("opt", "opt-13b", (40, 40, 40, 128, 5120, 20480, 50272), OPT),
    ("opt", "opt-30b", (48, 56, 56, 128, 7168, 28672, 50272), OPT),
    ("opt", "opt-66b", (64, 72, 72, 128, 9216, 36864, 50272), OPT),
    ("opt", "opt-175b", (96, 96, 96, 128, 12288, 49152, 50272), OPT),
    ("deepseek-v3", "deepseek-v3", (61, 128, 128, 128, 7168, 18432, 129280),
     {"kv_lora_rank": 512, "q_lora_rank": 1536, "rope_head_dim": 64, "v_head_dim": 128, "n_experts": 256,
      "n_active_experts": 8, "expert_ffn": 2048, "n_shared_experts": 1, "n_dense_layers": 3, "router_bias": True}),
]
# fmt: on

#: Shapes by name, smallest first within a family.
MODELS: dict[str, ModelShape] = {
    name: ModelShape(name=name, family=family, **(dict(zip(_FIELDS, sizes, strict=True)) | rest))
    for family, name, sizes, rest in _ROWS
}


def find_model(name: str | PathLike[str]) -> ModelShape:
    """The shape called ``name``: one of MODELS, or that of a Hugging Face ``config.json``, given by its path.

    A shape from a file has the family "own" and is read anew when the file changes. Raises ``ValueError`` with
    the near matches for another name, ``FileNotFoundError`` for a missing file.
    """
    name = fspath(name)
    if not name.endswith(".json"):
        return lookup(MODELS, name, "model")
    path = Path(name)
    return _own_model(name, path.absolute(), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _own_model(name: str, path: Path, changed: int) -> ModelShape:
    """The shape in a file that was changed at that time (ns); errors name it as it was given."""
    return replace(from_hf_config(name), family="own")
