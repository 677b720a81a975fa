"""Traces of any Hugging Face model under any policy: N answers a problem, graded, none lost.

Requests run side by side in slots; a slot that finishes takes the next trial at once. Every trial draws from its own
seed, so that neither the number of slots nor a restart changes an answer, as far as arithmetic is the same in every
batch: in fp32 on a CPU it is; on a GPU a rounding may tip a token, after which the answer is another draw. Finished
answers are appended to a JSON lines file as they come; a stopped run goes on from it, and when all are there the file
is put in order.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinetics_lab.cost.policies import Policy, Quest, parse_policy
from kinetics_lab.decode import grade as grading
from kinetics_lab.decode import version_of
from kinetics_lab.decode.answers import AnswerFile, Grader
from kinetics_lab.decode.caches import page_block
from kinetics_lab.decode.grade import Problem
from kinetics_lab.decode.hf import Decoder, Prompt, shape_of
from kinetics_lab.decode.sampling import Settings, draw, repeats
from kinetics_lab.errors import require
from kinetics_lab.files import sole_writer
from kinetics_lab.traces.layout import layout_metadata, layout_name


class Trial:
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


def run_trials(
    decoder: Decoder, prompts: Callable[[Problem], Prompt], todo: Iterator[tuple[Problem, int]],
    ends: frozenset[int], settings: Settings,
) -> Iterator[tuple[Trial, str]]:  # fmt: skip
    """Decode all trials of ``todo``, each finished one with the reason of its end, in the order they finish."""
    slots: list[Trial | None] = [None] * len(decoder.active)
    while True:
        for i, slot in enumerate(slots):
            while slot is None and (job := next(todo, None)):
                slot = Trial(*job, prompts(job[0]), settings)
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
    rule = f"max_tokens: an answer needs {each / 1e9:.1f} GB of GPU memory, and {free / 1e9:.1f} are free; tokens"
    require(each <= 0.9 * free, rule, tokens)
    return int(0.9 * free / each)


def generate(
    model: Any, tokenizer: Any, problems: Sequence[Problem], out: str | os.PathLike[str], settings: Settings, *,
    task: str, name: str, slots: int | None = None, progress: bool | None = None, grade: Grader = grading.grade,
    compiled: bool = False,
) -> Path:  # fmt: skip
    """Sample ``settings.trials`` answers to every problem into a file of the folder ``out``; returns its path.

    model, tokenizer: of Hugging Face transformers, the model on its device. name, task: what the traces shall call
    them. slots: answers decoded side by side; decides speed; answers up to rounding. grade: math-verify's verdict. An
    answer that could not be graded is a line with ``error`` and no score; the next call grades it again.
    progress: a bar on stderr (None: on a terminal). compiled: see :class:`kinetics_lab.decode.hf.Decoder`.

    ``read_traces`` reads the file at any time. Beside it, when all answers are there, ``<file>.summary.json``.
    Raises ValueError for settings the model cannot be decoded with, and where the file belongs to other settings;
    FileExistsError where another process writes it.
    """
    require(len(problems) > 0, "problems must hold at least one", len(problems))
    require(slots is None or slots >= 1, "slots must be at least 1", slots)
    ids = {p.id: encode(tokenizer, p, settings) for p in problems}
    longest = max(map(len, ids.values()))
    require(min(map(len, ids.values())) >= 1, "every prompt must have at least one token", 0)
    limit = getattr(model.config, "max_position_embeddings", None) or np.inf
    rule = f"max_tokens must leave room for the prompt of {longest} tokens within the model's {limit}"
    require(longest + settings.max_tokens <= limit, rule, settings.max_tokens)
    said = {"version": version_of("kinetics-lab"), "model": name, "task": task} | asdict(settings)
    said |= {"weights": model.config._name_or_path, "revision": getattr(model.config, "_commit_hash", None),
             "dtype": str(model.dtype).removeprefix("torch.")}  # fmt: skip
    del said["trials"]  # more of them may be asked for later: they change no answer
    metadata = layout_metadata(settings.policy) | {"kinetics_lab": said}
    path = Path(out) / f"{layout_name(task, name, settings.policy)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where the prompt's template opens the thinking, the answer must not look as if it had never begun to think.
    opened = {key: tokenizer.decode(read[-8:]).rstrip().endswith("<think>") for key, read in ids.items()}
    with sole_writer(path):
        openings = {key: "<think>" * yes for key, yes in opened.items()}
        file = AnswerFile(path, metadata, {p.id: p for p in problems}, openings, grade)
        file.finish(_sample(model, tokenizer, ids, file, settings, slots, progress, compiled))
    if left := sum(line["score"] is None for line in file.lines):
        told = f"{left} answers have no verdict ({path}); the same command grades them again"
        warnings.warn(told, stacklevel=2)
    return path


def _sample(
    model: Any, tokenizer: Any, ids: dict[str, list[int]], file: AnswerFile, settings: Settings, slots: int | None,
    progress: bool | None, compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    """Add what is missing in the file; how fast that was, or nothing where nothing was missing."""
    from tqdm import tqdm

    jobs, done = [(p, k) for p in file.problems.values() for k in range(settings.trials)], file.done
    todo = [(p, k) for p, k in jobs if (p.id, k) not in done]
    if not todo:
        return {}
    policy, room = parse_policy(settings.policy), max(map(len, ids.values())) + settings.max_tokens
    slots = min(slots or fitting_slots(model, room, policy), len(todo))
    decoder = Decoder(model, policy, slots, room, dense_layers=settings.dense_layers, compiled=compiled)
    newest: dict[str, Prompt] = {}  # trials of a problem follow one another: its prompt is read once

    def prompt(problem: Problem) -> Prompt:
        if problem.id not in newest:
            newest.clear()
            newest[problem.id] = decoder.read(ids[problem.id])
        return newest[problem.id]

    quiet = not (sys.stderr.isatty() if progress is None else progress)
    began, tokens, seconds = time.monotonic(), 0, 0.0
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(todo), unit="answer", disable=quiet, file=sys.stderr
    ) as bar:
        for trial, reason in run_trials(decoder, prompt, iter(todo), end_tokens(model, tokenizer), settings):
            text = tokenizer.decode(trial.ids, skip_special_tokens=True)
            file.add({
                "query": trial.problem.text, "prediction": [text], "problem": trial.problem.id, "trial": trial.number,
                "tokens_in": trial.prompt.length, "tokens_out": len(trial.ids), "truncated": reason != "end",
                "stopped": reason,
            })  # fmt: skip
            tokens, seconds = tokens + len(trial.ids), time.monotonic() - began
            bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update()
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    return {"device": device, "step": decoder.how, "slots": slots, "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 2)}  # fmt: skip
