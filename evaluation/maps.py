"""Embeddings laid out on a plane, by t-SNE or UMAP, coloured by class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from evaluation.figures import legend_name, panels, png_of
from evaluation.standardising import scaling
from shards.errors import BandstreamError

METHODS = ("tsne", "umap")
NAMES = {"tsne": "t-SNE", "umap": "UMAP"}
SAMPLES, COMPONENTS, PERPLEXITY = 2000, 50, 30
FEWEST = 10
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
SHAPES = ("o", "^", "s", "X", "D", "P", "v", "*")
"""Okabe & Ito's, which colour-blind people tell apart. Classes differ in shape as well: 7 colours and 8 shapes, each
taken in turn, are 56 pairs."""


def spread(samples: int, seed: int) -> np.ndarray | None:
    """Sample numbers to draw, in order: at most 2,000; None for all."""
    return None if samples <= SAMPLES else np.sort(np.random.default_rng(seed).permutation(samples)[:SAMPLES])


def place(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, float]:
    """Features (n, D) → places float32 (n, 2), and how far neighbours on the plane are neighbours in truth, 0 to 1.

    Standardised, then their 50 principal components, then t-SNE (van der Maaten & Hinton 2008) or UMAP (McInnes et al.
    2018); the second number is the trustworthiness of Venna & Kaski (2001). Raises BandstreamError on fewer than 10
    samples, and as `find_umap`.
    """
    if len(features) < FEWEST:
        raise BandstreamError(f"{len(features)} samples make no map: {FEWEST} at least")
    mean, scale = scaling(features)
    scaled = (features - mean) / scale
    reduced = PCA(min(COMPONENTS, *scaled.shape), random_state=seed).fit_transform(scaled)
    near = min(PERPLEXITY, (len(features) - 1) / 3)
    if method == "umap":
        placed = find_umap()(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1).fit_transform(reduced)
    else:
        placed = TSNE(perplexity=near, init="pca" if reduced.shape[1] > 1 else "random",
                      random_state=seed).fit_transform(reduced)  # fmt: skip
    return placed.astype(np.float32), float(
        trustworthiness(reduced, placed, n_neighbors=min(12, len(features) // 2 - 1))
    )


def map_figure(
    maps: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], method: str
) -> bytes:  # fmt: skip
    """Maps (n, 2) by title side by side, with one legend: a PNG. A sample of several classes is drawn as its rarest."""
    shown = rarest(labels)
    figure, axes = panels(len(maps), width=4.2, height=4.6)
    handles: dict[int, Any] = {}
    for axis, (title, placed) in zip(axes, maps.items(), strict=True):
        for k in np.unique(shown).tolist():
            at = placed[shown == k]
            colour, shape = COLOURS[k % len(COLOURS)], SHAPES[k % len(SHAPES)]
            handles[k] = axis.scatter(at[:, 0], at[:, 1], s=14, c=colour, marker=shape, linewidths=0, alpha=0.8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_color("#cbd5e0")
    told = "coloured by the rarest of each patch's labels" if labels.ndim == 2 else "coloured by class"
    figure.suptitle(f"{NAMES[method]} of {len(labels):,} test patches, {told}", fontsize=11)
    names = [legend_name(classes[k]) for k in handles]
    figure.legend(
        list(handles.values()), names, loc="outside lower center", ncols=max(1, min(4, 2 * len(maps))), fontsize=8,
        frameon=False, markerscale=1.6,
    )  # fmt: skip
    return png_of(figure)


def rarest(labels: np.ndarray) -> np.ndarray:
    """A class a sample, int64 (n,): of multi-hot labels (n, K), each sample's rarest."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    counts = labels.sum(0)
    found: np.ndarray = np.where(labels > 0, counts, np.inf).argmin(1)
    return found


def find_umap() -> Any:
    """The class UMAP of umap-learn. Raises BandstreamError where that is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise BandstreamError("UMAP needs umap-learn: pip install 'bandstream[viz]', or take --method tsne") from None
    return UMAP
