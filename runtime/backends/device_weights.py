"""The weights of a bundle brought to where graphs run: once, in pieces, and checked on the way."""

from pathlib import Path

from actvar.bundle.manifest import EXPORT_AGAIN
from actvar.files import FileEntry, read_verified
from actvar.runtime.backends.memory import Block, Memory

_PIECE = 8 << 20


def upload_weights(path: Path, entry: FileEntry, memory: Memory) -> Block:
    """Read a weights file into memory of the device's; the host never holds more than two pieces of it.

    Raises:
        BundleError: the file is not the one that the manifest describes.
        MemoryError: there is no room for it.
    """
    upload = _Upload(memory, entry.bytes)
    read_verified(path, entry, EXPORT_AGAIN, upload.take)
    upload.flush()
    upload.stream.wait()
    return upload.block


class _Upload:
    """What has arrived so far. While one piece is on its way, the next is filled."""

    def __init__(self, memory: Memory, count: int):
        self.block, self.stream = memory.allocate(count), memory.stream()
        self._pieces = [memory.stage(min(_PIECE, count)) for _ in range(2)]
        self._sent = self._filled = 0

    def take(self, content: bytes) -> None:
        """The bytes that follow. What a file gains while it is read is dropped: its hash is refused at the end."""
        rest = memoryview(content)[: self.block.bytes - self._sent - self._filled]
        while rest:
            piece = self._pieces[0]
            count = min(len(rest), piece.nbytes - self._filled)
            piece.data[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == piece.nbytes:
                self.flush()

    def flush(self) -> None:
        """Send what there is of a piece, when the one before has arrived."""
        if self._filled:
            self.stream.wait()
            self.stream.write(self.block.address + self._sent, self._pieces[0][: self._filled])
            self._pieces.reverse()
            self._sent += self._filled
            self._filled = 0
