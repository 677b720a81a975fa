"""What was said and how it was counted: the text of messages with their reasoning, and the counts that servers give."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kinetics_lab.errors import require

Record = dict[str, Any]
PROMPT = ("tokens_in", "prompt_tokens", "input_tokens", "num_prompt_tokens", "prompt_token_count")
OUTPUT = ("tokens_out", "completion_tokens", "output_tokens", "num_generated_tokens", "generated_tokens")
_CACHED = (
    "cache_read_input_tokens", "cache_creation_input_tokens", "input_tokens_cache_read", "input_tokens_cache_write",
)  # fmt: skip
_ENDED = dict.fromkeys(("stop", "eos", "end_turn", "stop_sequence", "tool_calls", "tool_use", "completed"), False)  # fmt: skip
_ENDED |= dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), True)
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MARKS = (
    "</think>", "<think", "</thought>", "<|channel|>", "[/THINK]", "</reasoning>", "<|end_of_thought|>", "◁/think▷",
)  # fmt: skip


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def part_of(record: Record, name: str) -> Record:
    """The object ``record[name]``, empty where there is none; anything else is refused."""
    value = record.get(name)
    require(value is None or isinstance(value, dict), f"{name} must be a JSON object", value)
    return value or {}


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """A whole number from JSON or from the text of a CSV cell."""
    if type(value) is int and least <= value < 2**31:
        return value  # as nearly all are
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    require(number % 1 == 0 and least <= number < 2**31, f"{name} must be a whole number >= {least}", value)
    return int(number)


def spoken(part: Any) -> str:
    """All that a message, a choice or a block of either says, the reasoning beside it included."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(spoken, part))
    if not isinstance(part, dict):
        return ""
    thought = next(filter(None, map(part.get, _THOUGHTS)), "")  # some servers give it under two names
    parts = (thought, part.get("message"), part.get("content"), part.get("text"))
    return "".join([spoken(one) for one in parts if one])


def thinks(part: Any) -> bool:
    """Whether a message or text shows that its model thought before it answered."""
    if isinstance(part, dict):
        parts = (part.get(name) for name in ("message", "content", "text"))
        return any(part.get(name) for name in _THOUGHTS) or any(map(thinks, parts))
    if isinstance(part, list):
        return any(map(thinks, part))
    return isinstance(part, str) and any(mark in part for mark in _MARKS)


def cut_by(reason: Any) -> bool:
    """Whether the generation limit ended an answer."""
    name = reason.get("type") if isinstance(reason, dict) else reason  # SGLang: {"type": "length", ...}
    cut = _ENDED.get(name) if isinstance(name, str) else None
    require(cut is not None, "finish_reason must be 'stop' or 'length' (an answer that ended)", name)
    return bool(cut)


def usage_of(said: Record, seen: Counter[str]) -> tuple[int | None, int | None]:
    """Tokens of prompt and completion by any of their names, None where not said; a total settles what they leave out.

    Some servers count cached prompt tokens, and some the reasoning, beside these two and only in the total. Reasoning
    found so is added, and counted in ``seen["beside"]``.
    """
    names = [next((n for n in known if said.get(n) not in (None, "")), None) for known in (PROMPT, OUTPUT)]
    prompt, output = (None if name is None else whole_number(said[name], name) for name in names)
    if prompt is None or output is None:
        return prompt, output
    beside, total = 0, said.get("total_tokens")
    if total is not None and (beside := whole_number(total, "total_tokens") - prompt - output) <= 0:
        return prompt, output  # as nearly all are
    cached = sum(whole_number(said[name], name) for name in _CACHED if said.get(name) is not None)
    details = part_of(said, "completion_tokens_details") or part_of(said, "output_tokens_details") or said
    thought = whole_number(details.get("reasoning_tokens") or 0, "reasoning_tokens")
    if total is None:  # Anthropic's input_tokens are those that no cache had
        beside = cached if names[0] == "input_tokens" and _CACHED[0] in said else 0
        beside = thought if thought > output and not beside else beside
    if beside <= 0:
        return prompt, output
    if beside <= cached and beside != thought:
        return prompt + beside, output
    seen["beside"] += 1
    return prompt, output + beside
