"""Major TOM Core-S2L2A and Core-S2L1C (Francis and Czerkawski, IGARSS 2024, arXiv 2402.12095): Sentinel-2 in Parquet.

`images/*.parquet` have a row a grid cell and product, each row a row group: `product_id`, `grid_cell` (`451U_946L`) and
a GeoTIFF a band (B01 ... B12, L1C with B10), uint16 at its own resolution, 1068 x 1068 pixels at 10 m.
`metadata.parquet` beside them has `cloud_cover` (percent) of each (`grid_cell`, `product_id`).

A sample is a whole cell, or a patch of one: cells are then cut once, to scratch. With several dates it holds all of
them, of products that lie in the same place to the pixel (those of another UTM zone are rejected).

Radiometry: the numbers are the products' own, so those of baseline 04.00 and later carry the offset, which the
product's name tells. Evidence: the authors' comparison of a cell of an N0509 product with a copy from which the offset
was taken finds B04 1000 larger at each of its pixels (github.com/ESA-PhiLab/Major-TOM, docs/evidence/pixel_match.py and
docs/reports/2026-09-30-refactor-research.md, section 1). N9999 (processed for the archive) is taken to carry none.

Place: as the files tell it. They tell the cell's corner before it was rounded to pixels (same report): the true corner
is up to half a pixel of each band away, 30 m for those of 60 m.
"""

import json
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.archives.cells import Grid
from ingest.archives.dates import in_order, json_of, member, schema_of, taken
from ingest.archives.parquet import (
    METADATA,
    box_of,
    cut_rows,
    decode,
    files_of,
    grouped,
    look,
    parquet,
    rows_of,
    short,
    with_clouds,
)
from ingest.commands import source_command
from ingest.reading.geotiff import Reader
from ingest.reading.native import LEVELS, native_arrays
from ingest.reading.place import placed
from ingest.reading.product import baseline_of, date_of, offset_of, remove_offset, tile_of
from ingest.reading.tiff import Header
from ingest.source import Entry, Facts, Listening, Rejected, Schema
from shards.errors import BandstreamError

Place = tuple[int, int]
"""Number of a Parquet file, and of a row in it."""
CELL = re.compile(r"\d{1,4}[UD]_\d{1,4}[LR]")
PRODUCT = re.compile(r"[A-Za-z0-9_.]{1,80}")
LEVEL_NAMES = {"L1C": "_MSIL1C_", "L2A": "_MSIL2A_"}
OPEN = 8
"""Parquet files that a worker keeps open."""


@source_command
@click.option(
    "--patch",
    type=click.IntRange(6),
    help="Cut cells into patches of so many pixels of 10 m, a multiple of 6  [default: whole cells]",
)
@click.option(
    "--dates",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Dates a sample; cells with fewer are rejected, of more those are taken that lie evenly.",
)
@click.option("--max-nodata", type=click.FloatRange(0, 1), help="Leave out samples with a larger share of no data.")
@click.option(
    "--max-cloud", type=click.FloatRange(0, 100), help="Leave out cells with more percent of cloud by metadata.parquet."
)
def command(
    src: tuple[Path, ...], patch: int | None, dates: int, max_nodata: float | None, max_cloud: float | None
) -> "MajorTOM":
    """Convert Major TOM Core-S2L2A or Core-S2L1C, or any part of them, into the shard set DST.

    SRC is the folder with images/*.parquet and metadata.parquet, or single Parquet files of it. With --patch, what a
    cell's bands take uncompressed (some 13 MB) is needed on --scratch for each, until the set is done. All patches of a
    cell go to one split.
    """
    if patch is not None and patch % 6:
        raise click.BadParameter(f"{patch} is no multiple of 6", param_hint="--patch")
    return MajorTOM(src, patch or 0, dates, max_nodata, max_cloud)


def looks_like(names: Sequence[str]) -> bool:
    """Whether files are parts of a Major TOM Core."""
    return any(re.search(r"(^|/)images/part_\d+\.parquet$", name) for name in names)


class MajorTOM:
    """`patch`: side in pixels of 10 m, 0 for whole cells; `max_nodata`: a share; `max_cloud`: in percent."""

    def __init__(
        self,
        src: Path | Sequence[Path],
        patch: int = 0,
        dates: int = 1,
        max_nodata: float | None = None,
        max_cloud: float | None = None,
    ) -> None:
        self.inputs = (src,) if isinstance(src, Path) else tuple(src)
        self.patch = patch
        self.dates = dates
        self.max_nodata = max_nodata
        self.max_cloud = max_cloud
        self.level = ""
        self.side = 0
        self.name = "major-tom"
        self._paths: list[Path] = []
        self._spooled: list[Path] = []
        self._reader = Reader()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @cached_property
    def _opened(self) -> dict[int, Any]:
        return {}

    @property
    def grid(self) -> Grid:
        """How cells are cut; of whole cells into one."""
        patch = self.patch or self.side
        return Grid(native_arrays(LEVELS[self.level], patch), self.side, patch)

    @property
    def schema(self) -> Schema:
        columns: dict[str, type] = {"grid_cell": str, "tile": str, "processing_baseline": str}
        return schema_of(self.level, self.grid.arrays, self.dates, columns)

    def describe(self) -> dict[str, Any]:
        return {"kind": "majortom", "level": self.level, "dates": self.dates, "patch": self.patch or "whole cells"}

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        self._paths, metadata = files_of(self.inputs)
        if self.max_cloud is not None and metadata is None:
            raise BandstreamError(f"--max-cloud needs the cloud cover of {METADATA}: put it beside images")
        rejected: list[Rejected] = []
        rows = self._rows(listening, rejected)
        yield from rejected
        samples = listening.scratch / "cells.jsonl"
        places = array("i")
        with samples.open("w") as file:
            for item in self._samples(rows, metadata):
                if isinstance(item, Rejected):
                    yield item
                    continue
                file.write(json.dumps(item) + "\n")
                places.extend(number for place in item[2] for number in place)
        del rows
        if self.patch:
            yield from self._cut_up(listening, samples, np.array(places, np.int32).reshape(-1, 2))
            return
        for cell, products, where in _lines(samples):
            yield self._entry(cell, products, " ".join(f"{file}:{row}" for file, row in where), "")

    def _rows(self, listening: Listening, rejected: list[Rejected]) -> Any:
        """Table of all rows of all files: cell, product, file, row. Sets level and side."""
        import pyarrow as pa

        tables, looked = [], list(listening.map(look, self._paths))
        kinds: Counter[tuple[str, int]] = Counter()
        for found in looked:
            if not isinstance(found, Rejected) and found[2]:
                kinds[found[1:]] += 1
        self.level, self.side = kinds.most_common(1)[0][0] if kinds else ("", 0)
        for number, (path, found) in enumerate(zip(self._paths, looked, strict=True)):
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            table, level, side = found
            if (level, side or self.side) != (self.level, self.side):
                what = f"{level} of {side} pixels, most others {self.level} of {self.side}"
                rejected.append(Rejected(path.name, "another-kind", what))
                continue
            tables.append(table.append_column("file", pa.array(np.full(len(table), number, np.int32))))
        if not tables or not self.side:
            first = f": {rejected[0]}" if rejected else ""
            raise BandstreamError(f"not one of {len(self._paths)} Parquet files can be read as Major TOM's{first}")
        if self.patch > self.side:
            raise BandstreamError(f"--patch {self.patch} is larger than the cells of {self.side} pixels")
        return pa.concat_tables(tables)

    def _samples(self, rows: Any, metadata: Path | None) -> Iterator[tuple[str, list[str], list[Place]] | Rejected]:
        """(cell, products, (file, row) of each) of each sample, in the order of their names."""
        if self.max_cloud is not None and metadata is not None:
            rows = with_clouds(rows, metadata)
        rows = rows.sort_by([("cell", "ascending"), ("product", "ascending"), ("file", "ascending")])
        for cell, found in grouped(rows):
            dated: list[tuple[str, tuple[str, Place]]] = []
            for product, file, row, cloud in found:
                told = f"{self._paths[file].name}/{cell}/{product}"[:400]
                try:
                    self._check(told, cell, product, cloud)
                except Rejected as rejection:
                    yield rejection
                    continue
                dated.append((date_of(product), (product, (file, row))))
            if not dated:
                continue
            if self.dates == 1:
                for _, (product, place) in sorted(dated):
                    yield cell, [product], [place]
                continue
            unique = in_order(dated)
            if len(unique) < self.dates:
                yield Rejected(cell, "too-few-dates", f"{len(unique)} dates, the set has {self.dates} of each cell")
                continue
            picked = taken(unique, self.dates)
            yield cell, [product for product, _ in picked], [place for _, place in picked]

    def _check(self, told: str, cell: str, product: str, cloud: float | None) -> None:
        """Raises Rejected where a row cannot be taken."""
        if not CELL.fullmatch(cell):
            raise Rejected(told, "bad-name", "no grid cell such as 451U_946L")
        if not PRODUCT.fullmatch(product) or not date_of(product) or LEVEL_NAMES[self.level] not in product:
            raise Rejected(told, "bad-name", f"no name of an {self.level} product")
        if not baseline_of(product):
            raise Rejected(told, "unknown-offset", "the product's name tells no processing baseline")
        if self.max_cloud is not None:
            if cloud is None or cloud != cloud:
                raise Rejected(told, "no-metadata", f"{METADATA} tells no cloud cover of it")
            if cloud > self.max_cloud:
                raise Rejected(told, "clouds", f"{cloud:.1f} % of it, more than {self.max_cloud:g}")

    def _cut_up(self, listening: Listening, samples: Path, places: np.ndarray) -> Iterator[Entry | Rejected]:
        """Cut the cells at these places, (file, row), to scratch, and list their patches."""
        wanted = [np.unique(places[places[:, 0] == file, 1]) for file in range(len(self._paths))]
        count, grid = sum(map(len, wanted)), self.grid
        listening.say(
            f"cutting {count:,} cells to {listening.scratch}: {count * grid.cell_bytes / 1e9:,.2f} GB until the set is "
            f"done, {shutil.disk_usage(listening.scratch).free / 1e9:,.1f} GB free"
        )
        damaged: dict[tuple[int, int], Rejected] = {}
        self._spooled = []
        cut = partial(cut_rows, grid, self.level, listening.scratch)
        work = [(path, rows.tolist()) for path, rows in zip(self._paths, wanted, strict=True)]
        for file, (records, found) in enumerate(listening.map(cut, work)):
            self._spooled.append(records)
            damaged.update({(file, row): Rejected(*told) for row, told in found})
            listening.progress(file + 1, len(work))
        for cell, products, where in _lines(samples):
            broken = [damaged[place] for place in where if place in damaged]
            if broken:
                yield broken[0]
                continue
            at = " ".join(f"{file}:{int(np.searchsorted(wanted[file], row))}" for file, row in where)
            for number in range(grid.across**2):
                patch = f"_{number // grid.across}_{number % grid.across}"
                yield self._entry(cell, products, f"{number} {at}", patch)

    def _entry(self, cell: str, products: list[str], where: str, patch: str) -> Entry:
        key = f"{cell}{'' if self.dates > 1 else '_' + date_of(products[0]).replace('-', '').replace(':', '')}{patch}"
        path = f"{cell}/{products[0]}{patch}"
        return Entry(key, path, extra={"cell": cell, "products": " ".join(products)}, where=where, group=cell)

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        grid, products = self.grid, entry.extra["products"].split(" ")
        where = entry.where.split(" ")
        number = int(where.pop(0)) if self.patch else 0
        headers = []
        for time, place in enumerate(where):
            file, row = map(int, place.split(":"))
            own = {name: views[member(name, time)] for name in grid.arrays}
            told = f"{entry.extra['cell']}/{products[time]}"
            if self.patch:
                head = grid.read(self._spooled[file], row, number, own)
                headers.append(Header(head["epsg"], head["transform"] and tuple(head["transform"]), None))
            else:
                headers.append(decode(self._reader, self._bands(file, row, told), own, grid.arrays, told))
            cell = (grid.cell, grid.cell)
            if (headers[time].epsg, box_of(headers[time], cell)) != (headers[0].epsg, box_of(headers[0], cell)):
                raise Rejected(told, "misplaced", f"it lies elsewhere than {products[0]}")
        removed = [offset_of(baseline_of(product)) for product in products]
        for time, offset in enumerate(removed):
            if self.max_nodata is not None:
                share = float((views[member("10m.npy", time)] == 0).all(0).mean())
                if share > self.max_nodata:
                    raise Rejected(entry.path, "nodata", f"{share:.1%} of {products[time]} are no data")
            for name in grid.arrays:
                remove_offset(views[member(name, time)], offset)
        return _facts(entry, products, removed, headers[0].window(*grid.corner(number)), grid.patch)

    def _bands(self, file: int, row: int, told: str) -> dict[str, bytes]:
        """The GeoTIFFs of a row. Raises Rejected."""
        import pyarrow as pa

        path = self._paths[file]
        try:
            if file not in self._opened:
                while len(self._opened) >= OPEN:
                    self._opened.pop(next(iter(self._opened))).close()
                self._opened[file] = parquet(path)
            return next(rows_of(self._opened[file], LEVELS[self.level], [row]))[1]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise Rejected(told, "unreadable", f"{path.name} cannot be read ({short(error)})") from error


def _lines(path: Path) -> Iterator[tuple[str, list[str], list[Place]]]:
    """(cell, products, places) of each sample."""
    with path.open() as file:
        for line in file:
            cell, products, places = json.loads(line)
            yield cell, products, [(file_, row) for file_, row in places]


def _facts(entry: Entry, products: list[str], removed: list[int], header: Header, side: int) -> Facts:
    place, located = placed(entry.path, header.epsg, header.transform, header.bounds((side, side)))
    dates = [date_of(product) for product in products]
    content = {
        "id": entry.key,
        "grid_cell": entry.extra["cell"],
        **json_of(dates, products, [baseline_of(product) for product in products], removed),
        **located,
        "tile": tile_of(products[0]),
    }
    columns = {name: content[name] for name in ("grid_cell", "tile", "processing_baseline")}
    return Facts({}, content, place, dates[0], columns)
