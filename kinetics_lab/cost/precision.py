"""Precisions: what one stored number takes, kept apart for weights, KV cache, index keys, state and vocabulary.

A checkpoint says how its weights are quantised, in its ``config.json`` or in ModelOpt's ``hf_quant_config.json`` beside
it. Engines keep the KV cache in BF16 unless they are told otherwise, and vocabulary matrices are rarely quantised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kinetics_lab.cost.families import read_object
from kinetics_lab.cost.hardware import ELEMENT_BYTES, Hardware
from kinetics_lab.cost.models import CONFIGS
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS
from kinetics_lab.errors import among, lookup, require

#: The peak that arithmetic runs at where weights are stored so: the four-bit formats below are unpacked to BF16.
RATES = {"fp8": "fp8", "mxfp8": "fp8", "int8": "int8", "nvfp4": "fp4", "fp4": "fp4"}


@dataclass(frozen=True)
class Precision:
    """How each kind of number is stored, by names of ``ELEMENT_BYTES``.

    ``weights``: matrices of the layers; ``apart``: kinds of matrices stored otherwise ("mixer" (attention), "ffn", "shared",
    "experts"), by name; ``kv``: cache; ``index``: index keys of sparse attention (None: as the cache);
    ``state``: recurrent state of linear attention; ``embedding``: vocabulary matrix; ``head``: output head (None: as the
    embedding); ``activations``: what the arithmetic runs in (None: what the weights allow).
    """

    weights: str = "bf16"
    kv: str = "bf16"
    index: str | None = None
    state: str = "fp32"
    embedding: str = "bf16"
    head: str | None = None
    apart: Mapping[str, str] = field(default_factory=dict)
    activations: str | None = None
    source: str = field(default="as given", compare=False)

    def __post_init__(self) -> None:
        for what, name in (self.stored | {"weights": self.weights, "activations": self.rate_name}).items():
            among(ELEMENT_BYTES, name, f"precision of {what}")

    @property
    def stored(self) -> dict[str, str]:
        """The precision of each kind that is not stored as the weights are."""
        names = dict.fromkeys(("conv", "vectors", "router", "lookup"), "bf16")
        names |= {"kv": self.kv, "index": self.index or self.kv, "state": self.state}
        names["embedding"] = self.embedding
        return names | {"head": self.head or self.embedding, **self.apart}

    @property
    def rate_name(self) -> str:
        """The precision whose peak the matrices run at: that of the activations."""
        return self.activations or RATES.get(self.weights, "bf16")

    def bytes(self, kind: str) -> float:
        """Bytes of one element of a kind, of ``PARAMETER_KINDS`` or ``CACHE_KINDS`` (:mod:`kinetics_lab.cost.shapes`)."""
        return ELEMENT_BYTES[self.stored.get(kind, self.weights)]

    @property
    def sizes(self) -> dict[str, float]:
        """Bytes of one element of every kind: what ``bytes_per_element`` of the cost law takes."""
        return {kind: self.bytes(kind) for kind in (*CACHE_KINDS, *PARAMETER_KINDS)}

    def peak(self, hardware: Hardware) -> float:
        """FLOP/s of the matrices: the hardware's own where it lacks such arithmetic and unpacks the weights."""
        return hardware.peaks.get(self.rate_name, hardware.peak_flops)

    def __str__(self) -> str:
        apart = "".join(f", {kind} {name}" for kind, name in sorted(self.apart.items()))
        return f"weights {self.weights}{apart}, KV cache {self.kv} ({self.source})"


def find_precision(
    weights: str | None = None, kv: str | None = None, model: str | PathLike[str] | None = None
) -> Precision:
    """The precision that a model's checkpoint is stored in: of a name in MODELS, a ``config.json`` or its folder.

    ``weights`` and ``kv`` override what was read. Raises ``ValueError`` for an unknown precision or scheme.
    """
    found = Precision()
    if model is not None and model in CONFIGS:
        found = _read(CONFIGS[fspath(model)], f"model {model}", "as published")
    elif model is not None:
        path = Path(model)
        found = read_precision(path / "config.json" if path.is_dir() else path)
    if weights is not None:
        found = Precision(weights, found.kv, found.index)
    return found if kv is None else replace(found, kv=kv, source=f"{found.source}, KV cache as given")


#: Names that quantisers give to schemes -> how weights are stored, and what the arithmetic runs in where that differs.
_SCHEMES = {
    "fp8": ("fp8", None), "fbgemm_fp8": ("fp8", None), "fp8_pb_wo": ("fp8", None), "mxfp8": ("mxfp8", None),
    "nvfp4": ("nvfp4", None), "w4a16_nvfp4": ("nvfp4", "bf16"), "mxfp4": ("mxfp4", None), "fp4": ("mxfp4", None),
    "int4": ("int4", None), "w4a16_awq": ("int4", None), "awq": ("int4", None), "gptq": ("int4", None),
    "w4a8_awq": ("int4", "fp8"), "int8": ("int8", None), "int8_sq": ("int8", None),
}  # fmt: skip
#: Engines keep their index keys in FP8 with four bytes of scale for 128, whatever the cache: as many bytes as MXFP8 takes.
_FP8_INDEX = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
#: The kinds of matrices, by the names that checkpoints give their modules; the first that fits counts.
_KINDS = {
    "": r"norm|bias|indexer|conv|\.gate\.",  # too small to tell, or never quantised
    "head": r"(^|\.)(lm_head|head|output)$",
    "embedding": r"embed",
    "shared": r"shared_expert",
    "experts": r"\.experts",
    "router": r"router|\.gate$",
    "mixer": r"attn|attention|mixer\.(in|out|q|k|v|o)_proj|mamba",
    "ffn": r"mlp|feed_forward|ffn|gate_up|down_proj",
}


def read_precision(path: Path) -> Precision:
    """Read ``quantization_config`` of a ``config.json``, and ModelOpt's ``hf_quant_config.json`` beside it."""
    config = read_object(path)
    beside = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
    if beside == path or not beside.is_file():
        return _read(config, f"{path}: quantization_config", f"as {path.parent.name or path.name} says")
    read = read_object(beside)
    return _read(config, str(beside), f"as {beside.name} says", read.get("quantization", read))


def _read(
    config: Mapping[str, Any], where: str, source: str, beside: Mapping[str, Any] | None = None
) -> Precision:
    """The precision that a configuration tells of.

    A kind of matrices counts as left out where most layers leave some of it out; that is exact for most checkpoints,
    and too large by the projections that stay quantised in others.
    """
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    given = config.get("quantization_config") or inner.get("quantization_config") or {}
    require(isinstance(given, Mapping), f"{where} must be an object", given)
    given = {**given, **(beside or {})}
    built = str(config.get("architectures"))
    index = "mxfp8" if any(name in built for name in _FP8_INDEX) else None
    if not given:
        return Precision(index=index, source=source)
    layers = inner.get("num_hidden_layers") or config.get("num_hidden_layers") or 1
    weights, activations = _scheme(given, where)
    apart = {}
    if mixed := given.get("quantized_layers"):
        require(isinstance(mixed, Mapping), f"{where}: quantized_layers must be an object", mixed)
        tally: dict[str, Counter[str]] = {}
        for module, how in mixed.items():
            name = lookup(_SCHEMES, str(how.get("quant_algo")).lower(), f"{where}: {module}: quant_algo")[0]
            tally.setdefault(_kind(module), Counter())[name] += 1
        apart = {kind: names.most_common(1)[0][0] for kind, names in tally.items()}
        if given.get("quant_method", "modelopt") == "modelopt":  # what is not listed is not quantised
            apart = {"mixer": "bf16", "ffn": "bf16", "shared": "bf16"} | apart
            activations = "bf16" if any("a16" in str(how).lower() for how in mixed.values()) else "fp8"
    else:
        names = ("exclude_modules", "ignore", "modules_to_not_convert")
        listed = next((given[name] for name in names if given.get(name)), ())
        touched: dict[str, set[str]] = {}
        for module in map(str, listed):
            layer = re.search(r"layers\.(\d+)", module)
            clean = module.replace("\\", "").rstrip("*").rstrip(".")
            if not layer or not clean.endswith(layer[0]):  # one left out whole says nothing of its kinds
                touched.setdefault(_kind(clean), set()).add(layer[1] if layer else "all")
        many = [kind for kind, which in touched.items() if "all" in which or 2 * len(which) >= layers]
        apart = dict.fromkeys(many, "bf16")
    if config.get("expert_dtype") == "fp4" and "experts" not in apart:
        apart["experts"] = "mxfp4"
    head = apart.pop("head", "bf16")
    for kind in ("embedding", "router", ""):
        apart.pop(kind, None)
    return Precision(weights, _cache(given, where), index, head=head, activations=activations,
                     apart={kind: name for kind, name in apart.items() if name != weights},
                     source=source)  # fmt: skip


def _kind(module: str) -> str:
    return next((kind for kind, names in _KINDS.items() if re.search(names, module)), "")


def _scheme(given: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """How the weights are stored, and what the arithmetic runs in where that does not follow from it."""
    method = str(given.get("quant_method", "")).lower()
    name = str(given.get("quant_algo") or method).lower()
    if name == "mixed_precision":  # each kind is told apart, and the rest is as the method says
        return ("fp8" if method == "fp8" else "nvfp4"), None
    if name in ("gptq", "awq") and given.get("bits") == 8:
        name = "int8"
    groups = given.get("config_groups")
    if name != "compressed-tensors" or not isinstance(groups, Mapping) or not groups:
        return lookup(_SCHEMES, name, f"{where}: scheme")
    group = next(iter(groups.values()))
    how = group.get("weights") or {}
    kind = f"{how.get('type')}{how.get('num_bits')}"
    names = {"float8": "fp8", "int8": "int8", "float4": "nvfp4", "int4": "int4"}
    if how.get("group_size") == 32:
        names["int4"] = "int4-g32"
    if "mxfp4" in str(group.get("format") or given.get("format")):
        names["float4"] = "mxfp4"
    return lookup(names, kind, f"{where}: weights of"), None if group.get("input_activations") else "bf16"


def _cache(given: Mapping[str, Any], where: str) -> str:
    """The precision of the KV cache that a checkpoint was calibrated for; BF16 where it says nothing."""
    scheme = given.get("kv_cache_quant_algo") or given.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        scheme = {8: "fp8", 4: "nvfp4"}.get(scheme.get("num_bits", 0), str(scheme))
    if not scheme:
        return "bf16"
    return lookup({"fp8": "fp8", "nvfp4": "nvfp4", "int8": "int8"}, str(scheme).lower(), f"{where}: KV cache")
