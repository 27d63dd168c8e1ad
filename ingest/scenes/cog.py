"""Folders of a GeoTIFF a band, as on AWS (Earth Search) and the Planetary Computer."""

import re

from ingest.scenes.files import ProductFiles
from ingest.scenes.model import Scene

BAND_FILE = re.compile(r"(?:.*_)?(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.tiff?", re.IGNORECASE)


def is_product(names: set[str]) -> bool:
    """Whether a folder with these files holds bands of a scene."""
    return any(BAND_FILE.fullmatch(name) for name in names)


def open_product(files: ProductFiles, asked: int | None) -> Scene:
    raise NotImplementedError
