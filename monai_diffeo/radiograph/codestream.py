"""What a compressed frame says of itself: a decoder obeys it, whatever the DICOM header says, and fills up what was cut off."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

__all__ = ["JPEG_LS", "Codestream", "codestream", "rle_is_short", "with_noise"]

JPEG_LS = 0xF7
_SIZES = {*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC}  # markers that start a frame
_ARITHMETIC = range(0xC9, 0xD0)
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_END, _SCAN, _RESTARTS_EVERY = 0xD9, 0xDA, 0xDD
_MARKER = re.compile(rb"\xff[\x80-\xcf\xd9-\xfe]")  # in a scan 0xFF is data before a byte below 0x80, and D0 to D7 are restarts
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_RESTART_OR_END = re.compile(rb"(?=\xff[\xd0-\xd7\xd9])")
_NOISE = bytes(range(0xB5, 0xF5, 7)) * 8


class Codestream(NamedTuple):
    """Header of a JPEG, JPEG-LS or JPEG 2000 frame.

    Args:
        rows, columns, components, precision: what the frame declares, 0 if it does not; the precision in bits a sample.
        kind: the marker that starts a JPEG frame (0xC0 baseline, 0xC1 extended, 0xC2 progressive); 0 for JPEG 2000.
        whole: whether the frame has its end, and all tiles and restarts before it.
        signed: whether the samples have a sign; None where the frame does not say.
    """

    rows: int = 0
    columns: int = 0
    components: int = 0
    precision: int = 0
    kind: int = 0
    whole: bool = False
    signed: bool | None = None


def codestream(frame: bytes) -> Codestream | None:
    """Header of a compressed frame; None if it is of another kind. JPEG 2000 may lie in a JP2 box."""
    if frame.startswith(b"\xff\xd8"):
        return _jpeg(frame)
    start = _start_in_boxes(frame) if frame[4:8] == b"jP  " else 0
    return None if start is None or not frame.startswith(b"\xff\x4f\xff\x51", start) else _jpeg_2000(frame, start)


def _jpeg(frame: bytes) -> Codestream:
    header, interval, scan = Codestream(), 0, 0
    at = 2
    while found := _MARKER.search(frame, at):
        marker, at = frame[found.end() - 1], found.end()
        if marker == _END:
            restarts = len(_RESTART.findall(frame, scan, at)) if interval else 0
            return header._replace(whole=scan > 0 and restarts >= _restarts(header, interval))
        if marker in _SIZES and not header.kind:
            rows, columns = _number(frame, at + 3, 2), _number(frame, at + 5, 2)
            header = Codestream(rows, columns, _number(frame, at + 7, 1), _number(frame, at + 2, 1), marker)
        interval = _number(frame, at + 2, 2) if marker == _RESTARTS_EVERY else interval
        at += max(_number(frame, at, 2), 2)
        scan = scan or (at if marker == _SCAN else 0)
    return header


def _restarts(header: Codestream, interval: int) -> int:
    """Restart markers that one scan of a grey frame has at least; JPEG-LS and colour count otherwise."""
    if not interval or header.components != 1 or header.kind == JPEG_LS:
        return 0
    block = 1 if header.kind in _LOSSLESS else 8
    return -(-(-(-header.rows // block) * -(-header.columns // block)) // interval) - 1


def _start_in_boxes(frame: bytes) -> int | None:
    """Where the codestream of a JP2 file begins; pydicom never ends at a box of length 0."""
    at = 0
    while at + 8 <= len(frame):
        length, kind = _number(frame, at, 4), frame[at + 4 : at + 8]
        if kind == b"jp2c":
            return at + 8
        if length < 8:
            return None
        at += length
    return None


def _jpeg_2000(frame: bytes, start: int) -> Codestream:
    right, bottom, left, top, width, height, x, y = (_number(frame, start + 8 + 4 * i, 4) for i in range(8))
    components, sample = _number(frame, start + 40, 2), _number(frame, start + 42, 1)
    tiles = -((x - right) // width) * -((y - bottom) // height) if width and height else 0
    whole = _has_all_tiles(frame, start + 2, tiles)
    return Codestream(bottom - top, right - left, components, (sample & 0x7F) + 1, 0, whole, sample > 0x7F)


def _has_all_tiles(frame: bytes, at: int, tiles: int) -> bool:
    """Walk from one part of a tile to the next, by their declared lengths, up to the end marker."""
    seen = set()
    while (marker := frame[at : at + 2]) not in (b"\xff\xd9", b""):
        length = 2 + _number(frame, at + 2, 2)
        if marker == b"\xff\x90":
            seen.add(_number(frame, at + 4, 2))
            length = _number(frame, at + 6, 4) or frame.find(b"\xff\xd9", at) - at  # 0 says: up to the end
        if length < 4:
            return False
        at += length
    return marker == b"\xff\xd9" and len(seen) == tiles


def with_noise(frame: bytes) -> bytes:
    """A JPEG or JPEG-LS frame with noise before each restart and the end; a decoder sees the noise only if pixels are missing.

    A decoder that has all its pixels skips to the next marker. One that runs out of data makes pixels of whatever comes.
    Arithmetic coding may leave out its last bytes: such a frame stays as it is.
    """
    if _jpeg(frame).kind in _ARITHMETIC:
        return frame
    scan = max(frame.find(b"\xff\xda"), 0)
    return frame[:scan] + _RESTART_OR_END.sub(_NOISE, frame[scan:])


def rle_is_short(frame: bytes, segments: int, pixels: int) -> bool:
    """Whether one of the segments of a DICOM RLE frame unpacks to fewer bytes than the film has pixels."""
    if len(frame) < 64:
        return True
    count, *offsets = struct.unpack("<16L", frame[:64])
    starts = offsets[:segments]
    return count == segments and any(
        _unpacked(frame, start, end) < pixels for start, end in zip(starts, [*starts[1:], len(frame)], strict=True)
    )


def _unpacked(frame: bytes, at: int, end: int) -> int:
    size, end = 0, min(end, len(frame))
    while at < end - 1:
        control = frame[at]
        literal = control + 1 if control < 128 else 0
        size += min(literal, end - at - 1) if literal else (257 - control) % 129
        at += 1 + (literal or control != 128)
    return size


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
