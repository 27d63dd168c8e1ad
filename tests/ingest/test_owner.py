"""Scenes whose metadata are of another acquisition than their files are refused, renamed folders are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingest.scenes.owner import claims_of
from shards.errors import BandstreamError
from tests.ingest import products
from tests.ingest.products import name_of, planes_of, write_cogs, write_safe
from tests.ingest.test_scene import SIZE, STAC, convert

PLANES = planes_of(size=SIZE)
AWS_NAMES = "S2B_22HFD_20220122_0_L2A", "S2A_22HFD_20220127_0_L2A"
SAME_SATELLITE = "S2B_22HFD_20220122_0_L2A", "S2B_22HFD_20220127_0_L2A"
ESA_NAMES = name_of(baseline="N0400", date="20220122T133229"), name_of(baseline="N0510", date="20220127T133229")


@pytest.mark.parametrize(
    ("folders", "pattern", "ids", "uris", "said"),
    [
        (AWS_NAMES, "{band}.tif", AWS_NAMES, ("", ""), "satellite S2A, names in it say S2B"),
        (SAME_SATELLITE, "{band}.tif", ("a", "b"), ESA_NAMES, "day 20220127, names in it say 20220122"),
        (("may", "june"), "T22HFD_2022{day}T133229_{{band}}_{{gsd}}m.tif", ("a", "b"), ESA_NAMES, "datatake 20220127"),
        (("may", "june"), "T22HFD_2022{day}T133229_{{band}}_{{gsd}}m.tif", AWS_NAMES, ("", ""), "day 20220127"),
        (("S2B_22HFD_20220122_0_L2A", "S2B_22HFD_20220122_1_L2A"), "{band}.tif", None, ("", ""), "scene S2B_22HFD_2"),
    ],
)
def test_items_of_each_other_are_refused(
    tmp_path: Path, folders: Any, pattern: str, ids: Any, uris: Any, said: str
) -> None:
    bands = {"B02": PLANES["B02"], "B8A": PLANES["B8A"]}
    items = []
    for name, identity, uri, day in zip(folders, ids or folders, uris, ("0122", "0127"), strict=True):
        date = {"datetime": f"2022-01-{day[2:]}T13:37:24Z"} if uri else {}
        properties = {"s2:processing_baseline": "04.00", "s2:product_uri": uri and f"{uri}.SAFE"} | date
        own = pattern.format(day=day) if "{day}" in pattern else pattern
        write_cogs(tmp_path / "scenes" / name, bands, None, properties, -0.1, own)
        path = tmp_path / "scenes" / name / f"{name}.json"
        content = json.loads(path.read_text()) | {"id": identity}
        if not ids or identity in "ab":
            content["assets"] = {key: asset | {"href": ""} for key, asset in content["assets"].items()}
        path.write_text(json.dumps(content))
        items.append(path)
    assert convert(tmp_path / "set", tmp_path / "scenes", bands=tuple(bands)).rejected.keys() == {"nodata"}
    first, second = (path.read_text() for path in items)
    items[0].write_text(second)
    items[1].write_text(first)
    with pytest.raises(BandstreamError, match=f"another-product: the metadata in it are of .*{said}"):
        convert(tmp_path / "swapped", *(path.parent for path in items[:1]), bands=tuple(bands))


def test_items_of_another_place_are_refused(tmp_path: Path) -> None:
    bands = {"B02": PLANES["B02"], "B8A": PLANES["B8A"]}
    folder = write_cogs(
        tmp_path / "may", bands, None, STAC | {"s2:processing_baseline": "04.00", "s2:product_type": "S2MSI2A"}, -0.1
    )
    path = folder / "may.json"
    whole = json.loads(path.read_text())

    def told(left: float, rows: int) -> None:
        place = {"proj:shape": [rows, rows], "proj:transform": [10, 0, left, 0, -10, products.TOP], "proj:epsg": 32722}
        path.write_text(json.dumps(whole | {"properties": whole["properties"] | place}))

    told(products.LEFT - 600, 10980)
    convert(tmp_path / "window", folder, bands=tuple(bands))
    told(products.LEFT, SIZE)
    convert(tmp_path / "whole", folder, bands=tuple(bands))
    told(products.LEFT + 99_960, 10980)
    with pytest.raises(BandstreamError, match="another-product: B02 begins at"):
        convert(tmp_path / "other", folder, bands=tuple(bands))


def test_metadata_of_another_product_beside_geotiffs(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, name_of(baseline="N0400"), PLANES, -1000)
    folder = write_cogs(tmp_path / "tifs", PLANES, pattern="T22HFD_20190101T133229_{band}_{gsd}m.tif")
    (folder / "MTD_MSIL2A.xml").write_bytes((safe / "MTD_MSIL2A.xml").read_bytes())
    with pytest.raises(BandstreamError, match="another-product: the metadata in it are of datatake"):
        convert(tmp_path / "set", folder)


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        (
            "S2B_MSIL2A_20220122T133229_R081_T22HFD_20220122T190000",
            {
                "satellite": "S2B",
                "level": "L2A",
                "datatake": "20220122T133229",
                "tile": "T22HFD",
                "day": "20220122",
            },
        ),
        (
            "S2A_T32TQM_20230701T101354_L2A",
            {
                "satellite": "S2A",
                "level": "L2A",
                "tile": "T32TQM",
                "day": "20230701",
                "sensed": "S2A_32TQM_20230701T101354_L2A",
            },
        ),
        ("T22HFD_20220122T133229_B8A_20m.tif", {"tile": "T22HFD", "datatake": "20220122T133229", "day": "20220122"}),
        ("B02.tif", {}),
        ("may", {}),
    ],
)
def test_what_names_say(name: str, claims: dict[str, str]) -> None:
    assert dict(claims_of(name)) == claims
