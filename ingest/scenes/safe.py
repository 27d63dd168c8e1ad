"""SAFE: the product as ESA distributes it, in JPEG 2000 (S2-PDGS-TAS-DI-PSD, "Sentinel-2 Products Specification").

Each band is read from the folder of its native resolution (L2A also holds coarser copies, and newer ones B01 at 20 m).
Offsets are `BOA_ADD_OFFSET` (L2A) or `RADIO_ADD_OFFSET` (L1C) of the product's own XML.
A raster whose size is that of `manifest.safe` must have its checksum too: JPEG 2000 has none of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from ingest.reading.geotiff import RasterError
from ingest.reading.native import LEVELS
from ingest.reading.product import baseline_of, date_of, iso_date, tile_of
from ingest.scenes.files import ProductFiles, Sum
from ingest.scenes.model import PRODUCT, Clouds, Polygon, Raster, Scene, decide_offset, has_offset, key_of
from ingest.scenes.raster import look
from ingest.source import Rejected
from shards.bands import SENTINEL2

METADATA = {"MTD_MSIL2A.xml": "L2A", "MTD_MSIL1C.xml": "L1C"}
BAND_FILE = re.compile(r"GRANULE/[^/]+/IMG_DATA/(?:R\d\dm/)?[^/]*?_(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.jp2")
CLASSI = re.compile(r"GRANULE/[^/]+/QI_DATA/MSK_CLASSI_B00\.jp2")
POLYGONS = re.compile(r"GRANULE/[^/]+/QI_DATA/[^/]*MSK_CLOUDS[^/]*B00[^/]*\.gml")
ALGORITHMS = {"MD5": "md5", "SHA3-256": "sha3_256", "SHA-256": "sha256"}
URIS = ("PRODUCT_URI", "PRODUCT_URI_2A", "PRODUCT_URI_1C")
"""Where the XML names the product, and the one that it was made from."""
CLOUD_TYPES = {"OPAQUE", "CIRRUS"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What MTD_MSIL1C.xml or MTD_MSIL2A.xml says: level, product name, baseline (`N0214`), sensing start, scale of
    stored numbers, and band → what is added to them (None where it has no such list)."""

    level: str
    product: str
    baseline: str
    start: str
    scale: float
    offsets: dict[str, int] | None


def is_product(names: set[str]) -> bool:
    """Whether a folder with these files is a SAFE product."""
    return any(name in names for name in METADATA)


def read_metadata(files: ProductFiles) -> Metadata:
    """Raises Rejected."""
    path = next(path for path in METADATA if path in files.sizes)
    root = parse(files, path)
    stated = (text_of(root, "PROCESSING_LEVEL") or "").replace("Level-", "L")[:3]
    if stated and stated != METADATA[path]:
        raise Rejected(f"{files.name}/{path}", "wrong-level", f"it says {stated}")
    offsets = _offsets(root, files.name)
    _check_owner(root, files.name, path, offsets)
    return Metadata(
        METADATA[path],
        (text_of(root, *URIS) or "").removesuffix(".SAFE"),
        baseline_text(text_of(root, "PROCESSING_BASELINE")),
        iso_date(text_of(root, "DATATAKE_SENSING_START", "PRODUCT_START_TIME") or "")[:19],
        _scale(root, files.name),
        offsets,
    )


def _check_owner(root: ElementTree.Element, name: str, path: str, offsets: dict[str, int] | None) -> None:
    """Raises Rejected where the XML is of another acquisition than the folder's name says, and the name speaks for
    another offset. A folder that was merely renamed is none of our business."""
    told = [element.text.strip().removesuffix(".SAFE") for element in found(root, *URIS) if element.text]
    named = [uri for uri in told if PRODUCT.fullmatch(uri)]
    if not PRODUCT.fullmatch(name) or not named or _acquisition(name) in map(_acquisition, named):
        return
    if has_offset(baseline_of(name)) != any((offsets or {}).values()):
        text = f"it is the metadata of {named[0]}, whose offset is another: download the product again"
        raise Rejected(f"{name}/{path}", "another-product", text)


def _acquisition(product: str) -> tuple[str, ...]:
    """Satellite, level, time of sensing, orbit and tile of a product's name: what no processing changes."""
    parts = product.split("_")
    return (*parts[:3], *parts[4:6])


def open_product(files: ProductFiles, asked: int | None) -> Scene:
    """What a SAFE product holds; `asked` as for `decide_offset`. Raises Rejected."""
    name = files.name
    metadata = read_metadata(files)
    product = metadata.product if PRODUCT.fullmatch(metadata.product) and not PRODUCT.fullmatch(name) else name
    granules = sorted({path.split("/")[1] for path in files.sizes if path.startswith("GRANULE/")})
    if len(granules) > 1:
        raise Rejected(name, "granules", f"{len(granules)} granules in one product (before December 2016): split it")
    bands, classes = _rasters(files, name, metadata.level)
    clouds = _clouds(files, name, metadata.level, classes)
    masks = [clouds.raster.name] if clouds is not None and clouds.raster is not None else []
    files.check([*(raster.name for raster in bands.values()), *masks], _sums(files))
    taken, warnings = decide_offset(
        name, baseline_of(product), metadata.baseline, metadata.offsets, tuple(bands), asked
    )
    return Scene(
        product=key_of(product),
        level=metadata.level,
        baseline=metadata.baseline or baseline_of(product),
        date=date_of(product) or metadata.start,
        tile=tile_of(product) or tile_of(next(iter(bands.values())).name.rpartition("/")[2]),
        scale=metadata.scale,
        taken=taken,
        bands=bands,
        clouds=clouds,
        identity=files.identity([raster.name for raster in bands.values()]),
        warnings=warnings,
    )


def _sums(files: ProductFiles) -> dict[str, Sum]:
    """Checksums that `manifest.safe` has. Raises Rejected."""
    sums: dict[str, Sum] = {}
    streams = parse(files, "manifest.safe").iter("byteStream") if "manifest.safe" in files.sizes else ()
    for stream in streams:
        location, checksum = stream.find("fileLocation"), stream.find("checksum")
        if location is None or checksum is None:
            continue
        algorithm = ALGORITHMS.get((checksum.get("checksumName") or "").upper(), "")
        size, path = stream.get("size") or "", (location.get("href") or "").removeprefix("./")
        if algorithm and size.isdecimal():
            sums[path] = Sum(int(size), algorithm, (checksum.text or "").strip().lower(), "manifest.safe")
    return sums


def parse(files: ProductFiles, path: str) -> ElementTree.Element:
    """Root of an XML file. Raises Rejected."""
    try:
        return ElementTree.fromstring(files.read(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Rejected(f"{files.name}/{path}", "unreadable", f"it is not XML ({error})") from None


def found(root: ElementTree.Element, *tags: str) -> Iterator[ElementTree.Element]:
    """Elements of these names, whatever their namespace."""
    return (element for element in root.iter() if element.tag.rpartition("}")[2] in tags)


def text_of(root: ElementTree.Element, *tags: str) -> str | None:
    """Text of the first element of these names that has any."""
    return next((element.text.strip() for element in found(root, *tags) if element.text and element.text.strip()), None)


def baseline_text(text: str | None) -> str:
    """`02.14` → `N0214`; "" for what is none."""
    digits = (text or "").replace(".", "")
    return f"N{digits}" if re.fullmatch(r"\d{4}", digits) else ""


def _rasters(files: ProductFiles, name: str, level: str) -> tuple[dict[str, Raster], Raster | None]:
    """Band → raster of its native resolution, in ESA's order, and the scene classification, at 20 m or else 60 m."""
    paths: dict[tuple[str, str], str] = {}
    for path in files.sizes:
        match = BAND_FILE.fullmatch(path)
        if match and paths.setdefault((match[1], match[2] or ""), path) != path:
            raise Rejected(name, "ambiguous", f"both {paths[match[1], match[2] or '']} and {path} are {match[1]}")
    bands: dict[str, Raster] = {}
    for band in LEVELS[level]:
        native = paths.get((band, str(SENTINEL2[band].gsd_m))) or paths.get((band, ""))
        if native is not None:
            bands[band] = look_into(files, native, "uint16")
    if not bands:
        raise Rejected(name, "missing-band", "it holds no rasters of bands in GRANULE/*/IMG_DATA")
    classes = paths.get(("SCL", "20")) or paths.get(("SCL", "60")) or paths.get(("SCL", ""))
    return bands, look_into(files, classes, "uint8") if classes else None


def look_into(files: ProductFiles, path: str, dtype: str, count: int = 1) -> Raster:
    """A raster of a product. Raises Rejected."""
    try:
        return look(path, files.gdal(path), dtype, count)
    except RasterError as error:
        raise Rejected(f"{files.name}/{path}", error.reason, error.detail) from None


def _offsets(root: ElementTree.Element, name: str) -> dict[str, int] | None:
    """Band → what is added to its stored numbers; None where the XML has no such list."""
    elements = list(found(root, "BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"))
    if not elements:
        return None
    names, offsets = list(SENTINEL2), {}
    for element in elements:
        try:
            number = int(element.get("band_id", "-1"))
            value = float(element.text or "")
            if not 0 <= number < len(names) or value != int(value):
                raise ValueError
        except ValueError:
            raise Rejected(
                name, "no-offset", f"{element.tag} of its metadata cannot be read: {element.text!r}"
            ) from None
        offsets[names[number]] = int(value)
    return offsets


def _scale(root: ElementTree.Element, name: str) -> float:
    text = text_of(root, "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
    try:
        value = float(text or "")
        if not 1 <= value <= 1e6:
            raise ValueError
    except ValueError:
        raise Rejected(
            name, "no-scale", f"its metadata has no quantification value that makes sense: {text!r}"
        ) from None
    return 1 / value


def _clouds(files: ProductFiles, name: str, level: str, classes: Raster | None) -> Clouds | None:
    if level == "L2A":
        return Clouds("scl", classes) if classes else None
    for path in files.sizes:
        if CLASSI.fullmatch(path):
            return Clouds("classi", look_into(files, path, "uint8", 3))
    for path in files.sizes:
        if POLYGONS.fullmatch(path):
            return Clouds("gml", polygons=tuple(_polygons(parse(files, path), f"{name}/{path}")))
    return None


def _polygons(root: ElementTree.Element, where: str) -> Iterator[Polygon]:
    """The opaque and cirrus clouds of a MSK_CLOUDS file: outer ring, then holes."""
    for feature in found(root, "MaskFeature"):
        if text_of(feature, "maskType") not in CLOUD_TYPES:
            continue
        for polygon in found(feature, "Polygon"):
            rings = []
            for side in (*found(polygon, "exterior"), *found(polygon, "interior")):
                try:
                    numbers = [float(text) for text in (text_of(side, "posList") or "").split()]
                except ValueError:
                    numbers = []
                if len(numbers) < 6 or len(numbers) % 2:
                    raise Rejected(where, "unreadable", "a polygon of it has no corners")
                rings.append(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
            if rings:
                yield tuple(rings)
