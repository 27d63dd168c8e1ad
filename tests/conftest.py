"""What all rooms test on: a made-up archive, the shard set ingested from it, and real data where there is some."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up archive in BigEarthNet v2's layout: 96 patches, seed 0."""
    from ingest.synthetic.archive import make_archive

    folder = tmp_path_factory.mktemp("archive") / "BigEarthNet"
    make_archive(folder, patches=96, seed=0, workers=1)
    return folder


@pytest.fixture(scope="session")
def shard_set(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of `archive`, with labels and masks, in shards of 16 samples."""
    from ingest.building.build import Options, ingest
    from ingest.sources.bigearthnet import BigEarthNet

    folder = tmp_path_factory.mktemp("shards") / "set"
    ingest(BigEarthNet(archive), folder, Options(shard_samples=16))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real imagery: $BANDSTREAM_REAL_DATA, or shared/data beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("BANDSTREAM_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "bigearthnet_v1").is_dir():
        pytest.skip(f"no real data in {folder} (set BANDSTREAM_REAL_DATA)")
    return folder
