"""Model shapes: what a decoder caches, reads and multiplies for each token, counted from its dimensions.

Parameters are never copied from a model card: they are counted matrix by matrix, because the cost law
needs three different counts (all, active for one token, and those that really multiply).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from kinetics_lab.errors import lookup, require


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of one decoder-only transformer.

    ``head_dim`` is a field and never ``hidden / n_q_heads``: Qwen3-0.6B has 128, not 64.
    MoE layers set ``n_experts``; multi-head latent attention (MLA) sets ``kv_lora_rank``, and then
    ``head_dim`` is the part of a query or key head without rotary embedding.
    """

    name: str
    family: str
    n_layers: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    ffn: int  # hidden width of a dense feed-forward block
    vocab: int
    tied: bool = False  # input embedding and output head are one matrix
    gated: bool = True  # SwiGLU: three matrices; else two
    qkv_bias: bool = False
    qk_norm: bool = False
    biases: bool = False  # every linear layer and norm carries a bias (OPT)
    final_norm: bool = True
    n_positions: int = 0  # rows of a learned position table
    embed_dim: int = 0  # width of the word embedding where it is not `hidden`
    n_experts: int = 0
    n_active_experts: int = 0
    expert_ffn: int = 0
    n_shared_experts: int = 0
    n_dense_layers: int = 0  # layers of an MoE model with an ordinary feed-forward block
    router_bias: bool = False
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    rope_head_dim: int = 0
    v_head_dim: int = 0
    released_params: float | None = None  # P in the paper's released code

    def __post_init__(self) -> None:
        for field in ("n_layers", "n_q_heads", "n_kv_heads", "head_dim", "hidden", "vocab"):
            require(
                getattr(self, field) >= 1, f"{self.name}: {field} must be at least 1", getattr(self, field)
            )
        require(
            self.n_q_heads % self.n_kv_heads == 0,
            f"{self.name}: n_q_heads must be a multiple of n_kv_heads={self.n_kv_heads}",
            self.n_q_heads,
        )
        require(
            self.n_active_experts <= self.n_experts,
            f"{self.name}: n_active_experts must not exceed n_experts={self.n_experts}",
            self.n_active_experts,
        )

    # --- what attention caches and computes -----------------------------------------------------

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def gqa_ratio(self) -> int:
        """Query heads that share one cached head (r). With MLA all of them share one latent vector."""
        return self.n_q_heads if self.is_mla else self.n_q_heads // self.n_kv_heads

    @property
    def kv_elements_per_token(self) -> int:
        """Cached elements for one token, all layers (D in the paper's Table 1)."""
        if self.is_mla:
            return self.n_layers * (self.kv_lora_rank + self.rope_head_dim)
        return 2 * self.key_elements_per_token

    @property
    def key_elements_per_token(self) -> int:
        """The part of the cache that scoring reads, which is the keys, or for MLA the whole latent vector."""
        if self.is_mla:
            return self.kv_elements_per_token
        return self.n_layers * self.n_kv_heads * self.head_dim

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> float:
        """KV cache of one token, all layers, in bytes."""
        return self.kv_elements_per_token * bytes_per_element

    @property
    def score_flops_per_token(self) -> int:
        """FLOP to score one cached key with one new query, all layers and heads."""
        width = self.kv_lora_rank + self.rope_head_dim if self.is_mla else self.head_dim
        return 2 * self.n_layers * self.n_q_heads * width

    @property
    def attention_flops_per_token(self) -> int:
        """FLOP to attend to one cached token from one new token (scores and weighted values), all layers.

        Without MLA this is 2 r D. MLA counts the absorbed form, which works on the latent vector.
        """
        width = self.kv_lora_rank if self.is_mla else self.head_dim
        return self.score_flops_per_token + 2 * self.n_layers * self.n_q_heads * width

    # --- parameters -----------------------------------------------------------------------------

    @property
    def _attention_params(self) -> int:
        if self.is_mla:
            q_dim = self.n_q_heads * (self.head_dim + self.rope_head_dim)
            q = self.hidden * q_dim
            if self.q_lora_rank:
                q = self.q_lora_rank * (self.hidden + 1 + q_dim)  # down, norm, up
            kv_down = self.hidden * (self.kv_lora_rank + self.rope_head_dim) + self.kv_lora_rank  # with norm
            kv_up = self.kv_lora_rank * self.n_q_heads * (self.head_dim + self.v_head_dim)
            return q + kv_down + kv_up + self.n_q_heads * self.v_head_dim * self.hidden
        q_dim, kv_dim = self.n_q_heads * self.head_dim, self.n_kv_heads * self.head_dim
        count = self.hidden * (2 * q_dim + 2 * kv_dim)  # q, k, v, output
        if self.qkv_bias or self.biases:
            count += q_dim + 2 * kv_dim
        if self.biases:
            count += self.hidden
        if self.qk_norm:
            count += 2 * self.head_dim
        return count

    def _ffn_params(self, width: int) -> int:
        count = (3 if self.gated else 2) * self.hidden * width
        return count + (width + self.hidden if self.biases else 0)

    @property
    def _n_moe_layers(self) -> int:
        return self.n_layers - self.n_dense_layers if self.n_experts else 0

    def _params(self, experts_per_layer: float) -> float:
        """All parameters when each MoE layer counts that many routed experts."""
        norm = self.hidden * (2 if self.biases else 1)
        count: float = self.n_layers * (self._attention_params + 2 * norm)
        count += (self.n_layers - self._n_moe_layers) * self._ffn_params(self.ffn)
        if self.n_experts:
            router = self.hidden * self.n_experts + (self.n_experts if self.router_bias else 0)
            experts = (experts_per_layer + self.n_shared_experts) * self._ffn_params(self.expert_ffn)
            count += self._n_moe_layers * (router + experts)
        count += norm if self.final_norm else 0
        count += self.head_params * (1 if self.tied else 2) + self.n_positions * self.hidden
        if self.embed_dim:
            count += 2 * self.embed_dim * self.hidden  # projections in and out
        return count

    @property
    def head_params(self) -> int:
        """Parameters of the vocabulary matrix, which is the output head and (tied or not) the input embedding."""
        return self.vocab * (self.embed_dim or self.hidden)

    @property
    def n_params(self) -> int:
        """All parameters, a tied matrix once."""
        return int(self._params(self.n_experts))

    @property
    def n_active_params(self) -> int:
        """Parameters one token meets, of the routed experts only those it is sent to."""
        return int(self._params(self.n_active_experts))

    @property
    def n_matmul_params(self) -> int:
        """Active parameters without look-ups (untied input embedding, learned positions), 2 FLOP each."""
        return self.n_active_params - self._lookup_params

    @property
    def _lookup_params(self) -> int:
        return (0 if self.tied else self.head_params) + self.n_positions * self.hidden

    def weights_read(self, batch: Any) -> Any:
        """Parameters one decode step of ``batch`` sequences reads from memory (expected, for MoE).

        A routed expert is read once when any sequence of the batch is sent to it; with uniform, independent
        routing a share 1 - (1 - k/E)^batch of them is. Real routing is uneven and touches fewer.
        """
        require(batch > 0, "batch must be positive (sequences decoded together)", batch)
        experts = 0.0
        if self.n_experts:
            experts = self.n_experts * (1 - (1 - self.n_active_experts / self.n_experts) ** batch)
        return self._params(experts) - self._lookup_params

    # --- reading a config.json ------------------------------------------------------------------

    @classmethod
    def from_hf_config(
        cls, config: str | PathLike[str] | Mapping[str, Any], name: str | None = None
    ) -> ModelShape:
        """Shape of a Hugging Face ``config.json`` (a path, or the parsed mapping).

        Raises ``ValueError`` for an architecture whose parameters this package cannot count, for a missing
        key and for a file that is not JSON.
        """
        where = "config"
        if not isinstance(config, Mapping):
            where = str(config)
            try:
                config = json.loads(Path(config).read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} line {error.lineno}: not JSON ({error.msg})") from None
            if not isinstance(config, Mapping):
                raise ValueError(f"{where}: a config.json holds one object, got {type(config).__name__}")
        architecture = (config.get("architectures") or ["none given"])[0]
        family, read = lookup(_HF_READERS, architecture, f"{where}: architecture")
        try:
            return cls(
                name=name or config.get("_name_or_path") or Path(where).parent.name or architecture,
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
            raise ValueError(
                f"{where}: a dimension of {architecture} is not a whole number ({error})"
            ) from None


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
    return _OPT | {
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


_OPT = {"gated": False, "biases": True, "n_positions": 2050, "tied": True}
# Architecture in a config.json -> family, and what reads the fields that families name differently.
_HF_READERS = {
    "Qwen3ForCausalLM": ("qwen3", lambda c: _read_gqa(c) | {"qk_norm": True}),
    "Qwen3MoeForCausalLM": ("qwen3-moe", _read_moe),
    "Qwen2ForCausalLM": ("qwen2.5", lambda c: _read_gqa(c) | {"qkv_bias": True}),
    "LlamaForCausalLM": ("llama3", _read_gqa),
    "OPTForCausalLM": ("opt", _read_opt),
    "DeepseekV3ForCausalLM": ("deepseek-v3", _read_deepseek),
}


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
    ("opt", "opt-125m", (12, 12, 12, 64, 768, 3072, 50272), _OPT),
    ("opt", "opt-350m", (24, 16, 16, 64, 1024, 4096, 50272), _OPT | {"embed_dim": 512, "final_norm": False}),
    ("opt", "opt-1.3b", (24, 32, 32, 64, 2048, 8192, 50272), _OPT),
    ("opt", "opt-2.7b", (32, 32, 32, 80, 2560, 10240, 50272), _OPT),
    ("opt", "opt-6.7b", (32, 32, 32, 128, 4096, 16384, 50272), _OPT),
    ("opt", "opt-13b", (40, 40, 40, 128, 5120, 20480, 50272), _OPT),
    ("opt", "opt-30b", (48, 56, 56, 128, 7168, 28672, 50272), _OPT),
    ("opt", "opt-66b", (64, 72, 72, 128, 9216, 36864, 50272), _OPT),
    ("opt", "opt-175b", (96, 96, 96, 128, 12288, 49152, 50272), _OPT),
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


def find_model(name: str) -> ModelShape:
    """The shape called ``name``: one of MODELS, or the path of a Hugging Face ``config.json``, which joins them.

    Raises ``ValueError`` with the near matches for another name, ``FileNotFoundError`` for a missing file.
    """
    if name.endswith(".json") and name not in MODELS:
        MODELS[name] = replace(ModelShape.from_hf_config(name), family="own")
    return lookup(MODELS, name, "model")
