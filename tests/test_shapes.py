"""Shapes against exact published counts, and configs read back to the same shapes."""

import json
import os

import pytest

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.models import MODELS, find_model

# All parameters, as published with the weights (exact) or counted from the published shapes.
N_PARAMS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "ds-r1-qwen-1.5b": 1_777_088_000,
    "ds-r1-qwen-7b": 7_615_616_512,
    "ds-r1-qwen-14b": 14_770_033_664,
    "ds-r1-qwen-32b": 32_763_876_352,
    "llama3-1b": 1_235_814_400,
    "llama3-3b": 3_212_749_824,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
}


@pytest.mark.parametrize(("name", "count"), N_PARAMS.items())
def test_parameters_are_counted_exactly(name, count):
    assert MODELS[name].n_params == count


@pytest.mark.parametrize(
    ("name", "total", "active", "multiply"),
    [
        ("qwen3-30b-a3b", 30.532e9, 3.353e9, 3.042e9),
        ("qwen3-235b-a22b", 235.094e9, 22.191e9, 21.568e9),
        (
            "deepseek-v3",
            671.026e9,
            37.552e9,
            36.626e9,
        ),  # "671B, 37B active" without the extra prediction module
        ("qwen3-8b", 8.191e9, 8.191e9, 7.568e9),
        ("qwen3-14b", 14.768e9, 14.768e9, 13.990e9),
        ("qwen3-32b", 32.762e9, 32.762e9, 31.984e9),
        ("qwen3-4b", 4.0225e9, 4.0225e9, 4.0225e9),  # tied: the one vocabulary matrix multiplies
    ],
)
def test_total_active_and_multiplying(name, total, active, multiply):
    shape = MODELS[name]
    assert (shape.n_params, shape.n_active_params, shape.n_matmul_params) == pytest.approx(
        (total, active, multiply), rel=2e-4
    )


@pytest.mark.parametrize(
    ("name", "gib"),
    [("qwen3-1.7b", 3.5), ("qwen3-8b", 4.5), ("qwen3-14b", 5.0), ("qwen3-32b", 8.0), ("qwen2.5-14b", 6.0)],
)
def test_kv_cache_of_32k_tokens(name, gib):
    assert MODELS[name].kv_bytes_per_token() * 32768 / 2**30 == gib


def test_head_dim_is_never_derived_when_given():
    assert MODELS["qwen3-0.6b"].head_dim == 128 != 1024 // 16


@pytest.mark.parametrize("name", ["qwen3-8b", "llama3-8b", "opt-13b", "qwen3-30b-a3b"])
def test_attention_costs_2_r_d_per_cached_token(name):
    shape = MODELS[name]
    assert shape.attention_flops_per_token == 2 * shape.gqa_ratio * shape.kv_elements_per_token


def test_mla_caches_a_latent_and_computes_on_it():
    shape = MODELS["deepseek-v3"]
    assert shape.kv_elements_per_token == 61 * (512 + 64)
    assert shape.attention_flops_per_token == 61 * 128 * 2 * (512 + 64 + 512)
    assert shape.gqa_ratio == 128


def read(shape, batch):
    """Parameters that a step of so many sequences reads."""
    return sum(shape.parameters_read(batch).values())


def test_weights_read_of_a_batch():
    dense, moe = MODELS["qwen3-8b"], MODELS["qwen3-30b-a3b"]
    assert read(dense, 1) == read(dense, 4096) == dense.n_matmul_params
    assert read(moe, 1) == pytest.approx(moe.n_matmul_params)
    assert read(moe, 10**6) == pytest.approx(moe.n_params - 151936 * 2048)
    # two sequences: an expert is met unless both miss it
    experts = 128 * (1 - (1 - 8 / 128) ** 2)
    assert read(moe, 2) - read(moe, 1) == pytest.approx((experts - 8) * 48 * 3 * 2048 * 768)
    with pytest.raises(ValueError, match="batch must be positive"):
        read(dense, 0)


CONFIGS = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "vocab_size": 151936,
        "tie_word_embeddings": True, "attention_bias": False,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
        "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen2.5-7b": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "llama3-1b": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "opt-350m": {
        "architectures": ["OPTForCausalLM"], "hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048,
        "word_embed_proj_dim": 512, "do_layer_norm_before": False,
    },
    "deepseek-v3": {
        "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432,
        "num_attention_heads": 128, "num_hidden_layers": 61, "vocab_size": 129280, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "num_key_value_heads": 128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_gives_the_same_shape(name, tmp_path):
    path = tmp_path / name / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIGS[name]))
    read, known = from_hf_config(path), MODELS[name]
    assert read.name == name
    for what in (
        "n_params",
        "n_active_params",
        "n_matmul_params",
        "kv_elements_per_token",
        "attention_flops_per_token",
    ):
        assert getattr(read, what) == getattr(known, what), what


def test_head_dim_is_derived_only_when_the_config_has_none():
    assert from_hf_config(CONFIGS["qwen2.5-7b"]).head_dim == 128
    assert from_hf_config(CONFIGS["qwen2.5-7b"] | {"head_dim": 64}).head_dim == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["RwkvForCausalLM"]},
            "the layers of architecture 'RwkvForCausalLM' are not known here; the nearest name known is .*, another",
        ),
        ({"architectures": ["Whisper"]}, "'Whisper' are not known here; [0-9]+ others are known"),
        ({"architectures": None}, "neither architectures nor model_type says which model this is"),
        (
            {"architectures": "Qwen2ForCausalLM"},
            "architectures must list names such as LlamaForCausalLM; got",
        ),
        (
            {"hidden_size": 0, "head_dim": 128},
            r"config: hidden_size must be a whole number from 1 to 1e\+15; got 0",
        ),
        ({"hidden_size": True}, "hidden_size must be a whole number .*; got True"),
        ({"hidden_size": None}, "key 'hidden_size' is missing; Qwen2ForCausalLM needs it"),
        ({"hidden_size": float("nan")}, "hidden_size must be a whole number .*; got nan"),
        ({"num_hidden_layers": "28"}, "num_hidden_layers must be a whole number from 1 to 10000; got '28'"),
        (
            {"num_hidden_layers": 10**30},
            "num_hidden_layers must be a whole number from 1 to 10000; got 1000000",
        ),
        ({"vocab_size": 1.5}, "vocab_size must be a whole number .*; got 1.5"),
        ({"intermediate_size": -1}, "intermediate_size must be a whole number .*; got -1"),
        ({"tie_word_embeddings": "false"}, "config: tie_word_embeddings must be true or false; got 'false'"),
        (
            {"num_key_value_heads": 5},
            "num_attention_heads must be a multiple of num_key_value_heads=5; got 28",
        ),
    ],
)
def test_a_config_we_cannot_count_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(CONFIGS["qwen2.5-7b"] | change)


def test_a_missing_key_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="key 'block_configs' is missing; DeciLMForCausalLM needs it"):
        from_hf_config({"architectures": ["DeciLMForCausalLM"], "num_attention_heads": 8, "hidden_size": 64})
    broken = tmp_path / "config.json"
    broken.write_text('{"hidden_size": 1,\n oops}')
    with pytest.raises(ValueError, match="config.json line 2: not JSON"):
        from_hf_config(broken)
    broken.write_text("[1]")
    with pytest.raises(ValueError, match="holds one object, got list"):
        from_hf_config(broken)


def test_a_model_may_be_a_config_of_your_own(tmp_path, monkeypatch):
    known = dict(MODELS)
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIGS["llama3-1b"]))
    own = find_model(str(path))
    assert (own.name, own.family, own.n_params) == ("mine", "own", 1_235_814_400)
    assert find_model(path) is own  # read once
    assert known == MODELS  # a file joins no table
    monkeypatch.chdir(path.parent)
    assert find_model("config.json") == own
    path.write_text(json.dumps(CONFIGS["opt-350m"]))
    os.utime(path, ns=(0, 0))
    assert find_model(str(path)).n_params == MODELS["opt-350m"].n_params  # read anew after a change
    with pytest.raises(FileNotFoundError, match="absent.json"):
        find_model(str(tmp_path / "absent.json"))


def test_unknown_model_names_its_neighbours():
    with pytest.raises(ValueError, match="model 'qwen3-7b' is not known; did you mean .*qwen3-8b"):
        find_model("qwen3-7b")
    with pytest.raises(ValueError, match="known: .*deepseek-v3"):
        find_model("zzz")
