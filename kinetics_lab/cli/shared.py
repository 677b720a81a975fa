"""What the commands share: options that several have, and lists of values after one flag."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

NONE: list[Any] = []  # the default of a list that may be left out


def spread(args: Sequence[str], lists: Mapping[str, str]) -> list[str]:
    """The arguments with a flag for every value: ``--trials 1 2`` becomes ``--trials 1 --trials 2``.

    ``lists`` maps flags to their metavars. After one that ends in "..." all values up to the
    next flag are its own (negative numbers are values); "NAME VALUE" joins its two as ``NAME=VALUE``.
    """
    found, flag, metavar, taken = list[str](), "", "", 0
    for arg in args:
        if re.match(r"-(?![\d.])", arg):
            flag, _, value = arg.partition("=")
            metavar, taken = lists.get(flag, ""), int(value != "")
            found.append(arg)
            continue
        taken += 1
        if metavar == "NAME VALUE" and taken == 2 and "=" not in found[-1]:
            found[-1] += f"={arg}"
        else:
            found += [flag, arg] if metavar.endswith("...") and taken > 1 else [arg]
    return found


class Command(TyperCommand):
    """A command whose list options take several values after one flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {flag: param.metavar or "" for param in self.params for flag in param.opts}
        return super().parse_args(ctx, spread(args, lists))


def names(module: str, attribute: str) -> Callable[[], list[str]]:
    """What a shell offers to complete: the names that ``attribute`` of the module holds, imported when asked."""
    return lambda: [*getattr(import_module(f"kinetics_lab.{module}"), attribute)]


Hardware = Annotated[str, typer.Option(help="accelerator", autocompletion=names("cost.hardware", "HARDWARE"))]
Policy = Annotated[str, typer.Option(help="attention: dense, topk:512, block_topk:512:32, ...")]


def public(name: str) -> tuple[Any, Any, int]:
    """`planner.offers.public`, with the shapes of the ladder's first trainings, which saw every policy."""
    from kinetics_lab.cost.models import MODELS
    from kinetics_lab.ladder import preset
    from kinetics_lab.planner import offers

    tiny = {model: shape for model, shape in preset("cpu").shapes().items() if model.endswith("-s0")}
    return offers.public(name, tiny if name == "ladder" else MODELS)
