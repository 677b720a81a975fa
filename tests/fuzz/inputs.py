"""What the fuzzers give to the command line, and what must come of it: an answer that an oracle confirms, or one sentence.

Each target draws an input and returns how it ended, "refused" or "right". It raises ``WrongError`` for a traceback, a complaint that
is no sentence of this package, an answer that no JSON reader takes, and an answer that the oracle contradicts.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
import yaml
from hypothesis import strategies as st
from typer.main import get_command

from kinetics_lab import cli, read_traces
from kinetics_lab.book import claims, parameters
from kinetics_lab.cost.families import from_hf_config

_spec = importlib.util.spec_from_file_location(
    "by_transformers", Path(__file__).with_name("by_transformers.py")
)
oracle: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)
ROOT = Path(__file__).parent.parent.parent
OURS = ("kinetics_lab", "typer", "click")


class WrongError(AssertionError):
    """What no input may do."""


def _own(error: BaseException) -> bool:
    """Whether the package (or its command parser) complained by itself: a library's sentence says nothing of the input."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return any(f"/{name}/" in place for name in OURS) or isinstance(error, OSError)


@contextmanager
def asked(given: Any) -> Iterator[list[str]]:
    """Ask for an answer within: a complaint that is the package's own, and a sentence, is put into the list; others are wrong."""
    complaint = list[str]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield complaint
    except typer.TyperException as error:
        complaint.append(error.format_message())
    except (ValueError, OSError) as error:
        if not _own(error):
            raise WrongError(f"{given}: a library complained: {error!r}\n{traceback.format_exc()}") from error
        if not (text := str(error)) or len(text) > 4000 or text.count("\n") > 3:
            raise WrongError(f"{given}: no sentence: {text[:200]!r}") from error
        complaint.append(text)
    except Exception as error:
        raise WrongError(f"{given}: traceback {error!r}\n{traceback.format_exc()}") from error


def command(*words: str) -> tuple[bool, str]:
    """Whether a command answered, and its answer or complaint."""
    out, code = io.StringIO(), 0
    with asked(words) as complaint, redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = get_command(cli.app)(args=list(words), prog_name="kinetics-lab", standalone_mode=False)
    if code:
        raise WrongError(f"{words}: code {code}")
    return not complaint, complaint[0] if complaint else out.getvalue()


def strict(text: str) -> Any:
    """JSON as any reader takes it: NaN and Infinity are none."""

    def refuse(name: str) -> Any:
        raise WrongError(f"{name} in JSON: {text[:200]}")

    return json.loads(text, parse_constant=refuse)


NUMBERS = st.one_of(
    st.integers(-3, 40), st.integers(1, 10**6), st.integers(10**14, 10**17), st.integers(10**159, 10**161),
    st.floats(), st.sampled_from([0, -1, 1, 0.5, 1e300, -1e300, 1e-300, 10**400]),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["true", "false", "", "1", "\x1b[1m", "nan"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)  # fmt: skip


def written(value: Any) -> str:
    """A value as a word of the command line."""
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return "9" * 5000


# ---- cost ------------------------------------------------------------------------------------------------------

#: layers, query heads, key heads, width of a head, hidden, inner, vocabulary, tied; read off the models' cards.
SHAPES = {
    "qwen3-0.6b": (28, 16, 8, 128, 1024, 3072, 151936, True),
    "qwen3-8b": (36, 32, 8, 128, 4096, 12288, 151936, False),
    "qwen3-32b": (64, 64, 8, 128, 5120, 25600, 151936, False),
}


def dense_work(name: str, n_in: int, n_out: int, trials: int, share: bool) -> tuple[Fraction, Fraction]:
    """FLOP and KV bytes of decoding, dense, endless batch: counted here anew, in exact numbers."""
    layers, heads, kv, width, hidden, inner, vocabulary, tied = SHAPES[name]
    layer = hidden * width * (2 * heads + 2 * kv) + 3 * hidden * inner + 2 * hidden + 2 * width
    total = layers * layer + hidden + vocabulary * hidden * (1 if tied else 2)
    multiplied = total - (0 if tied else vocabulary * hidden)
    seen = Fraction(n_in * n_out) + Fraction(n_out) ** 2 / 2
    flops = trials * (2 * multiplied * n_out + 4 * layers * heads * width * seen)
    grown = trials * Fraction(n_out) ** 2 / 2
    read = n_in * n_out * (1 if share else trials) + grown
    return flops, 4 * layers * kv * width * read


COSTS = st.fixed_dictionaries(
    {"model": st.sampled_from([*SHAPES]), "n_in": NUMBERS, "n_out": NUMBERS},
    optional={
        "n_trials": NUMBERS, "hardware": st.sampled_from(["h200", "b200", "h2000", ""]), "devices": NUMBERS, "batch": st.one_of(NUMBERS, st.sampled_from(["fits", "endless", "x"])),
        "reserve": NUMBERS, "cached": NUMBERS, "combine": st.sampled_from(["add", "max", "both"]), "weights": st.sampled_from(["bf16", "fp8", "fp9"]),
        "policy": st.sampled_from(["dense", "topk:512", "block_topk:512:32", "topk:true", "topk:", "local:-1:9", "topk:1e9", "quest:1:2:3:4:5"]),
        "counting": st.sampled_from(["exact", "paper", "released", "none"]),
    },
)  # fmt: skip
USUAL = st.fixed_dictionaries(
    {"model": st.sampled_from([*SHAPES]), "n_in": st.integers(0, 10**6), "n_out": st.integers(1, 10**6),
     "n_trials": st.integers(1, 512), "batch": st.just("endless")}
)  # fmt: skip


def cost(given: dict[str, Any]) -> str:
    """The command `cost`, its FLOP and bytes against the exact count where that applies."""
    words = [w for name, value in given.items() for w in (f"--{name.replace('_', '-')}={written(value)}",)]
    answered, text = command("cost", "--json", *words)
    if not answered:
        if given.keys() == {"model", "n_in", "n_out", "n_trials", "batch"} and given["batch"] == "endless" and all(
            type(given[n]) is int and least <= given[n] <= 10**6 for n, least in (("n_in", 0), ("n_out", 1), ("n_trials", 1))
        ):  # fmt: skip
            raise WrongError(f"{given}: refused: {text}")
        return "refused"
    found = strict(text)
    told = {name: found[name] for name in ("flops", "bytes", "seconds", "eflops", "prefill_flops")}
    told |= {f"{part} {name}": value for part, work in found["parts"].items() for name, value in work.items()}
    for name, value in told.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise WrongError(f"{given}: {name} is {value}")
    for name, most in (("n_in", 10**15), ("n_out", 10**15), ("n_trials", 10**15), ("devices", 10**6)):
        if name in given and not 0 <= float(given[name]) <= most:
            raise WrongError(f"{given}: {name} beyond its range, and answered")
    if given.get("policy", "dense") != "dense" or given.get("counting", "exact") != "exact":
        return "right"
    for name in ("n_in", "n_out"):
        given = {**given, name: int(given[name])}
    flops, _ = work = dense_work(
        given["model"], given["n_in"], given["n_out"], int(given.get("n_trials", 1)), True
    )
    sure = [(found["flops"], flops)]
    if given.get("batch") == "endless" and given.get("weights", "bf16") == "bf16":
        sure.append((found["bytes"], work[1]))
    for got, want in sure:
        if abs(Fraction(got) - want) > Fraction(1, 10**12) * want:
            raise WrongError(f"{given}: {got!r}, exactly {float(want)!r}")
    return "right"


# ---- config.json -----------------------------------------------------------------------------------------------

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "attention_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
CHANGED = st.tuples(
    st.dictionaries(
        st.sampled_from([*QWEN3, "quantization_config", "layer_types", "extra"]), VALUES, max_size=3
    ),
    st.sets(st.sampled_from([*QWEN3]), max_size=2),
)
SIZED = st.tuples(
    st.sampled_from(oracle.TYPES),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in oracle.SIZES.items()}),
    st.dictionaries(st.sampled_from([*oracle.SIZES, "layer_types", "sliding_window", "extra"]), VALUES, max_size=1),
)  # fmt: skip
CONFIGS = st.one_of(CHANGED, SIZED)
LAYERS = 64  # of the largest model that transformers is asked to build


def config(given: Any) -> str:
    """`cost` on a configuration: refused, or counted as the values say and, where it can be built, as transformers counts."""
    return sized(*given) if len(given) == 3 else changed_qwen3(*given)


def priced(values: dict[str, Any]) -> tuple[bool, str, int]:
    """Whether `cost` answered of a configuration, what it said, and the parameters that the reader counts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(values), encoding="utf-8")
        answered, text = command(
            "cost", "--json", "--batch=endless", "--n-in=100", "--n-out=1000", "--model", str(path)
        )
        return answered, text, from_hf_config(path).n_params if answered else 0


def sized(model_type: str, drawn: dict[str, Any], odd: dict[str, Any]) -> str:
    """A model of some class with other sizes, and at times a value of any kind: as many parameters as the class has."""
    name = oracle.text_classes().get(model_type)
    known = oracle.sizes(model_type) if name else {}
    drawn = oracle.MORE.get(model_type, {}) | {key: one for key, one in drawn.items() if key in known}
    if model_type in oracle.MORE:
        drawn["num_hidden_layers"] = known["num_hidden_layers"]
    about = {"architectures": [name]} if name else {}
    answered, text, count = priced(about | {"model_type": model_type} | drawn | odd)
    if answered:
        strict(text)
    total = oracle.total(model_type, drawn) if name and not odd.keys() - {"extra"} else None
    heads, kv = ((known | drawn).get(key) or 1 for key in ("num_attention_heads", "num_key_value_heads"))
    if total is None or (
        not answered and heads % (2 * kv)
    ):  # a window may have twice as many KV heads: no whole group
        return "right" if answered else "refused"
    if not answered or count != total:
        raise WrongError(f"{model_type} {drawn}: {count if answered else text}, transformers {total}")
    return "compared"


def changed_qwen3(changed: dict[str, Any], left_out: set[str]) -> str:
    """A Qwen3 with values of any kind in some places."""
    given = changed, left_out
    values = {k: v for k, v in (QWEN3 | changed).items() if k not in left_out}
    answered, text, count = priced(values)
    if not answered:
        return "refused"
    found = strict(text)
    known = {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    }
    if any(values.get(k) is None for k in (*known, "tie_word_embeddings")) or changed.keys() - known - {
        "rms_norm_eps",
        "rope_theta",
        "extra",
    }:
        return "right"  # a class's default, or another layout: families have their own tests
    numbers = [
        values[k]
        for k in (
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
        )
    ]
    if not all(type(n) is int and 1 <= n <= 10**15 for n in numbers):
        raise WrongError(f"{given}: {numbers} answered")
    SHAPES["own"] = (*numbers, True)
    want = dense_work("own", 100, 1000, 1, True)[0]
    if abs(Fraction(found["flops"]) - want) > Fraction(1, 10**12) * want:
        raise WrongError(f"{given}: {found['flops']!r}, exactly {float(want)!r}")
    sizes = {name: values[name] for name in (*known, "tie_word_embeddings")}
    total = oracle.total("qwen3", sizes) if values["num_hidden_layers"] <= LAYERS else None
    if total not in (None, count):
        raise WrongError(f"{given}: {count} parameters, transformers {total}")
    return "right" if total is None else "compared"


# ---- traces ----------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 12, "completion_tokens": 700, "total_tokens": 712}
RECORDS: dict[str, dict[str, Any]] = {
    "table": {"model": "m", "task": "t", "problem": "p", "trial": 0, "policy": "dense", "tokens_in": 12, "tokens_out": 700, "correct": 1, "truncated": 0},
    "openai": {"id": "c", "model": "m", "prompt": "What is 2 + 2?", "usage": USAGE, "correct": 1,
               "choices": [{"index": 0, "message": {"role": "assistant", "content": "4", "reasoning_content": "two"}, "finish_reason": "stop"}]},
    "batch": {"custom_id": "q1", "score": 1, "response": {"status_code": 200, "body": {"model": "m", "usage": USAGE, "choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}}},
    "vllm": {"request_id": "r", "prompt": "2 + 2?", "prompt_token_ids": list(range(12)), "correct": [1], "outputs": [{"index": 0, "text": "4", "token_ids": list(range(700)), "finish_reason": "stop"}]},
    "sglang": {"prompt": "2 + 2?", "text": "4", "correct": 1, "meta_info": {"id": "x", "prompt_tokens": 12, "completion_tokens": 700, "finish_reason": {"type": "stop"}}},
    "anthropic": {"id": "msg", "model": "m", "problem": "p", "correct": 1, "content": [{"type": "text", "text": "4"}], "stop_reason": "end_turn", "usage": {"input_tokens": 12, "output_tokens": 700}},
    "lm-eval": {"doc_id": 0, "doc": {"question": "2 + 2?"}, "arguments": {"gen_args_0": {"arg_0": "2 + 2?"}}, "resps": [["4"]], "filtered_resps": ["4"], "filter": "none", "metrics": ["exact_match"], "exact_match": 1, "doc_hash": "h"},
    "inspect": {"id": 1, "epoch": 1, "input": "2 + 2?", "eval": {"model": "m", "task": "t"}, "scores": {"match": {"value": "C", "answer": "4"}},
                "output": {"model": "m", "choices": [{"message": {"role": "assistant", "content": "4"}, "stop_reason": "stop"}], "usage": {"input_tokens": 12, "output_tokens": 700, "total_tokens": 712}}},
    "evalscope": {"index": 0, "input": "2 + 2?", "sample_score": {"score": {"value": {"acc": 1.0}, "extracted_prediction": "4", "prediction": "4", "main_score_name": "acc"}}},
    "counts": {"problem": "p", "n": 8, "correct": 3, "mean_tokens": 700},
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a record."""
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, dict[str, Any], bool]:
    """A record of some format with a value of any kind in some of its places, and whether anything was changed."""
    name = draw(st.sampled_from([*RECORDS]))
    record = copy.deepcopy(RECORDS[name])
    chosen = draw(st.lists(st.sampled_from(places(record)[1:]), max_size=2))
    for *above, last in chosen:
        holder: Any = record
        try:
            for key in above:
                holder = holder[key]
            holder[last] = draw(VALUES)
        except (TypeError, KeyError, IndexError):
            continue
    return name, record, bool(chosen)


def traces(given: tuple[str, dict[str, Any], bool]) -> str:
    """`traces` on three plain records and a changed one: refused, or counted as a plain recount says."""
    name, record, touched = given
    plain = [copy.deepcopy(RECORDS[name]) for _ in range(3)]
    for i, one in enumerate(plain):  # other requests, other trials
        for holder in (one, one.get("meta_info", {})):
            for key in holder.keys() & {"id", "request_id", "custom_id", "trial", "doc_id"}:
                holder[key] = i + 10 if isinstance(holder[key], int) else f"{holder[key]}{i}"
        if name in ("lm-eval", "evalscope"):
            one["doc"], one["input"] = {"question": f"{i}?"}, f"{i}?"
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "m.jsonl"), Path(folder, "out.parquet")
        path.write_text("".join(json.dumps(one) + "\n" for one in (*plain, record)), encoding="utf-8")
        if name == "counts":
            answered, text = command(
                "plan", "--json", "--traces", str(path), "--model", "m=qwen3-8b", "--budget", "5"
            )
            return "right" if answered and [strict(line) for line in text.splitlines()] else "refused"
        said = {
            "model": None if name in ("table", "inspect") else "m",
            "task": None if name in ("table", "inspect") else "t",
        }
        said["policy"] = None if name == "table" else "dense"
        words = [w for key, value in said.items() if value for w in (f"--{key}", value)]
        given_words = words if name in ("table", "inspect") else [*words, "--limit", "1000"]
        if name in ("lm-eval", "evalscope"):
            with asked(given) as complaint:
                table = read_traces([path], tokenizer=str.split, limit=1000, **said)
            answered, text = not complaint, "".join(complaint)
        else:
            answered, text = command("traces", str(path), "-o", str(out), *given_words)
            table = pq.read_table(out).to_pandas() if answered else None
    if not answered:
        if not touched:
            raise WrongError(f"{given}: refused unchanged: {text}")
        return "refused"
    if len(table) not in (3, 4) and name != "vllm":
        raise WrongError(f"{given}: {len(table)} trials of 4")
    rows = table.to_dict("records")
    if not touched and name not in ("lm-eval", "evalscope"):
        for row in rows:
            if (row["tokens_in"], row["tokens_out"], bool(row["correct"])) != (12, 700, True):
                raise WrongError(f"{given}: {row}")
    if any(not 0 <= row["tokens_out"] < 2**31 or row["tokens_in"] < 1 for row in rows):
        raise WrongError(f"{given}: {rows}")
    if name == "table" and record.get("tokens_out") == 700 and {row["tokens_out"] for row in rows} != {700}:
        raise WrongError(f"{given}: {rows}")
    return "right"


# ---- Parquet, claims, grids, policies --------------------------------------------------------------------------

KINDS = [pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary(),
         pa.date32(), pa.timestamp("ns"), pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.null(), pa.decimal128(5, 1),
         pa.dictionary(pa.int8(), pa.string()), pa.duration("s"), pa.time32("s")]  # fmt: skip
SCHEMAS = st.dictionaries(
    st.sampled_from([*RECORDS["table"], "answer", "odd"]), st.integers(0, len(KINDS) - 1), max_size=4
)


def parquet(given: dict[str, int]) -> str:
    """`traces` on a Parquet file whose columns have other types; a value that the type cannot hold is null there."""
    values = {name: [value] * 2 for name, value in (RECORDS["table"] | {"answer": "4", "odd": "x"}).items()}
    values["trial"] = [0, 1]
    columns = {}
    for name, kind in ((n, KINDS[given[n]] if n in given else None) for n in values):
        try:
            columns[name] = pa.array(values[name], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, pa.ArrowNotImplementedError):
            columns[name] = pa.nulls(2, kind)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "m.parquet"), Path(folder, "out.parquet")
        pq.write_table(pa.table(columns), path)
        answered, _ = command("traces", str(path), "-o", str(out))
        if not answered:
            return "refused"
        rows = pq.read_table(out).to_pandas().to_dict("records")
    if [(row["tokens_in"], row["tokens_out"], bool(row["correct"])) for row in rows] != [(12, 700, True)] * 2:
        raise WrongError(f"{given}: {rows}")
    return "right"


FINDINGS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"id": st.just("kv-per-token"), "value": st.floats(0, 9), "interval": st.one_of(st.none(), st.tuples(st.floats(0, 9), st.floats(0, 9)))}),
        st.fixed_dictionaries({"id": st.one_of(VALUES, st.sampled_from(["kv-per-token", "x"])), "value": VALUES, "interval": VALUES}),
        VALUES,
    ), max_size=3,
)  # fmt: skip


def findings(given: list[Any]) -> str:
    """A file of findings: refused, or every value finite and inside its interval."""
    ids = list(claims.load_claims())
    lines = [
        one | {"id": ids[0]} if isinstance(one, dict) and one.get("id") == "kv-per-token" else one
        for one in given
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "claims.jsonl")
        path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
        with asked(given) as complaint:
            found = claims.read_findings(path)
    if complaint:
        return "refused"
    for finding in found.values():
        if finding.value is not None:
            low, high = finding.interval or (finding.value, finding.value)
            if not (math.isfinite(finding.value) and low <= finding.value <= high):
                raise WrongError(f"{given}: {finding.value}, {finding.interval}")
    return "right"


GRID = {
    "notebook": "notebooks/10_what_does_a_token_cost.ipynb",
    "axes": {"n_out": [1024, 2048]},
    "fixed": {"n_in": 512},
}
GRIDS = st.one_of(
    st.builds(lambda axis, more: GRID | {"axes": {"n_out": axis} | more, "fixed": {}},
              st.one_of(st.lists(st.integers(1, 10**5), min_size=1, max_size=4),
                        st.fixed_dictionaries({"from": st.integers(1, 2000), "to": st.integers(1, 2000)}, optional={"step": st.integers(-3, 999), "factor": st.integers(0, 5)})),
              st.dictionaries(st.sampled_from(["n_in"]), st.lists(st.integers(0, 99), max_size=3), max_size=1)),
    st.dictionaries(st.sampled_from(["notebook", "fixed", "axes", "zip", "exclude", "show", "odd"]), VALUES, max_size=4).map(lambda d: GRID | d),
    st.dictionaries(st.sampled_from(["n_out", "n_in", "batch", "model", "odd"]),
                    st.one_of(VALUES, st.fixed_dictionaries({"from": NUMBERS, "to": NUMBERS}, optional={"step": NUMBERS, "factor": NUMBERS, "x": NUMBERS})),
                    max_size=3).map(lambda d: GRID | {"axes": d, "fixed": {}}),
)  # fmt: skip


def grid(given: dict[str, Any]) -> str:
    """A grid file: refused, or at most the points that its axes can give, all different, each value one that was given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grid.yml")
        try:
            path.write_text(yaml.safe_dump(given), encoding="utf-8")
        except ValueError:
            return "refused"  # more digits than Python writes
        spec = given
        if isinstance(given.get("notebook"), str):
            spec = {**given, "notebook": str(ROOT / given["notebook"])}
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        with asked(given) as complaint:
            found = parameters.read_grid(path)
    if complaint:
        return "refused"
    texts = [json.dumps(point, default=str) for point in found.points]
    if not 0 < len(set(texts)) == len(texts) <= parameters.MOST_POINTS:
        raise WrongError(f"{given}: {len(texts)} points")
    return "right"


NAMED = st.one_of(
    st.sampled_from(
        [
            "dense",
            "topk:512",
            "topk:512:false",
            "block_topk:512:32",
            "local:64:4",
            "strided_block_topk:512:32:4",
            "quest:512:16",
        ]
    ),
    st.builds("topk:{}:{}".format, st.integers(1, 10**16), st.sampled_from(["true", "false", "1"])),
    st.builds("block_topk:{}:{}".format, st.integers(1, 4096), st.integers(1, 64)),
)
POLICIES = NAMED | st.builds(
    ":".join, st.lists(st.one_of(st.sampled_from(["dense", "topk", "block_topk", "local", "strided_block_topk", "quest", "true", "false", "512", "16", "32"]),
                                 NUMBERS.map(written), st.text(max_size=3)), min_size=1, max_size=6),
)  # fmt: skip


def policy(given: str) -> str:
    """A policy's text: refused, or one that reads no more than there is and is spelled so that it reads back."""
    from kinetics_lab import parse_policy

    with asked(given) as complaint:
        found = parse_policy(given)
    if complaint:
        return "refused"
    if parse_policy(str(found)) != found:
        raise WrongError(f"{given!r}: reads back as {found}")
    answered, text = command(
        "cost",
        "--json",
        "--batch=endless",
        "--model=qwen3-8b",
        "--n-in=100",
        "--n-out=1000",
        "--policy",
        given,
    )
    if answered:
        work, dense = strict(text), dense_work("qwen3-8b", 100, 1000, 1, True)
        if not 0 <= work["parts"]["attention"]["bytes"] <= float(dense[1]) * 1.001:
            raise WrongError(f"{given!r}: {work['parts']}")
    return "right" if answered else "refused"


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "command lines": (st.one_of(COSTS, USUAL), cost),
    "config.json": (CONFIGS, config),
    "trace records": (changed(), traces),
    "Parquet schemas": (SCHEMAS, parquet),
    "grids": (GRIDS, grid),
    "findings": (FINDINGS, findings),
    "policies": (POLICIES, policy),
}
