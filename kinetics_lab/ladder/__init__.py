"""A ladder of tiny reasoners: sizes and presets. Only its model, train and sample import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup
from kinetics_lab.ladder.task import World


@dataclass(frozen=True)
class Size:
    """Dimensions of one rung. ``head_dim`` 16 is the smallest that the Triton kernels take."""

    name: str
    width: int
    n_q_heads: int
    n_kv_heads: int
    n_layers: int = 2
    head_dim: int = 16

    def shape(self, labels: int) -> ModelShape:
        """The shape that the cost law prices, for a world with that many labels."""
        plain = from_hf_config({
            "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": self.n_layers, "vocab_size": labels,
            "num_attention_heads": self.n_q_heads, "num_key_value_heads": self.n_kv_heads, "head_dim": self.head_dim,
            "hidden_size": self.width, "intermediate_size": 2 * self.width,
        })  # fmt: skip
        # The table of roles (node, source, goal) is looked up and added, as learned positions are: 3 of them.
        return replace(plain, name=self.name, family="ladder", lookup=3 * self.width)


_ROWS = ((16, 1, 1), (24, 2, 1), (32, 2, 1), (64, 4, 2), (128, 8, 4), (256, 16, 4))
SIZES = {size.name: size for size in (Size(f"w{row[0]}", *row) for row in _ROWS)}


def model_name(size: str, seed: int) -> str:
    """The name of a trained model in traces: size and seed."""
    return f"{size}-s{seed}"


@dataclass(frozen=True)
class Preset:
    """One experiment: world, models, training tokens of each (prompts included), and what is sampled."""

    world: World
    sizes: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: int
    batch: int  # problems per training step
    per_size: int  # test problems for each number of nodes in world.sizes
    trials: int
    policies: tuple[str, ...]  # sampled with the first seed, layer 0 dense; "dense" with all seeds
    all_sparse: tuple[str, ...] = ()  # sampled with the first seed, every layer sparse
    shown: tuple[str, ...] = ("dense",)  # policies whose walks are kept step by step, first seed

    def size(self, name: str) -> str:
        """The size called ``name``, or the largest where the preset has no such size; ``ValueError`` for no size."""
        known = lookup(SIZES, name, "size").name
        return known if known in self.sizes else self.sizes[-1]

    def runs(self) -> list[tuple[str, int]]:
        """(size, seed) of every model, seed by seed."""
        return [(size, seed) for seed in self.seeds for size in self.sizes]

    def shapes(self) -> dict[str, ModelShape]:
        """Shape by the name that the trace table gives a model (see :func:`model_name`)."""
        return {model_name(size, seed): SIZES[size].shape(self.world.nodes) for size, seed in self.runs()}


_TOPK = ("topk:2", "topk:4", "topk:8", "topk:16")
_ALL, _SHOWN = ("dense", *_TOPK, "topk:32"), ("dense", *_TOPK[:3])
_BLOCKS = """block_topk:32:4 block_topk:64:4 block_topk:128:4 block_topk:256:4 block_topk:32:2 block_topk:64:2
block_topk:128:2 local:64:2 local:128:2 local:256:2"""
_LARGE_BLOCKS = """block_topk:128:16 block_topk:256:16 block_topk:512:16 block_topk:1024:16 local:512:2
local:1024:2"""
_CPU = Preset(
    World(nodes=32, sizes=(11, 18, 25, 32), first=6, cap=128),
    tuple(SIZES)[:5], (0, 1, 2), tokens=4_000_000, batch=16, per_size=16, trials=32,
    policies=(*_ALL, *_BLOCKS.split()), all_sparse=_TOPK, shown=(*_SHOWN, "block_topk:64:4", "local:128:2"),
)  # fmt: skip
_SMALL = World(nodes=12, sizes=(8, 12), first=6, cap=48)
# Prompts of 2050 to 7426 tokens: with the answer still within the 8192 that token policies can search on a GPU.
_HUGE = World(nodes=232, sizes=(64, 120, 176, 232), first=9, cap=512, votes=(5, 5, 1, 1, 1, 1, 1, 1))

#: By name: a real check in a minute or two; the committed traces; contexts of 2K to 8K tokens for one GPU.
PRESETS = {
    "cpu-small": replace(_CPU, world=_SMALL, sizes=("w32",), seeds=(0,), tokens=1_000_000, per_size=8, trials=8),
    "cpu": _CPU,
    "h200": replace(
        _CPU, world=_HUGE, sizes=tuple(SIZES), tokens=100_000_000, trials=64,
        policies=(*_ALL, *_LARGE_BLOCKS.split()), shown=(*_SHOWN, "block_topk:512:16", "local:512:2"),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset called ``name``; ``ValueError`` with the near matches for another name."""
    return lookup(PRESETS, name, "preset")
