"""What compressed archives hold, as streams of pieces: gzip (RFC 1952) and zstd (RFC 8878), checksums compared."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.errors import BandstreamError

PIECE = 1 << 20
"""Bytes of a compressed tar that are read at once."""
WINDOW = 1 << 27
"""The most memory that a zstd frame may ask for: what `zstd --long=27` makes."""


def unpacked(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of the gzip or zstd file `path`, opened as `raw`. Raises BandstreamError where it is damaged."""
    return (_gunzipped if path.name.lower().endswith("gz") else _unzstd)(raw, path)


def _gunzipped(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of a gzip file of one or more members, checksums compared."""
    state, begun = zlib.decompressobj(31), False
    try:
        while piece := raw.read(PIECE):
            while piece:
                begun = True
                yield state.decompress(piece, 8 * PIECE)
                piece = state.unconsumed_tail
                if state.eof:
                    piece, begun = state.unused_data.lstrip(b"\0"), False
                    state = zlib.decompressobj(31)
    except zlib.error as error:
        raise BandstreamError(f"{path} is damaged ({error}): download it again") from None
    if begun:
        raise BandstreamError(f"{path} ends too early: download it again")


def _unzstd(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of a zstd file of one or more frames, checksums compared where it has them."""
    import zstandard

    state = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    try:
        with state.stream_reader(raw, read_size=PIECE, read_across_frames=True, closefd=False) as stream:
            while piece := stream.read(8 * PIECE):
                yield piece
    except zstandard.ZstdError as error:
        text = " ".join(str(error).split())
        raise BandstreamError(
            f"{path} is damaged, or was made with windows of more than {WINDOW >> 20} MB ({text}): download it again"
        ) from None
