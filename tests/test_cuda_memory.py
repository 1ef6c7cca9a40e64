"""Memory and streams of a GPU: copies, order, recording, and what is said where CUDA fails.

Every test runs over the stand-in of `gpu_on_host.py`, and where there is a GPU on it, too.
"""

import gc
import inspect
import logging
import re

import numpy as np
import pytest

cuda_memory = pytest.importorskip("actvar.runtime.backends.cuda_memory", reason="needs cuda-bindings")

from cuda.bindings import runtime as real  # noqa: E402
from gpu_on_host import IN_CAPTURE, NAME, HostCuda  # noqa: E402

from actvar.errors import ActVARError, EngineError  # noqa: E402
from actvar.runtime.backends.cuda_memory import CudaMemory, device_info  # noqa: E402
from actvar.runtime.backends.memory import Rows  # noqa: E402


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """The stand-in in the place of cuda-python."""
    stand_in = HostCuda()
    monkeypatch.setattr(cuda_memory, "cudart", stand_in)
    return stand_in


@pytest.fixture(params=["stand-in", pytest.param("GPU", marks=pytest.mark.gpu)])
def memory(request: pytest.FixtureRequest) -> CudaMemory:
    if request.param == "stand-in":
        request.getfixturevalue("host")
    return CudaMemory()


def staged(memory: CudaMemory, content: bytes) -> np.ndarray:
    array = memory.stage(len(content))
    array[:] = np.frombuffer(content, np.uint8)
    return array


def test_bytes_come_back_from_the_device(memory: CudaMemory):
    """There and back over two staged arrays and a place in the middle of a block."""
    block, stream = memory.allocate(1000), memory.stream()
    assert block.address % 256 == 0
    back = memory.stage(5)
    stream.write(block.address + 256, staged(memory, b"there"))
    stream.read(back, block.address + 256)
    stream.wait()
    assert back.tobytes() == b"there"


def test_rows_go_to_places_a_pitch_apart_and_nothing_between_changes(memory: CudaMemory):
    """The KV window: what lies between the rows is other scales'."""
    target, source, stream = memory.allocate(12), memory.allocate(6), memory.stream()
    stream.write(target.address, staged(memory, b"............"))
    stream.write(source.address, staged(memory, b"aabbcc"))
    stream.copy_rows(target.address + 1, 4, source.address, 2, Rows(1, 1, 3))
    stream.copy_rows(target.address, 4, source.address, 0, Rows(3, 3, 1))  # a scale that keeps no token
    back = memory.stage(12)
    stream.read(back, target.address)
    stream.wait()
    assert back.tobytes() == b".aa..bb..cc."


def test_rows_go_to_the_first_of_each_plane(memory: CudaMemory):
    """A scale that is not guided writes the first group of rows in each part of the window alone."""
    target, source, stream = memory.allocate(24), memory.allocate(6), memory.stream()
    stream.write(target.address, staged(memory, b"." * 24))
    stream.write(source.address, staged(memory, b"abcdef"))
    stream.copy_rows(target.address + 1, 4, source.address, 1, Rows(2, 3, 2))
    stream.copy_rows(target.address + 10, 4, source.address + 4, 2, Rows(1, 3, 1))
    back = memory.stage(24)
    stream.read(back, target.address)
    stream.wait()
    assert back.tobytes() == b".a...b....ef.c...d......"


def test_a_recording_runs_when_it_is_replayed_and_reads_what_is_there_then(memory: CudaMemory):
    """Recording must not do the work; a replay takes the inputs of its own launch."""
    block, stream = memory.allocate(4), memory.stream()
    given, back = staged(memory, b"1111"), memory.stage(4)

    def chain() -> None:
        stream.write(block.address, given)
        stream.read(back, block.address)

    back[:] = 0
    replay = stream.record(chain)
    assert replay is not None
    stream.wait()
    assert back.tobytes() == bytes(4)
    for content in (b"2222", b"3333"):
        given[:] = np.frombuffer(content, np.uint8)
        replay()
        stream.wait()
        assert back.tobytes() == content


def test_what_cannot_be_recorded_is_said_once_and_run_every_time(memory: CudaMemory, caplog: pytest.LogCaptureFixture):
    """Waiting is not allowed in a capture: the pictures must come all the same, and nobody may wonder why slowly."""
    stream, given = memory.stream(), staged(memory, b"1111")
    block, back = memory.allocate(4), memory.stage(4)
    with caplog.at_level(logging.WARNING):
        assert stream.record(stream.wait) is None
        assert stream.record(stream.wait) is None
    assert [record.message for record in caplog.records if "cannot be recorded" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    stream.write(block.address, given)
    stream.read(back, block.address)
    stream.wait()
    assert back.tobytes() == b"1111"


def test_an_error_that_is_not_the_engines_leaves_the_recording(memory: CudaMemory):
    """A bug must show itself, and the stream must be of use afterwards."""
    stream = memory.stream()
    with pytest.raises(KeyError):
        stream.record(lambda: {}["missing"])
    stream.wait()
    assert gc.isenabled()


def test_memory_is_given_back_when_nobody_holds_it(host: HostCuda):
    """Also that of staged arrays, of which only a view is left, and of recordings."""

    def recorded():
        memory = CudaMemory()
        block, array, stream = memory.allocate(10), memory.stage(10), memory.stream()
        return block, array[2:4], stream.record(lambda: stream.write(block.address, array))

    block, view, replay = recorded()
    assert len(host.live) == 2 and len(host.graphs) == 1
    del block
    assert len(host.live) == 1 and view.nbytes == 2
    del view, replay
    assert not host.live and not host.graphs and not host.streams


def test_a_full_gpu_is_a_memory_error(host: HostCuda):
    """Which the command line knows what to say of."""
    host.memory = 1000
    with pytest.raises(MemoryError, match="allocating 2000 bytes"):
        CudaMemory().allocate(2000)


def test_a_failure_of_the_gpu_names_it(host: HostCuda, monkeypatch: pytest.MonkeyPatch):
    """What a kernel did wrong comes out where it is waited for."""
    stream = CudaMemory().stream()
    failure = real.cudaError_t.cudaErrorIllegalAddress
    monkeypatch.setattr(host, "cudaStreamSynchronize", lambda stream: (failure,), raising=False)
    with pytest.raises(
        EngineError, match=r"an illegal memory access was encountered \(cudaErrorIllegalAddress\)\. Try"
    ):
        stream.wait()


def test_the_gpu_at_hand_is_described(host: HostCuda):
    found = device_info()
    assert (found.gpu.name, found.gpu.capability, found.driver, found.memory) == (NAME, "8.0", "13.0", 1 << 30)


@pytest.mark.gpu
def test_a_real_gpu_is_described_as_its_driver_does():
    """Two ways to ask, cuda-python and the driver's library: plans are chosen by either."""
    from actvar.runtime.machine import first_gpu

    found = device_info()
    assert found.gpu == first_gpu()
    assert found.memory > 1 << 30


@pytest.mark.parametrize(
    ("driver", "error", "message"),
    [
        (0, "cudaErrorInsufficientDriver", "There is no NVIDIA driver here"),
        (12040, "cudaErrorInsufficientDriver", r"knows CUDA 12\.4, and cuda-bindings brings 13\.0.*=12\.\*"),
        (13000, "cudaErrorNoDevice", "lists no GPU. See to CUDA_VISIBLE_DEVICES"),
    ],
)
def test_without_a_gpu_it_is_said_what_is_missing(host, monkeypatch, driver: int, error: str, message: str):
    """Driver, version, or device: three different things to do."""
    nothing = getattr(real.cudaError_t, error), None
    monkeypatch.setattr(host, "cudaGetDeviceCount", lambda: nothing, raising=False)
    monkeypatch.setattr(host, "cudaDriverGetVersion", lambda: (real.cudaError_t.cudaSuccess, driver), raising=False)
    with pytest.raises(ActVARError, match=message):
        device_info()


def test_the_stand_in_takes_what_cuda_python_takes():
    """Or the tests above would prove nothing: as many arguments as cuda-python documents, of every call."""
    calls = [name for name in vars(HostCuda) if name.startswith("cuda")]
    assert len(calls) > 15
    for name in calls:
        documented = re.match(r"\w+\((.*)\)", getattr(real, name).__doc__)[1]
        wanted = [part for part in documented.split(",") if part.strip()]
        taken = list(inspect.signature(getattr(HostCuda, name)).parameters)[1:]
        assert len(taken) == len(wanted), (name, documented)
    assert IN_CAPTURE in real.cudaError_t
