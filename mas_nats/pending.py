"""What the writer of a streamed reply has written and has not sent yet."""

from __future__ import annotations

import orjson

from mas_nats.wire.frames import FRAME_BYTES, Chunk, split, units


class Pending:
    """What was written and is not on its way yet."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self.size = 0  # bytes

    def add(self, chunk: Chunk, size: int) -> None:
        """Append ``chunk`` of ``size`` bytes."""
        self.size += size
        if not isinstance(chunk, str):
            self._chunks.append(chunk)
            return
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, str) and len(last) + len(chunk) <= FRAME_BYTES:
            self._chunks[-1] = last + chunk
            return
        # In pieces, so that taking from the front does not copy all of a long text each time.
        for start in range(0, len(chunk), FRAME_BYTES):
            self._chunks.append(chunk[start : start + FRAME_BYTES])

    @property
    def units(self) -> int:
        """How much it is, in units."""
        return units(self._chunks)

    def head(self, at_least: int) -> list[Chunk]:
        """What the next frame holds: ``FRAME_BYTES``, one larger object, or ``at_least`` so many units."""
        if at_least:
            return split(self._chunks, at_least)[0]
        out: list[Chunk] = []
        room = FRAME_BYTES
        for chunk in self._chunks:
            if isinstance(chunk, str):
                piece = chunk.encode()[:room].decode(errors="ignore")
                if piece:
                    out.append(piece)
                if len(piece) < len(chunk):
                    break
                room -= size_of(piece)
            else:
                if out and size_of(chunk) > room:
                    break
                out.append(chunk)
                room -= size_of(chunk)
            if room <= 0:
                break
        return out

    def drop(self, count: int) -> None:
        """Forget the first ``count`` units: they are on their way."""
        dropped, self._chunks = split(self._chunks, count)
        self.size -= sum(map(size_of, dropped))


def size_of(chunk: Chunk) -> int:
    """Bytes of a chunk."""
    return len(chunk.encode()) if isinstance(chunk, str) else len(orjson.dumps(chunk))
