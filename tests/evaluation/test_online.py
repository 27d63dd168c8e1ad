"""What a run is validated by: neighbours against scikit-learn, the same numbers twice, nothing touched."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation import online
from evaluation.online import Online, neighbour_score
from models.encoder import build_encoder
from models.objectives import build_objective
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set
from training.distributed import Place
from training.recipe import Pretraining

PLACE = Place(0, 1, torch.device("cpu"))
KNOBS = {"projection_hidden": 16, "projection_out": 8}


def weights(distances):
    """scikit-learn's distances are 1 - cosine."""
    return np.exp(-distances / online.TEMPERATURE)


def test_neighbours_vote_as_scikit_learns_do():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    bank, queries = rng.normal(size=(200, 6)), rng.normal(size=(50, 6))
    bank[:, 0] += labels
    truth = rng.integers(0, 4, 50)
    queries[:, 0] += truth
    theirs = KNeighborsClassifier(online.NEIGHBOURS, metric="cosine", weights=weights).fit(bank, labels)
    hot = torch.nn.functional.one_hot(torch.tensor(labels), 4).float()
    given = torch.tensor(bank).float(), hot, torch.tensor(queries).float()
    assert neighbour_score(*given, torch.tensor(truth)) == pytest.approx(theirs.score(queries, truth))
    many = np.eye(4)[truth]
    votes = theirs.predict_proba(queries)
    expected = np.mean([average_precision_score(many[:, k], votes[:, k]) for k in range(4)])
    assert neighbour_score(*given, torch.tensor(many)) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    return ShardSet.open(make_set(tmp_path_factory.mktemp("online") / "set", {"train": 12, "val": 9}))


def recipe(**knobs):
    return Pretraining(encoder="cnn", batch_size=4, view={"size": 32}, objective=KNOBS, **knobs).resolved()


def test_a_validation_is_the_same_twice_and_touches_nothing(shard_set, tmp_path):
    chosen = recipe()
    bands = shard_set.manifest.band_names
    objective = build_objective("simclr", build_encoder("cnn", 12, 32), chosen.objective).train()
    tested = Online(shard_set, chosen, bands, tmp_path, PLACE, 1)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    random = torch.get_rng_state()
    autocast = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    first = tested.validate(objective, objective.encoder, autocast)
    floors = (tmp_path / "floors.json").read_bytes()
    second = tested.validate(objective, objective.encoder, autocast)
    assert first == second and (tmp_path / "floors.json").read_bytes() == floors
    assert {"val_loss", "val_top1", "val_top5", "knn", "knn_statistics", "knn_random"} <= first.keys()
    assert json.loads(floors)["scores"]["knn_random"] == first["knn_random"]
    assert torch.get_rng_state().equal(random) and all(part.training for part in objective.modules())
    assert all(value.equal(before[name]) for name, value in objective.state_dict().items())
    tested.close()


def test_there_may_be_nothing_to_validate_by(tmp_path):
    alone = ShardSet.open(make_set(tmp_path / "set", {"train": 12}))
    bands = alone.manifest.band_names
    assert Online(alone, recipe(), bands, tmp_path, PLACE, 1).validate(torch.nn.ReLU(), torch.nn.ReLU(), None) == {}
    with pytest.raises(BandstreamError, match="too few samples in val"):
        Online(alone, recipe(schedule="plateau"), bands, tmp_path, PLACE, 1)
    with pytest.raises(BandstreamError, match="no labels 'crops': it has land_cover"):
        Online(alone, recipe(knn="crops"), bands, tmp_path, PLACE, 1)


@pytest.mark.parametrize("single", [True, False])
def test_labels_that_are_the_same_all_over_score_nothing(tmp_path, single):
    """By the loss alone, then, is a validation the best."""
    folder = make_set(tmp_path / "set", {"train": 12, "val": 9}, label=lambda number: 3, single=single)
    opened = ShardSet.open(folder)
    objective = build_objective("simclr", build_encoder("cnn", 12, 32), recipe().objective)
    tested = Online(opened, recipe(), opened.manifest.band_names, tmp_path, PLACE, 1)
    found = tested.validate(objective, objective.encoder, lambda: torch.autocast("cpu", enabled=False))
    assert "val_loss" in found and not any(name.startswith("knn") for name in found)
    assert tested.score(found) == -found["val_loss"] and not (tmp_path / "floors.json").exists()
    tested.close()
