"""Shapes of models of your own, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from kinetics_lab.cost.families import plain
from kinetics_lab.cost.families.fields import Fields
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup


def from_hf_config(config: str | PathLike[str] | Mapping[str, Any]) -> ModelShape:
    """Shape of a ``config.json`` (a path, or the parsed mapping).

    Raises ``ValueError`` for an architecture whose parameters this package cannot count, for a missing
    key, for a value out of range and for a file that is not JSON.
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
    family, read = lookup(READERS, architecture, f"{where}: architecture")
    shape = read(Fields(config, where, architecture))
    return replace(shape, name=config.get("_name_or_path") or folder or architecture, family=family)


#: Architecture in a config.json -> family, and the reader of its values.
READERS: dict[str, tuple[str, Callable[[Fields], ModelShape]]] = {
    "Qwen3ForCausalLM": ("qwen3", partial(plain.llama, qk_norm=True)),
    "Qwen3MoeForCausalLM": ("qwen3-moe", plain.qwen3_moe),
    "Qwen2ForCausalLM": ("qwen2.5", partial(plain.llama, bias=True)),
    "LlamaForCausalLM": ("llama3", plain.llama),
    "OPTForCausalLM": ("opt", plain.opt),
    "DeepseekV3ForCausalLM": ("deepseek-v3", plain.deepseek_v3),
}
