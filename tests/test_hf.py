"""The bridge to transformers, on tiny random models of the real architectures: same tokens as the library's own."""

from __future__ import annotations

import os

import pytest

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.decode import caches

torch = pytest.importorskip("torch", reason="needs PyTorch (the extra 'generate')")
torch.set_num_threads(1)  # models this small lose time to a second thread
pytest.importorskip("transformers", reason="needs transformers (the extra 'generate')")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from kinetics_lab.decode import hf  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=48,
             intermediate_size=96, vocab_size=101)  # fmt: skip
FAMILIES = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "qwen2.5": {"architectures": ["Qwen2ForCausalLM"]},
    "llama3": {"architectures": ["LlamaForCausalLM"]},
    "qwen3-moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
PROMPT = [5, 7, 9, 3, 2, 60, 41, 5, 11]


def tiny(family: str = "qwen3"):
    shape = from_hf_config(SIZES | FAMILIES[family])
    model = hf.random_model(shape, device=DEVICE, seed=3)
    for p in model.parameters():
        p.data *= 8 if p.ndim > 1 else 1  # far from uniform attention
    return model


def greedy(decoder: hf.Decoder, prompt: list[int], steps: int, slot: int = 0) -> list[int]:
    """The likeliest tokens after a prompt, in one slot; the others stand still."""
    read, slots = decoder.read(prompt), len(decoder.active)
    decoder.fill(slot, read)
    tokens = [int(read.logits.argmax())]
    mine = [i == slot for i in range(slots)]
    for step in range(steps - 1):
        at = len(prompt) + step
        logits = decoder.step([tokens[-1] * m for m in mine], [at * m for m in mine], mine)
        tokens.append(int(logits[slot].argmax()))
    return tokens


def library_s(model, prompt: list[int], steps: int) -> list[int]:
    model.set_attn_implementation("sdpa")
    out = model.generate(
        torch.tensor([prompt], device=DEVICE),
        max_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_decodes_what_the_library_generates(family) -> None:
    model = tiny(family)
    ours = greedy(hf.Decoder(model, parse_policy("dense"), 3, 64), PROMPT, 20, slot=1)
    assert ours == library_s(model, PROMPT, 20)
    assert len(set(ours)) > 3


@pytest.mark.parametrize("text", ["topk:64", "block_topk:64:8", "quest:64:8", "local:64"])
def test_a_budget_beyond_the_context_is_dense(text) -> None:
    model = tiny()
    dense = greedy(hf.Decoder(model, parse_policy("dense"), 1, 64), PROMPT, 20)
    assert greedy(hf.Decoder(model, parse_policy(text), 1, 64), PROMPT, 20) == dense


def test_dense_layers_stay_dense_and_the_others_do_not() -> None:
    model, sparse = tiny(), parse_policy("local:2")
    dense = greedy(hf.Decoder(model, parse_policy("dense"), 1, 64), PROMPT, 20)
    assert greedy(hf.Decoder(model, sparse, 1, 64, dense_layers=3), PROMPT, 20) == dense
    assert greedy(hf.Decoder(model, sparse, 1, 64), PROMPT, 20) != dense
    kinds = [str(cache.policy) for cache in hf.Decoder(model, sparse, 1, 64, dense_layers=1).cache.layers]
    assert kinds == ["dense", "local:2", "local:2"]


@pytest.mark.parametrize("text", ["dense", "block_topk:8:8:0:true"])
def test_the_kernels_pages_decode_the_same_tokens(text, monkeypatch) -> None:
    model = tiny()
    plain = greedy(hf.Decoder(model, parse_policy(text), 2, 48), PROMPT, 10)
    monkeypatch.setattr(hf, "open_cache", caches.PagedCache)
    decoder = hf.Decoder(model, parse_policy(text), 2, 48)
    assert isinstance(decoder.cache.layers[0], caches.PagedCache)
    assert greedy(decoder, PROMPT, 10) == plain


def test_requests_side_by_side_do_not_touch_one_another() -> None:
    model, policy = tiny(), parse_policy("topk:6")
    prompts = [PROMPT, PROMPT[3:], [8] * 14]
    alone = [greedy(hf.Decoder(model, policy, 1, 64), prompt, 12) for prompt in prompts]
    decoder = hf.Decoder(model, policy, 3, 64)
    for slot in (2, 0):  # the first is overwritten by another prompt, as a slot is filled again
        decoder.fill(slot, decoder.read([1, 2, 3, 4]))
    tokens = []
    for slot, prompt in enumerate(prompts):
        read = decoder.read(prompt)
        decoder.fill(slot, read)
        tokens.append([int(read.logits.argmax())])
    for step in range(11):
        held = [len(prompt) + step for prompt in prompts]
        logits = decoder.step([t[-1] for t in tokens], held, [True] * 3)
        for t, row in zip(tokens, logits.argmax(-1).tolist(), strict=True):
            t.append(row)
    assert tokens == alone


@pytest.mark.parametrize(
    "name",
    [name for name, shape in MODELS.items() if shape.family in ("qwen3", "qwen2.5", "llama3", "qwen3-moe")],
)
def test_counted_parameters_are_the_library_s(name) -> None:
    model = hf.random_model(MODELS[name], device="meta")
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].n_params
    shape = hf.shape_of(model)
    assert shape.kv_elements_per_token == MODELS[name].kv_elements_per_token
    assert shape.n_active_params == MODELS[name].n_active_params


def test_other_attention_is_refused() -> None:
    from transformers import GPT2Config, Qwen3Config

    with pytest.raises(ValueError, match=r"model_type 'gpt2' is not known; .*qwen3"):
        hf.check_config(GPT2Config())
    sliding = Qwen3Config(use_sliding_window=True, sliding_window=8, max_window_layers=1, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"full_attention \(no sliding window\).*sliding_attention"):
        hf.check_config(sliding)
    with pytest.raises(ValueError, match=r"dense_layers must be 0 to 3; got 4"):
        hf.Decoder(tiny(), parse_policy("dense"), 1, 8, dense_layers=4)
    with pytest.raises(ValueError, match=r"model family 'opt' is not known"):
        hf.config_of(MODELS["opt-6.7b"])


def test_a_model_of_a_folder_and_one_that_is_not_there(tmp_path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model '.*nowhere' is no folder here"):
        hf.load_model(str(tmp_path / "nowhere"), device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("family", "dtype"),  # experts in fp32 are multiplied one by one, as counts on the host say
    [("qwen3", "float32"), ("qwen3", "bfloat16"), ("qwen3-moe", "bfloat16")],
)
def test_a_captured_step_is_the_step(family, compiled, dtype) -> None:
    """Also for a request that is filled in, after the capture, beside another."""
    policy = parse_policy("block_topk:16:16:0:true")
    outs = []
    for captured in (False, True):
        model = tiny(family).to(getattr(torch, dtype))
        decoder = hf.Decoder(model, policy, 2, 64, compiled=compiled and captured)
        decoder._graph = captured
        first, second = decoder.read(PROMPT), decoder.read(PROMPT[3:] * 4)
        decoder.fill(0, first)
        rows = [decoder.step([5, 0], [len(PROMPT), 0], [True, False])[0].float().cpu()]
        decoder.fill(1, second)
        for step in range(6):
            held = [len(PROMPT) + 1 + step, second.length + step]
            rows += decoder.step([7, 9], held, [True, True]).float().cpu().unbind()
        outs.append(torch.stack(rows))
        assert decoder.how == ("graph" if captured else "eager")
    far = 2e-3 if dtype == "float32" else 0.1
    assert (outs[0] - outs[1]).norm() / outs[0].norm() < far
