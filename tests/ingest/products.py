"""Sentinel-2 products in their true layouts, small: SAFE with JPEG 2000, folders of GeoTIFFs, EOPF Zarr."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from rasterio.transform import from_origin

from shards.bands import SENTINEL2

LEFT, TOP, EPSG = 600000.0, 5900040.0, 32722
TILE = "T22HFD"
CLEAR, CLOUD, CIRRUS, NODATA = 4, 9, 10, 0
MTD = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{start}.024Z</PRODUCT_START_TIME>
      <PRODUCT_URI>{name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Datatake datatakeIdentifier="GS2B_20210122T133229_020270_N02.14">
        <DATATAKE_SENSING_START>{start}.024Z</DATATAKE_SENSING_START>
      </Datatake>
    </Product_Info>
    <Product_Image_Characteristics>
      <QUANTIFICATION_VALUES_LIST>
        <{kind}QUANTIFICATION_VALUE unit="none">{quantification}</{kind}QUANTIFICATION_VALUE>
        <AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>
{offsets}    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{level}_User_Product>
"""
Planes = dict[str, np.ndarray]


def name_of(level: str = "L2A", baseline: str = "N0214", date: str = "20210122T133229", made: str = "") -> str:
    return f"S2B_MSI{level}_{date}_{baseline}_R081_{TILE}_{made or date}"


def planes_of(level: str = "L2A", size: int = 360, seed: int = 0, low: int = 20) -> Planes:
    """Bands of a scene, uint16, native sizes; its left 36 pixels of 10 m are nodata; B8A is nearly B08, B10 dark."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, 6000, (size // 12, size // 12)).repeat(12, 0).repeat(12, 1)
    planes: Planes = {}
    for number, (band, spec) in enumerate(SENTINEL2.items()):
        if band == "B10" and level == "L2A":
            continue
        step = spec.gsd_m // 10
        mean = coarse.reshape(size // step, step, size // step, step).mean((1, 3))
        factor = {"B08": 1.0, "B8A": 1.0, "B10": 0.02}.get(band, 0.4 + 0.04 * number)
        plane = (mean * factor + rng.integers(1, 40, mean.shape)).astype(np.uint16)
        plane[:, : 36 // step] = 0
        planes[band] = plane
    return planes


def scl_of(size: int = 360) -> np.ndarray:
    """Scene classification at 20 m: the upper third is cloud, of which the right half cirrus."""
    scl = np.full((size // 2, size // 2), CLEAR, np.uint8)
    scl[: size // 6] = CLOUD
    scl[: size // 6, size // 4 :] = CIRRUS
    scl[:, :18] = NODATA
    return scl


def write_raster(path: Path, plane: np.ndarray, pixel: float, left: float = LEFT, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = plane if plane.ndim == 3 else plane[None]
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
    tif = {"driver": "GTiff", "compress": "deflate", "predictor": 2, "tiled": True, "blockxsize": 64, "blockysize": 64}
    profile = {
        "count": len(planes),
        "height": planes.shape[1],
        "width": planes.shape[2],
        "dtype": plane.dtype,
        "crs": f"EPSG:{EPSG}",
        "transform": from_origin(left, TOP, pixel, pixel),
        **(jp2 if path.suffix == ".jp2" else tif),
        **options,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(planes)
    Path(f"{path}.aux.xml").unlink(missing_ok=True)


def offsets_xml(level: str, offsets: dict[str, int]) -> str:
    kind, outer = ("BOA", "BOA_ADD_OFFSET_VALUES_LIST") if level == "L2A" else ("RADIO", "Radiometric_Offset_List")
    names = list(SENTINEL2)
    lines = [f'<{kind}_ADD_OFFSET band_id="{names.index(b)}">{v}</{kind}_ADD_OFFSET>' for b, v in offsets.items()]
    return f"      <{outer}>{''.join(lines)}</{outer}>\n" if offsets else ""


def write_safe(
    root: Path,
    name: str,
    planes: Planes,
    offset: int | dict[str, int] = 0,
    baseline: str = "",
    scl: np.ndarray | None = None,
    quantification: int = 10000,
    manifest: bool = True,
) -> Path:
    """A SAFE folder as ESA distributes it; `offset`: what its XML adds, 0 for no list; `baseline`: of its XML."""
    level, date = name.split("_")[1][3:], name.split("_")[2]
    safe = root / f"{name}.SAFE"
    granule = safe / "GRANULE" / f"{level}_{TILE}_A020270_{date}"
    for band, plane in planes.items():
        gsd = SENTINEL2[band].gsd_m
        images = granule / "IMG_DATA"
        if level == "L2A":
            write_raster(images / f"R{gsd}m" / f"{TILE}_{date}_{band}_{gsd}m.jp2", plane, gsd)
            if gsd == 10:  # the copies at coarser resolutions, which are not to be read
                write_raster(images / "R20m" / f"{TILE}_{date}_{band}_20m.jp2", plane[::2, ::2] // 2, 20)
            if band == "B01":
                write_raster(images / "R20m" / f"{TILE}_{date}_B01_20m.jp2", plane.repeat(3, 0).repeat(3, 1) // 2, 20)
        else:
            write_raster(images / f"{TILE}_{date}_{band}.jp2", plane, gsd)
    if level == "L2A" and scl is not None:
        write_raster(granule / "IMG_DATA" / "R20m" / f"{TILE}_{date}_SCL_20m.jp2", scl, 20)
    offsets = offset if isinstance(offset, dict) else dict.fromkeys(SENTINEL2, offset) if offset else {}
    iso = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[9:11]}:{date[11:13]}:{date[13:]}"
    number = baseline or name.split("_")[3][1:]
    xml = MTD.format(
        level=level[1:],
        start=iso,
        name=name,
        baseline=f"{number[:2]}.{number[2:]}",
        kind="BOA_" if level == "L2A" else "",
        quantification=quantification,
        offsets=offsets_xml(level, offsets),
    )
    (safe / f"MTD_MSI{level}.xml").write_text(xml)
    (granule / "MTD_TL.xml").write_text("<a/>")
    if manifest:
        write_manifest(safe)
    return safe


def write_manifest(safe: Path) -> None:
    objects = []
    for path in sorted(safe.rglob("*.jp2")):
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        objects.append(
            f'<dataObject ID="x"><byteStream mimeType="octet" size="{path.stat().st_size}">'
            f'<fileLocation href="./{path.relative_to(safe)}" locatorType="URL"/>'
            f'<checksum checksumName="MD5">{digest}</checksum></byteStream></dataObject>'
        )
    content = f"<dataObjectSection>{''.join(objects)}</dataObjectSection>"
    (safe / "manifest.safe").write_text(f'<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1">{content}</xfdu:XFDU>')


def pack(folder: Path, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """A folder as a .zip that holds it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def write_cogs(
    folder: Path,
    planes: Planes,
    scl: np.ndarray | None = None,
    properties: dict[str, Any] | None = None,
    offset: float | None = None,
    pattern: str = "{band}.tif",
) -> Path:
    """A folder of a GeoTIFF a band, with a STAC item if `properties` are given; `offset`: of its raster:bands."""
    assets: dict[str, Any] = {}
    for band, plane in planes.items():
        file = pattern.format(band=band, gsd=SENTINEL2[band].gsd_m)
        write_raster(folder / file, plane, SENTINEL2[band].gsd_m, nodata=0)
        assets[band.lower()] = {"href": f"https://a.test/x/{file}?sig=1"}
        if offset is not None:
            assets[band.lower()]["raster:bands"] = [{"nodata": 0, "scale": 0.0001, "offset": offset}]
    if scl is not None:
        write_raster(folder / pattern.format(band="SCL", gsd=20), scl, 20)
    if properties is not None:
        item = {"type": "Feature", "id": folder.name, "properties": properties, "assets": assets}
        (folder / f"{folder.name}.json").write_text(json.dumps(item))
    return folder


def write_eopf(
    path: Path,
    planes: Planes,
    scl: np.ndarray | None = None,
    offset: float | None = -0.1,
    version: int = 2,
    properties: dict[str, Any] | None = None,
    flags: np.ndarray | None = None,
) -> Path:
    """An EOPF product; `offset`: its add_offset; `flags`: the L1C classification."""
    root = zarr.open_group(str(path), mode="w", zarr_format=version)  # type: ignore[arg-type]
    root.attrs.update(
        {
            "stac_discovery": {
                "id": path.stem,
                "type": "Feature",
                "properties": {"proj:epsg": EPSG, **(properties or {})},
            },
            "other_metadata": {"horizontal_CRS_code": f"EPSG:{EPSG}", "horizontal_CRS_name": "WGS84 / UTM zone 22S"},
        }
    )

    def add(name: str, plane: np.ndarray, gsd: int, attributes: dict[str, Any]) -> None:
        folder = name.rpartition("/")[0]
        chunks = tuple(min(size, 100) for size in plane.shape)
        array = root.create_array(name, shape=plane.shape, chunks=chunks, dtype=plane.dtype, fill_value=0)
        array[:] = plane
        array.attrs.update(attributes)
        if f"{folder}/x" not in root:
            for axis, begin, step in (("x", LEFT, gsd), ("y", TOP, -gsd)):
                centres = begin + step * (np.arange(plane.shape[axis == "x"]) + 0.5)
                root.create_array(f"{folder}/{axis}", data=centres.astype(np.int64))

    for band, plane in planes.items():
        gsd = SENTINEL2[band].gsd_m
        own: dict[str, Any] = {"scale_factor": 0.0001, "dtype": "<u2", "fill_value": 0}
        if offset is not None:
            own["add_offset"] = offset
        add(f"measurements/reflectance/r{gsd}m/{band.lower()}", plane, gsd, {"_eopf_attrs": own, "proj:epsg": EPSG})
    if scl is not None:
        add("conditions/mask/l2a_classification/r20m/scl", scl, 20, {})
    if flags is not None:
        add("conditions/mask/l1c_classification/r60m/b00", flags, 60, {"flag_masks": [1, 2, 4]})
    return path
