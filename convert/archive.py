"""Zip archives read in place: members are views of the file, and sizes are checked first."""

import dataclasses
import zlib

from stylesr_jax.errors import UserError

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 1 << 23  # bytes of the table of contents
INFLATION = 20  # how many times its own size an archive of compressed arrays may unpack to
_END = b"PK\x05\x06"
_END64_LOCATOR = b"PK\x06\x07"
_END64 = b"PK\x06\x06"
_ENTRY = b"PK\x01\x02"
_LOCAL = b"PK\x03\x04"


@dataclasses.dataclass(frozen=True)
class _Member:
    method: int
    checksum: int
    packed: int
    size: int
    offset: int


def _damaged(what: str) -> UserError:
    return UserError(f"the zip archive is damaged ({what}); download it again")


class Archive:
    """The members of a zip archive in memory.

    Raises:
        UserError: the archive is truncated, damaged, encrypted, or its members overlap.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._inflated = 0
        self._may_inflate = False
        self.inflated_limit = INFLATION * len(data) + (1 << 20)
        self._members = self._directory(*self._end())
        if sum(member.packed for member in self._members.values()) > len(data):
            raise UserError("the zip archive's members overlap; not read")

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def allow_inflating(self) -> None:
        """Let `read` unpack compressed members, up to `inflated_limit` bytes in all."""
        self._may_inflate = True

    def _number(self, position: int, width: int) -> int:
        if position < 0 or position + width > len(self._data):
            raise _damaged("a record is cut off")
        return int.from_bytes(self._data[position : position + width], "little")

    def _end(self) -> tuple[int, int, int]:
        """(number of members, size, offset) of the table of contents."""
        tail_start = max(0, len(self._data) - (1 << 16) - 22)
        tail = bytes(self._data[tail_start:])
        found = tail.rfind(_END)
        if found < 0 or len(tail) - found < 22:
            raise UserError("the zip archive ends too early (truncated); download it again")
        position = tail_start + found
        count, size = self._number(position + 10, 2), self._number(position + 12, 4)
        offset = self._number(position + 16, 4)
        locator = position - 20
        if locator >= 0 and bytes(self._data[locator : locator + 4]) == _END64_LOCATOR:
            end64 = self._number(locator + 8, 8)
            if bytes(self._data[end64 : end64 + 4]) != _END64:
                raise _damaged("its 64-bit end record is missing")
            count, size = self._number(end64 + 32, 8), self._number(end64 + 40, 8)
            offset = self._number(end64 + 48, 8)
        if count > MAX_MEMBERS or size > MAX_DIRECTORY or offset + size > position:
            raise _damaged("its table of contents is implausible")
        return count, size, offset

    def _directory(self, count: int, size: int, offset: int) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        position, end = offset, offset + size
        for _ in range(count):
            if position + 46 > end or bytes(self._data[position : position + 4]) != _ENTRY:
                raise _damaged("its table of contents is cut off")
            if self._number(position + 8, 2) & 1:
                raise UserError("the zip archive is encrypted; unpack it first")
            lengths = [self._number(position + at, 2) for at in (28, 30, 32)]
            raw = bytes(self._data[position + 46 : position + 46 + lengths[0]])
            name = raw.decode("utf-8", "replace")
            member = self._member(position, lengths)
            if name in members:
                raise _damaged(f"{name!r:.60} occurs twice")
            members[name] = member
            position += 46 + sum(lengths)
        return members

    def _member(self, position: int, lengths: list[int]) -> _Member:
        # 0xFFFFFFFF stands for a 64-bit value in the extra field, in this order.
        values = [self._number(position + at, 4) for at in (24, 20, 42)]  # size, packed, offset
        extra = position + 46 + lengths[0]
        stop = extra + lengths[1]
        while extra + 4 <= stop:
            kind, length = self._number(extra, 2), self._number(extra + 2, 2)
            if kind == 1:
                at = extra + 4
                for i, value in enumerate(values):
                    if value == 0xFFFFFFFF:
                        values[i] = self._number(at, 8)
                        at += 8
            extra += 4 + length
        size, packed, offset = values
        return _Member(
            method=self._number(position + 10, 2),
            checksum=self._number(position + 16, 4),
            packed=packed,
            size=size,
            offset=offset,
        )

    def read(self, name: str) -> memoryview:
        """The bytes of a member, a view where it is stored uncompressed.

        Raises:
            UserError: it is damaged, or compressed where that is not expected.
        """
        member = self._members[name]
        if bytes(self._data[member.offset : member.offset + 4]) != _LOCAL:
            raise _damaged(f"{name!r:.60} is missing")
        skipped = self._number(member.offset + 26, 2) + self._number(member.offset + 28, 2)
        start = member.offset + 30 + skipped
        packed = self._data[start : start + member.packed]
        if len(packed) != member.packed:
            raise _damaged(f"{name!r:.60} is cut off")
        if member.method == 0 and member.size == member.packed:
            unpacked = packed
        elif member.method == 8 and self._may_inflate:
            unpacked = self._inflate(packed, member, name)
        else:
            raise UserError(f"{name!r:.60} in the archive is compressed; not read")
        if zlib.crc32(unpacked) != member.checksum:
            raise _damaged(f"{name!r:.60} does not match its checksum")
        return unpacked

    def _inflate(self, packed: memoryview, member: _Member, name: str) -> memoryview:
        self._inflated += member.size
        if self._inflated > self.inflated_limit:
            raise UserError("the archive unpacks to implausibly many bytes; not read")
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than declared would show that the declaration is wrong.
            unpacked = unpacker.decompress(packed, member.size + 1)
        except zlib.error as error:
            raise _damaged(f"{name!r:.60} cannot be unpacked") from error
        if len(unpacked) != member.size:
            raise _damaged(f"{name!r:.60} has another size than declared")
        return memoryview(unpacked)
