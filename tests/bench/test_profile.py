"""The profile takes the loader's own steps: its last one gives the loader's views."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import profile
from bench.loader import recipe_of
from pipeline.loader import Loader
from tests.pipeline.making import make_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("profile") / "set", {"train": profile.BATCH})


def test_the_last_step_gives_the_views_of_the_loader(shards):
    steps = profile._views(shards, 32)
    first, _, _, second, _, _ = steps["views: standardised, float32"]()
    batch = next(iter(Loader(shards, "train", profile.BATCH, [recipe_of(32)] * 2)))
    for found, view in zip((first, second), batch.views, strict=True):
        np.testing.assert_array_equal(found.as_array()[batch.indices], view.numpy())


def test_every_step_is_timed(shards, tmp_path):
    record = tmp_path / "profile.json"
    options = ["--view-size", "32", "--repeats", "1", "--seconds", "0.1", "--json", str(record)]
    result = CliRunner().invoke(profile.main, [str(shards), *options], catch_exceptions=False)
    told = json.loads(record.read_text())["steps"]
    assert result.exit_code == 0 and len(result.output.splitlines()) == len(told) == 11
    assert all(own["wall_us"]["median"] > 0 and own["cpu_us"]["median"] > 0 for own in told.values())
