"""The strip parser against rasterio: equal pixels, places and nodata on what it takes, a clear no to the rest."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.reading.geotiff import MAX_BLOCK, RasterError, Reader, read_rasterio
from ingest.reading.tiff import Header, parse
from tests.ingest.tiff import tiff

SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


def judged(path: Path) -> tuple[np.ndarray, Header]:
    """Pixels and header as rasterio sees them."""
    with rasterio.open(path) as source:
        placed = source.crs is not None or not source.transform.is_identity
        epsg = source.crs.to_epsg() if source.crs else 0
        return source.read(1), Header(epsg or 0, tuple(source.transform)[:6] if placed else None, source.nodata)


def equal_to_rasterio(reader: Reader, path: Path) -> None:
    pixels, header = judged(path)
    out = np.full(pixels.shape, 7, np.uint16)
    assert reader.read(str(path), out) == header
    np.testing.assert_array_equal(out, pixels)


@st.composite
def strips(draw: st.DrawFn) -> dict[str, Any]:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    deflate = draw(st.booleans())
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 65536, (height, width)).astype(np.uint16)
    return {
        "pixels": pixels,
        "order": draw(st.sampled_from("<>")),
        "rows": draw(st.integers(1, height + 3)),
        "counts_kind": draw(st.sampled_from([3, 4])),
        "offsets_kind": draw(st.sampled_from([3, 4])),
        "gap": draw(st.sampled_from([0, 2, 6])),
        "backwards": draw(st.booleans()),
        "values_last": draw(st.booleans()),
        "deflate": deflate,
        "predictor": draw(st.sampled_from([1, 2])) if deflate else 1,
        "place": draw(
            st.none()
            | st.tuples(
                st.sampled_from([32601, 32633, 32735, 3035]),
                st.sampled_from([10.0, 60.0, 0.5]),
                *[st.floats(0, 6e6)] * 2,
            )
        ),
        "nodata": draw(st.sampled_from([None, "0", "65535", "-9999", "nan"])),
    }


@SETTINGS
@given(strips())
def test_equals_rasterio_on_strips(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = tmp_path / "strips.tif"
    path.write_bytes(tiff(**layout))
    parsed = parse(path.read_bytes())
    assert parsed is not None or layout["nodata"] in ("-9999", "nan"), "a file of plain strips should not need rasterio"
    pixels, header = judged(path)
    out = np.empty(pixels.shape, np.uint16)
    got = Reader().read(str(path), out)
    np.testing.assert_array_equal(out, pixels)
    np.testing.assert_array_equal(out, layout["pixels"])
    assert (got.epsg, got.transform) == (header.epsg, header.transform)
    assert got.nodata == header.nodata or (got.nodata != got.nodata and header.nodata != header.nodata)


@SETTINGS
@given(st.lists(strips(), min_size=2, max_size=6), st.data())
def test_remembered_headers_give_each_file_its_own(
    tmp_path: Path, layouts: list[dict[str, Any]], data: st.DataObject
) -> None:
    """One reader over files that differ in little or much, in any order, equals a new reader for each."""
    reader = Reader()
    for _ in range(10):
        layout = dict(data.draw(st.sampled_from(layouts)))
        if layout["place"]:
            layout["place"] = (*layout["place"][:2], data.draw(st.sampled_from([0.0, 120.0])), 600.0)
        if data.draw(st.booleans()):  # deflated, its strips then take other sizes and lie elsewhere
            layout["pixels"] = layout["pixels"] // data.draw(st.sampled_from([7, 900]))
        path = tmp_path / "one.tif"
        path.write_bytes(tiff(**layout))
        one, other = np.empty_like(layout["pixels"]), np.empty_like(layout["pixels"])
        assert repr(reader.read(str(path), one)) == repr(Reader().read(str(path), other))
        np.testing.assert_array_equal(one, layout["pixels"])
        np.testing.assert_array_equal(other, layout["pixels"])


def test_another_shape_of_as_many_bytes_is_never_taken_for_the_usual_one(tmp_path: Path) -> None:
    reader = Reader()
    place = (32633, 10.0, 0.0, 600.0)
    for name, pixels in (("square", PIXELS), ("flat", PIXELS.reshape(10, 40))):
        (tmp_path / name).write_bytes(tiff(pixels, place=place))
    for name in ("square", "flat", "flat", "square", "flat"):
        out = np.zeros((20, 20), np.uint16)
        if name == "square":
            reader.read(str(tmp_path / name), out)
            np.testing.assert_array_equal(out, PIXELS)
            continue
        with pytest.raises(RasterError, match="40 x 10 pixels, not 20 x 20"):
            reader.read(str(tmp_path / name), out)


def test_values_that_two_tags_share_are_not_taken_for_a_files_own(tmp_path: Path) -> None:
    """Pixel scale and tie point in the same bytes: another tie point is another scale."""
    reader = Reader()
    for scale in (10.0, 20.0, 20.0, 30.0):
        content = bytearray(tiff(PIXELS))
        entries = {struct.unpack_from("<H", content, at)[0]: at for at in range(10, 10 + 12 * content[8], 12)}
        (tie,) = struct.unpack_from("<I", content, entries[33922] + 8)
        struct.pack_into("<I", content, entries[33550] + 8, tie)
        struct.pack_into("<6d", content, tie, scale, scale, 0.0, 3.0, 600.0, 0.0)
        assert parse(bytes(content)) is not None
        (tmp_path / "shared.tif").write_bytes(content)
        equal_to_rasterio(reader, tmp_path / "shared.tif")


@pytest.mark.parametrize(
    ("options", "parsed"),
    [
        ({}, True),
        ({"ENDIANNESS": "BIG"}, True),
        ({"blockysize": 7}, True),
        ({"compress": "deflate", "predictor": 2}, True),
        ({"compress": "deflate", "zlevel": 9}, True),
        ({"tiled": True, "blockxsize": 16, "blockysize": 32}, False),
        ({"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}, False),
        ({"compress": "lzw"}, False),
        ({"compress": "lzw", "predictor": 2}, False),
        ({"compress": "packbits"}, False),
        ({"compress": "zstd"}, False),
        ({"BIGTIFF": "YES"}, False),
        ({"BIGTIFF": "YES", "tiled": True, "compress": "lzma"}, False),
        ({"SPARSE_OK": True, "blockysize": 8}, False),
        ({"photometric": "MINISWHITE"}, True),
        ({"nbits": 12}, False),
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:32629", "EPSG:4326", None])
def test_equals_rasterio_on_what_it_writes(
    tmp_path: Path, options: dict[str, Any], parsed: bool, crs: str | None
) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 4096, (48, 36)).astype(np.uint16)
    if "SPARSE_OK" in options:
        pixels[16:] = 0
    place = {"crs": crs, "transform": rasterio.transform.from_origin(4e5, 5e6, 10, 10)} if crs else {}
    with rasterio.open(path, "w", "GTiff", 36, 48, 1, dtype="uint16", nodata=0, **place, **options) as out:
        out.write(
            pixels[:16] if "SPARSE_OK" in options else pixels,
            1,
            window=((0, 16), (0, 36)) if "SPARSE_OK" in options else None,
        )
    assert (parse(path.read_bytes()) is not None) == parsed
    equal_to_rasterio(Reader(), path)


def test_equals_rasterio_on_every_real_file(real_data: Path) -> None:
    reader, count = Reader(), 0
    for path in sorted(real_data.glob("bigearthnet_v*/**/*.tif")):
        assert parse(path.read_bytes()) is not None, path
        equal_to_rasterio(reader, path)
        equal_to_rasterio(reader, path)
        count += 1
    assert count >= 61
    for path in sorted(real_data.glob("eurosat_ms/**/*.tif")):
        with pytest.raises(RasterError) as refused:
            reader.read(str(path), np.empty((64, 64), np.uint16))
        assert refused.value.reason == "wrong-bands"


def refusal(tmp_path: Path, content: bytes, shape: tuple[int, int] = (20, 20)) -> RasterError:
    path = tmp_path / "bad.tif"
    path.write_bytes(content)
    with pytest.raises(RasterError) as refused:
        Reader().read(str(path), np.zeros(shape, np.uint16))
    return refused.value


PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)


@pytest.mark.parametrize("keep", [0, 4, 9, 100, 300, 500, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    assert refusal(tmp_path, tiff(PIXELS)[:keep]).reason == "truncated"
    deflated = tiff(PIXELS, deflate=True)
    assert refusal(tmp_path, deflated[:keep]).reason == "truncated"


def test_other_than_asked(tmp_path: Path) -> None:
    assert refusal(tmp_path, tiff(PIXELS), (20, 21)).detail == "20 x 20 pixels, not 21 x 20"
    assert refusal(tmp_path, tiff(PIXELS.astype(np.float32))).detail == "float32, not uint16"
    assert refusal(tmp_path, tiff(PIXELS.astype(np.int16))).reason == "wrong-type"
    assert refusal(tmp_path, tiff(PIXELS.astype(np.uint8))).reason == "wrong-type"
    assert refusal(tmp_path, b"not a TIFF at all" * 9).reason == "unreadable"
    assert refusal(tmp_path, b"<VRTDataset rasterXSize='20' rasterYSize='20'/>").reason == "unreadable"
    two = tmp_path / "two.tif"
    with rasterio.open(two, "w", "GTiff", 20, 20, 2, dtype="uint16") as out:
        out.write(np.stack([PIXELS, PIXELS]))
    assert refusal(tmp_path, two.read_bytes()).reason == "wrong-bands"
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(RasterError, match="unreadable"):
        Reader().read(str(tmp_path / "folder.tif"), PIXELS.copy())
    with pytest.raises(FileNotFoundError):
        Reader().read(str(tmp_path / "none.tif"), PIXELS.copy())


def test_absurd_headers_cost_no_memory(tmp_path: Path) -> None:
    """Sizes of gigapixels, strips of gigabytes, a deflate bomb: refused without allocating what they claim."""
    import tracemalloc

    huge = {256: (4, (1 << 30,)), 257: (4, (1 << 30,))}
    bomb = tiff(np.zeros((4000, 4000), np.uint16), deflate=True)
    cases = [
        tiff(PIXELS, extra=huge),
        tiff(PIXELS, extra={322: (4, (1 << 20,)), 323: (4, (1 << 20,)), 324: (4, (8,)), 325: (4, (8,))}),
        bomb,
    ]
    tracemalloc.start()
    for content in cases:
        refusal(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert MAX_BLOCK * 2 <= 64 << 20
    # a false byte count is put right, as by rasterio
    path = tmp_path / "count.tif"
    path.write_bytes(tiff(PIXELS, extra={279: (4, (0xFFFFFFF0,))}))
    equal_to_rasterio(Reader(), path)
    # a strip that decompresses to more than its rows is not decompressed to its end
    content = tiff(np.zeros((4000, 20), np.uint16), deflate=True, extra={257: (3, (20,)), 278: (3, (20,))})
    assert refusal(tmp_path, content).reason == "unreadable"
    # the last strip may be padded to the rows of the others
    path.write_bytes(tiff(np.vstack([PIXELS, PIXELS[:4]]), rows=8, deflate=True, extra={257: (3, (20,))}))
    equal_to_rasterio(Reader(), path)


def test_a_damaged_strip_fails_its_checksum(tmp_path: Path) -> None:
    content = bytearray(tiff(PIXELS, rows=8, deflate=True, predictor=2))
    parsed = parse(bytes(content))
    assert parsed
    start, count = parsed.strips[0]
    found = set()
    for position in range(start, start + count):
        damaged = content.copy()
        damaged[position] ^= 1
        found.add(refusal(tmp_path, bytes(damaged)).reason)
    assert found <= {"unreadable", "truncated"}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 330), st.integers(0, 255)), max_size=4), st.integers(0, 1200), st.booleans())
def test_damage_is_refused_or_read_as_rasterio_does(
    tmp_path: Path, damage: list[tuple[int, int]], keep: int, deflate: bool
) -> None:
    """Bytes of the header changed at random, the end cut off: a RasterError, or the same pixels as rasterio."""
    content = bytearray(tiff(PIXELS, rows=8, deflate=deflate, predictor=2 if deflate else 1, nodata="0"))
    for position, value in damage:
        content[position] = value
    path = tmp_path / "damaged.tif"
    path.write_bytes(content[:keep] if keep % 3 == 0 else content)
    out, other = np.zeros((20, 20), np.uint16), np.zeros((20, 20), np.uint16)
    found = outcome(Reader(), path, out)
    whole = tmp_path / "whole.tif"
    whole.write_bytes(tiff(PIXELS, rows=8, deflate=deflate, predictor=2 if deflate else 1, nodata="0"))
    reader = Reader()
    reader.read(str(whole), other)
    assert outcome(reader, path, other) == found, "what was read before changes nothing"
    try:
        read_rasterio(str(path), other)
    except RasterError:
        return
    if found[1]:
        np.testing.assert_array_equal(out, other)


def outcome(reader: Reader, path: Path, out: np.ndarray) -> tuple[str, bytes]:
    """Header and pixels, or why there are none."""
    try:
        return repr(reader.read(str(path), out)), out.tobytes()
    except RasterError as error:
        return str(error), b""
