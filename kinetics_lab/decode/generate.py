"""Traces of any Hugging Face model under any policy: N answers a problem, graded, none lost.

Requests run side by side in slots; a slot that finishes takes the next trial at once. Every trial draws from its own
seed, so that neither the number of slots nor a restart changes an answer, as far as arithmetic is the same in every
batch: in fp32 on a CPU it is; on a GPU a rounding may tip a token, after which the answer is another draw. Finished answers are appended to a JSON
lines file as they come; a stopped run goes on from it, and when all are there the file is put in order.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinetics_lab import __version__
from kinetics_lab.cost.policies import Policy, Quest, parse_policy
from kinetics_lab.decode import answers
from kinetics_lab.decode import grade as grading
from kinetics_lab.decode.caches import page_block
from kinetics_lab.decode.grade import Problem
from kinetics_lab.decode.hf import Decoder, Prompt, shape_of
from kinetics_lab.errors import require
from kinetics_lab.traces.layout import layout_metadata, layout_name

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Settings:
    """What decides the answers: a file is continued with the same ones only.

    ``trials`` may grow later. ``max_tokens``: of an answer, its end token included. ``temperature`` 0 takes the likeliest token; ``top_k`` 0 and
    ``top_p`` 1 leave all tokens in. ``repeat_window``: an answer whose last so many tokens repeat a block of at most
    ``repeat_block`` tokens is stopped (0: never). ``dense_layers``: first layers that stay dense. ``instruction``
    follows the problem in the prompt.
    """

    policy: str = "dense"
    dense_layers: int = 0
    trials: int = 1
    max_tokens: int = 32768
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0
    repeat_window: int = 0
    repeat_block: int = 64
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        parse_policy(self.policy)  # says what is wrong with it
        for name, least in (("dense_layers", 0), ("trials", 1), ("max_tokens", 1), ("top_k", 0), ("seed", 0),
                            ("repeat_window", 0), ("repeat_block", 1)):  # fmt: skip
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(whole, f"{name} must be a whole number of at least {least}", value)
        require(0 <= self.temperature < np.inf, "temperature must be 0 or more", self.temperature)
        rule = "trials must be 1 where temperature is 0: all of them would be the same answer"
        require(self.temperature > 0 or self.trials == 1, rule, self.trials)
        require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        rule = f"repeat_window must be 0 or at least twice repeat_block={self.repeat_block}"
        require(
            self.repeat_window == 0 or self.repeat_window >= 2 * self.repeat_block, rule, self.repeat_window
        )


# ---- one token ------------------------------------------------------------------------------------------------


def draw(logits: Tensor, uniforms: Sequence[float], settings: Settings) -> list[int]:
    """One token for each row of ``logits [rows, vocabulary]``: by inversion, so that a uniform number decides it.

    Temperature first, then the ``top_k`` likeliest, then the fewest of these whose probability reaches ``top_p``.
    """
    if logits.isnan().any():
        raise ValueError(
            "the model's logits are not numbers; where its dtype is float16, try --dtype bfloat16"
        )
    if settings.temperature == 0:
        return [int(i) for i in logits.argmax(-1).tolist()]
    count = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    best, ids = logits.float().topk(count, -1)
    share = (best.double() / settings.temperature).softmax(-1)
    before = share.cumsum(-1) - share
    share = share.masked_fill(before >= settings.top_p, 0)  # the first always stays
    whole = share.cumsum(-1)
    dice = torch.tensor(uniforms, dtype=whole.dtype, device=whole.device)[:, None] * whole[:, -1:]
    kept = (share > 0).sum(-1, keepdim=True)
    at = torch.minimum((whole <= dice).sum(-1, keepdim=True), kept - 1)
    return [int(i) for i in ids.gather(-1, at)[:, 0].tolist()]


def repeats(ids: Sequence[int], window: int, block: int) -> bool:
    """Whether the last ``window`` tokens are one block of at most ``block`` tokens, over and over."""
    if not window or len(ids) < window:
        return False
    last = np.asarray(ids[-window:])
    return any((last[period:] == last[:-period]).all() for period in range(1, block + 1))


# ---- one trial ------------------------------------------------------------------------------------------------


class _Trial:
    """A request under way in a slot."""

    def __init__(self, problem: Problem, number: int, prompt: Prompt, settings: Settings) -> None:
        self.problem, self.number, self.prompt, self.ids = problem, number, prompt, list[int]()
        # From the problem's own name: other problems in the file change nothing.
        name = int.from_bytes(sha256(problem.id.encode()).digest()[:8], "big")
        self.dice = np.random.default_rng([settings.seed, name, number])

    def take(self, token: int, ends: frozenset[int], settings: Settings) -> str:
        """Take the token; why the answer ends with it, or ""."""
        self.ids.append(token)
        if token in ends:
            return "end"
        if len(self.ids) >= settings.max_tokens:
            return "length"
        # Once a block suffices: what repeats goes on repeating.
        due = len(self.ids) % settings.repeat_block == 0
        again = due and repeats(self.ids, settings.repeat_window, settings.repeat_block)
        return "repetition" if again else ""

    @property
    def held(self) -> int:
        """Tokens in the cache: all but the newest."""
        return self.prompt.length + len(self.ids) - 1


def decode(
    decoder: Decoder, prompts: Callable[[Problem], Prompt], todo: Iterator[tuple[Problem, int]],
    ends: frozenset[int], settings: Settings,
) -> Iterator[tuple[_Trial, str]]:  # fmt: skip
    """Decode all trials of ``todo``, each finished one with the reason of its end, in the order they finish."""
    slots: list[_Trial | None] = [None] * len(decoder.active)
    while True:
        for i, slot in enumerate(slots):
            while slot is None and (job := next(todo, None)):
                slot = _Trial(*job, prompts(job[0]), settings)
                token = draw(slot.prompt.logits[None], [slot.dice.random()], settings)[0]
                if reason := slot.take(token, ends, settings):  # ended at once: the slot is free again
                    yield slot, reason
                    slot = None
                    continue
                decoder.fill(i, slot.prompt)
                slot.prompt = replace(slot.prompt, layers=[])  # its keys and values are in the cache now
            slots[i] = slot
        live = [(i, slot) for i, slot in enumerate(slots) if slot]
        if not live:
            return
        logits = decoder.step(
            [slot.ids[-1] if slot else 0 for slot in slots],
            [slot.held if slot else 0 for slot in slots],
            [slot is not None for slot in slots],
        )
        rows = torch.tensor([i for i, _ in live], device=logits.device)
        tokens = draw(logits[rows], [slot.dice.random() for _, slot in live], settings)
        for (i, slot), token in zip(live, tokens, strict=True):
            if reason := slot.take(token, ends, settings):
                slots[i] = None
                yield slot, reason


def encode(tokenizer: Any, problem: Problem, settings: Settings) -> list[int]:
    """Token ids of a problem's prompt: the tokenizer's chat template where it has one, else the plain text."""
    text = f"{problem.text}\n{settings.instruction}".strip()
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(text))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation config and the tokenizer."""
    ends: set[int] = set()
    for given in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        ends |= set(given) if isinstance(given, list) else {given} - {None}
    return frozenset(ends)


def fitting_slots(model: Any, tokens: int, policy: Policy) -> int:
    """How many requests of this many tokens fill 90 % of the GPU's free memory; 8 on a CPU."""
    if model.device.type != "cuda":
        return 8
    # one search key for every block beside its keys and values, Quest three
    searched = (3 if isinstance(policy, Quest) else 1) / (2 * page_block(policy))
    each = shape_of(model).kv_bytes_per_token(model.dtype.itemsize) * tokens * (1 + searched)
    free = torch.cuda.mem_get_info(model.device)[0]
    rule = (
        f"max_tokens: an answer needs {each / 1e9:.1f} GB of GPU memory, {free / 1e9:.1f} GB are free; tokens"
    )
    require(each <= 0.9 * free, rule, tokens)
    return int(0.9 * free / each)


def generate(
    model: Any, tokenizer: Any, problems: Sequence[Problem], out: str | os.PathLike[str], settings: Settings, *,
    task: str, name: str, slots: int | None = None, progress: bool | None = None,
    grade: answers.Grader | None = None, compiled: bool = False,
) -> Path:  # fmt: skip
    """Sample ``settings.trials`` answers to every problem into a file of the folder ``out``; returns its path.

    model, tokenizer: of Hugging Face transformers, the model on its device. name, task: what the traces shall call
    them. slots: answers decoded side by side; decides speed; answers up to rounding. grade: by default math-verify's verdict. An
    answer that could not be graded is a line with ``error`` and no score; the next call grades it again.
    progress: a bar on stderr (None: on a terminal). compiled: see :class:`kinetics_lab.decode.hf.Decoder`.

    ``read_traces`` reads the file at any time. Beside it, when all answers are there, ``<file>.summary.json``.
    Raises ValueError for settings the model cannot be decoded with, and where the file belongs to other settings.
    """
    grade = grade or grading.grade
    require(len(problems) > 0, "problems must hold at least one", len(problems))
    require(slots is None or slots >= 1, "slots must be at least 1", slots)
    read = {p.id: encode(tokenizer, p, settings) for p in problems}
    longest = max(map(len, read.values()))
    require(min(map(len, read.values())) >= 1, "every prompt must have at least one token", 0)
    limit = getattr(model.config, "max_position_embeddings", None) or np.inf
    rule = f"max_tokens must leave room for the prompt of {longest} tokens within the model's {limit}"
    require(longest + settings.max_tokens <= limit, rule, settings.max_tokens)
    said = {"version": __version__, "model": name, "task": task} | asdict(settings)
    said |= {"weights": model.config._name_or_path, "revision": getattr(model.config, "_commit_hash", None),
             "dtype": str(model.dtype).removeprefix("torch.")}  # fmt: skip
    del said["trials"]  # more of them may be asked for later: they change no answer
    metadata = layout_metadata(settings.policy) | {"kinetics_lab": said}
    path = Path(out) / f"{layout_name(task, name, settings.policy)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)

    with answers.sole_writer(path):
        given = (model, tokenizer, problems, read, path, metadata, settings)
        left = _generate(*given, slots, progress, grade, compiled)
    if left:
        told = f"{left} answers have no verdict ({path}); the same command grades them again"
        warnings.warn(told, stacklevel=2)
    return path


def _generate(
    model: Any, tokenizer: Any, problems: Sequence[Problem], read: dict[str, list[int]], path: Path,
    metadata: dict[str, Any], settings: Settings, slots: int | None, progress: bool | None, grade: answers.Grader,
    compiled: bool,
) -> int:  # fmt: skip
    """What is missing in the file, then the file in order and its summary; how many answers have no verdict."""
    from tqdm import tqdm

    room = max(map(len, read.values())) + settings.max_tokens
    by_id = {p.id: p for p in problems}
    lines = answers.read_lines(path, metadata)
    strange = next((x["problem"] for x in lines if x["problem"] not in by_id), None)
    require(strange is None, f"{path} must hold problems that are given", strange)
    strange = next((x["problem"] for x in lines if x["query"] != by_id[x["problem"]].text), None)
    require(strange is None, f"{path} must hold the texts of the problems that are given", strange)
    # Where the prompt's template opens the thinking, the answer must not look as if it had never begun to think.
    opened = {name: tokenizer.decode(ids[-8:]).rstrip().endswith("<think>") for name, ids in read.items()}

    def verdict(line: answers.Line) -> answers.Line:
        return answers.graded(line, grade, by_id[line["problem"]], "<think>" * opened[line["problem"]])

    lines = answers.graded_again(path, metadata, lines, verdict)
    if not lines:
        answers.write_lines(path, metadata)
    done = {(line["problem"], line["trial"]) for line in lines}
    jobs = [(p, k) for p in problems for k in range(settings.trials)]
    todo = [(p, k) for p, k in jobs if (p.id, k) not in done]
    speed: dict[str, Any] = {}
    quiet = not (sys.stderr.isatty() if progress is None else progress)
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="answer", disable=quiet, file=sys.stderr)
    began, tokens = time.monotonic(), 0
    if todo:
        answers.summary_of(path).unlink(missing_ok=True)
        policy = parse_policy(settings.policy)
        slots = min(slots or fitting_slots(model, room, policy), len(todo))
        decoder = Decoder(
            model,
            policy,
            slots,
            room,
            dense_layers=settings.dense_layers,
            compiled=compiled,
        )
        newest: dict[str, Prompt] = {}  # trials of a problem follow one another: its prompt is read once

        def prompt(problem: Problem) -> Prompt:
            if problem.id not in newest:
                newest.clear()
                newest[problem.id] = decoder.read(read[problem.id])
            return newest[problem.id]

        for trial, reason in decode(decoder, prompt, iter(todo), end_tokens(model, tokenizer), settings):
            text = tokenizer.decode(trial.ids, skip_special_tokens=True)
            line: answers.Line = {
                "query": trial.problem.text, "prediction": [text], "problem": trial.problem.id, "trial": trial.number,
                "tokens_in": trial.prompt.length, "tokens_out": len(trial.ids), "truncated": reason != "end",
                "stopped": reason, "score": None, "error": "not graded yet",
            }  # fmt: skip
            # before anything else: a verdict can take seconds
            start_of_line = answers.append_line(path, line)
            lines.append(verdict(line))
            answers.settle(path, start_of_line, line, lines[-1])
            tokens, seconds = tokens + len(trial.ids), time.monotonic() - began
            bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update()
        device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
        speed = {"device": device, "step": decoder.how, "slots": slots, "seconds": round(seconds, 3),
                 "tokens_per_second": round(tokens / seconds, 2)}  # fmt: skip
    if not answers.summary_of(path).exists():
        answers.finish(path, metadata, lines, list(by_id), speed)
    bar.close()
    return sum(line["score"] is None for line in lines)
