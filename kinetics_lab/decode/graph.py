"""A call as a CUDA graph: captured once, replayed without the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from kinetics_lab.errors import sentence


class CaptureError(RuntimeError):
    """A capture broke off. PyTorch's allocator and random numbers go on as if it lasted: end the process."""


def captured(call: Callable[[], Any]) -> Any:
    """The call as a ``torch.cuda.CUDAGraph``, warmed up; None where it waits for the GPU, which no graph can hold.

    That is found out before a capture is begun. Raises :class:`CaptureError` where one breaks off all the same.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself a prototype that does not see every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            return None
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except Exception as error:
        raise CaptureError(f"the capture of a CUDA graph broke off: {sentence(error)}") from error
    return graph
