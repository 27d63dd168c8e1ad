"""Label maps beside rasters: found by name, of the raster's size and in its place, and read as class indices."""

import math
from collections.abc import Iterable

import numpy as np

from ingest.reading.classes import Classes
from ingest.reading.files import Files
from ingest.reading.folders import joined, top_of, without_suffix
from ingest.reading.geotiff import RasterError
from ingest.reading.raster import Raster, inspect, read_single
from shards.errors import BandstreamError

SUFFIXES = (".tif", ".tiff")
UNNAMED = "mask"
"""What a mask without a name is called in the manifest."""
LISTED = 20
"""Values that a message lists."""
LARGEST = 1 << 25
"""Pixels of the largest mask that is looked at for it."""


def is_tiff(path: str) -> bool:
    """Whether a file is called as a TIFF is."""
    return path.lower().endswith(SUFFIXES)


def member_of(name: str) -> str:
    """The member that holds the mask of a name, "" for the only one."""
    return f"{name}.mask.npy" if name else "mask.npy"


class Masks:
    """The label maps of one level. They lie in the same folder below the top as the rasters, or all at the top."""

    def __init__(self, name: str, files: Files) -> None:
        self.name, self._files, self._top = name, files, top_of(files, is_tiff)
        self._told = f"{name} mask" if name else "mask"
        self._known: dict[str, dict[str, str]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": {}}

    def find(self, path: str) -> str | None:
        """The path of a raster's mask in the archive of masks; None where there is none."""
        folder, _, name = without_suffix(path).rpartition("/")
        return self._stems(folder).get(name) or self._stems("").get(name)

    def _stems(self, folder: str) -> dict[str, str]:
        if folder not in self._known:
            for known in [known for known in self._known if known]:
                del self._known[known]  # rasters come folder by folder
            inside = joined(self._top, folder)
            try:
                names = [name for name in self._files.names(inside) if is_tiff(name)]
            except OSError:
                names = []
            self._known[folder] = {without_suffix(name): joined(inside, name) for name in names}
        return self._known[folder]

    def read(
        self, path: str, whole: Raster, size: tuple[int, int], window: tuple[int, int] | None, classes: Classes
    ) -> np.ndarray:
        """Class indices, uint8 of `size`, of a mask or a window of it; `whole`: the raster that it belongs to.

        Raises RasterError: those of `read_single` and `Classes.apply`, and `misplaced`.
        """
        try:
            mask, stored = read_single(self._files.gdal(path), size, window)
            if mask.size != whole.size:
                detail = f"{mask.size[1]} x {mask.size[0]} pixels, its raster {whole.size[1]} x {whole.size[0]}"
                raise RasterError("wrong-size", detail)
            if not mask.covers(whole):
                raise RasterError("misplaced", "it lies elsewhere than its raster")
            return classes.apply(stored, mask.nodata)
        except RasterError as error:
            raise RasterError(error.reason, f"{self._told}: {error.detail}") from None
        except OSError as error:
            raise RasterError("unreadable", f"{self._told}: {error}") from error

    def ask_for_classes(self, paths: Iterable[str]) -> BandstreamError:
        """The error that says how to name classes, with the values that the masks of a few rasters hold."""
        values = set[float]()
        for path in paths:
            try:
                mask = self._files.gdal(self.find(path) or "")
                size = inspect(mask).size
                if math.prod(size) <= LARGEST:
                    values.update(np.unique(read_single(mask, size)[1]).tolist())
            except (RasterError, OSError):
                continue
        found = ", ".join(f"{value:g}" for value in sorted(values)[:LISTED]) or "nothing that can be read"
        more = ", ..." if len(values) > LISTED else ""
        return BandstreamError(
            f"--classes {self.name + '=' if self.name else ''}FILE is needed: lines NAME (values 0, 1, ...) or "
            f"VALUE,NAME; a few masks hold {found}{more}"
        )
