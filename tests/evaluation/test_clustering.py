"""Clusters, retrieval and maps against loops and scikit-learn, on features whose answer is known."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score

from evaluation import maps
from evaluation.clustering import cluster, purity
from evaluation.figures import legend_name
from evaluation.retrieval import relevance, retrieve
from shards.errors import BandstreamError


def blobs(seed: int, count: int = 120, apart: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Four well separated classes in 5 dimensions of uneven scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    features = np.eye(5)[labels] * apart + rng.normal(size=(count, 5))
    return (features * [1, 10, 0.1, 1, 1]).astype(np.float32), labels


def test_clusters_that_are_there_are_found_and_noise_is_not() -> None:
    found = cluster(blobs(0)[0], blobs(1), 4, 0)
    assert found["purity"] == found["nmi"] == found["ari"] == 1 and found["silhouette"] > 0.5
    shuffled = blobs(1)[0], np.random.default_rng(0).permutation(blobs(1)[1])
    noise = cluster(blobs(0)[0], shuffled, 4, 0)
    assert noise["purity"] < 0.45 and noise["ari"] < 0.1 and 0.25 <= noise["one_cluster"] < 0.4
    with pytest.raises(BandstreamError, match="no 9 clusters"):
        cluster(blobs(0, 8)[0], blobs(1), 9, 0)


def test_several_labels_count_where_the_clusters_commonest_is_among_them() -> None:
    found = np.array([0, 0, 0, 1, 1])
    hot = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    assert purity(found, hot) == pytest.approx((2 + 2) / 5)
    assert purity(found, np.array([2, 2, 0, 1, 0])) == pytest.approx((2 + 1) / 5)
    train, (features, labels) = blobs(0)[0], blobs(1)
    multi = cluster(train, (features, np.eye(4)[labels]), 4, 0)
    single = cluster(train, (features, labels), 4, 0)
    assert multi.pop("sizes") == single.pop("sizes")
    assert multi == pytest.approx(single), "one label each, as multi-hot"
    sets = np.eye(4)[labels].astype(int) | (np.arange(120) % 2)[:, None] * [[0, 0, 0, 1]]
    names = np.array(["".join(map(str, row)) for row in sets])
    mixed = cluster(train, (features, sets), 4, 0)
    assert mixed["nmi"] == pytest.approx(normalized_mutual_info_score(names, labels))
    assert mixed["ari"] == pytest.approx(adjusted_rand_score(names, labels))


@pytest.mark.parametrize("multi", [False, True])
def test_retrieval_equals_loops(multi: bool) -> None:
    rng = np.random.default_rng(5)
    train, test = rng.normal(size=(70, 6)).astype(np.float32), rng.normal(size=(30, 6)).astype(np.float32)
    if multi:
        labels, asked = (rng.random((n, 5)) < 0.25 for n in (70, 30))
        labels, asked = labels.astype(np.float32), asked.astype(np.float32)
    else:
        labels, asked = rng.integers(0, 5, 70), rng.integers(0, 6, 30)  # class 5 is in no gallery
    found = retrieve((train, labels), (test, asked), seed=0)
    precision, at5, jaccard5, chance = [], [], [], []
    for query, label in zip(test, asked, strict=True):
        cosine = [float(query @ x) / float(np.linalg.norm(query) * np.linalg.norm(x)) for x in train]
        sets = [({*np.flatnonzero(a)}, {*np.flatnonzero(label)}) if multi else ({a}, {label}) for a in labels]
        right = np.array([bool(a & b) for a, b in sets])
        order = np.argsort([-c for c in cosine])
        if right.any():
            precision.append(average_precision_score(right, cosine))
        at5.append(right[order[:5]].mean())
        jaccard5.append(
            np.mean([len(sets[i][0] & sets[i][1]) / max(len(sets[i][0] | sets[i][1]), 1) for i in order[:5]])
        )
        chance.append(right.mean())
    assert found.scores["map"] == pytest.approx(np.mean(precision))
    assert found.scores["precision_at"]["5"] == pytest.approx(np.mean(at5))
    assert found.scores["by_chance"] == pytest.approx(np.mean(chance))
    assert found.scores["unanswerable"] == 30 - len(precision) > 0
    assert ("jaccard_at" in found.scores) == multi
    if multi:
        assert found.scores["jaccard_at"]["5"] == pytest.approx(np.mean(jaccard5))
    for query, near, marks in zip(found.queries, found.neighbours, found.right, strict=True):
        assert marks.tolist() == relevance(asked[query], labels[near])[0].tolist()
    with pytest.raises(BandstreamError, match="fewer than the 6"):
        retrieve((train[:5], labels[:5]), (test, asked), seed=0)


def test_maps_keep_neighbours_and_few_samples_are_refused() -> None:
    features, _ = blobs(0, 60)
    placed, trust = maps.place(features, "tsne", 0)
    assert placed.shape == (60, 2) and trust > 0.85
    assert np.array_equal(placed, maps.place(features, "tsne", 0)[0])
    with pytest.raises(BandstreamError, match="10 at least"):
        maps.place(features[:9], "tsne", 0)
    assert maps.spread(2000, 0) is None and len(set(maps.spread(2001, 0).tolist())) == 2000


def test_a_missing_umap_is_one_line() -> None:
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(BandstreamError, match=r"bandstream\[viz\]"):
            maps.place(blobs(0)[0], "umap", 0)
    else:
        assert maps.place(blobs(0, 40)[0], "umap", 0)[1] > 0.7


def test_a_map_shows_every_class_whatever_its_name() -> None:
    names = ["_hidden", "$x^{2$", "<b>&", "Land principally occupied by agriculture, with significant areas"]
    features, labels = blobs(0, 60)
    picture = Image.open(io.BytesIO(maps.map_figure({"a": features[:, :2]}, labels, names, "tsne")))
    assert picture.width > 300
    assert not legend_name("_hidden").startswith("_") and r"\$" in legend_name("$x")
    assert maps.rarest(np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1]])).tolist() == [1, 0, 2, 2]
    used = {(maps.COLOURS[k % 7], maps.SHAPES[k % 8]) for k in range(56)}
    assert len(used) == 56
