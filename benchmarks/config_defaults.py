"""Write data/config_defaults.toml: what the configuration classes of transformers take where a file says nothing.

Only values that a reader of :mod:`kinetics_lab.cost.families` asks for are kept. Needs transformers (extra ``generate``).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from kinetics_lab.cost import families

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "data" / "config_defaults.toml"
#: Of these the names differ from those of a file, or the class computes them.
LEFT_OUT = {"layer_types", "mlp_layer_types"}


def asked() -> set[str]:
    """Every key that a reader's source names."""
    folder = Path(families.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    return {key for text in texts for key in re.findall(r'"(\w+)"', text)} - LEFT_OUT


def config_class(model_type: str) -> tuple[type, dict[str, Any]]:
    """The class of a model type's decoder; and, where an outer class decides that, whether embeddings are tied."""
    from transformers import CONFIG_MAPPING

    outer = CONFIG_MAPPING[model_type.removesuffix("_text")]
    inner = getattr(outer, "sub_configs_defaults", {}).get("text_config")
    if inner is None:
        return CONFIG_MAPPING[model_type], {}
    tied = {one.name: one.default for one in dataclasses.fields(outer)}.get("tie_word_embeddings", False)
    return getattr(inner, "config_class", inner), {"tie_word_embeddings": bool(tied)}


def table() -> dict[str, dict[str, Any]]:
    """Defaults by model type, for all types that transformers knows."""
    from transformers import CONFIG_MAPPING

    keys, found = asked(), {}
    for *_, types in families._ROWS:
        for model_type in types.split():
            if model_type.removesuffix("_text") not in CONFIG_MAPPING:
                continue
            cls, tied = config_class(model_type)
            values = {one.name: one.default for one in dataclasses.fields(cls)}
            kept = {k: v for k, v in values.items() if k in keys and isinstance(v, int | str)}
            if model_type != "opt":  # the one with a table of positions
                kept.pop("max_position_embeddings", None)
            found[model_type] = dict(sorted((kept | tied).items()))
    return found


def text(found: dict[str, dict[str, Any]]) -> str:
    """The table as TOML, one line a model type."""
    lines = [
        "# What a configuration's class takes where its file says nothing: transformers 5.23, values that readers ask for."
    ]
    for model_type, values in found.items():
        inside = ", ".join(
            f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in values.items()
        )
        lines.append(f"{model_type} = {{ {inside} }}".replace("'", '"'))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(table()), encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")
