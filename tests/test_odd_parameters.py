"""Every chapter under odd parameters: it runs and shows no nonsense, or says in one sentence which one is wrong.

A chapter's sets are drawn with a seed, pair by pair: each new set is the candidate that shows most pairs of values not
seen together before. Every fourth set has one value that the chapter ought to refuse; values that exclude each other
are not drawn together. Cells run in this process, one after the other, with what papermill would put in. As a command it says what came of the chapters it is given:

    python tests/test_odd_parameters.py 33 35             # -v: every set with what came of it
    ODD_SETS=12 python tests/test_odd_parameters.py --write   # all chapters, into benchmarks/odd_parameters.csv

ODD_SEED=x draws other sets.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from kinetics_lab.book.parameters import declared_parameters

_spec = importlib.util.spec_from_file_location("chapters", Path(__file__).with_name("chapters.py"))
chapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chapters)

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETS = int(os.environ.get("ODD_SETS", "2"))
SEED = os.environ.get("ODD_SEED", "")
TABLE = ROOT / "benchmarks" / "odd_parameters.csv"
HEAD = "chapter,tried,ran,refused,wrong,seconds"
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
          "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
          "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip

MODELS = ["qwen3-0.6b", "qwen3-32b", "qwen3-30b-a3b", "llama3-405b", "opt-125m", "deepseek-v3", "gpt-oss-20b",
          "gemma-3-27b", "qwen3.5-27b", "kimi-linear-48b-a3b", "config.json"]  # fmt: skip
QWEN = ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-14b", "qwen3-32b"]
# Values by the parameter's name: odd ones that ought to run (or to be refused clearly), and ones that ought to be refused.
ODD: dict[str, list[Any]] = {
    "model": MODELS, "small_model": MODELS, "shape": MODELS,
    "hardware": ["h200", "a100", "l4", "mi300x", "rtx-4090", "gb300"],
    "precision": [None, None, "fp8"], "weights": [None, "bf16", "fp8", "int4"], "kv": [None, "bf16", "fp8"],
    "level": [0.05, 0.5, 0.7, 0.95, 1.0], "tolerated": [0.0, 1.0, 50.0], "hit": [0.01, 0.5, 1.0],
    "false_alarm": [0.0, 0.7, 1.0], "target": [0.01, 1.0], "target_dense": [0.01, 1.0],
    "target_sparse": [0.01, 1.0], "target_products": [0.01, 1.0], "clustering": [0.0, 1.0], "reserve": [0.0, 0.5],
    "n_in": [0, 1, 2000, 131072], "n_out": [1, 7, 131072], "context": [1, 1024, 1_000_000],
    "n_trials": [1, 2, 33, 1024], "batch": [1, 7, 4096], "batches": [[1], [7, 100_000], []],
    "budget": [1, 16, 65536], "budgets": [[1e-9], [1e9], [0.5, 2], [3, 3]], "design_length": [1, 4096, 1 << 20],
    "n_devices": [1, 3, 64], "devices": [None, 1, 8], "k_max": [1, 2, 8], "n_far": [1, 33, 10**6],
    "n_boot": [20, 40], "n_splits": [1, 2], "n_draws": [2, 20], "seed": [0, 7], "example_seed": [0, 7],
    "trials": [[1], [4], [1, 3, 8]], "caps": [[], [8], [16, 64, 100_000]], "dense_layers": [0, 1, 1000],
    "choices": [{}, {"gpqa_diamond": 4}], "shapes": [{"glm-5": ["glm-5"]}, {}],
    "clock": ["h200:vllm", "a100:vllm", "fitted:h200:vllm"], "combine": ["add", "max"],
    "gpu": ["nvidia-h200", "nvidia-a100", "nvidia-l40s"], "engine": ["vllm", "sglang", "trtllm"],
    "launch_us": [0.0, 100.0], "unit": ["s", "eflops"], "strategy": ["until-right", "best-of", "majority", "verified:0.8:0.3"],
    "allocation": ["uniform", "oracle", "hindsight"], "policies": [[], ["dense"], ["block_topk", "dense"]],
    "topk": ["out", "scan", "free"], "price": [0.01, 3.99], "max_seconds": [None, 1e-6, 600], "max_tpot": [None, 1e-9, 0.04],
    "among": [[], ["qwen3-8b"]], "share_prompt": [False, True], "verdict": ["all", "differs", "needs data"],
    "example": [0, 5], "example_nodes": [5, 32], "size": ["w16", "w64", "w128"], "training_seed": [0, 1],
    "intensities": [[0], [0, 1e6]], "fitted": ["qwen3-0.6b", "qwen3-1.7b"],
    "models": [["qwen3-8b 2025"], ["opt-175b 2022", "gpt-oss-20b 2025"]],
    "n_tokens": [1, 17, 5000], "page_size": [16, 64], "block_size": [16, 64], "n_blocks": [1, 3, 1000], "sink_blocks": [0, 2],
    "window_blocks": [0, 2], "group": [1, 3, 8], "tile": [16, 64], "parts": [1, 3, 50],
    "task": ["aime25", "gpqa_diamond", "livecodebench"], "sampled": QWEN, "n_problems": [1, 10**6],
    "waits": [[1e-6], [1e6]], "limits": [[1e-3], [1, 1e9]], "public_budgets": [[1e-6], [7]], "public_weights": ["bf16", "nvfp4"],
}  # fmt: skip
BAD: dict[str, list[Any]] = {
    "model": ["qwen3-8", "no/config.json"], "small_model": [""], "shape": ["x"], "hardware": ["b300x"], "precision": ["fp4x"],
    "weights": ["fp3"], "level": [0.0, 1.5], "n_in": [-1], "n_out": [0, -1], "n_trials": [0], "context": [0, -1], "batch": [0],
    "budget": [0], "budgets": [[]], "n_boot": [0, 1, 10], "n_splits": [0], "trials": [[0], []], "clock": ["h200:nothing", 5],
    "gpu": ["nvidia-t4"], "engine": ["tgi"], "strategy": ["lucky"], "allocation": ["fair"], "unit": ["yen"],
    "policies": [["most"]], "among": [["gpt-9"]], "verdict": ["maybe"], "size": ["w7"], "training_seed": [99],
    "example_nodes": [3], "k_max": [0], "n_far": [0], "task": ["mmlu"], "models": [["who 2020"], []],
    "fitted": ["gpt-9"], "n_tokens": [0], "page_size": [0], "block_size": [0], "n_blocks": [0], "group": [0], "tile": [0],
    "parts": [0], "hit": [1.5], "false_alarm": [-0.1], "target": [0.0], "reserve": [0.99, 1.0], "n_devices": [0],
    "target_dense": [0.0], "target_sparse": [1.5], "target_products": [0.0],
    "tolerated": [-1.0], "n_draws": [0], "combine": ["min"], "dense_layers": [-1], "design_length": [0], "caps": [[0]],
    "topk": ["yes"], "intensities": [[]], "batches": [[0]], "clustering": [2.0], "launch_us": [-1.0], "price": [-1.0],
    "devices": [0, "eight"], "max_seconds": ["soon"], "kv": ["fp3"], "sampled": ["gpt-9"], "n_problems": [0], "waits": [[0]], "limits": [[0]],
    "public_budgets": [[]], "public_weights": ["fp3"], "machine": ["abacus"], "preset": ["tpu"], "measurements": ["no/folder"],
}  # fmt: skip
# Chapters on traces know the models that were sampled, and no other. By the chapter's number: odd values, and bad ones.
SAMPLED = {"model": QWEN}, {"model": ["gpt-oss-20b", "config.json"]}
EFFORTS = ["claude-sonnet-4-5-20250929", "gpt-5-nano-2025-08-07", "claude-haiku-4-5-20251001"]
CASE: dict[str, list[Any]] = {
    "hardware": ["h200", "h200", "rtx-4090"],
    "clock": ["", "h200:vllm"],
    "weights": ["", "fp8"],
}
OWN: dict[str, tuple[dict[str, list[Any]], dict[str, list[Any]]]] = {
    **dict.fromkeys(("23", "30", "31", "33", "34", "39"), SAMPLED),
    "00": ({"model": [*QWEN, "llama3-405b", "opt-125m", "config.json"], "n_in": [1, 2000, 131072]},
           {"model": ["qwen3-8", "deepseek-v3", "gemma-3-27b"], "n_in": [0, -1]}),
    "12": ({"model": ["qwen3-32b", "llama3-405b", "deepseek-v3"], "n_out": [8, 131072],
            "small_model": ["opt-125m", "qwen3-0.6b", "config.json", "gpt-oss-20b"]},
           {"model": ["qwen3-0.6b", "no/config.json"], "small_model": ["qwen3-32b"], "n_out": [0, 7]}),
    "13": ({"budget": [8, 16, 65536]}, {"budget": [0, 1]}),
    "15": ({"n_devices": [3, 64], "context": [1, 1024, 131072]}, {"n_devices": [0, 1], "n_out": [0, -1]}),
    "22": ({"n_tokens": [1024, 5000, 32768], "page_size": [16], "block_size": [16, 64, 128], "n_blocks": [1, 3]},
           {"n_tokens": [0, 17], "page_size": [64], "n_blocks": [1000]}),
    "25": ({"model": [*QWEN, "llama3-8b", "config.json"], "context": [2048, 131072], "budget": [16, 512]},
           {"model": ["qwen3-8", "no/config.json"], "context": [0, 1], "budget": [0, 1, 65536]}),
    "42": ({"caps": [[8], [16, 64, 100_000]], "trials": [[1], [1, 3, 8]]}, {"caps": [[0], []], "trials": [[0], [4], []]}),
    "35": ({"caps": [[]], "clock": [None, "h200:vllm", "fitted:h200:vllm"], "hardware": ["h200", "h200", "l4", "mi300x"],
            "budgets": [[1e9], [0.5, 2], [3, 3]], "max_seconds": [None, 600], "max_tpot": [None, 0.04], "batch": ["endless", 8]},
           {"caps": [[8]], "budgets": [[], [1e-9]]}),
    "36": ({"batch": ["fits"]}, {"batch": ["often"], "n_trials": [0, 33]}),
    "37": ({"model": EFFORTS, "task": ["gpqa_diamond"], "choices": [{"gpqa_diamond": 5}]}, {"choices": [{}]}),
    "38": ({"task": ["gpqa_diamond"]}, {}),
    "39": ({"model": QWEN, "task": ["livecodebench"]}, {"model": ["gpt-oss-20b"]}),
    "50": (CASE | {"budgets": [[1e-9], [7], [1, 1000]], "shapes": [{}]}, {"budgets": [[], [-1]]}),
    "51": (CASE | {"max_seconds": [1, 600]}, {"max_seconds": [0]}),
    "52": (CASE | {"hardware": ["h100", "h200"], "n_devices": [1, 2, 4]}, {"n_devices": [0, 3]}),
    "53": ({"weights": ["bf16", "int4"], "caps": [[64], [64, 100_000]],
            "shapes": [{"gemma-4-12b-it": "config.json", "deepseek-reasoner": "deepseek-v3.2"},
                       {"gemma-4-12b-it": "gemma-3-27b", "kimi-k2.6": "config.json", "gpt-oss-120b": "gpt-oss-120b"}]},
           {"caps": [[], [0], [8]],
            "shapes": [{"gemma-4-12b-it": "gemma-3-27b"}, {"gemma-4-12b-it": "gemma-3-27b", "glm-4.7": "glm-4.6"}, {}]}),
}  # fmt: skip
EIGHT_BITS = {"precision": "fp8", "weights": "fp8", "kv": "fp8"}


def together(drawn: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The values drawn, those set back that exclude each other: a clock is of one device and has its own precision."""
    bits = [name for name in EIGHT_BITS if name in drawn]
    if drawn.get("hardware") == "a100":  # multiplies no FP8
        drawn = drawn | {name: declared[name] for name in bits if drawn[name] == EIGHT_BITS[name]}
    if clock := drawn.get("clock"):
        *fitted, device, _engine = clock.split(":")
        drawn = drawn | ({"hardware": device} if "hardware" in drawn else {})
        drawn = drawn | ({} if fitted else {name: declared[name] for name in bits})
    return drawn


QUICK = {"n_boot": 20, "n_splits": 2, "n_draws": 20}  # what only makes intervals finer


def sets_of(chapter: Path) -> list[dict[str, Any]]:
    """Sets of odd parameters for one chapter, by greedy choice over pairs of values."""
    declared = declared_parameters(chapter)
    names = [name for name in declared if name in ODD or name in BAD]
    own = OWN.get(chapter.name[:2], ({}, {}))
    odd, bad = ODD | own[0], BAD | own[1]
    if chapter.name.startswith("35_"):  # its models are shapes by name, its task is that of the traces
        names = [name for name in names if name not in ("models", "task")]
    if declared.get("precision") is not None:
        odd["precision"] = [value for value in ODD["precision"] if value]
    dice, seen, found = random.Random(chapter.stem + SEED), set[tuple[Any, ...]](), list[dict[str, Any]]()
    for number in range(SETS if names else 0):
        best: tuple[int, dict[str, Any], set[tuple[Any, ...]]] = (-1, {}, set())
        for _ in range(20):
            drawn = {name: dice.choice([declared[name], *odd.get(name, [])]) for name in names}
            if number % 2:  # only a few at once, since odd values often exclude each other
                drawn |= {name: declared[name] for name in dice.sample(names, max(0, len(names) - 4))}
            drawn = together(drawn, declared)
            if number % 4 == 3 and (wrong := [name for name in names if name in bad]):
                name = dice.choice(wrong)
                drawn[name] = dice.choice(bad[name])
            values = sorted(drawn.items(), key=str)
            pairs = {repr(pair) for pair in [*values, *combinations(values, 2)]}
            new = pairs - seen
            if len(new) > best[0]:
                best = len(new), drawn, new
        if not best[2]:
            break  # all pairs were seen
        seen |= best[2]
        changed = {name: value for name, value in best[1].items() if value != declared[name]}
        found.append({name: QUICK[name] for name in QUICK if name in declared} | changed)
    return found


# ---- a chapter in this process --------------------------------------------------------------------------------


def outcome(chapter: Path, given: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """("ran", what is wrong with what it shows) or ("refused" or "raised", the message)."""
    values = {name: placed(value, folder) for name, value in given.items()}
    try:
        run = chapters.run_here(chapter, values, Path(tempfile.mkdtemp(dir=folder)))
    except Exception as error:
        return verdict(error, declared_parameters(chapter) | values), f"{type(error).__name__}: {error}"
    return "ran", "; ".join(chapters.wrong(run))


def placed(value: Any, folder: Path) -> Any:
    """The value with the configuration files that it names in this folder."""
    if isinstance(value, dict):
        return {key: placed(each, folder) for key, each in value.items()}
    return str(folder / value) if value in ("config.json", "no/config.json") else value


def verdict(error: BaseException, values: Mapping[str, Any]) -> str:
    """Refused, where it is one sentence of the package or the chapter that names a parameter or its value, as given."""
    text = str(error)
    words = {name for name, value in values.items() for name in (name, *_texts(value)) if name != "seed"}
    named = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)
    fine = isinstance(error, ValueError | FileNotFoundError) and "\n" not in text and len(text) < 500
    return "refused" if fine and named and not misquoted(text, values) else "raised"


def misquoted(text: str, values: Mapping[str, Any]) -> bool:
    """Whether a message says of a parameter that another value was given than was."""
    found = re.search(r"(?:^|: )(\w+) must (?:[^;]*); got (.+)$", text)
    if not found or (given := values.get(found[1])) is None:
        return False
    try:
        quoted = ast.literal_eval(found[2])
    except (SyntaxError, ValueError):
        return False
    parts = [given, *given, sorted(given)] if isinstance(given, list | dict) else [given]
    return (sorted(quoted) if isinstance(given, dict) else quoted) not in parts


def _texts(value: Any) -> list[str]:
    """The texts in a value, also without a year, by which a message may name its parameter; numbers are named by chance."""
    return [
        text for found in re.findall(r'"([^"]{2,})"', json.dumps(value)) for text in (found, found.split()[0])
    ]


Row = tuple[str, str, dict[str, Any]]


def table(chapter: Path, folder: Path) -> Iterator[Row]:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for given in sets_of(chapter):
        yield *outcome(chapter, given, folder), given


def is_bad(row: Row) -> bool:
    return row[0] == "raised" or (row[0] == "ran" and bool(row[1]))


def line(row: Row) -> str:
    ended, message, given = row
    return f"{ended:8}{' '.join(f'{k}={v}' for k, v in given.items() if QUICK.get(k) != v)}\n        {message[:400]}"


@pytest.mark.parametrize(
    ("given", "text", "wrong_value"),
    [
        ({"budget": 1}, "block_topk: budget must be a multiple of block_size=16; got 17", True),
        ({"n_boot": 1}, "n_boot must be >= 1; got 0", True),
        ({"n_boot": 0}, "n_boot must be >= 1; got 0", False),
        ({"context": 0}, "context must be positive (tokens); got 0.0", False),
        ({"shapes": {"b": "x", "a": "y"}}, "shapes must name c; got ['a', 'b']", False),
    ],
)
def test_a_message_that_names_another_value_than_was_given_is_no_refusal(given, text, wrong_value):
    assert misquoted(text, given) == wrong_value
    assert verdict(ValueError(text), given) == ("raised" if wrong_value else "refused")


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("print('all', n)", []),
        ("print(n * float('nan'))", ["shows 'nan'"]),
        ("import warnings\nwarnings.warn('old')", ["stderr: warned: old"]),
        ("import pandas as pd\npd.DataFrame({'n': []})", ["shows a table without rows"]),
        ("from IPython.display import HTML\nHTML('<td>-inf %</td>')", ["shows '-inf %'"]),
        ("from IPython.display import display\ndisplay({'a/vegalite': {'datasets': {'d': []}}}, raw=True)", ["shows a chart of 0 rows"]),
    ],
)  # fmt: skip
def test_what_no_reader_should_see_is_seen_here(cell, told, tmp_path, write_notebook):
    (tmp_path / "pyproject.toml").touch()
    chapter = write_notebook(tmp_path / "10_a.ipynb", ("code", "n = 1", "parameters"), ("code", cell))
    assert chapters.wrong(chapters.run_here(chapter, {"n": 2}, tmp_path / "run")) == told
    with pytest.raises(ZeroDivisionError):
        chapters.run_here(write_notebook(tmp_path / "b.ipynb", ("code", "1 / 0")), {}, tmp_path / "b")


def test_values_that_exclude_each_other_are_not_drawn_together():
    declared = {"hardware": "h200", "precision": None, "clock": ""}
    assert together({**declared, "hardware": "a100", "precision": "fp8"}, declared)["precision"] is None
    assert together({**declared, "clock": "fitted:h100:vllm", "precision": "fp8"}, declared) == {
        "hardware": "h100", "precision": "fp8", "clock": "fitted:h100:vllm"
    }  # fmt: skip
    assert together({**declared, "clock": "h100:vllm", "precision": "fp8"}, declared)["precision"] is None


@pytest.mark.slow
@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=lambda path: path.stem)
def test_odd_parameters_run_or_are_refused_in_one_sentence(chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = list(table(chapter, tmp_path))
    print(*map(line, rows), sep="\n")
    assert not any(map(is_bad, rows)), "\n" + "\n".join(map(line, filter(is_bad, rows)))
    assert len(rows) < 10 or any(row[0] == "ran" for row in rows)


def main(numbers: list[str]) -> None:
    """Try the chapters given, or all; what is wrong is printed, and a row for each chapter goes into the table."""
    import time

    for path in NOTEBOOKS:
        if numbers and path.name[:2] not in numbers:
            continue
        began, ends = time.process_time(), list[str]()
        with tempfile.TemporaryDirectory() as folder:
            for row in table(path, Path(folder)):
                ends.append("wrong" if is_bad(row) else row[0])
                if is_bad(row) or "-v" in sys.argv:
                    print(line(row), flush=True)
        told = [ends.count(end) for end in ("ran", "refused", "wrong")]
        new = ",".join(map(str, (path.stem, len(ends), *told, round(time.process_time() - began))))
        print(new, flush=True)
        if "--write" in sys.argv:
            rows = TABLE.read_text().splitlines()[1:] if TABLE.exists() else []
            kept = [row for row in rows if row.split(",")[0] != path.stem]
            TABLE.write_text("\n".join([HEAD, *sorted([*kept, new])]) + "\n")


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if not word.startswith("-")])
