"""What the name of a Sentinel-2 product, or of a patch cut from one, says of it."""

import re
from datetime import datetime

import numpy as np

# BOA_ADD_OFFSET of processing baseline 04.00 and later (Sentinel-2 L2A product specification, S2-PDGS-TAS-DI-PSD)
OFFSET, FIRST_WITH_OFFSET, REPROCESSED = 1000, 400, 9999
DATE = re.compile(r"_(\d{8})T(\d{5,6})_")
BASELINE = re.compile(r"_N(\d{4})_")
TILE = re.compile(r"_(T\d{2}[A-Z]{3})_")


def baseline_of(name: str) -> str:
    """Processing baseline, such as `N0500`; "" where the name has none."""
    return f"N{found[1]}" if (found := BASELINE.search(f"_{name}_")) else ""


def tile_of(name: str) -> str:
    """MGRS tile, such as `T35ULA`; "" where the name has none."""
    return found[1] if (found := TILE.search(f"_{name}_")) else ""


def date_of(name: str) -> str:
    """Sensing start, ISO 8601, UTC; "" where the name has none. BigEarthNet v1 writes 09:30:20 as T93020."""
    found = DATE.search(f"_{name}_")
    if not found:
        return ""
    day, time = found[1], found[2].zfill(6)
    return iso_date(f"{day[:4]}-{day[4:6]}-{day[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}")


def iso_date(text: str) -> str:
    """ISO 8601 without its variants; "" for what is no date."""
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return ""


def offset_of(baseline: str) -> int:
    """What to take from each stored number, by the processing baseline (N9999: reprocessed by the archive, none)."""
    number = int(baseline[1:]) if baseline else 0
    return OFFSET if FIRST_WITH_OFFSET <= number < REPROCESSED else 0


def remove_offset(pixels: np.ndarray, offset: int) -> None:
    """Take the offset from stored numbers in place; what it would make negative becomes 0."""
    if offset:
        np.subtract(np.maximum(pixels, offset, out=pixels), offset, out=pixels)
