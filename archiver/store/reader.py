"""A body as a file to read from, for libraries that want one."""

from __future__ import annotations

import io

from archiver.store.base import Body


class BodyReader(io.RawIOBase):
    """Reads a finished body, in memory or on disk, and holds none of it."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As every file: from the start, from here, or from the end."""
        base = (0, self._position, self._body.size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer, in typeshed's newest words
        """Fills the buffer as far as the body goes."""
        data = self._body.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
