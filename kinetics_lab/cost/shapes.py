"""Model shapes: what a decoder caches, reads and multiplies for each token, counted from its dimensions.

Parameters are never copied from a model card: they are counted matrix by matrix, because the cost law
needs three different counts (all, active for one token, and those that really multiply).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kinetics_lab.errors import require


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
    def head_params(self) -> int:
        """Parameters of the vocabulary matrix, which is the output head and (tied or not) the input embedding."""
        return self.vocab * (self.embed_dim or self.hidden)

    @property
    def n_params(self) -> int:
        """All parameters, a tied matrix once."""
        return int(_params(self, self.n_experts))

    @property
    def n_active_params(self) -> int:
        """Parameters one token meets, of the routed experts only those it is sent to."""
        return int(_params(self, self.n_active_experts))

    @property
    def n_matmul_params(self) -> int:
        """Active parameters without look-ups (untied input embedding, learned positions), 2 FLOP each."""
        return self.n_active_params - _lookup_params(self)

    def weights_read(self, batch: Any) -> Any:
        """Parameters one decode step of ``batch`` sequences reads from memory (expected, for MoE).

        A routed expert is read once when any sequence of the batch is sent to it; with uniform, independent
        routing a share 1 - (1 - k/E)^batch of them is. Real routing is uneven and touches fewer.
        """
        require(batch > 0, "batch must be positive (sequences decoded together)", batch)
        experts = 0.0
        if self.n_experts:
            experts = self.n_experts * (1 - (1 - self.n_active_experts / self.n_experts) ** batch)
        return _params(self, experts) - _lookup_params(self)


# --- counting matrix by matrix ------------------------------------------------------------------


def _attention_params(shape: ModelShape) -> int:
    """Parameters of one layer's attention."""
    if shape.is_mla:
        q_dim = shape.n_q_heads * (shape.head_dim + shape.rope_head_dim)
        q = shape.hidden * q_dim
        if shape.q_lora_rank:
            q = shape.q_lora_rank * (shape.hidden + 1 + q_dim)  # down, norm, up
        kv_down = shape.hidden * (shape.kv_lora_rank + shape.rope_head_dim) + shape.kv_lora_rank  # with norm
        kv_up = shape.kv_lora_rank * shape.n_q_heads * (shape.head_dim + shape.v_head_dim)
        return q + kv_down + kv_up + shape.n_q_heads * shape.v_head_dim * shape.hidden
    q_dim, kv_dim = shape.n_q_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    count = shape.hidden * (2 * q_dim + 2 * kv_dim)  # q, k, v, output
    if shape.qkv_bias or shape.biases:
        count += q_dim + 2 * kv_dim
    if shape.biases:
        count += shape.hidden
    if shape.qk_norm:
        count += 2 * shape.head_dim
    return count


def _ffn_params(shape: ModelShape, width: int) -> int:
    """Parameters of one feed-forward block (or expert) of that hidden width."""
    count = (3 if shape.gated else 2) * shape.hidden * width
    return count + (width + shape.hidden if shape.biases else 0)


def _lookup_params(shape: ModelShape) -> int:
    """Parameters that are looked up and multiply nothing."""
    return (0 if shape.tied else shape.head_params) + shape.n_positions * shape.hidden


def _params(shape: ModelShape, experts_per_layer: Any) -> Any:
    """All parameters when each MoE layer counts that many routed experts (a number or an array)."""
    n_moe_layers = shape.n_layers - shape.n_dense_layers if shape.n_experts else 0
    norm = shape.hidden * (2 if shape.biases else 1)
    count: Any = shape.n_layers * (_attention_params(shape) + 2 * norm)
    count += (shape.n_layers - n_moe_layers) * _ffn_params(shape, shape.ffn)
    if shape.n_experts:
        router = shape.hidden * shape.n_experts + (shape.n_experts if shape.router_bias else 0)
        experts = (experts_per_layer + shape.n_shared_experts) * _ffn_params(shape, shape.expert_ffn)
        count += n_moe_layers * (router + experts)
    count += norm if shape.final_norm else 0
    count += shape.head_params * (1 if shape.tied else 2) + shape.n_positions * shape.hidden
    if shape.embed_dim:
        count += 2 * shape.embed_dim * shape.hidden  # projections in and out
    return count
