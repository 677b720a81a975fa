"""Stored sizes by kind, and what checkpoints say of their quantisation."""

import json

import pytest

from kinetics_lab.cost.hardware import ELEMENT_BYTES, HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.precision import Precision, find_precision, read_precision

FLOAT4 = {"num_bits": 4, "type": "float", "group_size": 16}


def checkpoint(folder, given, beside=None, layers=4, **config):
    config |= {"num_hidden_layers": layers, "quantization_config": given}
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    return folder / "config.json"


def test_scales_are_counted():
    assert ELEMENT_BYTES["nvfp4"] == (16 * 0.5 + 1) / 16  # a byte for sixteen elements
    assert ELEMENT_BYTES["mxfp4"] == (32 * 0.5 + 1) / 32  # one for thirty-two
    assert ELEMENT_BYTES["int4-g32"] == (32 * 0.5 + 2) / 32  # a BF16 scale


def test_each_kind_has_its_own_size():
    stored = Precision("nvfp4", kv="fp8", apart={"mixer": "fp8"})
    kinds = ("ffn", "mixer", "experts", "kv", "index", "state", "conv", "embedding", "head", "vectors")
    assert [stored.bytes(kind) for kind in kinds] == [9 / 16, 1, 9 / 16, 1, 1, 4, 2, 2, 2, 2]
    assert Precision().bytes("kv") == 2  # whatever the weights
    assert Precision("fp8").bytes("kv") == 2


@pytest.mark.parametrize("model", ["deepseek-v3.2", "glm-5"])
def test_index_keys_that_engines_keep_in_fp8_do_so_beside_any_cache(model):
    shape = MODELS[model]
    for stored in (
        find_precision(model=model),
        find_precision("bf16", model=model),
        find_precision(kv="fp8", model=model),
    ):
        key = shape.stored(1)["index"] * stored.bytes("index")
        assert key == shape.n_layers * (128 + 4)  # 128 elements and their scale
    assert find_precision(model="deepseek-v3").stored["index"] == "bf16"


def test_arithmetic_follows_the_weights_where_the_hardware_can():
    h200, a100 = HARDWARE["h200"], HARDWARE["a100"]
    assert Precision("fp8").peak(h200) == h200.peaks["fp8"]
    assert Precision("fp8").peak(a100) == a100.peaks["bf16"]  # unpacked
    assert Precision("int4").peak(h200) == Precision("mxfp4").peak(h200) == h200.peaks["bf16"]
    assert Precision("nvfp4").peak(HARDWARE["b200"]) == HARDWARE["b200"].peaks["fp4"]
    assert Precision("nvfp4", activations="bf16").peak(HARDWARE["b200"]) == HARDWARE["b200"].peaks["bf16"]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Precision("fp8")),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"]},
         Precision("mxfp4", apart={"mixer": "bf16"})),
        ({"quant_method": "gptq", "bits": 4}, Precision("int4")),
        ({"quant_method": "awq", "bits": 8}, Precision("int8")),
        ({"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up)_proj.*"],
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}}},
         Precision("int4-g32", apart={"shared": "bf16", "ffn": "bf16"}, activations="bf16")),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"input_activations": {}, "weights": FLOAT4}}},
         Precision("nvfp4", activations="bf16")),
        # norms carry "mixer" in their names, and one layer left out whole says nothing of its kinds
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.post_attention_layernorm", "model.layers.0*",
          *(f"model.layers.{i}.mlp.gate" for i in range(4))]}, Precision("fp8")),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8",
          "ignore": [f"model.layers.{i}.self_attn*" for i in range(4)]}, Precision("nvfp4", kv="fp8", apart={"mixer": "bf16"})),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.3.self_attn*"]}, Precision("nvfp4")),
    ],
)  # fmt: skip
def test_what_a_checkpoint_says(tmp_path, given, want):
    found = read_precision(checkpoint(tmp_path, given))
    kinds = ("mixer", "ffn", "shared", "experts", "router", "head", "embedding", "kv", "index")
    assert {kind: found.bytes(kind) for kind in kinds} == {kind: want.bytes(kind) for kind in kinds}
    assert found.rate_name == want.rate_name


def test_modelopt_file_beside_it_is_read_kind_by_kind(tmp_path):
    mixed = {f"model.layers.{i}.self_attn.q_proj": {"quant_algo": "FP8"} for i in range(4)}
    mixed |= {f"model.layers.{i}.mlp.experts": {"quant_algo": "W4A16_NVFP4"} for i in range(4)}
    mixed |= {"lm_head": {"quant_algo": "NVFP4"}}
    beside = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": mixed}
    found = read_precision(checkpoint(tmp_path, None, beside))
    kinds = ("mixer", "experts", "ffn", "head", "embedding", "kv")
    assert [found.bytes(kind) for kind in kinds] == [1, 9 / 16, 2, 9 / 16, 2, 1]
    assert found.rate_name == "bf16"


def test_experts_of_their_own_type(tmp_path):
    found = read_precision(checkpoint(tmp_path, {"quant_method": "fp8"}, expert_dtype="fp4"))
    assert (found.bytes("experts"), found.bytes("mixer")) == (17 / 32, 1)


def test_what_was_read_can_be_overridden(tmp_path):
    checkpoint(tmp_path, {"quant_method": "fp8"})
    assert find_precision(model=tmp_path).weights == "fp8"
    assert find_precision("bf16", model=tmp_path).weights == "bf16"
    assert (
        find_precision(kv="fp8", model=tmp_path).weights,
        find_precision(kv="fp8", model=tmp_path).kv,
    ) == ("fp8", "fp8")
    assert find_precision(model="qwen3-8b") == Precision()  # a name, whatever stands beside it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: Precision("fp9"), "precision of weights 'fp9' is not known"),
        (lambda folder: Precision(apart={"mixer": "x"}), "precision of mixer 'x' is not known"),
        (lambda folder: read_precision(checkpoint(folder, {"quant_method": "aqlm"})), "quantization_config: scheme 'aqlm'"),
        (lambda folder: read_precision(checkpoint(folder, "fp8")), "quantization_config must be an object; got 'fp8'"),
        (lambda folder: read_precision(checkpoint(folder, {"quant_method": "compressed-tensors", "config_groups":
         {"group_0": {"weights": {"num_bits": 3, "type": "int"}}}})), "weights of 'int3' is not known"),
        (lambda folder: read_precision(checkpoint(folder, {"quant_method": "fp8", "kv_cache_quant_algo": "FP3"})),
         "KV cache 'fp3' is not known"),
    ],
)  # fmt: skip
def test_bad_precisions_say_what_would_be_right(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
