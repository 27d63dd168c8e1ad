"""`bandstream info`: its numbers held to the shards' own json and labels; the map held to what it should show."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import bandstream
from ingest.checking import map as map_
from ingest.checking import overview
from shards.errors import BandstreamError
from shards.shardset import Sample, ShardSet
from tests.pipeline.making import make_set


@pytest.fixture(scope="module")
def samples(shard_set: Path) -> dict[str, list[Sample]]:
    opened = ShardSet.open(shard_set)
    return {
        split: [opened.read(split, number) for number in range(opened.size(split))] for split in opened.manifest.splits
    }


def test_its_numbers_are_those_of_the_shards(shard_set: Path, samples: dict[str, list[Sample]]) -> None:
    told = overview.summary(shard_set)
    every = [sample for own in samples.values() for sample in own]
    assert told["samples"] == len(every)
    assert {name: split["samples"] for name, split in told["splits"].items()} == {n: len(s) for n, s in samples.items()}
    classes = told["labels"]["land_cover"]["classes"]
    for number, counts in enumerate(classes.values()):
        assert counts == {
            split: sum(int(sample.labels["land_cover"][number]) for sample in own) for split, own in samples.items()
        }
    contents = [sample.json for sample in every]
    assert told["columns"]["country"] == Counter(content["country"] for content in contents)
    assert told["dates"]["months"] == Counter(content["date"][:7] for content in contents)
    assert told["dates"]["span"] == [min(c["date"] for c in contents), max(c["date"] for c in contents)]
    assert told["places"] == {
        "west": min(c["lon"] for c in contents),
        "south": min(c["lat"] for c in contents),
        "east": max(c["lon"] for c in contents),
        "north": max(c["lat"] for c in contents),
        "unknown": 0,
    }
    assert told["offsets_removed"] == {"N9999": 0}


def test_small_pieces_of_the_catalogue_add_up_to_the_same(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = overview.summary(shard_set)
    monkeypatch.setattr("shards.catalogue.ROWS", 7)
    assert overview.summary(shard_set) == whole


def test_text_and_json_of_the_command(shard_set: Path) -> None:
    text = CliRunner().invoke(bandstream, ["info", str(shard_set)]).stdout
    for word in ("96 samples", "train", "B8A", "Marine waters", "L2A", "country: ", "dates: 2017", "°N to", "baseline"):
        assert word in text, word
    told = CliRunner().invoke(bandstream, ["info", str(shard_set), "--json"]).stdout
    assert json.loads(told) == json.loads(json.dumps(overview.summary(shard_set)))


def test_a_column_of_too_many_values_is_not_listed(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "DIFFERENT", 1)
    told = overview.summary(shard_set)
    assert told["columns"]["country"] is None
    assert "  country: more than 1 different" in overview.lines(told)


def test_single_labels_and_nothing_known(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", {"train": 30, "val": 10}, single=True)
    counts = overview.summary(folder)["labels"]
    classes = next(iter(counts.values()))["classes"]
    assert sum(each["train"] for each in classes.values()) == 30
    assert next(iter(classes.values())) == {"train": 2, "val": 1}  # numbers 0, 19 and 38


def test_a_catalogue_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", {"train": 10})
    (folder / "samples.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(BandstreamError, match=r"samples.parquet cannot be read .*verify .* --repair"):
        overview.summary(folder)


def colours_of(path: Path) -> Counter[tuple[int, ...]]:
    with Image.open(path) as picture:
        return Counter(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_the_map_shows_every_split(shard_set: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    result = CliRunner().invoke(bandstream, ["info", str(shard_set), "--map", str(path)])
    assert result.exit_code == 0, result.output
    found = colours_of(path)
    for split in ShardSet.open(shard_set).manifest.splits:
        assert found[rgb(map_.COLOURS[split])] > 20, split
    assert [each.name for each in tmp_path.iterdir()] == ["map.png"]


def test_many_samples_are_drawn_as_a_density(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_, "POINTS", 10)
    assert map_.draw(shard_set, tmp_path / "map.png") == 96
    assert colours_of(tmp_path / "map.png")[rgb(map_.COLOURS["train"])] == 0


def test_places_are_those_of_the_catalogue(shard_set: Path, samples: dict[str, list[Sample]]) -> None:
    places = map_._Places(ShardSet.open(shard_set))
    contents = [sample.json for own in samples.values() for sample in own]
    np.testing.assert_array_equal(places.lon, np.array([content["lon"] for content in contents], "f4"))
    np.testing.assert_array_equal(places.lat, np.array([content["lat"] for content in contents], "f4"))
    assert [places.countries[number] for number in places.country] == [content["country"] for content in contents]


def test_one_place_and_no_place(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_set(tmp_path / "one", {"train": 10})  # all at 0, 0
    assert map_.draw(folder, tmp_path / "one.png") == 10
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "samples.parquet").to_pydict()
    from shards import catalogue

    with catalogue.writing(folder, {}, ["labels"]) as add:
        add({**table, "lon": [None] * 10, "lat": [None] * 10})
    with pytest.raises(BandstreamError, match="nothing to map"):
        map_.draw(folder, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert "places: unknown" in list(overview.overview(folder))
