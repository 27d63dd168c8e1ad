"""The byte layout, against tarfile, numpy.load and webdataset, which share no code with it."""

import io
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import BandstreamError
from shards.layout import KEY, TRAILER, SampleLayout, class_digits, pad_json

DTYPES = ("uint8", "uint16", "int16", "float32")


def random_content(layout: SampleLayout, seed: int) -> dict[str, np.ndarray | bytes]:
    rng = np.random.default_rng(seed)
    content: dict[str, np.ndarray | bytes] = {}
    for member in layout.members:
        if member.dtype is None:
            content[member.name] = bytes(rng.integers(48, 58, member.size, np.uint8))
        else:
            content[member.name] = rng.integers(0, 200, member.shape).astype(member.dtype)
    return content


def by_tarfile(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        assert all(m.isfile() and not m.pax_headers and m.mode == 0o644 and m.mtime == 0 for m in members)
        return {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]


arrays = st.lists(st.tuples(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from(DTYPES)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    arrays,
    st.one_of(st.none(), st.integers(1, 3), st.integers(1, 600).map(lambda k: ((k,), "uint8"))),
    st.booleans(),
    st.integers(2, 2000),
    st.from_regex(KEY, fullmatch=True),
)
def test_what_is_packed_is_what_tar_and_numpy_read(arrays, labels, masked, json_bytes, key):
    label = {} if labels is None else {"cls" if isinstance(labels, int) else "labels.npy": labels}
    mask = {"mask.npy": (arrays[0][0][1:], "uint8")} if masked else {}
    layout = SampleLayout({f"a{i}.npy": array for i, array in enumerate(arrays)}, label, mask, json_bytes)
    content = random_content(layout, json_bytes)
    packed = layout.pack(key, content)
    assert len(packed) == layout.sample_bytes and layout.sample_bytes % 512 == 0
    files = by_tarfile(packed + TRAILER)
    assert list(files) == [f"{key}.{m.name}" for m in layout.members]
    sample = np.frombuffer(packed, np.uint8)
    assert layout.check(sample) == key
    for member in layout.members:
        read: object = files[f"{key}.{member.name}"]
        if member.dtype is not None:
            array = np.load(io.BytesIO(files[f"{key}.{member.name}"]), allow_pickle=False)
            assert array.dtype == member.dtype
            np.testing.assert_array_equal(array, content[member.name])
            np.testing.assert_array_equal(layout.view(sample, member.name), array)
        else:
            assert read == content[member.name] == bytes(layout.view(sample, member.name))


LAYOUT = SampleLayout(
    {"10m.npy": ((4, 12, 12), "uint16"), "60m.npy": ((2, 2, 2), "uint16")},
    {"labels.npy": ((19,), "uint8")},
    {"mask.npy": ((12, 12), "uint8")},
    100,
)


def test_index_rows_are_where_tarfile_finds_the_members(tmp_path):
    keys = ["a", "b_2", "c-3"]
    data = b"".join(LAYOUT.pack(key, random_content(LAYOUT, i)) for i, key in enumerate(keys)) + TRAILER
    (tmp_path / "s.tar").write_bytes(data)
    first, *rows = LAYOUT.index(keys).splitlines()
    assert first == "v1.2 3"
    with tarfile.open(tmp_path / "s.tar") as tar:
        members = iter(tar.getmembers())
        for row in rows:
            words = row.split()
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                member = next(members)
                assert (member.name, member.offset_data, member.size) == (name, int(offset), int(size))
                assert name.partition(".")[2] == extension
    assert not list(members)


def test_index_equals_dalis_own_indexer(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    keys = ["a", "b_2", "c-3"]
    data = b"".join(LAYOUT.pack(key, random_content(LAYOUT, i)) for i, key in enumerate(keys)) + TRAILER
    (tmp_path / "s.tar").write_bytes(data)
    tool = Path(sys.executable).with_name("wds2idx")
    subprocess.run([tool, tmp_path / "s.tar", tmp_path / "s.idx"], check=True, capture_output=True)
    assert LAYOUT.index(keys).split() == (tmp_path / "s.idx").read_text().split()


def test_webdataset_reads_a_shard(tmp_path):
    content = [random_content(LAYOUT, i) for i in range(3)]
    data = b"".join(LAYOUT.pack(f"k{i}", c) for i, c in enumerate(content)) + TRAILER
    (tmp_path / "s.tar").write_bytes(data)
    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["k0", "k1", "k2"]
    for sample, expected in zip(samples, content, strict=True):
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["10m.npy"])), expected["10m.npy"])


@pytest.mark.parametrize("at", [0, 100, 256, 530, 1500])
def test_a_changed_header_is_noticed(at):
    sample = np.frombuffer(LAYOUT.pack("key", random_content(LAYOUT, 0)), np.uint8).copy()
    position = {1500: LAYOUT["60m.npy"].at + 124}.get(at, at)
    sample[position] ^= 1
    if at == 0:  # another key in one member than in the others
        with pytest.raises(ValueError, match="not where the manifest says"):
            LAYOUT.check(sample)
    else:
        with pytest.raises(ValueError, match=r"key\.(10m|60m)"):
            LAYOUT.check(sample)


@pytest.mark.parametrize("key", ["", "a.b", "x" * 81, "ä", "a/b", "a b", "../a"])
def test_impossible_keys_are_refused(key):
    with pytest.raises(ValueError, match="cannot be a sample's key"):
        LAYOUT.pack(key, random_content(LAYOUT, 0))


def test_pack_refuses_other_shapes_dtypes_and_members():
    content = random_content(LAYOUT, 0)
    with pytest.raises(ValueError, match="members"):
        LAYOUT.pack("k", {k: v for k, v in content.items() if k != "json"})
    with pytest.raises(ValueError, match="10m"):
        LAYOUT.pack("k", content | {"10m.npy": np.zeros((4, 12, 13), np.uint16)})
    with pytest.raises(ValueError, match="10m"):
        LAYOUT.pack("k", content | {"10m.npy": np.zeros((4, 12, 12), np.float32)})


def test_json_is_padded_and_never_cut():
    assert pad_json('{"a": 1}', 12, "k") == b'{"a": 1}    '
    with pytest.raises(BandstreamError, match="k: its json takes 8 bytes"):
        pad_json('{"a": 1}', 7, "k")


@pytest.mark.parametrize(("classes", "digits"), [(1, 1), (10, 1), (11, 2), (100, 2), (101, 3)])
def test_class_indices_have_one_width(classes, digits):
    assert class_digits(classes) == digits
