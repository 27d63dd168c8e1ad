"""The bytes of a sample: ustar headers and npy members at fixed places, so that a tar is also an array.

Every sample of a set has the same members, in the same order and of the same sizes. Its tar therefore has a fixed
stride, `sample_bytes`, and sample k of a shard is the bytes from `k * sample_bytes`. Formats: POSIX.1-1988 ustar, and
NumPy's NEP 1 (npy version 1.0, header padded to 128 bytes).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shards.errors import BandstreamError
from shards.manifest import Manifest

BLOCK = 512
NPY_HEADER = 128
TRAILER = bytes(2 * BLOCK)
"""Two zero blocks end a tar."""
KEY = re.compile(r"[A-Za-z0-9_+=-]{1,80}")
"""What a sample's key may be: ASCII without dots, for the first dot of a member's name ends the key."""


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a regular file: mode 0644, owner 0, time 0."""
    encoded = name.encode("ascii")
    if len(encoded) > 100:
        raise ValueError(f"{name!r} is longer than the 100 characters of a ustar name")
    fields = (
        encoded.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size,
        b"00000000000\0",
        b" " * 8,
        b"0",
        bytes(100),
        b"ustar\00000",
        bytes(64),
        b"0000000\0" * 2,
        bytes(167),
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The 128-byte npy 1.0 header of a C-ordered array."""
    text = f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    start = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
    return start + text.encode().ljust(NPY_HEADER - 11) + b"\n"


@dataclass(frozen=True)
class Member:
    """A file of a sample. `at` counts from the sample's first byte.

    Array members (`shape` and `dtype` given) are npy files of `size` bytes whose first pixel lies at `data_at`; plain
    members (`shape` None) are `size` bytes that begin at `data_at`.
    """

    name: str
    size: int
    at: int
    data_at: int
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    @property
    def payload_at(self) -> int:
        """Where the file begins, behind its tar header."""
        return self.at + BLOCK

    @property
    def end(self) -> int:
        """Where the next member's tar header begins."""
        return self.payload_at + -(-self.size // BLOCK) * BLOCK


class SampleLayout:
    """Where everything lies inside a sample.

    Parameters: `arrays`, member → (shape, dtype); `labels`, member → (shape, dtype) for multi-hot vectors or the number
    of ASCII digits for class indices; `masks`, member → (shape, dtype); `json_bytes`, the padded size of `json`.
    """

    def __init__(
        self,
        arrays: Mapping[str, tuple[tuple[int, ...], str]],
        labels: Mapping[str, tuple[tuple[int, ...], str] | int],
        masks: Mapping[str, tuple[tuple[int, ...], str]],
        json_bytes: int,
    ) -> None:
        self.members: tuple[Member, ...] = ()
        for name, content in {**arrays, **labels, **masks, "json": json_bytes}.items():
            at = self.members[-1].end if self.members else 0
            if isinstance(content, int):
                member = Member(name, content, at, at + BLOCK)
            else:
                shape, dtype = content
                size = NPY_HEADER + int(np.prod(shape)) * np.dtype(dtype).itemsize
                member = Member(name, size, at, at + BLOCK + NPY_HEADER, tuple(shape), dtype)
            self.members += (member,)
        self.sample_bytes = self.members[-1].end
        self.json_bytes = json_bytes

    @classmethod
    def declared(cls, manifest: Manifest, json_bytes: int = 0) -> "SampleLayout":
        """The layout that the shapes and classes of a manifest make; only `json`'s size is not in them."""
        height, width = finest_grid(manifest)
        labels: dict[str, tuple[tuple[int, ...], str] | int] = {}
        for label in manifest.labels.values():
            count = len(label.classes)
            labels[label.member] = ((count,), "uint8") if label.kind == "multilabel" else class_digits(count)
        return cls(
            {name: (array.shape, array.dtype) for name, array in manifest.arrays.items()},
            labels,
            {mask.member: ((height, width), "uint8") for mask in manifest.masks.values()},
            json_bytes,
        )

    @classmethod
    def of(cls, manifest: Manifest, json_bytes: int) -> "SampleLayout":
        """The layout a manifest speaks of. Raises BandstreamError where the manifest's own numbers do not fit it."""
        layout = cls.declared(manifest, json_bytes)
        for name, array in manifest.arrays.items():
            if layout[name].data_at != array.offset:
                raise BandstreamError(
                    f"manifest of {manifest.name}: {name} is said to begin at byte {array.offset} of a sample, "
                    f"by its shapes it begins at {layout[name].data_at}: ingest again"
                )
        if layout.sample_bytes != manifest.sample_bytes:
            raise BandstreamError(
                f"manifest of {manifest.name}: sample_bytes is {manifest.sample_bytes}, "
                f"its members take {layout.sample_bytes}: ingest again"
            )
        return layout

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}

    def __getitem__(self, name: str) -> Member:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def template(self) -> np.ndarray:
        """A sample of zeros with its tar and npy headers, keys empty: uint8 (sample_bytes,)."""
        blank = np.zeros(self.sample_bytes, np.uint8)
        for member in self.members:
            blank[member.at : member.at + BLOCK] = np.frombuffer(tar_header(f".{member.name}", member.size), np.uint8)
            if member.shape is not None and member.dtype is not None:
                header = npy_header(member.shape, member.dtype)
                blank[member.payload_at : member.data_at] = np.frombuffer(header, np.uint8)
        blank.setflags(write=False)
        return blank

    def write_headers(self, sample: np.ndarray, key: str) -> None:
        """Lay headers and zeros into `sample`, uint8 (sample_bytes,). Raises ValueError on an impossible key."""
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a sample's key: 1 to 80 letters, digits and _ + = -")
        sample[:] = self.template
        for member in self.members:
            header = np.frombuffer(tar_header(f"{key}.{member.name}", member.size), np.uint8)
            sample[member.at : member.at + BLOCK] = header

    @cached_property
    def _stamps(self) -> tuple[tuple[int, bytes, int], ...]:
        """Per member: where its tar header begins, what follows the key in its name, and the checksum without a key."""
        stamps = []
        for member in self.members:
            header = bytearray(tar_header(f".{member.name}", member.size))
            header[148:156] = b" " * 8
            stamps.append((member.at, f".{member.name}".encode(), sum(header)))
        return tuple(stamps)

    def write_names(self, sample: np.ndarray, key: str) -> None:
        """Put a key into the tar headers of a sample that holds the template, or another key of this layout.

        The same bytes as `write_headers`, which also clears the data, in a fiftieth of the time.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a sample's key: 1 to 80 letters, digits and _ + = -")
        name, raw = key.encode(), sample.data
        for at, suffix, checksum in self._stamps:
            full = name + suffix
            if len(full) > 100:
                raise ValueError(f"{full.decode()!r} is longer than the 100 characters of a ustar name")
            raw[at : at + 100] = full.ljust(100, b"\0")
            raw[at + 148 : at + 154] = b"%06o" % (checksum + sum(name))

    def view(self, samples: np.ndarray, name: str) -> np.ndarray:
        """The data of one member in uint8 (..., sample_bytes), without a copy.

        Returns (..., *shape) of its dtype for an array member, uint8 (..., size) for a plain one.
        """
        member = self[name]
        last = samples.strides[-1]
        if last != 1 or samples.shape[-1] < member.end:
            raise ValueError(f"samples of {samples.shape} with strides {samples.strides} do not hold {name}")
        if member.shape is None or member.dtype is None:
            return samples[..., member.data_at : member.data_at + member.size]
        dtype = np.dtype(member.dtype).newbyteorder("<")
        flat = samples[..., member.data_at : member.payload_at + member.size].view(dtype)
        return flat.reshape(*samples.shape[:-1], *member.shape)

    def pack(self, key: str, content: Mapping[str, np.ndarray | bytes]) -> bytes:
        """The bytes of one sample. Raises ValueError where a member is missing, unknown or of another size."""
        if set(content) != set(self._by_name):
            raise ValueError(f"{key}: members {sorted(content)}, the layout has {sorted(self._by_name)}")
        sample = np.empty(self.sample_bytes, np.uint8)
        self.write_headers(sample, key)
        for name, data in content.items():
            target = self.view(sample, name)
            value = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
            if value.shape != target.shape or value.dtype != target.dtype:
                raise ValueError(
                    f"{key}.{name}: {value.dtype} {value.shape}, the layout says {target.dtype} {target.shape}"
                )
            target[...] = value
        return sample.tobytes()

    def key(self, sample: np.ndarray) -> str:
        """The key of a sample, from its first tar header. Raises ValueError where there is none."""
        name = bytes(sample[:100]).rstrip(b"\0").decode("ascii")
        key, dot, rest = name.partition(".")
        if not dot or rest != self.members[0].name:
            raise ValueError(f"the first member is {name!r}, not KEY.{self.members[0].name}")
        return key

    def check(self, sample: np.ndarray) -> str:
        """Compare every tar and npy header of a sample, uint8 (sample_bytes,), with the layout.

        Returns its key; raises ValueError naming the member that is not where or what it should be.
        """
        key = self.key(sample)
        for member in self.members:
            expected = tar_header(f"{key}.{member.name}", member.size)
            if member.shape is not None and member.dtype is not None:
                expected += npy_header(member.shape, member.dtype)
            if bytes(sample[member.at : member.at + len(expected)]) != expected:
                raise ValueError(f"{key}.{member.name} is not where the manifest says, or of another size or type")
        return key

    def index(self, keys: list[str]) -> str:
        """DALI's index (wds2idx v1.2) of a shard with these samples: extension, offset, size, name a member."""
        lines = [f"v1.2 {len(keys)}"]
        for number, key in enumerate(keys):
            start = number * self.sample_bytes
            lines.append(" ".join(f"{m.name} {start + m.payload_at} {m.size} {key}.{m.name}" for m in self.members))
        return "\n".join(lines) + "\n"


def finest_grid(manifest: Manifest) -> tuple[int, int]:
    """Height and width, in pixels, of the finest array: the grid of masks and of views at native size."""
    shapes = [array.shape for array in manifest.arrays.values()]
    return max(shape[1] for shape in shapes), max(shape[2] for shape in shapes)


def class_digits(classes: int) -> int:
    """How many ASCII digits a class index takes in a set with so many classes."""
    return len(str(max(classes - 1, 0)))


def pad_json(text: str, size: int, key: str) -> bytes:
    """JSON text padded with spaces to `size` bytes. Raises BandstreamError where it does not fit."""
    encoded = text.encode()
    if len(encoded) > size:
        raise BandstreamError(f"{key}: its json takes {len(encoded)} bytes, the source declares {size}")
    return encoded.ljust(size)


def tar_size(header: Any) -> int:
    """The file size that a ustar header states. Raises ValueError where it is no ustar header."""
    raw = bytes(header)
    if len(raw) < BLOCK or raw[257:262] != b"ustar":
        raise ValueError("no ustar header")
    return int(raw[124:135], 8)
