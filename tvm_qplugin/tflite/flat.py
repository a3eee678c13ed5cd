"""FlatBuffers that nobody vouches for: every offset and length is checked before it is followed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array

AGAIN = "the file is damaged: download or export it again"
OVERLAP = 4
"""Contents that add up to more than this many times the file can only come from a forged file."""


@dataclass
class FlatBuffer:
    """The bytes of a file, and how much of its contents may still be read."""

    data: bytes
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = OVERLAP * len(self.data) + 1024

    def root(self, what: str) -> Table:
        """The table that the file starts with."""
        return Table(self, self.number("<I", 0, what), what)

    def number(self, code: str, at: int, what: str) -> int:
        """One little-endian number."""
        self.claim(at, struct.calcsize(code), what)
        return int(struct.unpack_from(code, self.data, at)[0])

    def claim(self, at: int, size: int, what: str) -> None:
        """ModelError unless ``size`` bytes lie at ``at``, and nobody reads the same bytes for ever."""
        if at < 0 or at + size > len(self.data):
            raise ModelError(
                f"{what}: expected {size} bytes at offset {at}, but the file has {len(self.data)}; "
                "it is truncated or damaged: download or export it again"
            )
        self.left -= size
        if self.left < 0:
            raise ModelError(
                f"{what}: parts of the file overlap so that it seems to hold more than {OVERLAP} times its "
                f"{len(self.data)} bytes; it is damaged: download or export it again"
            )


@dataclass(frozen=True)
class Table:
    """One table: fields by their number in the schema, ``what`` it is for messages."""

    flat: FlatBuffer
    at: int
    what: str

    def __post_init__(self) -> None:
        """Check the table of offsets."""
        flat = self.flat
        start = self.at - flat.number("<i", self.at, self.what)
        size = flat.number("<H", start, self.what)
        length = flat.number("<H", start + 2, self.what)
        if size < 4 or size % 2 or length < 4:
            raise self.error(f"has a table of offsets of {size} bytes for {length} bytes; it is damaged")
        flat.claim(start, size, self.what)
        flat.claim(self.at, length, self.what)
        offsets = struct.unpack_from(f"<{size // 2 - 2}H", flat.data, start + 4)
        if any(offset >= length for offset in offsets):
            raise self.error(f"has a field beyond its {length} bytes; it is damaged")
        object.__setattr__(self, "_offsets", offsets)

    def error(self, text: str) -> ModelError:
        """A ModelError about this table."""
        return ModelError(f"{self.what} {text}")

    def _place(self, slot: int) -> int | None:
        offsets: tuple[int, ...] = self.__dict__["_offsets"]
        offset = offsets[slot] if slot < len(offsets) else 0
        return self.at + offset if offset else None

    def number(self, slot: int, code: str = "<i", default: int = 0) -> int:
        """A scalar."""
        place = self._place(slot)
        return default if place is None else self.flat.number(code, place, self.what)

    def table(self, slot: int, what: str) -> Table | None:
        """A table in a field."""
        place = self._place(slot)
        return None if place is None else Table(self.flat, self._follow(place), what)

    def vector(self, slot: int, dtype: str) -> Array:
        """Numbers as a read-only array without a copy; empty where the field is absent."""
        place = self._place(slot)
        if place is None:
            return np.empty(0, dtype)
        start = self._follow(place)
        count, width = self.flat.number("<I", start, self.what), np.dtype(dtype).itemsize
        self.flat.claim(start + 4, count * width, self.what)
        return np.frombuffer(self.flat.data, dtype, count, start + 4)

    def tables(self, slot: int, what: str) -> Iterator[Table]:
        """The tables of a vector, named ``what`` and a number."""
        place = self._place(slot)
        if place is not None:
            start = self._follow(place) + 4
            for i, offset in enumerate(self.vector(slot, "<u4")):
                yield Table(self.flat, start + 4 * i + int(offset), f"{what} {i}")

    def text(self, slot: int) -> str:
        """A string; "" where the field is absent."""
        return self.vector(slot, "uint8").tobytes().decode("utf-8", "replace")

    def _follow(self, place: int) -> int:
        return place + self.flat.number("<I", place, self.what)
