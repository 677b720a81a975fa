"""Shapes of models of your own, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup


def from_hf_config(config: str | PathLike[str] | Mapping[str, Any]) -> ModelShape:
    """Shape of a ``config.json`` (a path, or the parsed mapping).

    Raises ``ValueError`` for an architecture whose parameters this package cannot count, for a missing
    key and for a file that is not JSON.
    """
    where, folder = "config", ""
    if not isinstance(config, Mapping):
        where, folder = str(config), Path(config).absolute().parent.name
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} line {error.lineno}: not JSON ({error.msg})") from None
        if not isinstance(config, Mapping):
            raise ValueError(f"{where}: a config.json holds one object, got {type(config).__name__}")
    architecture = (config.get("architectures") or ["none given"])[0]
    family, read = lookup(_HF_READERS, architecture, f"{where}: architecture")
    try:
        return ModelShape(
            name=config.get("_name_or_path") or folder or architecture,
            family=family,
            n_layers=config["num_hidden_layers"],
            n_q_heads=config["num_attention_heads"],
            hidden=config["hidden_size"],
            vocab=config["vocab_size"],
            **read(config),
        )
    except KeyError as error:
        raise ValueError(f"{where}: key {error} is missing; {architecture} needs it") from None
    except TypeError as error:
        raise ValueError(f"{where}: a dimension of {architecture} is not a whole number ({error})") from None


def _head_dim(config: Mapping[str, Any]) -> int:
    # Only where the file gives none is it derived, as the model code itself does.
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _read_gqa(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("config: attention_bias and mlp_bias must be false; biased variants are not counted")
    return {
        "n_kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "head_dim": _head_dim(config),
        "ffn": config["intermediate_size"],
        "tied": config.get("tie_word_embeddings", False),
    }


def _read_moe(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("decoder_sparse_step", 1) != 1:
        raise ValueError(f"config: decoder_sparse_step must be 1, got {config['decoder_sparse_step']}")
    return _read_gqa(config) | {
        "qk_norm": True,
        "n_experts": config.get("num_local_experts") or config["num_experts"],  # its newer name first
        "n_active_experts": config["num_experts_per_tok"],
        "expert_ffn": config["moe_intermediate_size"],
        "n_dense_layers": len(config.get("mlp_only_layers") or []),
    }


def _read_opt(config: Mapping[str, Any]) -> dict[str, Any]:
    embed = config.get("word_embed_proj_dim", config["hidden_size"])
    return OPT | {
        "n_kv_heads": config["num_attention_heads"],
        "head_dim": _head_dim(config),
        "ffn": config["ffn_dim"],
        "tied": config.get("tie_word_embeddings", True),
        "n_positions": config["max_position_embeddings"] + 2,  # its table has an offset of two
        "embed_dim": 0 if embed == config["hidden_size"] else embed,
        "final_norm": config.get("do_layer_norm_before", True),
    }


def _read_deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n_kv_heads": config["num_attention_heads"],
        "head_dim": config["qk_nope_head_dim"],
        "rope_head_dim": config["qk_rope_head_dim"],
        "v_head_dim": config["v_head_dim"],
        "kv_lora_rank": config["kv_lora_rank"],
        "q_lora_rank": config.get("q_lora_rank") or 0,
        "ffn": config["intermediate_size"],
        "tied": config.get("tie_word_embeddings", False),
        "n_experts": config["n_routed_experts"],
        "n_active_experts": config["num_experts_per_tok"],
        "expert_ffn": config["moe_intermediate_size"],
        "n_shared_experts": config.get("n_shared_experts") or 0,
        "n_dense_layers": config["first_k_dense_replace"],
        "router_bias": True,
    }


#: What all models of the family OPT share.
OPT = {"gated": False, "biases": True, "n_positions": 2050, "tied": True}
# Architecture in a config.json -> family, and what reads the fields that families name differently.
_HF_READERS = {
    "Qwen3ForCausalLM": ("qwen3", lambda c: _read_gqa(c) | {"qk_norm": True}),
    "Qwen3MoeForCausalLM": ("qwen3-moe", _read_moe),
    "Qwen2ForCausalLM": ("qwen2.5", lambda c: _read_gqa(c) | {"qkv_bias": True}),
    "LlamaForCausalLM": ("llama3", _read_gqa),
    "OPTForCausalLM": ("opt", _read_opt),
    "DeepseekV3ForCausalLM": ("deepseek-v3", _read_deepseek),
}
