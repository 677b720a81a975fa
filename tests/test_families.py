"""Models of many families against other counts of them: transformers on no memory, its caches, published totals, hand."""

import importlib.util
import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from kinetics_lab.cost.families import READERS, from_hf_config
from kinetics_lab.cost.families.build import state
from kinetics_lab.cost.models import MODELS, find_model
from kinetics_lab.data import data_path
from kinetics_lab.errors import is_label

_spec = importlib.util.spec_from_file_location(
    "by_transformers", Path(__file__).parent / "fuzz" / "by_transformers.py"
)
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)
counted, text_classes, MORE, TYPES = oracle.counted, oracle.text_classes, oracle.MORE, oracle.TYPES

#: All parameters and those that one token meets, counted by transformers' own model on the meta device (the slow test
#: below counts them again), with the routers' score biases that it keeps as buffers.
EXACT = {
    "gpt-oss-20b": (20914757184, 4187440704),
    "gpt-oss-120b": (116829156672, 5711982912),
    "gemma-3-12b": (11766034176, 11766034176),
    "gemma-3-27b": (27009346304, 27009346304),
    "gemma-4-26b-a4b": (25233141760, 3822530560),
    "gemma-4-31b": (30697345280, 30697345280),
    "llama-4-scout": (107769861120, 17172894720),
    "llama-4-maverick": (400711848960, 17184691200),
    "mixtral-8x7b": (46702792704, 12879925248),
    "mixtral-8x22b": (140620634112, 39152031744),
    "mistral-small-24b": (23572403200, 23572403200),
    "phi-4": (14659507200, 14659507200),
    "olmo-3-7b": (7298011136, 7298011136),
    "olmo-3-32b": (32233522176, 32233522176),
    "deepseek-v3.2": (671877944064, 38403822336),
    "deepseek-v4-flash": (284332240471, 13799632471),
    "deepseek-v4-pro": (1572997201763, 49779081059),
    "glm-4.5-air": (106852251264, 13424129664),
    "glm-4.6": (352797829024, 33632266144),
    "glm-5": (743911218432, 41784728832),
    "glm-5.2": (743377019904, 41250530304),
    "kimi-k2": (1026408232448, 32861500928),
    "kimi-k2-thinking": (1026408232448, 32861500928),
    "kimi-k2.5": (1026408232448, 32861500928),
    "kimi-linear-48b-a3b": (49122681728, 3484459904),
    "minimax-m2.5": (228689764864, 11030553088),
    "minimax-m3": (426174572928, 25962473856),
    "qwen3-next-80b-a3b": (79674391296, 3874929408),
    "qwen3.5-27b": (26895998464, 26895998464),
    "qwen3.5-35b-a3b": (34660610688, 3454988928),
    "qwen3.5-122b-a10b": (122111526912, 9771288576),
    "qwen3.5-397b-a17b": (396346350336, 17349040896),
    "nemotron-3-nano-30b-a3b": (31577940288, 3580076352),
    "nemotron-3-super-120b-a12b": (120668707840, 12770237440),
    "nemotron-3-ultra-550b-a55b": (549308993536, 56058843136),
    "mimo-v2-flash": (308778780864, 15445936320),
    "granite-4.0-h-small": (32207337984, 8803121664),
}
#: As published, in billions, with half a unit of the last digit: all, active; "head": active without the input embedding.
PUBLISHED = {
    "gpt-oss-20b": (20.91, 0.005, 3.61, 0.005, "head"),  # arXiv 2508.10925, Table 1
    "gpt-oss-120b": (116.83, 0.005, 5.13, 0.005, "head"),
    "gemma-3-27b": (27.0, 0.05, None, None, ""),  # arXiv 2503.19786, Table 1: 25,600M and 1,416M of embedding
    "mixtral-8x7b": (46.7, 0.05, 12.9, 0.05, ""),  # mistral.ai/news/mixtral-of-experts
    "mixtral-8x22b": (141, 0.5, 39, 0.5, ""),  # mistral.ai/news/mixtral-8x22b
    "mistral-small-24b": (23.6, 0.05, None, None, ""),  # model card
    "phi-4": (14.7, 0.05, None, None, ""),  # model card
    "deepseek-v4-flash": (284, 0.5, 13, 0.5, "head"),  # model card
    "deepseek-v4-pro": (1600, 50, 49, 0.5, "head"),
    "glm-5": (744, 0.5, None, None, ""),  # model card
    "minimax-m2.5": (230, 5, 10, 0.5, "head"),  # model card
    "qwen3-next-80b-a3b": (80, 0.5, None, None, ""),  # model card
    "nemotron-3-nano-30b-a3b": (31.6, 0.05, 3.6, 0.05, ""),  # model card: 3.2B, 3.6B with embeddings
    "nemotron-3-super-120b-a12b": (120.6, 0.1, 12.7, 0.1, ""),  # model card
    "mimo-v2-flash": (309, 0.5, 15, 0.5, "head"),  # model card
    "step-3.7-flash": (196, 0.5, 11, 0.5, ""),  # model card
    "granite-4.0-h-small": (32, 0.5, 9, 0.5, ""),  # model card
    "kimi-k3": (2800, 50, None, None, ""),  # 2.8T
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_of_transformers_own_models(name):
    shape = MODELS[name]
    assert (shape.n_params, shape.n_active_params) == EXACT[name]
    assert sum(shape.parameters.values()) == shape.n_params
    once = sum(float(count) for count in shape.parameters_read(1).values())
    assert once == pytest.approx(shape.n_matmul_params, rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones_as_they_round(name):
    total, half, active, active_half, head = PUBLISHED[name]
    shape = MODELS[name]
    assert shape.n_params / 1e9 == pytest.approx(total, abs=half)
    if active:
        met = shape.n_matmul_params if head else shape.n_active_params
        assert met / 1e9 == pytest.approx(active, abs=active_half)


def test_every_model_has_a_checked_count():
    in_test_shapes = {"qwen3", "qwen3-moe", "qwen2.5", "ds-r1-qwen", "llama3", "opt", "deepseek-v3"}
    rest = {name for name, shape in MODELS.items() if shape.family not in in_test_shapes}
    assert rest == {*EXACT, *PUBLISHED}


# --- what a context holds and a step reads, by hand -----------------------------------------------


def same(n):
    return n


def near(width):
    return lambda n: min(n, width)


def chunk(width):  # the tokens of a chunk up to the newest
    return lambda n: (n - 1) % width + 1


def every(stride, most=float("inf")):
    return lambda n: min(n // stride, most)


#: Model -> [layers, elements of an entry, entries held, entries read], then index [layers, elements, entries], then state
#: and convolution: all from the models' papers and config.json, added up by hand.
CACHES = {
    "gpt-oss-20b": ([(12, 2 * 8 * 64, same, same), (12, 2 * 8 * 64, near(128), near(128))], [], 0, 0),
    "gemma-3-27b": ([(10, 2 * 16 * 128, same, same), (52, 2 * 16 * 128, near(1024), near(1024))], [], 0, 0),
    "gemma-4-31b": ([(10, 2 * 4 * 512, same, same), (50, 2 * 16 * 256, near(1024), near(1024))], [], 0, 0),
    "llama-4-scout": ([(12, 2 * 8 * 128, same, same), (36, 2 * 8 * 128, near(8192), chunk(8192))], [], 0, 0),
    "deepseek-v3": ([(61, 512 + 64, same, same)], [], 0, 0),
    "deepseek-v3.2": ([(61, 512 + 64, same, near(2048))], [(61, 128, same)], 0, 0),
    "deepseek-v4-flash": (
        [(43, 512, near(128), near(128)), (21, 512, every(4), every(4, 512)), (20, 512, every(128), every(128))],
        [(21, 128, every(4))], 0, 0,
    ),
    "deepseek-v4-pro": (
        [(61, 512, near(128), near(128)), (30, 512, every(4), every(4, 1024)), (31, 512, every(128), every(128))],
        [(30, 128, every(4))], 0, 0,
    ),
    "glm-5": ([(78, 512 + 64, same, near(2048))], [(78, 128, same)], 0, 0),
    "glm-5.2": ([(78, 512 + 64, same, near(2048))], [(21, 128, same)], 0, 0),  # one choice serves four layers
    "kimi-k3": ([(24, 512 + 64, same, same)], [], 69 * 96 * 128**2, 69 * 4 * 3 * 96 * 128),
    "kimi-linear-48b-a3b": ([(7, 512 + 64, same, same)], [], 20 * 32 * 128**2, 20 * 4 * 3 * 32 * 128),
    "minimax-m2.5": ([(62, 2 * 8 * 128, same, same)], [], 0, 0),
    "minimax-m3": ([(3, 1024, same, same), (57, 1024, same, near(16 * 128))], [(57, 128, same)], 0, 0),
    "qwen3-next-80b-a3b": ([(12, 2 * 2 * 256, same, same)], [], 36 * 32 * 128**2, 36 * 4 * 8192),
    "qwen3.5-397b-a17b": ([(15, 2 * 2 * 256, same, same)], [], 45 * 64 * 128**2, 45 * 4 * 12288),
    "nemotron-3-nano-30b-a3b": ([(6, 2 * 2 * 128, same, same)], [], 23 * 64 * 64 * 128, 23 * 4 * (4096 + 2048)),
    "nemotron-3-super-120b-a12b": ([(8, 512, same, same)], [], 40 * 128 * 64 * 128, 40 * 4 * (8192 + 2048)),
    "mimo-v2-flash": ([(9, 4 * 320, same, same), (39, 8 * 320, near(128), near(128))], [], 0, 0),
    "step-3.7-flash": ([(12, 2048, same, same), (33, 2048, near(512), near(512))], [], 0, 0),
    "granite-4.0-h-small": ([(4, 2048, same, same)], [], 36 * 128 * 64 * 128, 36 * 4 * (8192 + 256)),
    "olmo-3-32b": ([(16, 2048, same, same), (48, 2048, near(4096), near(4096))], [], 0, 0),
    "mistral-small-24b": ([(40, 2048, same, same)], [], 0, 0),  # its file switches the class's window off
}  # fmt: skip


@pytest.mark.parametrize("n", [1024, 8192, 131072, 1048576])
@pytest.mark.parametrize("name", CACHES)
def test_what_a_context_holds_and_a_step_reads(name, n):
    attends, scans, state, conv = CACHES[name]
    index = sum(layers * width * entries(n) for layers, width, entries in scans)
    held = sum(layers * width * kept(n) for layers, width, kept, _ in attends)
    read = sum(layers * width * seen(n) for layers, width, _, seen in attends)
    rest = {"index": index, "state": state, "conv": conv}
    assert {kind: float(value) for kind, value in MODELS[name].stored(n).items()} == {"kv": held} | rest
    assert {kind: float(value) for kind, value in MODELS[name].read(n).items()} == {"kv": read} | rest


# --- traps --------------------------------------------------------------------------------------

TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100,
        "num_hidden_layers": 6}  # fmt: skip


def tiny(architecture, **more):
    return from_hf_config({"architectures": [architecture]} | TINY | more)


def held(shape, n):
    return float(shape.stored(n)["kv"])


def test_a_missing_key_takes_the_default_of_its_class_and_null_does_not():
    assert tiny("Qwen3ForCausalLM").head_dim == 128  # not 64 / 4
    assert tiny("LlamaForCausalLM").head_dim == 16
    one = tiny("MistralForCausalLM")
    assert held(one, 10**6) == held(one, 4096)  # the class has a window
    assert held(tiny("MistralForCausalLM", sliding_window=None), 10**6) == 6 * 64 * 10**6
    assert (tiny("CohereForCausalLM").tied, tiny("LlamaForCausalLM").tied) == (True, False)
    seen = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"num_hidden_layers": 6, "hidden_size": 64},
    }
    assert from_hf_config(seen).vocab == 262208


def test_windows_are_switched_on_by_the_file():
    off, on = tiny("Qwen2ForCausalLM", sliding_window=32), {"use_sliding_window": True, "sliding_window": 32}
    assert held(off, 1000) == 6 * 64 * 1000
    assert held(tiny("Qwen2ForCausalLM", **on, max_window_layers=2), 1000) == 64 * (2 * 1000 + 4 * 32)
    assert held(tiny("Qwen3MoeForCausalLM", head_dim=16, **on), 1000) == 6 * 64 * 32


def test_layers_that_only_predict_further_tokens_are_not_decoded():
    kinds = ["sliding_attention", "full_attention"] * 3
    more = {"sliding_window": 32, "num_nextn_predict_layers": 1, "head_dim": 16}
    assert (
        held(tiny("GptOssForCausalLM", layer_types=[*kinds, "full_attention"], **more), 1000) == 3 * 64 * 1032
    )
    with pytest.raises(
        ValueError, match="config: layer_types must list 6 layers, as num_hidden_layers says; got"
    ):
        tiny("GptOssForCausalLM", layer_types=[*kinds, "full_attention"])


def test_shared_layers_store_nothing_and_still_read():
    kinds = ["sliding_attention", "full_attention"] * 3
    one = tiny(
        "Gemma3nForCausalLM", layer_types=kinds, num_kv_shared_layers=2, sliding_window=32, head_dim=16
    )
    assert held(one, 1000) == 64 * 2 * (32 + 1000)
    assert float(one.read(1000)["kv"]) == 64 * 3 * (32 + 1000)
    with pytest.raises(ValueError, match="num_kv_shared_layers must leave each kind of layer a cache; got 5"):
        tiny("Gemma3nForCausalLM", layer_types=kinds, num_kv_shared_layers=5)


def test_experts_of_two_matrices_and_of_a_latent_width():
    keys = {
        "hybrid_override_pattern": "E",
        "num_hidden_layers": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    keys |= {"moe_intermediate_size": 10, "moe_shared_expert_intermediate_size": 20}
    assert tiny("NemotronHForCausalLM", **keys).parameters["experts"] == 4 * 2 * 64 * 10
    narrow = tiny("NemotronHForCausalLM", **keys, moe_latent_size=16).parameters
    assert (narrow["experts"], narrow["shared"]) == (4 * 2 * 16 * 10, 2 * 64 * 20 + 2 * 64 * 16)


def test_experts_in_every_second_layer():
    one = tiny("Qwen3MoeForCausalLM", decoder_sparse_step=2)
    assert [type(block).__name__ for _, block in one.layers] == ["FeedForward", "Experts"] * 3


def test_kimi_k3_is_the_sum_of_its_tensors():
    """By the names and shapes of its checkpoint's tensors; no library has its layers yet."""
    hidden, inner = 7168, 96 * 128
    delta = 5 * hidden * inner + 128 * (hidden + inner) + 96 * hidden  # q, k, v, gate, out; decay; step size
    delta += 3 * inner * 4 + inner + 96 + 128  # convolutions, biases and decays, norm
    latent = hidden * 1536 + 1536 + 1536 * 96 * 192 + hidden * 576 + 512 + 512 * 96 * 256 + 2 * hidden * inner
    experts = (
        896 * 3 * 3584 * 3072 + 2 * hidden * 3584 + 3584
    )  # in a narrower space, and into it and out of it
    experts += 3 * hidden * 2 * 3072 + 896 * hidden + 896  # shared ones, router
    every = 2 * hidden + 4 * hidden  # norms; norms and queries of the residual's attention
    total = (
        69 * delta
        + 24 * latent
        + 3 * hidden * 33792
        + 92 * experts
        + 93 * every
        + 3 * hidden
        + 2 * 163840 * hidden
    )
    assert MODELS["kimi-k3"].n_params == total


def test_choices_that_lead_to_no_expert_cost_nothing():
    keys = {
        "num_layers": 1,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 3,
        "expert_ffn_hidden_size": 10,
    }
    one = tiny("LongcatFlashForCausalLM", **keys)
    assert (one.n_active_experts, one.parameters["experts"]) == (2, 4 * 3 * 64 * 10)


HUNYUAN_LARGE = {
    "num_hidden_layers": 64, "hidden_size": 6400, "num_attention_heads": 80, "num_key_value_heads": 8, "vocab_size": 129024,
    "intermediate_size": 18304, "num_experts": 16, "moe_topk": 1, "num_shared_expert": 1, "use_cla": True, "cla_share_factor": 2,
    "use_qk_norm": True, "tie_word_embeddings": True,
}  # fmt: skip
STEP3 = {
    "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256,
    "share_q_dim": 2048, "vocab_size": 128815, "intermediate_size": 18432, "moe_num_experts": 48, "moe_top_k": 3,
    "moe_intermediate_size": 5120, "share_expert_dim": 5120, "moe_layers_enum": ",".join(map(str, range(4, 60))),
}  # fmt: skip


def test_layers_that_read_the_cache_of_the_one_before():
    """Hunyuan-Large: 389B, 52B active as published (arXiv 2411.02265); half of its layers have keys and values."""
    one = from_hf_config({"architectures": ["HunYuanForCausalLM"]} | HUNYUAN_LARGE)
    assert round(one.n_params / 1e9) == 389
    assert (
        round((one.n_active_params + one.head_params) / 1e9) == 52
    )  # with the tied matrix as embedding, too
    assert held(one, 1000) == 32 * 2 * 8 * 80 * 1000
    assert float(one.read(1000)["kv"]) == 2 * held(one, 1000)
    hidden, kv = 6400, 8 * 80
    layer = (
        2 * hidden**2 + 2 * 80 + 2 * hidden + 17 * 3 * hidden * 18304 + 16 * hidden
    )  # queries, outputs, norms; experts
    assert one.n_params == 64 * layer + 32 * 2 * hidden * kv + 129024 * hidden + hidden
    whole = from_hf_config({"architectures": ["HunYuanForCausalLM"]} | HUNYUAN_LARGE | {"use_cla": False})
    assert held(whole, 1000) == 2 * held(one, 1000)


def test_one_kv_head_and_queries_from_a_short_vector():
    """Step3: 316B without its eyes, 38B active as published (arXiv 2507.19427), the head apart from the embedding."""
    one = from_hf_config(
        {"architectures": ["Step3VLForConditionalGeneration"], "text_config": {"architectures": ["Step3TextForCausalLM"]} | STEP3}
    )  # fmt: skip
    hidden, q, width = 7168, 64 * 256, 5120
    attention = hidden * (2048 + 2 * 256) + 2048 * q + q * hidden + 2048
    experts = 56 * (49 * 3 * hidden * width + 48 * hidden) + 5 * 3 * hidden * 18432
    assert one.n_params == 61 * (attention + 2 * hidden) + experts + (2 * 128815 + 1) * hidden
    assert (round(one.n_params / 1e9), round(one.n_matmul_params / 1e9)) == (316, 38)
    assert held(one, 1000) == 61 * 2 * 256 * 1000


def test_experts_for_pictures_are_stored_and_not_read():
    """ERNIE-4.5-VL-28B-A3B as its checkpoint says it, in pairs, and as transformers writes it."""
    pairs = {"moe_num_experts": [64, 64], "moe_layer_start_index": [1, 1], "moe_layer_end_index": [29, 28]}
    name = {"architectures": ["Ernie4_5_VLMoeForConditionalGeneration"]}
    one = from_hf_config(name | pairs)
    listed = {"moe_num_experts": 64, "mlp_layer_types": ["dense", *["sparse"] * 27]}
    plain = from_hf_config({"model_type": "ernie4_5_vl_moe_text"} | listed)
    assert (plain.n_params, plain.n_active_params) == (one.n_params, one.n_active_params)
    text = from_hf_config({"architectures": ["Ernie4_5_MoeForCausalLM"]})  # the same decoder without them
    assert one.n_params - text.n_params == 27 * 64 * (3 * 2560 * 512 + 2560 + 1)
    assert one.n_active_params == text.n_active_params
    for batch in (1, 64):
        read, alone = (sum(shape.parameters_read(batch).values()) for shape in (one, text))
        assert read == pytest.approx(alone, rel=1e-12)


@pytest.mark.slow  # seconds: built without memory
def test_transformers_counts_experts_for_pictures_too():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model("ernie4_5_vl_moe_text")
    with torch.device("meta"):
        model = transformers.Ernie4_5_VLMoeTextModel._from_config(config)  # the head is tied
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == from_hf_config({"model_type": "ernie4_5_vl_moe_text"}).n_params


BAD = [
    ("Ernie4_5_VLMoeForConditionalGeneration", {"moe_num_experts": [64]}, r"moe_num_experts must give a number for text and one for pictures; got \[64\]"),
    ("Step3TextForCausalLM", {"share_q_dim": 0}, "share_q_dim must be a whole number from 1 .*; got 0"),
    ("HunYuanForCausalLM", {"use_cla": True, "cla_share_factor": 0}, "cla_share_factor must be a whole number from 1 .*; got 0"),
    ("NemotronHForCausalLM", {"hybrid_override_pattern": "MEM*EX"}, "a layer of hybrid_override_pattern must be one of M, E, [*], -.*; got 'X'"),
    ("NemotronHForCausalLM", {"hybrid_override_pattern": "MEM*"}, "hybrid_override_pattern must list 6 layers, as num_hidden_layers says; got 'MEM[*]'"),
    ("Gemma3ForCausalLM", {"layer_types": ["sliding"] * 6}, "a layer of layer_types must be one of full_attention, .*; got 'sliding'"),
    ("LlamaForCausalLM", {"layer_types": ["linear_attention"] * 6}, "a layer of layer_types must be one of full_attention, .*; got 'linear_attention'"),
    ("KimiLinearForCausalLM", {"linear_attn_config": {"full_attn_layers": [1, 2], "kda_layers": [2, 3]}}, "full_attn_layers and kda_layers must share out 6 layers; got 3"),
    ("KimiLinearForCausalLM", {"linear_attn_config": {"full_attn_layers": [7]}}, "full_attn_layers must list layers, numbers from 1 to 6; got"),
    ("Qwen3MoeForCausalLM", {"num_experts": 4}, "a token cannot be sent to more than 4 experts; got 8"),
    ("Qwen3MoeForCausalLM", {"mlp_only_layers": [9]}, "mlp_only_layers must list layers, numbers from 0 to 5"),
    ("DeepseekV4ForCausalLM", {"compress_ratios": [0, 4, 128, 4, 128, 7]}, "a layer of layer_types must be one of .*; got 7"),
    ("DeciLMForCausalLM", {"block_configs": [{"attention": {"no_op": True}, "ffn": {"ffn_mult": -1}}] * 6}, r"block_configs\[0\]: ffn_mult must be a positive number; got -1"),
    ("MixtralForCausalLM", {"sliding_window": -5}, "sliding_window must be a whole number from 1 .*; got -5"),
    ("Qwen3VLForConditionalGeneration", {"text_config": [1]}, r"text_config must be an object; got \[1\]"),
    ("LlamaForCausalLM", {"head_dim": 0}, "head_dim must be a whole number from 1 .*; got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "change", "message"), BAD)
def test_contradictions_and_wrong_values_get_one_sentence(architecture, change, message):
    with pytest.raises(ValueError, match=f"^config: {message}") as caught:
        tiny(architecture, **change)
    assert len(str(caught.value).splitlines()[0]) == len(str(caught.value)) < 300


def test_a_folder_is_its_config_and_what_is_none_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder without a config.json"):
        find_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("")
    with pytest.raises(ValueError, match="a config.json holds one object, got nothing"):
        find_model(tmp_path)
    config.write_text('{"hidden_size": 1' + "0" * 5000 + "}")
    with pytest.raises(ValueError, match="not JSON that can be read"):
        find_model(tmp_path)
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | TINY))
    assert find_model(tmp_path).n_params == tiny("LlamaForCausalLM").n_params
    assert find_model(config) == find_model(tmp_path)


def test_an_unknown_architecture_is_refused_and_no_other_offered():
    # Its name is near to DeepseekV3's, its layers are not.
    with pytest.raises(
        ValueError, match="'DeepseekV9ForCausalLM' are not known here; the nearest name known is .*, another"
    ):
        tiny("DeepseekV9ForCausalLM")
    nested = {"architectures": ["NewVisionModel"], "text_config": {"model_type": "qwen3", "hidden_size": 64}}
    assert from_hf_config(nested).hidden == 64  # of a model that sees, the decoder counts


# --- slow: transformers itself ------------------------------------------------------------------

KIND = {"*": "full_attention", "L": "sliding_attention", "M": "linear_attention"}


def known_values():
    tables = tomllib.loads(data_path("models").read_text(encoding="utf-8")).values()
    return {
        name: table["all"] | values
        for table in tables
        for name, values in table["models"].items()
        if name in EXACT
    }


@pytest.mark.slow  # half a minute: forty models are built, without memory
@pytest.mark.parametrize("name", EXACT)
def test_transformers_counts_the_same_parameters(name):
    values = {key: None if value == "null" else value for key, value in known_values()[name].items()}
    model_type = next(one for one in READERS[values["architectures"][0]][3].split() if one in text_classes())
    for key in ("layer_types", "layers_block_type"):
        if key in values and model_type != "nemotron_h":
            values[key] = [KIND[letter] for letter in values[key]]
    if "layers_block_type" in values:
        values["hybrid_override_pattern"] = values.pop("layers_block_type")
    total, routed = counted(
        model_type, {key: value for key, value in values.items() if key != "architectures"}
    )
    assert total == MODELS[name].n_params
    assert routed == MODELS[name].parameters["experts"]
    if routed:
        share = MODELS[name].n_active_experts / MODELS[name].n_experts
        assert MODELS[name].n_active_params == pytest.approx(total - routed * (1 - share), abs=1)


@pytest.mark.slow  # a minute: each class is built from its own defaults, without memory
@pytest.mark.parametrize("model_type", TYPES)
def test_every_class_default_is_the_reader_s(model_type):
    names = text_classes()
    if model_type not in names:
        pytest.skip("transformers has no class of this type that generates text")
    values = MORE.get(model_type, {})
    shape = from_hf_config({"architectures": [names[model_type]], "model_type": model_type} | values)
    assert counted(model_type, values)[0] == shape.n_params


SMALL = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 16, "intermediate_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "sliding_window": 16}  # fmt: skip
MLA = {"kv_lora_rank": 24, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
       "num_key_value_heads": 4, "n_routed_experts": 8, "first_k_dense_replace": 1}  # fmt: skip
ROUTES = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
INDEX = {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SSM = {"mamba_n_heads": 8, "mamba_d_state": 8}
#: Model type -> the layers of a tiny model: what makes each family's cache what it is.
STRUCTURES = {
    "mistral": {}, "smollm3": {}, "olmo3": {}, "exaone4": {}, "cohere2": {},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5, "laurel_rank": 4, "hidden_size_per_layer_input": 8,
                     "vocab_size_per_layer_input": 64, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2},
    "gemma4_text": {"num_hidden_layers": 6, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
                    "global_head_dim": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 96},
    "mimo_v2_flash": ROUTES | {"v_head_dim": 8, "n_routed_experts": 4, "swa_num_key_value_heads": 4},
    "qwen3_next": ROUTES | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": DELTA,
    "deepseek_v3": ROUTES | MLA | {"n_group": 2, "topk_group": 1},
    "deepseek_v32": ROUTES | MLA | INDEX | {"n_group": 2, "topk_group": 1},
    "glm_moe_dsa": ROUTES | MLA | INDEX | {"index_topk_freq": 2, "num_hidden_layers": 6},
    "kimi_linear": ROUTES | MLA | {"num_local_experts": 4, "linear_head_dim": 8, "linear_num_heads": 2, "num_hidden_layers": 5},
    "nemotron_h": ROUTES | {"hybrid_override_pattern": "MEM*-", "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
                            "ssm_state_size": 8, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 32,
                            "num_hidden_layers": 5},
    "granitemoehybrid": SSM | {"layer_types": ["mamba", "attention", "mamba", "mamba"], "mamba_d_head": 16,
                               "shared_intermediate_size": 32, "num_local_experts": 4},
    "falcon_h1": SSM | {"mamba_d_ssm": 64, "mamba_d_head": 8},
    "jamba": {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
              "use_mamba_kernels": False},
    "lfm2": {"full_attn_idxs": [1, 3], "head_dim": None},
    "minimax_m3_vl_text": {"num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 32,
                           "shared_intermediate_size": 32, "index_n_heads": 2, "index_head_dim": 16, "index_block_size": 4,
                           "index_topk_blocks": 2, "rotary_dim": 8, "mlp_layer_types": ["dense", *["sparse"] * 3],
                           "layer_types": ["full_attention", *["minimax_m3_sparse"] * 2, "full_attention"]},
}  # fmt: skip


def cached(cache):
    """Elements of transformers' cache by kind, and the tokens that its windows leave out."""
    found = dict.fromkeys(("kv", "index", "state", "conv"), 0)
    for layer in cache.layers:
        for name in ("keys", "values"):
            one = getattr(layer, name, None)
            found["kv"] += 0 if one is None else one.numel()
            if getattr(layer, "is_sliding", False) and one.shape[-2] == layer.sliding_window - 1:
                found["kv"] += one[..., 0, :].numel()  # it leaves out the newest, which the next step brings
        for name in ("idx_keys", "index_keys", "indexer_keys"):
            one = getattr(layer, name, None)
            found["index"] += 0 if one is None else one.numel()
        for name, kind in (("conv_states", "conv"), ("recurrent_states", "state")):
            found[kind] += sum(one.numel() for one in getattr(layer, name, {}).values() if one is not None)
    return found


@pytest.mark.slow  # a tiny model of each structure reads 40 tokens
@pytest.mark.parametrize("model_type", STRUCTURES)
def test_transformers_caches_hold_the_same(model_type):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    values = {key: one for key, one in (SMALL | STRUCTURES[model_type]).items() if one is not None}
    if model_type in ("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_linear"):
        del (
            values["head_dim"],
            values["sliding_window"],
        )  # that the library would read, though no such model has them
    shape = from_hf_config({"architectures": [text_classes()[model_type]], "model_type": model_type} | values)
    config = transformers.AutoConfig.for_model(model_type, **values)
    torch.manual_seed(0)
    model = getattr(transformers, text_classes()[model_type])._from_config(config).eval()
    for n in (7, 40):
        cache = transformers.DynamicCache(config=config)
        with torch.no_grad():
            model(input_ids=torch.randint(3, 60, (1, n)), past_key_values=cache, use_cache=True)
        assert {kind: int(value) for kind, value in shape.stored(n).items()} == cached(cache)


@pytest.mark.slow  # imports all configuration classes
def test_the_table_of_defaults_is_transformers_own():
    transformers = pytest.importorskip("transformers")
    table = tomllib.loads(data_path("config_defaults").read_text(encoding="utf-8"))
    for model_type, values in table.items():
        if model_type.endswith("_text"):
            continue
        made = transformers.CONFIG_MAPPING[model_type]
        for key, value in values.items():
            assert getattr(made, key, value) == value, (model_type, key)


def test_the_files_that_an_engine_s_planner_ships_are_all_read():
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra 'silicon')")
    folder = resources.files("aiconfigurator_core") / "model_configs"
    files = [
        one for one in folder.iterdir() if one.name.endswith("_config.json") and "hf_quant" not in one.name
    ]
    assert len(files) == 89
    for one in files:
        shape = from_hf_config(json.loads(one.read_text(encoding="utf-8")))
        assert min(shape.n_params, float(sum(shape.stored(8192).values()))) > 1e6, one.name


def test_the_layers_of_minimax_01_are_counted_to_the_last_scale():
    """By hand: q, k, v, gate and output in a linear layer, with two norms of the layer and one over all heads."""
    config = {
        "architectures": ["MiniMaxForCausalLM"], "model_type": "minimax", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
        "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["linear_attention", "full_attention"] * 2,
    }  # fmt: skip
    linear, full = 5 * 64 * 64 + 64, 64 * (64 + 32 + 32) + 64 * 64
    experts = 4 * 3 * 64 * 96 + 4 * 64
    assert from_hf_config(config).n_params == 2 * (linear + full) + 4 * (experts + 2 * 64) + 2 * 128 * 64 + 64


def test_the_window_of_a_convolution_is_multiplied_and_added():
    assert state(recurrent=10, conv=4, each=5).flops == 5 * 10 + 2 * 4


@pytest.mark.parametrize(
    ("told", "folder", "name"),
    [
        ("org/My_Model-8B (v2)", "plain", "org/My_Model-8B (v2)"),
        ("<b>x</b>", "plain", "plain"),
        ("/a/model", "plain", "plain"),
        ("__init__", "*x*", "Qwen3ForCausalLM"),
        (["x"], "www.evil.example", "Qwen3ForCausalLM"),
        (None, "a\nb", "Qwen3ForCausalLM"),
    ],
)
def test_a_model_is_called_by_the_first_plain_label(told, folder, name, tmp_path):
    """Names go into sentences, pages and commands: what is no label there is no name."""
    config = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "vocab_size": 100,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "_name_or_path": told}  # fmt: skip
    path = tmp_path / folder / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    assert from_hf_config(path).name == name


def test_no_hostile_name_is_a_label_and_every_known_model_has_one():
    spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
    hostile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hostile)
    assert {name for name in hostile.NAMES + hostile.COMMANDS if is_label(name)} == {"datum.x", "constructor"}
    assert all(is_label(name) for name in MODELS)
