"""math-verify in a child process, which the kernel can end whatever it does."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_child: subprocess.Popen[str] | None = None
_lock = threading.Lock()


def missing(package: str) -> ValueError:
    return ValueError(f"this needs {package}: pip install 'kinetics-lab[generate]'")


def need_math_verify() -> None:
    if find_spec("math_verify") is None:
        raise missing("math-verify")


def ask(reference: str, answer: str | None, timeout: float) -> dict[str, Any]:
    """``{"correct": bool}`` (true without an answer: the reference can be parsed), or ``{"error": sentence}``.

    timeout: seconds of work after which the child is ended; starting it does not count.
    """
    global _child
    with _lock:
        try:
            if _child is None or _child.poll() is not None:
                _stop()
                _child = _started()
            return _reply(_child, {"reference": reference, "answer": answer, "timeout": timeout})
        except BaseException:
            _stop()  # else its late reply would be taken for that to the next question
            raise


def _reply(child: subprocess.Popen[str], task: dict[str, Any]) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(task) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    if line.endswith("\n"):
        return json.loads(line)
    status = child.wait()
    slow = f"took over {task['timeout']:g} s"
    return {"error": f"math-verify {slow if status == -signal.SIGALRM else f'ended with status {status}'}"}


def _started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from kinetics_lab.decode.grader import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is the parent's to answer
    )


@atexit.register
def _stop() -> None:
    global _child
    if _child is not None:
        stopped, _child = _child, None
        stopped.kill()
        stopped.communicate()


def _forget() -> None:
    """In a forked process: the child belongs to the parent, and so may the lock."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _serve() -> None:
    """What the child does: one task a line in, one reply a line out."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no reply
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even within one long step of C code
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            math_verify = import_module("math_verify")
            signal.setitimer(signal.ITIMER_REAL, task["timeout"])
            reply: dict[str, Any] = {"correct": _verdict(math_verify, task["reference"], task["answer"])}
        except BaseException as error:
            reply = {"error": f"math-verify failed: {type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


def _verdict(math_verify: Any, reference: str, answer: str | None) -> bool:
    gold = math_verify.parse(reference, parsing_timeout=None, raise_on_error=True)
    if not gold or isinstance(gold[0], str):  # a bare string: nothing was understood of it
        raise ValueError(f"no number, expression or word in the reference {reference}")
    if answer is None:
        return True
    found = math_verify.parse(answer, parsing_timeout=None, raise_on_error=True)
    return bool(found) and math_verify.verify(gold, found, timeout_seconds=None, raise_on_error=True)
