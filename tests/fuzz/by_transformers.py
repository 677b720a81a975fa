"""Parameters as transformers' own classes count them, on the meta device: no memory, and no code of the readers."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from kinetics_lab.cost import families

NOT_TEXT = re.compile(r"vision|visual|audio|projector")
#: Types whose class cannot be built from its own defaults, or counts storage that its checkpoint does not have.
ODD = {"ministral", "nemotron", "hunyuan_v1_dense", "hunyuan_v1_moe", "longcat_flash", "deepseek_v2", "dots1", "lfm2_moe",
       "nemotron_h"}  # fmt: skip
TYPES = sorted({name for row in families._ROWS for name in row[3].split()} - ODD)
MORE: dict[str, dict[str, Any]] = {
    "gemma4_text": {"num_kv_shared_layers": 12, "use_double_wide_mlp": True},
    "granitemoehybrid": {"layer_types": (["mamba"] * 3 + ["attention"]) * 8},
    "lfm2": {"full_attn_idxs": [2, 5]},
}
SIZES: dict[str, list[Any]] = {
    "num_hidden_layers": [2, 4, 6], "hidden_size": [256, 512, 1024], "intermediate_size": [128, 384, 1000],
    "moe_intermediate_size": [64, 160], "vocab_size": [262144, 300001], "num_attention_heads": [4, 8, 16],
    "num_key_value_heads": [1, 2, 4], "head_dim": [32, 64, 128], "tie_word_embeddings": [False, True],
}  # fmt: skip


def text_classes() -> dict[str, str]:
    """Model types whose class generates text -> its name."""
    auto = pytest.importorskip("transformers").models.auto.modeling_auto
    return dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def counted(model_type: str, values: dict[str, Any]) -> tuple[int, int]:
    """Parameters of transformers' model: all, and those of routed experts."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **values)
    with torch.device("meta"):
        model = getattr(transformers, text_classes()[model_type])._from_config(config)
    parts = [(name, p.numel()) for name, p in model.named_parameters() if not NOT_TEXT.search(name)]
    biases = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    routed = sum(count for name, count in parts if re.search(r"\bexperts\b", name) and "shared" not in name)
    return sum(count for _, count in parts) + biases, routed


@cache
def _total(model_type: str, values: str) -> int | None:
    try:
        return counted(model_type, json.loads(values))[0]
    except (
        Exception
    ):  # a class may ask for sizes that suit each other, and for no more than a machine can number
        return None


def total(model_type: str, values: dict[str, Any]) -> int | None:
    """All parameters, each configuration counted once; None where the class takes no such sizes."""
    return _total(model_type, json.dumps(values, sort_keys=True))


@cache
def sizes(model_type: str) -> dict[str, Any]:
    """The sizes among ``SIZES`` that the class knows, with their defaults, and its number of layers."""
    transformers = pytest.importorskip("transformers")
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    if not getattr(
        transformers, text_classes()[model_type]
    )._tied_weights_keys:  # it ignores what its file says
        known.pop("tie_word_embeddings", None)
    return {name: known[name] for name in SIZES if name in known}
