"""A sample of `tests/proofs/ingest_faults.py`: real full disks, read-only targets and archives that go away."""

from collections.abc import Iterator

import pytest

from tests.mounts import NoMounts, namespace
from tests.proofs import ingest_faults
from tests.proofs.ingest_faults import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    try:
        with namespace() as mounts:
            yield ingest_faults.make_world(tmp_path_factory.mktemp("world"), mounts, patches=24)
    except NoMounts as error:
        pytest.skip(f"file systems cannot be mounted here: {error}")


def test_a_target_without_room(world: World) -> None:
    assert "make room and run the same command again" in ingest_faults.full_target(world, world.kb // 2)["error"]


def test_a_target_that_is_read_only(world: World) -> None:
    assert "name another folder" in ingest_faults.read_only(world, False)["error"]


def test_an_archive_that_is_unmounted(world: World) -> None:
    assert "run the same command again" in ingest_faults.archive_unmounted(world)["error"]
