"""Folders of a GeoTIFF a band, as on AWS (Earth Search) and the Planetary Computer, with their STAC item or MTD XML.

Whether an offset is still in the stored numbers, the STAC item says: `earthsearch:boa_offset_applied` true, it is
removed already, whatever `raster:bands` says beside it; else `raster:bands` (or `raster:offset`), which gives it in
reflectance; else MTD XML; else `s2:processing_baseline`. Without metadata, a folder is believed what its name says.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ingest.reading.native import LEVELS
from ingest.reading.product import OFFSET, baseline_of, date_of, iso_date, tile_of
from ingest.scenes import safe
from ingest.scenes.files import ProductFiles, Sum
from ingest.scenes.model import PRODUCT, Clouds, Raster, Scene, decide_offset, has_offset, key_of
from ingest.scenes.owner import check_owner, check_place, claims_of, claims_of_item
from ingest.source import Rejected
from shards.bands import SENTINEL2

BAND_FILE = re.compile(r"(?:.*_)?(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.tiff?", re.IGNORECASE)
LEVEL = re.compile(r"MSI(L1C|L2A)_|_(L1C|L2A)(?:_|$)|S2MSI([12][AC])$")
TILE = re.compile(r"(?:^|[_-])T?(\d{2}[A-Z]{3})(?:_|$)")
ASSETS = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
"""What Earth Search calls the bands."""
MULTIHASH = {"1220": "sha256", "d50110": "md5"}
"""How a multihash begins, and its algorithm in hashlib."""
APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Properties of version 1 and 0 of Earth Search that say that an offset is removed already."""
ITEM_BYTES = 1 << 22
"""A larger .json is no STAC item of a scene."""


def is_product(names: set[str]) -> bool:
    """Whether a folder with these files holds bands of a scene."""
    return any(BAND_FILE.fullmatch(name) for name in names)


def open_product(files: ProductFiles, asked: int | None) -> Scene:
    """What a folder of GeoTIFFs holds; `asked` as for `decide_offset`. Raises Rejected."""
    item = _item(files)
    properties = item.get("properties") or {}
    metadata = safe.read_metadata(files) if safe.is_product(set(files.sizes)) else None
    names = [
        str(properties.get("s2:product_uri") or "").removesuffix(".SAFE"),
        metadata.product if metadata else "",
        files.name,
        str(item.get("id") or ""),
    ]
    product = next((name for name in names if PRODUCT.fullmatch(name)), names[3] or names[2])
    bands, classes = _rasters(files, product)
    level = metadata.level if metadata else _level(product, properties, bands, classes)
    bands = {band: raster for band, raster in bands.items() if band in LEVELS[level]}
    _check_owner(files, item, metadata.product if metadata else "", bands)
    files.check([raster.name for raster in (*bands.values(), *([classes] if classes else []))], _sums(item))
    stated = safe.baseline_text(_text(properties, "s2:processing_baseline", "processing:version"))
    stated = stated or (metadata.baseline if metadata else "")
    scale, offsets = _radiometry(item, bands, stated, product, asked)
    if offsets is None and metadata is not None:
        offsets = metadata.offsets
    elif offsets is None and stated and has_offset(stated) and asked is None:
        offsets = dict.fromkeys(bands, -OFFSET)
    taken, warnings = decide_offset(product, baseline_of(product), stated, offsets, tuple(bands), asked)
    tile = tile_of(product) or _tile(_text(properties, "s2:mgrs_tile", "grid:code")) or _tile(product)
    return Scene(
        product=key_of(product),
        level=level,
        baseline=stated or baseline_of(product),
        date=date_of(product) or iso_date(_text(properties, "datetime") or "")[:19] or _date(files),
        tile=tile or _tile(next(iter(bands.values())).name),
        scale=scale or (metadata.scale if metadata else 1e-4),
        taken=taken,
        bands=bands,
        clouds=Clouds("scl", classes) if classes else None,
        identity=files.identity([raster.name for raster in bands.values()]),
        warnings=warnings,
    )


def _item(files: ProductFiles) -> dict[str, Any]:
    """The STAC item in a folder; empty where there is none. Raises Rejected where there are several."""
    found: dict[str, dict[str, Any]] = {}
    for path, size in files.sizes.items():
        if "/" in path or not path.endswith(".json") or size > ITEM_BYTES:
            continue
        try:
            content = json.loads(files.read(path))
        except (ValueError, RecursionError):
            raise Rejected(f"{files.name}/{path}", "unreadable", "it is not JSON") from None
        if isinstance(content, dict) and content.get("type") == "Feature" and isinstance(content.get("assets"), dict):
            found[path] = content
    if len(found) > 1:
        raise Rejected(files.name, "ambiguous", f"several STAC items: {', '.join(found)}")
    item = next(iter(found.values()), {})
    if not isinstance(item.get("properties") or {}, dict):
        raise Rejected(files.name, "unreadable", "its STAC item has no properties")
    return item


def _rasters(files: ProductFiles, product: str) -> tuple[dict[str, Raster], Raster | None]:
    """Band → raster of its native resolution, in ESA's order, and the scene classification."""
    paths: dict[tuple[str, str], str] = {}
    for path in files.sizes:
        match = BAND_FILE.fullmatch(path) if "/" not in path else None
        if match and paths.setdefault((match[1].upper(), match[2] or ""), path) != path:
            raise Rejected(product, "ambiguous", f"both {paths[match[1].upper(), match[2] or '']} and {path}")
    bands: dict[str, Raster] = {}
    for band in SENTINEL2:
        native = paths.get((band, str(SENTINEL2[band].gsd_m))) or paths.get((band, ""))
        if native is not None:
            bands[band] = safe.look_into(files, native, "uint16")
    if not bands:
        raise Rejected(product, "missing-band", "it holds no band at its native resolution")
    classes = paths.get(("SCL", "20")) or paths.get(("SCL", "60")) or paths.get(("SCL", ""))
    return bands, safe.look_into(files, classes, "uint8") if classes else None


def _check_owner(files: ProductFiles, item: dict[str, Any], product: str, bands: dict[str, Raster]) -> None:
    """Raises Rejected where STAC item or XML (of `product`) are of another acquisition than the files."""
    named = [claim for name in (files.name, *files.sizes) for claim in claims_of(name)]
    check_owner(files.name, (*claims_of_item(item), *claims_of(product)), named)
    for band, asset in _assets(item, bands):
        check_place(files.name, item.get("properties") or {}, asset, band, bands[band])


def _assets(item: dict[str, Any], bands: dict[str, Raster]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bands, and what a STAC item says of them: by the name of the asset, or else of its file."""
    for key, asset in (item.get("assets") or {}).items():
        if not isinstance(asset, dict):
            continue
        band = ASSETS.get(key, key)
        if band not in bands:
            band = next((band for band, raster in bands.items() if raster.name == _file(asset)), "")
        if band:
            yield band, asset


def _sums(item: dict[str, Any]) -> dict[str, Sum]:
    """Checksums of the files that a STAC item names, as far as it has them (`file:checksum`, a multihash)."""
    sums: dict[str, Sum] = {}
    for asset in (item.get("assets") or {}).values():
        if not isinstance(asset, dict) or not isinstance(asset.get("file:size"), int):
            continue
        text = str(asset.get("file:checksum") or "").lower()
        algorithm = next((name for prefix, name in MULTIHASH.items() if text.startswith(prefix)), "")
        if algorithm:
            digest = text.removeprefix(next(prefix for prefix in MULTIHASH if text.startswith(prefix)))
            sums[_file(asset)] = Sum(asset["file:size"], algorithm, digest, "its STAC item")
    return sums


def _file(asset: dict[str, Any]) -> str:
    """Name of the file that an asset is."""
    return str(asset.get("href") or "").split("?")[0].rpartition("/")[2]


def _level(product: str, properties: dict[str, Any], bands: dict[str, Raster], classes: Raster | None) -> str:
    for text in (product, _text(properties, "s2:product_type", "processing:level") or ""):
        if text in LEVELS:
            return text
        if match := LEVEL.search(text):
            return match[1] or match[2] or f"L{match[3]}"
    if classes is not None or "B10" in bands:
        return "L2A" if classes is not None else "L1C"
    raise Rejected(
        product, "no-level", "nothing says whether it is L1C or L2A: name the folder as ESA names the product"
    )


def _radiometry(
    item: dict[str, Any], bands: dict[str, Raster], stated: str, product: str, asked: int | None
) -> tuple[float | None, dict[str, int] | None]:
    """Scale of the stored numbers, and what is to be added to each band's; None where the STAC item does not say."""
    scales, offsets = set(), {}
    for band, asset in _assets(item, bands):
        told: dict[str, Any] = next(iter(asset.get("raster:bands") or asset.get("bands") or []), {})
        scale, offset = (
            told.get(key, told.get(f"raster:{key}", asset.get(f"raster:{key}"))) for key in ("scale", "offset")
        )
        try:
            scales |= {float(scale)} if scale is not None else set()
            if offset is not None:
                exact = float(offset) / float(scale or 1e-4)
                offsets[band] = round(exact)
                if abs(exact - offsets[band]) > 1e-3:
                    raise ValueError
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            raise Rejected(
                product, "no-offset", f"scale {scale!r} and offset {offset!r} of {band} make no sense"
            ) from None
    if len(scales) > 1 or not all(0 < scale < 1 for scale in scales):
        raise Rejected(product, "no-scale", f"bands of it have different scales, or none that make sense: {scales}")
    scale = next(iter(scales), None)
    if any((item.get("properties") or {}).get(key) is True for key in APPLIED):
        return scale, dict.fromkeys(bands, 0)
    if not offsets:
        return scale, None
    if any(offsets.values()) and stated and not has_offset(stated):
        if asked is not None:
            return scale, dict.fromkeys(bands, -asked)
        text = f"its STAC item says baseline {stated}, which has no offset, and an offset in raster:bands"
        raise Rejected(product, "no-offset", f"{text}: say with --offset what to take")
    return scale, offsets


def _text(properties: dict[str, Any], *keys: str) -> str | None:
    return next((str(properties[key]) for key in keys if properties.get(key)), None)


def _tile(text: str | None) -> str:
    """`MGRS-22HBD`, `T22HBD_…`, `S2B_22HBD_…` → `T22HBD`."""
    found = TILE.search(text or "")
    return f"T{found[1]}" if found else ""


def _date(files: ProductFiles) -> str:
    return next((date for path in files.sizes if BAND_FILE.fullmatch(path) and (date := date_of(path))), "")
