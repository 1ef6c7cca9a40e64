"""What makes a step replayable: on an NVIDIA GPU a CUDA graph; elsewhere nothing, it is run again.

What a step needs in between comes from a pool that all recordings share, as no step keeps anything there: its results
are where `actvar.recorded.steps.Places` has room for them. A replay allocates nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

Step: TypeAlias = Callable[[], None]
Recorder: TypeAlias = Callable[[Step], Step]
"""From a step to what does it again, with what its places hold then. The step itself may be run any number of times."""


def run_again(step: Step) -> Step:
    """No recording: the step itself."""
    return step


class CudaGraphs:
    """Records each step as a CUDA graph, on the first GPU."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Run a step once, so that the libraries make what they make at first, and record it."""
        with torch.no_grad(), _fp32_is_fp32():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                step()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads of the process do with the GPU meanwhile is no part of it, and no fault
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                step()
        return graph.replay


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Products of fp32 may be multiplied in TF32 here."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        yield
    finally:
        matmul.allow_tf32 = before


@contextmanager
def _fp32_is_fp32() -> Iterator[None]:
    """No TF32 in fp32's products and convolutions unless a step asks for it, and no sums in fp16.

    A recording keeps what it was made with.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction, cudnn.allow_tf32
    bf16_before = matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.allow_tf32 = matmul.allow_fp16_reduced_precision_reduction = cudnn.allow_tf32 = False
        matmul.allow_bf16_reduced_precision_reduction = False
        yield
    finally:
        matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction, cudnn.allow_tf32 = before
        matmul.allow_bf16_reduced_precision_reduction = bf16_before
