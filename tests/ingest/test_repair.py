"""`verify --repair`: what is damaged is made anew as it was, the rest left alone, another archive refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import bandstream
from ingest.building.build import Options, ingest
from ingest.sources.bigearthnet import BigEarthNet
from shards.verify import verify
from tests.ingest.archives import V2_TILE, contents, make_v2, patch_name

FILES = ["train-000001.tar", "train-000000.idx", "samples.parquet", "rejected.jsonl"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patches, of which one is damaged and one not covered by a map."""
    root = make_v2(tmp_path_factory.mktemp("archive"), 24)
    patch = root / "BigEarthNet-S2" / V2_TILE / patch_name(5)
    path = patch / f"{patch.name}_B02.tif"
    path.write_bytes(path.read_bytes()[:9000])
    next((root / "Reference_Maps" / V2_TILE / patch_name(6)).iterdir()).unlink()
    return root


@pytest.fixture(scope="module")
def made(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "set"
    ingest(BigEarthNet(archive), folder, Options(name="mine", seed=3, shard_samples=4))
    return folder


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "set"))


def run(*words: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(bandstream, ["verify", *map(str, words)])
    if result.exit_code != code:
        raise result.exception or AssertionError(result.output)
    return result


def refusal(*words: Any) -> str:
    """The one line of a repair that cannot be done."""
    result = CliRunner().invoke(bandstream, ["verify", *map(str, words)])
    assert result.exit_code == 1
    message = str(result.exception)
    assert "\n" not in message
    return message


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("missing", [False, True])
def test_one_file_is_made_anew_and_no_other_is_touched(
    archive: Path, made: Path, damaged: Path, name: str, missing: bool
) -> None:
    if missing:
        (damaged / name).unlink()
    else:
        flip(damaged / name, 77)
    inodes = {path.name: path.stat().st_ino for path in damaged.iterdir()}
    result = run(damaged, "--repair", archive)
    assert f"made anew: {name}" in result.stdout
    assert contents(damaged) == contents(made)
    touched = {path.name for path in damaged.iterdir() if inodes.get(path.name) != path.stat().st_ino}
    assert touched <= {name, Path(name).with_suffix(".idx").name}
    assert "all as the manifest says" in run(damaged).stdout


def test_indexes_catalogue_and_strays_need_no_archive(made: Path, damaged: Path) -> None:
    for path in damaged.glob("*.idx"):
        path.unlink()
    flip(damaged / "samples.parquet", 500)
    shutil.copy(damaged / "train-000000.tar", damaged / "train-000099.tar")
    result = run(damaged, "--repair")
    assert "removed: train-000099.tar" in result.stdout
    assert contents(damaged) == contents(made)


def test_what_needs_the_archive_is_named_and_the_rest_is_mended(archive: Path, made: Path, damaged: Path) -> None:
    flip(damaged / "test-000000.tar", 9999)
    flip(damaged / "train-000000.idx", 9)
    (damaged / "rejected.jsonl").write_text("")
    message = refusal(damaged, "--repair")
    assert message.startswith("made anew: train-000000.idx; test-000000.tar, rejected.jsonl can only be made anew")
    assert {problem.split(":")[0] for problem in verify(damaged)} == {"test-000000.tar", "rejected.jsonl"}
    run(damaged, "--repair", archive)
    assert contents(damaged) == contents(made)


def test_everything_at_once(archive: Path, made: Path, damaged: Path) -> None:
    for path in damaged.iterdir():
        if path.name != "dataset.json":
            path.unlink()
    run(damaged, "--repair", archive, "--", "--workers", 2)
    assert contents(damaged) == contents(made)


def test_a_manifest_that_can_be_read_is_made_anew_from_the_archive_and_the_sound_shards(
    archive: Path, made: Path, damaged: Path
) -> None:
    path = damaged / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b'"Pastures"', b'"Pasturez"'))
    flip(damaged / "train-000001.tar", 5000)
    assert "only the archive can tell" in refusal(damaged, "--repair")
    inodes = {each.name: each.stat().st_ino for each in damaged.glob("*.tar")}
    run(damaged, "--repair", archive)
    assert contents(damaged) == contents(made)
    assert {each.name for each in damaged.glob("*.tar") if inodes[each.name] != each.stat().st_ino} == {
        "train-000001.tar"
    }


def test_an_unreadable_manifest_is_made_anew_by_the_ingest_that_made_it(
    archive: Path, made: Path, damaged: Path
) -> None:
    path = damaged / "dataset.json"
    path.write_bytes(path.read_bytes()[:-200])
    inodes = {each.name: each.stat().st_ino for each in damaged.glob("*.tar")}
    ingest(BigEarthNet(archive), damaged, Options(name="mine", seed=3, shard_samples=4))
    assert contents(damaged) == contents(made)
    assert inodes == {each.name: each.stat().st_ino for each in damaged.glob("*.tar")}


def test_a_damaged_manifest_of_another_set_is_not_written_over(archive: Path, damaged: Path) -> None:
    flip(damaged / "dataset.json", 0)
    before = contents(damaged)
    with pytest.raises(Exception, match="nothing in it says that this archive and these options made the set"):
        ingest(BigEarthNet(archive), damaged, Options(name="mine", seed=4, shard_samples=4))
    assert contents(damaged) == before


def test_another_archive_is_refused_and_nothing_changes(damaged: Path, tmp_path: Path) -> None:
    other = make_v2(tmp_path / "other", 23)
    flip(damaged / "train-000001.tar", 5000)
    flip(damaged / "train-000000.idx", 5)
    before = contents(damaged)
    message = refusal(damaged, "--repair", other)
    assert "not what" in message and "nothing was changed" in message and "--metadata" in message
    assert contents(damaged) == before


def test_an_archive_with_the_same_names_and_other_pixels_is_refused(
    archive: Path, damaged: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(archive, tmp_path / "other"))
    for path in other.glob("BigEarthNet-S2/*/*/*_B03.tif"):
        flip(path, 3000)
    flip(damaged / "train-000001.tar", 5000)
    before = contents(damaged)
    assert "the archive no longer gives what it held" in refusal(damaged, "--repair", other)
    assert contents(damaged) == before


def test_options_that_name_files_are_given_again(archive: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.parquet"
    moved = Path(shutil.copytree(archive, tmp_path / "archive"))
    (moved / "metadata.parquet").rename(metadata)
    excluded = tmp_path / "excluded.csv"
    excluded.write_text(f"{patch_name(7)}\n")
    target = tmp_path / "made"
    CliRunner().invoke(
        bandstream,
        [
            *("ingest", "bigearthnet", str(moved), str(target), "--shard-samples", "4"),
            *("--metadata", str(metadata), "--exclude", str(excluded)),
        ],
        catch_exceptions=False,
    )
    expected = contents(target)
    flip(target / "train-000000.tar", 5000)
    assert "nothing was changed" in refusal(target, "--repair", moved)
    run(target, "--repair", moved, "--", "--metadata", metadata, "--exclude", excluded)
    assert contents(target) == expected


def test_files_that_no_ingest_wrote_are_left_and_named(archive: Path, damaged: Path) -> None:
    (damaged / "mine.tar").write_bytes(b"precious")
    assert "no ingest wrote mine.tar" in refusal(damaged, "--repair")
    assert "no ingest wrote mine.tar" in refusal(damaged, "--repair", archive)
    assert (damaged / "mine.tar").read_bytes() == b"precious"


def test_wrong_usage(damaged: Path, archive: Path) -> None:
    assert CliRunner().invoke(bandstream, ["verify", str(damaged), str(archive)]).exit_code == 2
    assert "all as the manifest says" in run(damaged, "--repair").stdout
    flip(damaged / "train-000000.tar", 5000)
    assert (
        CliRunner().invoke(bandstream, ["verify", str(damaged), "--repair", str(archive), "--", "--x"]).exit_code == 2
    )


def test_a_catalogue_that_the_shards_cannot_give_is_said(tmp_path: Path, made: Path, damaged: Path) -> None:
    from shards.manifest import Manifest

    manifest = Manifest.read(damaged)
    manifest.model_copy(update={"columns": {**(manifest.columns or {}), "weather": "str"}}).write(damaged)
    (damaged / "samples.parquet").unlink()
    assert "does not hold weather of the catalogue" in refusal(damaged, "--repair")
    columns = {name: kind for name, kind in (manifest.columns or {}).items() if name != "tile"}
    manifest.model_copy(update={"columns": columns}).write(damaged)
    assert "made anew it has other bytes than dataset.json states" in refusal(damaged, "--repair")
    assert not (damaged / "samples.parquet").exists() and not (damaged / ".partial").exists()


def test_sets_of_early_writers_are_mended_with_the_archive(archive: Path, made: Path, damaged: Path) -> None:
    from shards.manifest import Manifest

    early = Manifest.read(damaged).model_copy(update={"columns": None, "files": None})
    early.write(damaged)
    (damaged / "samples.parquet").unlink()
    (damaged / "rejected.jsonl").write_text("")
    assert "samples.parquet can only be made anew from the archive" in refusal(damaged, "--repair")
    run(damaged, "--repair", archive)
    expected = contents(made)
    assert {name: data for name, data in contents(damaged).items() if name != "dataset.json"} == {
        name: data for name, data in expected.items() if name != "dataset.json"
    }
