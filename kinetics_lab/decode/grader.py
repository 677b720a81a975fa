"""math-verify in a child process, which the kernel can end whatever it does."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

from kinetics_lab.errors import absent

MOST_MEMORY = 8 << 30  # bytes of addresses that the child may have
_pool: Any = None
_lock = threading.Lock()


def need_math_verify() -> None:
    """ValueError unless math-verify and what runs it are installed."""
    for package in ("math_verify", "pebble"):
        if find_spec(package) is None:
            raise absent(package)


def ask(reference: str, answer: str | None, timeout: float) -> tuple[bool | None, str | None]:
    """The verdict (true without an answer: the reference can be parsed), or None and a sentence on what kept it.

    timeout: seconds of work after which the child is ended; starting it does not count. Verdicts are given one after
    the other.
    """
    from pebble import ProcessExpired

    with _lock:
        for _ in range(2):  # a child that was ended while it had nothing to do takes its pool with it
            try:
                return _running_pool().schedule(_judge, (reference, answer, timeout)).result()
            except ProcessExpired as error:
                slow = error.exitcode == -signal.SIGALRM
                why = f"took over {timeout:g} s" if slow else f"ended with status {error.exitcode}"
                return None, f"math-verify {why}"
            except RuntimeError:
                stop()
            except BaseException:
                stop()  # else the next question would wait for the end of this one
                raise
        return None, "math-verify does not start"


class _Child(SpawnProcess):
    """A process that does not run its parent's script once more: a verdict needs nothing of it."""

    def start(self) -> None:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Child


def _running_pool() -> Any:
    """The pool of one child, spawned and not forked: a process that has opened a GPU must not be."""
    global _pool
    from pebble import ProcessPool

    if _pool is None or not _pool.active:
        stop()
        _pool = ProcessPool(1, initializer=_prepare, context=_Context())
    return _pool


def stop() -> None:
    """End the child, where there is one; the next question starts another."""
    global _pool
    if _pool is not None:
        stopped, _pool = _pool, None
        stopped.stop()
        stopped.join()


def _forget() -> None:
    """In a forked process: the child belongs to the parent, and so may the lock."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _prepare() -> None:
    """Load what takes a second to load, and let nothing that a library prints appear among the parent's output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even within one long step of C code
    try:
        import_module("math_verify")
    except BaseException:
        return  # each question is told why


def _judge(reference: str, answer: str | None, timeout: float) -> tuple[bool | None, str | None]:
    """A verdict or a sentence. The kernel's own timer ends the child, also where its parent is no more."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return _verdict(import_module("math_verify"), reference, answer), None
    except BaseException as error:
        return None, f"math-verify failed: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _verdict(math_verify: Any, reference: str, answer: str | None) -> bool:
    gold = math_verify.parse(reference, parsing_timeout=None, raise_on_error=True)
    if not gold or isinstance(gold[0], str):  # a bare string: nothing was understood of it
        raise ValueError(f"no number, expression or word in the reference {reference}")
    if answer is None:
        return True
    found = math_verify.parse(answer, parsing_timeout=None, raise_on_error=True)
    return bool(found) and math_verify.verify(gold, found, timeout_seconds=None, raise_on_error=True)
