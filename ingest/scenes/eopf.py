"""EOPF: the product as Zarr (v2 or v3), a folder or a .zip (EOPF Product Structure and Format Definition).

`measurements/reflectance/r10m/b02` and so on hold stored numbers; `scale_factor` and `add_offset` (in reflectance)
stand in an array's attributes, or in `_eopf_attrs` there. Clouds are in
`conditions/mask/l2a_classification/r20m/scl`, of L1C in `conditions/mask/l1c_classification/r60m/b00`. Where pixels
lie, `x` and `y` beside an array say (their centres), or its `proj:transform`.
"""

from typing import Any

import numpy as np

from ingest.reading.native import LEVELS
from ingest.reading.product import baseline_of, date_of, iso_date, tile_of
from ingest.scenes.files import ProductFiles
from ingest.scenes.model import LARGEST, PRODUCT, Clouds, Raster, Scene, decide_offset, key_of
from ingest.scenes.raster import MAX_BLOCK, open_zarr, plain
from ingest.scenes.safe import baseline_text
from ingest.source import Rejected
from shards.bands import SENTINEL2

REFLECTANCE = "measurements/reflectance"
SCL = "conditions/mask/l2a_classification/r20m/scl"
FLAGS = "conditions/mask/l1c_classification/r60m/b00"


def is_product(names: set[str]) -> bool:
    """Whether a folder with these files is a Zarr group."""
    return bool(names & {"zarr.json", ".zgroup", ".zmetadata"})


def open_product(files: ProductFiles, asked: int | None) -> Scene:
    """What an EOPF product holds; `asked` as for `decide_offset`. Raises Rejected."""
    name = files.name
    store = str(files.root.resolve()) + (f"\0{files.top.rstrip('/')}" if files.zipped else "")
    try:
        group = open_zarr(store)
        attributes = dict(group.attrs)
        return _scene(files, name, store, group, attributes, asked)
    except Rejected:
        raise
    except Exception as error:  # whatever zarr raises on what is no such product
        text = plain(error, str(files.root.resolve()))
        raise Rejected(name, "unreadable", f"no EOPF product can be read ({type(error).__name__}: {text})") from None


def _scene(
    files: ProductFiles, name: str, store: str, group: Any, attributes: dict[str, Any], asked: int | None
) -> Scene:
    discovery, other = _dict(attributes.get("stac_discovery")), _dict(attributes.get("other_metadata"))
    properties = _dict(discovery.get("properties"))
    identifier = str(discovery.get("id") or "").removesuffix(".SAFE").removesuffix(".zarr")
    product = next((text for text in (name, identifier) if PRODUCT.fullmatch(text)), name)
    level = _level(product, properties, group)
    epsg = _epsg(other.get("horizontal_CRS_code"), properties.get("proj:code"), properties.get("proj:epsg"))
    bands: dict[str, Raster] = {}
    scales, offsets = set(), {}
    for band in LEVELS[level]:
        path = f"{REFLECTANCE}/r{SENTINEL2[band].gsd_m}m/{band.lower()}"
        if path not in group:
            continue
        told = _attributes(group[path])
        bands[band] = _raster(name, store, group, path, "uint16", epsg)
        if "scale_factor" in told:
            scales.add(float(told["scale_factor"]))
            if "add_offset" in told:
                offsets[band] = round(float(told["add_offset"]) / float(told["scale_factor"]))
    if not bands:
        raise Rejected(name, "missing-band", f"it holds no bands in {REFLECTANCE}")
    if len(scales) > 1 or not all(0 < scale < 1 for scale in scales):
        raise Rejected(name, "no-scale", f"bands of it have different scales, or none that make sense: {scales}")
    stated = _baseline(properties, other)
    taken, warnings = decide_offset(name, baseline_of(product), stated, offsets or None, tuple(bands), asked)
    clouds = [(kind, path) for kind, path in (("scl", SCL), ("flags", FLAGS)) if path in group]
    kind, path = clouds[0] if clouds else ("", "")
    return Scene(
        product=key_of(product),
        level=level,
        baseline=stated or baseline_of(product),
        date=date_of(product) or iso_date(str(properties.get("datetime") or properties.get("start_datetime")))[:19],
        tile=tile_of(product),
        scale=next(iter(scales), 1e-4),
        taken=taken,
        bands=bands,
        clouds=Clouds(kind, _raster(name, store, group, path, "uint8", epsg)) if path else None,
        identity=files.identity(sorted(files.sizes)),
        warnings=warnings,
    )


def _raster(name: str, store: str, group: Any, path: str, dtype: str, epsg: int) -> Raster:
    array = group[path]
    told = _attributes(array)
    where = f"{name}/{path}"
    if array.ndim != 2 or max(array.shape) > LARGEST:
        raise Rejected(where, "wrong-size", f"its shape is {array.shape}")
    if array.dtype != np.dtype(dtype):
        raise Rejected(where, "wrong-type", f"{array.dtype}, not {dtype}")
    if int(np.prod(array.chunks)) > MAX_BLOCK:
        raise Rejected(where, "unreadable", f"chunks of {array.chunks} pixels")
    fill = told.get("_FillValue", told.get("fill_value", 0))
    own = _epsg(told.get("proj:code"), told.get("proj:epsg")) or epsg
    transform = _transform(group, path, told, array.shape, where)
    nodata = int(fill) if dtype == "uint16" and isinstance(fill, int | float) and 0 < fill <= 65535 else 0
    return Raster(path, store, tuple(array.shape), own, transform, path, nodata=nodata)


def _transform(group: Any, path: str, told: dict[str, Any], shape: tuple[int, int], where: str) -> tuple[float, ...]:
    """(a, b, c, d, e, f) of pixel → ground. Raises Rejected."""
    folder = path.rpartition("/")[0]
    if f"{folder}/x" in group and f"{folder}/y" in group:
        x, y = group[f"{folder}/x"], group[f"{folder}/y"]
        if x.shape != (shape[1],) or y.shape != (shape[0],) or min(shape) < 2:
            raise Rejected(where, "misplaced", f"x and y beside it are {x.shape} and {y.shape}, it is {shape}")
        xs, ys = np.asarray(x[:], float), np.asarray(y[:], float)
        a, e = (xs[-1] - xs[0]) / (len(xs) - 1), (ys[-1] - ys[0]) / (len(ys) - 1)
        if not (np.allclose(np.diff(xs), a) and np.allclose(np.diff(ys), e)):
            raise Rejected(where, "misplaced", "x and y beside it are not evenly spaced")
        return float(a), 0.0, float(xs[0] - a / 2), 0.0, float(e), float(ys[0] - e / 2)
    stated = told.get("proj:transform")
    if isinstance(stated, list) and len(stated) >= 6:
        return tuple(float(value) for value in stated[:6])
    raise Rejected(where, "misplaced", "neither x and y beside it nor proj:transform say where it lies")


def _attributes(array: Any) -> dict[str, Any]:
    """An array's attributes, with those in `_eopf_attrs` (older writers) where there are no others."""
    own = dict(array.attrs)
    return {**_dict(own.get("_eopf_attrs")), **own}


def _level(product: str, properties: dict[str, Any], group: Any) -> str:
    for text in (product, *(str(properties.get(key) or "") for key in ("processing:level", "product:type"))):
        for level in LEVELS:
            if text == level or f"MSI{level}" in text:
                return level
    return "L1C" if f"{REFLECTANCE}/r60m/b10" in group else "L2A"


def _baseline(properties: dict[str, Any], other: dict[str, Any]) -> str:
    keys = ("processing:version", "s2:processing_baseline", "eopf:baseline", "processing:baseline")
    candidates = [str(properties.get(key) or "").removeprefix("N") for key in keys]
    candidates.append(str(other.get("UTM_zone_identification") or "").rpartition("_N")[2])
    return next((found for text in candidates if (found := baseline_text(text))), "")


def _epsg(*codes: Any) -> int:
    """`EPSG:32722`, `32722` or 32722 → 32722; 0 where none says."""
    for code in codes:
        digits = str(code or "").rpartition(":")[2]
        if digits.isdecimal():
            return int(digits)
    return 0


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
