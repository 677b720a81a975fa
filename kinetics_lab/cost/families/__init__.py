"""Shapes of models read from a Hugging Face ``config.json``: one short reader a family, and the table of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

from kinetics_lab.cost.families import grouped, hybrid, latent
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.data import data_path
from kinetics_lab.errors import is_label, require
from kinetics_lab.files import read_text

Reader = Callable[[Fields], ModelShape]
_plain, _narrow = grouped.grouped, {"width": "intermediate_size"}
_biased = partial(_plain, experts={"routing_bias": True})
#: Under which a model that sees or hears keeps its decoder.
_TEXTS = ("text_config", "llm_config", "language_config", "thinker_config")
# Family, reader, architectures, and model types, by which a nested configuration names it and the defaults are found (the first where there is none).
# fmt: off
_ROWS: list[tuple[str, Reader, str, str]] = [
    ("llama3", _plain, "LlamaForCausalLM InternLM3ForCausalLM", "llama internlm3"),
    ("mistral", partial(_plain, every=0), "MistralForCausalLM MinistralForCausalLM Ministral3ForCausalLM", "mistral ministral ministral3"),
    ("mixtral", partial(_plain, every=0, experts=_narrow), "MixtralForCausalLM", "mixtral"),
    ("qwen2.5", partial(grouped.qwen, bias=True, out_bias=False), "Qwen2ForCausalLM Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration MiMoForCausalLM", "qwen2 qwen2_vl_text qwen2_5_vl_text mimo"),
    ("qwen2-moe", partial(_plain, bias="qkv_bias", out_bias=False, experts={"shared": "shared_expert_intermediate_size", "extra": "hidden_size"}), "Qwen2MoeForCausalLM", "qwen2_moe"),
    ("qwen3", partial(grouped.qwen, qk="head"), "Qwen3ForCausalLM Qwen3VLForConditionalGeneration", "qwen3 qwen3_vl_text"),
    ("qwen3-moe", partial(_plain, every=0, qk="head", experts={}), "Qwen3MoeForCausalLM Qwen3VLMoeForConditionalGeneration", "qwen3_moe qwen3_vl_moe_text qwen3_omni_moe_text"),
    ("qwen3-next", hybrid.qwen_next, "Qwen3NextForCausalLM", "qwen3_next"),
    ("qwen3.5", partial(hybrid.qwen_next, experts=False), "Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
    ("qwen3.5", hybrid.qwen_next, "Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    ("gemma", _plain, "GemmaForCausalLM", "gemma"),
    ("gemma2", partial(_plain, every=2, norms=(2, 2)), "Gemma2ForCausalLM", "gemma2"),
    ("gemma3", partial(_plain, every=6, norms=(2, 2), qk="head"), "Gemma3ForCausalLM Gemma3ForConditionalGeneration", "gemma3_text"),
    ("gemma3n", partial(grouped.gemma, mix=True), "Gemma3nForCausalLM Gemma3nForConditionalGeneration", "gemma3n_text"),
    ("gemma4", grouped.gemma, "Gemma4ForCausalLM Gemma4ForConditionalGeneration", "gemma4_text"),
    ("gpt-oss", partial(_plain, every=2, sinks=True, experts=_narrow | {"bias": True, "extra": "num_local_experts"}), "GptOssForCausalLM", "gpt_oss"),
    ("llama4", grouped.llama4, "Llama4ForCausalLM Llama4ForConditionalGeneration", "llama4_text"),
    ("phi", partial(_plain, bias=True, norms=(2, 0), gated=False, mlp_bias=True, final_norm=2, head_bias=True), "PhiForCausalLM", "phi"),
    ("phi", partial(_plain, every=0), "Phi3ForCausalLM", "phi3"),
    ("phi", partial(_plain, every=0, norms=(2, 2), final_norm=2, experts=_narrow), "PhiMoEForCausalLM PhimoeForCausalLM", "phimoe"),
    ("olmo", partial(_plain, norms=(0, 0), final_norm=0), "OlmoForCausalLM", "olmo"),
    ("olmo", partial(_plain, qk="wide"), "Olmo2ForCausalLM", "olmo2"),
    ("olmo", partial(_plain, qk="wide", every=4), "Olmo3ForCausalLM", "olmo3"),
    ("olmo", partial(_plain, qk="wide", experts=_narrow), "OlmoeForCausalLM", "olmoe"),
    ("olmo", hybrid.olmo_hybrid, "OlmoHybridForCausalLM", "olmo_hybrid"),
    ("exaone", partial(_plain, every=4, qk="head"), "Exaone4ForCausalLM", "exaone4"),
    ("exaone", partial(_biased, every=4, qk="head", first=1), "ExaoneMoEForCausalLM ExaoneMoeForCausalLM", "exaone_moe"),
    ("exaone", _plain, "ExaoneForCausalLM", "exaone"),
    ("command", partial(_plain, norms=(1, 0), qk="wide", qk_if="use_qk_norm"), "CohereForCausalLM", "cohere"),
    ("command", partial(_plain, norms=(1, 0), every=4), "Cohere2ForCausalLM", "cohere2"),
    ("smollm", _plain, "SmolLM3ForCausalLM", "smollm3"),
    ("glm4", partial(_plain, out_bias=False), "GlmForCausalLM", "glm"),
    ("glm4", partial(_plain, out_bias=False, norms=(2, 2)), "Glm4ForCausalLM Glm4vForConditionalGeneration", "glm4 glm4v_text"),
    ("glm4.5", partial(_biased, qk="head", qk_if="use_qk_norm", out_bias=False), "Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration", "glm4_moe glm4v_moe_text"),
    ("glm4.7", partial(latent.deepseek, first=1), "Glm4MoeLiteForCausalLM", "glm4_moe_lite"),
    ("glm5", partial(latent.deepseek, index=True), "GlmMoeDsaForCausalLM", "glm_moe_dsa"),
    ("deepseek-v2", partial(latent.deepseek, routing_bias=False), "DeepseekV2ForCausalLM", "deepseek_v2"),
    ("deepseek-v3", latent.deepseek, "DeepseekV3ForCausalLM KimiK2ForCausalLM KimiK25ForConditionalGeneration", "deepseek_v3 kimi_k2"),
    ("deepseek-v3.2", partial(latent.deepseek, index=True), "DeepseekV32ForCausalLM", "deepseek_v32"),
    ("deepseek-v4", latent.deepseek_v4, "DeepseekV4ForCausalLM", "deepseek_v4"),
    ("mistral", partial(latent.deepseek, routing_bias=False), "Mistral4ForCausalLM MistralLarge3ForCausalLM", "mistral4"),
    ("longcat", latent.longcat, "LongcatFlashForCausalLM LongcatCausalLM", "longcat_flash"),
    ("kimi-linear", hybrid.kimi, "KimiLinearForCausalLM KimiK3ForConditionalGeneration", "kimi_linear"),
    ("minimax", hybrid.minimax_01, "MiniMaxForCausalLM MiniMaxText01ForCausalLM MiniMaxM1ForCausalLM", "minimax minimax_text_01 minimax_m1"),
    ("minimax-m2", partial(_plain, qk="wide", experts=_narrow | {"shared": 0, "routing_bias": True}), "MiniMaxM2ForCausalLM", "minimax_m2"),
    ("minimax-m3", grouped.minimax_m3, "MiniMaxM3ForCausalLM MiniMaxM3SparseForCausalLM MiniMaxM3VLForCausalLM MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl_text minimax_m3"),
    ("nemotron", partial(_plain, gated=False, norms=(2, 2), final_norm=2), "NemotronForCausalLM", "nemotron"),
    ("nemotron", grouped.deci, "DeciLMForCausalLM", "nemotron-nas"),
    ("nemotron-h", hybrid.nemotron_h, "NemotronHForCausalLM", "nemotron_h"),
    ("mimo", grouped.mimo_v2, "MiMoV2FlashForCausalLM MiMoV2ForCausalLM", "mimo_v2_flash"),
    ("step", grouped.step3, "Step3p7FlashForCausalLM Step3p5ForCausalLM Step3p7ForConditionalGeneration", "step3p7 step3p5"),
    ("step", grouped.step3_mfa, "Step3TextForCausalLM Step3VLForConditionalGeneration", "step3_text"),
    ("ernie", partial(_plain, bias="use_bias", mlp_bias="use_bias"), "Ernie4_5ForCausalLM", "ernie4_5"),
    ("ernie", partial(_biased, bias="use_bias", mlp_bias="use_bias"), "Ernie4_5_MoeForCausalLM Ernie4_5_MoEForCausalLM", "ernie4_5_moe"),
    ("ernie", grouped.ernie_vl, "Ernie4_5_VLMoeForConditionalGeneration", "ernie4_5_vl_moe_text"),
    ("hunyuan", grouped.hunyuan_large, "HunYuanForCausalLM", "hunyuan"),
    ("hunyuan", partial(_plain, qk="head"), "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
    ("hunyuan", partial(_plain, qk="head", experts=_narrow | {"shared": "intermediate_size"}), "HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe"),
    ("hunyuan", partial(_biased, qk="head", first=1), "HYV3ForCausalLM", "hy_v3"),
    ("granite", _plain, "GraniteForCausalLM", "granite"),
    ("granite", partial(_plain, experts=_narrow | {"shared": "shared_intermediate_size"}), "GraniteMoeSharedForCausalLM", "granitemoeshared"),
    ("granite", partial(_plain, experts=_narrow), "GraniteMoeForCausalLM", "granitemoe"),
    ("granite-h", hybrid.granite_hybrid, "GraniteMoeHybridForCausalLM", "granitemoehybrid"),
    ("jamba", hybrid.jamba, "JambaForCausalLM", "jamba"),
    ("falcon-h1", hybrid.falcon_h1, "FalconH1ForCausalLM", "falcon_h1"),
    ("mamba", hybrid.mamba, "MambaForCausalLM FalconMambaForCausalLM", "mamba falcon_mamba"),
    ("mamba", hybrid.mamba_2, "Mamba2ForCausalLM", "mamba2"),
    ("lfm2", hybrid.lfm2, "Lfm2ForCausalLM", "lfm2"),
    ("lfm2", partial(hybrid.lfm2, experts=True), "Lfm2MoeForCausalLM", "lfm2_moe"),
    ("ling", partial(_biased, qk="head", qk_if="use_qk_norm", bias="use_qkv_bias", out_bias="use_bias"), "BailingMoeForCausalLM BailingMoeV2ForCausalLM", "bailing_moe"),
    ("ring-linear", hybrid.ring_linear, "BailingMoeLinearForCausalLM BailingMoeLinearV2ForCausalLM", "bailing_moe_linear"),
    ("ring", hybrid.ring, "BailingHybridForCausalLM BailingMoeV2_5ForCausalLM", "bailing_hybrid"),
    ("seed", partial(_plain, out_bias="attention_out_bias"), "SeedOssForCausalLM", "seed_oss"),
    ("dots", partial(_biased, qk="head"), "Dots1ForCausalLM", "dots1"),
    ("solar", _biased, "SolarOpenForCausalLM", "solar_open"),
    ("trinity", grouped.trinity, "AfmoeForCausalLM", "afmoe"),
    ("starcoder", partial(_plain, every=0, bias="use_bias", mlp_bias="use_bias", gated=False, norms=(2, 2), final_norm=2), "Starcoder2ForCausalLM", "starcoder2"),
    ("stablelm", partial(_plain, bias="use_qkv_bias", out_bias=False, norms=(2, 2), final_norm=2), "StableLmForCausalLM", "stablelm"),
    ("opt", grouped.opt, "OPTForCausalLM", "opt"),
]
# fmt: on
READERS = {name: row for row in _ROWS for name in row[2].split()}
_BY_TYPE = {name: row for row in _ROWS for name in row[3].split()}


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    """What a configuration's class takes where the file says nothing, by model type."""
    return tomllib.loads(data_path("config_defaults").read_text(encoding="utf-8"))


def from_hf_config(config: str | PathLike[str] | Mapping[str, Any]) -> ModelShape:
    """Shape of a ``config.json`` (a path, or the parsed mapping); of models that see or hear, the text's decoder.
    Called what the file says, else as its folder, else as its architecture: the first that is a plain label.

    Raises ``ValueError`` for an architecture whose layers this package does not know, for a missing
    key, for a value out of range and for a file that is not JSON.
    """
    where, folder = "config", ""
    if not isinstance(config, Mapping):
        where, folder = str(config), Path(config).absolute().parent.name
        config = read_object(Path(config))
    values = _decoder(config, where)
    named = [_architecture(one, where) for one in (values, config)]
    types = [str(one.get("model_type")) for one in (values, config)]
    row = next((READERS[one] for one in named if one in READERS), None)
    row = row or next((_BY_TYPE[one] for one in types if one in _BY_TYPE), None)
    architecture = named[1] or named[0] or config.get("model_type")
    if row is None:
        raise _refusal(where, architecture)
    family, read, _, known = row
    default = next((_defaults()[one] for one in (*types, known.split()[0]) if one in _defaults()), {})
    shape = read(Fields(values, where, str(architecture), default))
    told = (config.get("_name_or_path"), folder, architecture, family)
    return replace(shape, name=str(next(filter(is_label, told))), family=family)


def _decoder(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The values of the decoder, which models that see or hear nest; whether embeddings are tied the outermost says."""
    for key in _TEXTS:
        if (inner := values.get(key)) is not None:
            require(isinstance(inner, Mapping), f"{where}: {key} must be an object", inner)
            said = {name: values[name] for name in ("tie_word_embeddings",) if name in values}
            return _decoder({**inner, **said}, where)
    return values


def read_object(path: Path) -> Mapping[str, Any]:
    """The one object of a JSON file; ``ValueError`` names the file for any other."""
    try:
        text = read_text(path)
        found = json.loads(text) if text.strip() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not JSON that can be read ({error})") from None
    if not isinstance(found, Mapping):
        got = "nothing" if found is None else type(found).__name__
        raise ValueError(f"{path}: a {path.name} holds one object, got {got}")
    return found


def _architecture(values: Mapping[str, Any], where: str) -> str | None:
    listed = values.get("architectures") or []
    fits = isinstance(listed, list) and all(isinstance(one, str) for one in listed)
    require(fits, f"{where}: architectures must list names such as LlamaForCausalLM", listed)
    return listed[0] if listed else None


def _refusal(where: str, architecture: object) -> ValueError:
    """Names that look alike may have other layers: the nearest is named as what it is, not offered instead."""
    if architecture is None:
        return ValueError(f"{where}: neither architectures nor model_type says which model this is")
    known = f"{len(READERS)} others are known"
    if near := get_close_matches(str(architecture), READERS, n=1):
        known = f"the nearest name known is {near[0]}, another architecture"
    return ValueError(f"{where}: the layers of architecture {architecture!r} are not known here; {known}")
