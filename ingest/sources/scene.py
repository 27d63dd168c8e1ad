"""Sentinel-2 scenes, L1C or L2A, cut into patches at native resolutions.

Products: SAFE (a folder, or a .zip of one), folders of a GeoTIFF a band (AWS, Planetary Computer), EOPF Zarr. Patches
lie on the scene's 60 m grid, from its upper left corner; what is left over at its right and lower border is left out.
Of a product whose rasters all have one pixel size, all bands stand in one array.

What `nodata_share` says was counted before an offset was removed, which also makes 0 of the darkest valid numbers;
`clipped_share` says of how many.

Splits are drawn in blocks of ground: squares of up to eight patches (9.6 km for patches of 120) of the coordinate
system's own grid, so that a place lies in one split whatever date, product or overlapping tile of its zone shows it.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.commands import source_command
from ingest.reading.native import LEVELS, native_arrays
from ingest.reading.utm import lon_lat
from ingest.scenes.cutting import Block, Cut, Found, Records, blocks_of, cut_block
from ingest.scenes.find import inspect, products
from ingest.scenes.model import COARSEST, Grid, Scene, check_mask, grid_of
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.bands import SENTINEL2, esa_order
from shards.errors import BandstreamError
from shards.manifest import Reflectance

JSON_BYTES = 1024
COLUMNS: dict[str, type] = {"product": str, "tile": str, "processing_baseline": str, "nodata_share": float}
SPLIT_BLOCK = 8
"""Patches along the edge of a block of ground that splits are drawn in, where scenes are large enough."""


@source_command
@click.option(
    "--patch", type=int, default=120, show_default=True, help="Edge of a patch in pixels of 10 m, a multiple of 6."
)
@click.option(
    "--max-nodata",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Leave out patches of which a larger share is nodata, in any band.",
)
@click.option(
    "--max-cloud",
    type=click.FloatRange(0, 1),
    help="Leave out patches of which a larger share is cloud, cloud shadow or cirrus  [default: leave out none]",
)
@click.option("--bands", metavar="B02,B03,...", help="Bands to take  [default: all of the product level]")
@click.option(
    "--offset",
    type=click.IntRange(0, 10_000),
    help="What to take from the stored numbers of products that do not say it themselves.",
)
def command(
    src: tuple[Path, ...], patch: int, max_nodata: float, max_cloud: float | None, bands: str | None, offset: int | None
) -> "Scenes":
    """Cut Sentinel-2 scenes, all L1C or all L2A, into patches: the shard set DST.

    SRC are products, or folders that hold products: SAFE (unpacked or .zip), folders of a GeoTIFF a band with their
    STAC item, EOPF Zarr. The offset that a product's metadata states (processing baseline 04.00 and later) is removed.
    Scenes are cut to --scratch first. Splits are drawn in blocks of ground. A run that was interrupted goes on when it
    is started again.
    """
    if patch <= 0 or patch % COARSEST:
        raise click.BadParameter(f"{patch} is no multiple of 6 (pixels of 10 m in one of 60 m)", param_hint="--patch")
    try:
        named = tuple(esa_order((bands or "").replace(",", " ").split()))
    except BandstreamError as error:
        raise click.BadParameter(str(error), param_hint="--bands") from None
    return Scenes(src, patch, max_nodata, max_cloud, named, offset)


PRODUCTS = "SAFE with its MTD_MSIL2A.xml or MTD_MSIL1C.xml, a folder of a GeoTIFF a band, or EOPF Zarr"


def looks_like(names: Sequence[str]) -> bool:
    """Whether files are of a SAFE product or an EOPF one, or a GeoTIFF a band."""
    marks = re.compile(r"(^|/)MTD_MSIL[12][AC]\.xml$|^S2[A-Z]_.*\.zip$|/measurements/reflectance/|(^|/)B01\.tiff?$")
    return any(marks.search(name) for name in names)


class Scenes:
    """Products at or below the paths `inputs`, cut into patches of `patch` pixels of 10 m."""

    def __init__(
        self,
        inputs: tuple[Path, ...],
        patch: int = 120,
        max_nodata: float = 0.05,
        max_cloud: float | None = None,
        bands: tuple[str, ...] = (),
        offset: int | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.patch, self.max_nodata, self.max_cloud = patch, max_nodata, max_cloud
        self.bands, self.offset = bands, offset
        self.name = "sentinel2"
        self._scratch = Path()
        self._scenes: list[dict[str, Any]] = []
        self._taken: set[tuple[str, tuple[int, ...]]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    @cached_property
    def _records(self) -> Records:
        return Records(self._scratch)

    @property
    def schema(self) -> Schema:
        return Schema(
            bands=tuple(SENTINEL2[band] for band in self.bands),
            arrays=self._cut.arrays,
            reflectance=Reflectance(scale=self._scale, offset=0.0, level=self._level),
            labels={},
            masks={},
            json_bytes=JSON_BYTES,
            columns=COLUMNS | ({"cloud_share": float} if self._has_clouds else {}),
            nodata=0,
        )

    def describe(self) -> dict[str, Any]:
        removed: dict[str, Any] = {}  # baseline → what was removed; a list where its products differ
        for baseline, taken in sorted(self._taken):
            removed[baseline] = [*removed.get(baseline, []), *taken]
        return {
            "kind": "scene",
            "level": self._level,
            "scenes": len(self._scenes),
            "pixel_m": self._unit,
            "offset_removed": {key: value[0] if len(value) == 1 else value for key, value in removed.items()},
        }

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        scenes: list[tuple[Scene, Grid]] = []
        rejected: list[Rejected] = []
        names: set[str] = set()
        for found in self._inspected(listening):
            try:
                if isinstance(found, Rejected):
                    raise found
                if found.product in names:
                    raise Rejected(found.product, "duplicate", "the same product was found before")
                for warning in found.warnings:
                    listening.warn(warning)
                scenes.append((found, self._fitting(found, scenes[:1])))
                names.add(found.product)
            except Rejected as rejection:
                rejected.append(rejection)
        named = " ".join(map(str, self.inputs))
        if not scenes:
            why = f": {rejected[0]}" if rejected else f": expected {PRODUCTS}"
            raise BandstreamError(f"{named} holds no Sentinel-2 product that can be taken{why}")
        scenes.sort(key=lambda pair: pair[0].product)
        self._settle(scenes, listening)
        yield from rejected
        yield from self._entries(scenes, listening)

    def _inspected(self, listening: Listening) -> Iterator[Scene | Rejected]:
        for path in self.inputs:
            if not path.exists():
                raise BandstreamError(f"{path} does not exist: name a product or a folder of products")
        paths = [(path, self.offset) for source in self.inputs for path in products(source)]
        return chain.from_iterable(listening.map(inspect, paths))

    def _fitting(self, scene: Scene, first: list[tuple[Scene, Grid]]) -> Grid:
        """The grid of a scene's bands. Raises Rejected where they do not make one, BandstreamError where it cannot
        stand in one set with the `first`."""
        for other, _ in first:
            if other.level != scene.level:
                raise BandstreamError(
                    f"{scene.product} is {scene.level}, {other.product} is {other.level}: ingest them apart"
                )
        wanted = self.bands or LEVELS[scene.level]
        missing = [band for band in wanted if band not in scene.bands]
        if missing:
            text = f"{', '.join(missing)} not there: name the bands that all scenes have with --bands"
            raise Rejected(scene.product, "missing-band", text)
        if self.max_cloud is not None and scene.clouds is None:
            raise BandstreamError(f"{scene.product} has no cloud mask, which --max-cloud needs: leave one of them out")
        grid = grid_of(scene.product, scene.bands)
        if scene.clouds is not None and scene.clouds.raster is not None:
            check_mask(scene.product, scene.clouds.raster, grid)
        if min(grid.rows, grid.columns) < self.patch:
            fits = min(grid.rows, grid.columns) // COARSEST * COARSEST
            text = f"{grid.columns} x {grid.rows} pixels, smaller than a patch of {self.patch}"
            text += f": --patch {fits} fits" if fits else ""
            raise Rejected(scene.product, "wrong-size", text)
        for other, its in first:
            if (grid.single, round(grid.unit, 3), scene.scale) != (its.single, round(its.unit, 3), other.scale):
                raise BandstreamError(
                    f"{scene.product} has pixels of {grid.unit:g} m and scale {scene.scale:g}, {other.product} of "
                    f"{its.unit:g} m and {other.scale:g}: ingest them apart"
                )
        return grid

    def _settle(self, scenes: list[tuple[Scene, Grid]], listening: Listening) -> None:
        """What the set is, now that all scenes are known."""
        first, grid = scenes[0]
        self._scenes, self._taken = [], set()
        self._level, self._scale, self._unit = first.level, first.scale, round(grid.unit, 3)
        self.bands = self.bands or LEVELS[first.level]
        self._has_clouds = all(scene.clouds is not None for scene, _ in scenes)
        without = next((scene.product for scene, _ in scenes if scene.clouds is None), "")
        if without and any(scene.clouds is not None for scene, _ in scenes):
            listening.warn(f"{without} has no cloud mask: no share of cloud is recorded of any patch")
        self._cut = Cut(self.patch, self._arrays(grid), self.max_nodata, self.max_cloud)
        self._scratch = listening.scratch / "scenes"
        # blocks of ground: smaller where scenes are, for a split needs blocks to draw from
        across = max(min(grid.rows, grid.columns) // self.patch for _, grid in scenes)
        self._ground = self.patch * grid.unit * max(1, min(SPLIT_BLOCK, across // 10))
        self._alike = all(len({scene.taken[band] for band in self.bands}) == 1 for scene, _ in scenes)

    def _arrays(self, grid: Grid) -> dict[str, Array]:
        if grid.single:
            return {"10m.npy": Array(self.bands, (self.patch, self.patch))}
        return native_arrays(self.bands, self.patch)

    def _entries(self, scenes: list[tuple[Scene, Grid]], listening: Listening) -> Iterator[Entry | Rejected]:
        jobs = [block for scene, grid in scenes for block in blocks_of(scene, grid, self._cut, self._scratch)]
        patches = sum((block.last - block.first) * block.columns for block in jobs)
        self._scratch.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._scratch).free
        need = patches * self._cut.stride
        listening.say(
            f"cutting {len(scenes):,} scenes into {patches:,} patches: up to {need / 1e9:,.2f} GB in {self._scratch}, "
            f"{free / 1e9:,.1f} GB free, until the set is done"
        )
        for scene, blocks in _by_scene(self._cut_all(jobs, need, listening)):
            refused = next((found.refused for _, found in blocks if found.refused is not None), None)
            if refused is not None:
                yield refused
                continue
            number = len(self._scenes)
            self._remember(scene, blocks[0][0].grid)
            for block, found in blocks:
                yield from self._of_block(number, block, found)

    def _cut_all(self, jobs: list[Block], need: int, listening: Listening) -> Iterator[tuple[Block, Found]]:
        done = 0
        for block, found in zip(jobs, listening.map(cut_block, jobs), strict=True):
            done += (block.last - block.first) * block.columns * self._cut.stride
            listening.progress(done, need)
            yield block, found

    def _remember(self, scene: Scene, grid: Grid) -> None:
        """Keep what `read` has to know of a scene."""
        taken = [scene.taken[band] for band in self.bands]
        removed = taken[0] if self._alike else taken
        self._scenes.append(
            {
                "product": scene.product,
                "date": scene.date,
                "tile": scene.tile,
                "processing_baseline": scene.baseline,
                "offset_removed": removed,
                "grid": grid,
            }
        )
        self._taken.add((scene.baseline, tuple(dict.fromkeys(taken))))

    def _of_block(self, number: int, block: Block, found: Found) -> Iterator[Entry | Rejected]:
        grid, size, file = block.grid, block.cut.size, block.file
        for patch, reason in enumerate(found.reasons):
            row, column = divmod(patch, block.columns)
            row += block.first
            path = f"{block.scene.product}/r{row}_c{column}"
            if reason:
                share = {"nodata": found.nodata, "cloud": found.cloud}[reason][patch]
                yield Rejected(path, reason, f"{share:.1%} of it, more than --max-{reason} allows")
                continue
            x = grid.left + (column + 0.5) * size * grid.unit
            y = grid.top - (row + 0.5) * size * grid.unit
            yield Entry(
                key=f"{block.scene.product}_r{row}_c{column}",
                path=path,
                extra={
                    "nodata": str(found.nodata[patch]),
                    "clipped": str(found.clipped[patch]),
                    "cloud": str(found.cloud[patch]),
                },
                where=f"{number} {row} {column} {patch} {file}",
                group=f"{grid.epsg} {x // self._ground:.0f} {y // self._ground:.0f}",
            )

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        number, row, column, patch, file = entry.where.split(" ")
        record = self._records.read(file, int(patch), self._cut.stride)
        at = 0
        for member in self._cut.arrays:
            view = views[member]
            view[...] = np.frombuffer(record, "<u2", view.size, at).reshape(view.shape)
            at += view.nbytes
        scene = dict(self._scenes[int(number)])
        grid: Grid = scene.pop("grid")
        edge = self.patch * grid.unit
        left, top = grid.left + int(column) * edge, grid.top - int(row) * edge
        try:
            lon, lat = lon_lat(grid.epsg, left + edge / 2, top - edge / 2)
        except (ValueError, OverflowError) as error:
            raise Rejected(entry.path, "misplaced", str(error)) from None
        content = {
            "id": entry.key,
            "date": scene["date"],
            "crs": f"EPSG:{grid.epsg}",
            "transform": [grid.unit, 0.0, left, 0.0, -grid.unit, top],
            "bounds": [left, top - edge, left + edge, top],
            "lon": lon,
            "lat": lat,
            **{key: scene[key] for key in ("processing_baseline", "offset_removed", "product", "tile")},
            "nodata_share": float(entry.extra["nodata"]),
            "clipped_share": float(entry.extra["clipped"]),
        }
        if self._has_clouds:
            content["cloud_share"] = float(entry.extra["cloud"])
        columns = {name: content[name] for name in (*COLUMNS, *(["cloud_share"] if self._has_clouds else []))}
        return Facts({}, content, (lon, lat), scene["date"], columns)


def _by_scene(blocks: Iterator[tuple[Block, Found]]) -> Iterator[tuple[Scene, list[tuple[Block, Found]]]]:
    """Blocks, which come scene by scene, gathered."""
    gathered: list[tuple[Block, Found]] = []
    for block, found in blocks:
        if gathered and block.scene is not gathered[0][0].scene:
            yield gathered[0][0].scene, gathered
            gathered = []
        gathered.append((block, found))
    if gathered:
        yield gathered[0][0].scene, gathered
