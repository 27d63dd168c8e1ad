"""Embeddings of whole shard sets, as Zarr v3 and as Parquet.

    OUT/zarr.json              attributes: what was embedded with what, and a fingerprint of both
    OUT/SPLIT/embedding        float32 (n, D)
    OUT/SPLIT/key, date        strings (n,);  lon, lat  float64 (n,), degrees, of the patch's centre
    OUT/SPLIT/labels           uint8 (n, K) multi-hot or int64 (n,), where the set has labels; names in its attributes

Row i is sample i of the split. A split is made in `.OUT.SPLIT.partial` beside OUT, a block of rows at a time, and
renamed when it is whole: what stands in OUT is complete. A block is safe on disk before it is counted in
`progress.json`, so a rerun goes on after the last one that was, and ends with the same bytes; memory holds a block and
the split's keys.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.samples import sample_table
from evaluation.subject import Statistics, Subject
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards import atomic
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY
from shards.shardset import ShardSet

BLOCK_ROWS = 4096
"""Rows of a chunk, about: a whole number of batches, so that a rerun computes in the same batches."""
PROGRESS, FORMAT = "progress.json", "bandstream embedding 1"
COLUMNS = ("key", "date", "lon", "lat")


class Embedding:
    """The embeddings of one shard set by one subject, in one Zarr group.

    `view_size` in pixels, None: the patch's own; `statistics`, `bands` None: the set's. Raises BandstreamError where
    `out` holds something else.
    """

    def __init__(
        self, shard_set: ShardSet, subject: Subject, out: Path, batch_size: int, view_size: int | None,
        statistics: Statistics | None, bands: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.shard_set, self.subject, self.out, self.batch_size = shard_set, subject, out, batch_size
        self.view_size, self.statistics = view_size, statistics
        manifest = shard_set.manifest
        self.bands = bands or manifest.band_names
        self.label = next(iter(manifest.labels.items()), None)
        own = statistics or {band: (s.mean, s.std) for band, s in manifest.statistics.items()}
        self.about: dict[str, Any] = {
            "format": FORMAT, "created_by": CREATED_BY, "encoder": subject.told, "weights": subject.fingerprint(),
            "data": {"name": manifest.name, "manifest": manifest.fingerprint()}, "bands": self.bands,
            "view_size": view_size or shard_set.grid[0],
            "statistics": {band: [float(m), float(s)] for band, (m, s) in own.items() if band in self.bands},
        }  # fmt: skip
        self.about["fingerprint"] = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        if out.exists():
            self._check(_attributes(out), out)

    def write(self, split: str, device: str = "cpu", threads: int | None = None) -> int:
        """Embed a split, or what is missing of it; returns how many samples were embedded now."""
        if (self.out / split).exists():
            (self.out / split / PROGRESS).unlink(missing_ok=True)  # where a kill came right after the rename
            return 0
        samples = self.shard_set.size(split)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_name(f".{self.out.name}.{split}.partial")
        done = self._resume(partial, split)
        begun = done
        rows = max(1, BLOCK_ROWS // self.batch_size) * self.batch_size
        if done < samples:
            table = sample_table(self.shard_set, split, list(COLUMNS))
            loader = Loader(
                self.shard_set, split, self.batch_size, [ViewRecipe.plain(self.view_size)], training=False,
                device=device, threads=threads, labels=self.label[0] if self.label else None,
                statistics=self.statistics, bands=self.bands,
                subset=np.arange(done, samples) if done else None,
            )  # fmt: skip
            try:
                for embedding, labels in _blocks(loader, self.subject, rows):
                    block = {"embedding": embedding} | ({} if labels is None else {"labels": labels})
                    part = table.slice(done, len(embedding))
                    block |= {name: _column(part[name]) for name in COLUMNS}
                    self._commit(partial, split, samples, rows, done, block)
                    done += len(embedding)
            finally:
                loader.close()
        self._publish(partial, split)
        return samples - begun

    def _resume(self, partial: Path, split: str) -> int:
        """Rows that an earlier, interrupted run left safe. Raises BandstreamError where it was of something else."""
        if not partial.exists():
            return 0
        try:
            progress = json.loads((partial / PROGRESS).read_bytes())
        except (OSError, ValueError):  # killed before the first block
            shutil.rmtree(partial)
            return 0
        self._check(progress["about"], partial)
        if progress["batch_size"] != self.batch_size:
            raise BandstreamError(
                f"{partial} was begun with batches of {progress['batch_size']}: go on with --batch-size "
                f"{progress['batch_size']}, or delete it"
            )
        return int(progress["rows"])

    def _commit(
        self, partial: Path, split: str, samples: int, rows: int, done: int, block: dict[str, np.ndarray]
    ) -> None:
        """Write a block of rows, wait until it is on disk, then count it."""
        import zarr

        if not done:
            shutil.rmtree(partial, ignore_errors=True)
            group = zarr.create_group(partial, zarr_format=3, attributes=self._split_attributes(split))
            for name, values in sorted(block.items()):
                text = values.dtype.kind in "OUT"
                group.create_array(
                    name, shape=(samples, *values.shape[1:]), chunks=(rows, *values.shape[1:]),
                    dtype=str if text else values.dtype, dimension_names=["sample", "feature"][: values.ndim],
                )  # fmt: skip
        with zarr.config.set({"array.write_empty_chunks": True}):  # so that a block that is missing can be told
            group = zarr.open_group(partial, mode="r+", zarr_format=3)
            for name, values in block.items():
                array = group[name]
                assert isinstance(array, zarr.Array)
                array[done : done + len(values)] = values
        for name, values in block.items():
            chunk = partial.joinpath(name, "c", str(done // rows), *["0"] * (values.ndim - 1))
            for path in (
                chunk,
                chunk.parent,
                *([partial / name / "zarr.json", partial / "zarr.json"] if not done else []),
            ):
                _sync(path)
        progress = {"rows": done + len(block["key"]), "batch_size": self.batch_size, "about": self.about}
        atomic.write_json(partial / PROGRESS, progress)

    def _publish(self, partial: Path, split: str) -> None:
        """The split, whole, gets its place in the group."""
        import zarr

        for left in partial.rglob("*.partial"):  # of writes that a kill interrupted
            left.unlink()
        if not self.out.exists():
            fresh = self.out.with_name(f".{self.out.name}.group.partial")
            shutil.rmtree(fresh, ignore_errors=True)
            zarr.create_group(fresh, zarr_format=3, attributes=self.about)
            _sync(fresh / "zarr.json")
            fresh.rename(self.out)
        partial.rename(self.out / split)
        (self.out / split / PROGRESS).unlink()
        atomic.sync_folder(self.out)
        atomic.sync_folder(self.out.parent)

    def _split_attributes(self, split: str) -> dict[str, Any]:
        label = (
            {"labels": self.label[0], "kind": self.label[1].kind, "classes": self.label[1].classes}
            if self.label
            else {}
        )
        return {"fingerprint": self.about["fingerprint"], "split": split, **label}

    def _check(self, found: dict[str, Any], where: Path) -> None:
        if found.get("fingerprint") == self.about["fingerprint"]:
            return
        differing = [
            name for name in self.about if name not in ("fingerprint", "format") and found.get(name) != self.about[name]
        ]
        raise BandstreamError(
            f"{where} holds something else ({', '.join(differing) or 'format'} differ): name another --out, or delete "
            "it"
        )


def write_parquet(out: Path, file: Path) -> int:
    """All splits of a Zarr group as one Parquet file, atomically, a row group a chunk; returns the number of rows.

    Columns: split, key, date, lon, lat, labels (a list of class indices, or one index), embedding (list of D float32).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zarr

    _attributes(out)
    root = zarr.open_group(out, mode="r")
    names = sorted(root.group_keys())
    if not names:
        raise BandstreamError(f"{out} holds no embeddings yet: embed a split first")
    rows = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(file) as target:
        writer: Any = None
        for name in names:
            group: Any = root[name]
            step = group["embedding"].chunks[0]
            for start in range(0, group["embedding"].shape[0], step):
                cut = slice(start, start + step)
                embedding = group["embedding"][cut]
                columns = {"split": pa.array([name] * len(embedding), pa.string())}
                columns |= {c: pa.array(group[c][cut].tolist(), pa.string()) for c in ("key", "date")}
                columns |= {c: pa.array(group[c][cut], pa.float64()) for c in ("lon", "lat")}
                if "labels" in group:
                    columns["labels"] = _labels_column(group["labels"][cut])
                columns["embedding"] = pa.FixedSizeListArray.from_arrays(
                    pa.array(embedding.ravel()), embedding.shape[1]
                )
                table = pa.table(columns)
                writer = writer or pq.ParquetWriter(target, table.schema, compression="zstd")
                writer.write_table(table)
                rows += len(embedding)
        writer.close()
    return rows


def _labels_column(labels: np.ndarray) -> Any:
    import pyarrow as pa

    if labels.ndim == 1:
        return pa.array(labels, pa.int64())
    sample, classes = np.nonzero(labels)
    offsets = np.searchsorted(sample, np.arange(len(labels) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(classes.astype(np.int32)))


def _blocks(loader: Loader, subject: Subject, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Features float32 and labels of `rows` samples at a time."""
    features: list[np.ndarray] = []
    labels: list[torch.Tensor] = []
    held = 0
    for batch in loader:
        features.append(subject.features(batch.views[0]).float().numpy(force=True))
        if batch.labels is not None:
            labels.append(batch.labels if batch.labels.ndim == 1 else batch.labels.to(torch.uint8))
        held += len(features[-1])
        if held >= rows:
            yield np.concatenate(features), torch.cat(labels).numpy() if labels else None
            features, labels, held = [], [], 0
    if held:
        yield np.concatenate(features), torch.cat(labels).numpy() if labels else None


def _column(column: Any) -> np.ndarray:
    """A column of the catalogue: float64, or strings with "" where there is none."""
    import pyarrow as pa

    if pa.types.is_floating(column.type):
        found: np.ndarray = column.to_numpy().astype(np.float64)
        return found
    return np.array([value or "" for value in column.to_pylist()], object)


def _attributes(out: Path) -> dict[str, Any]:
    try:
        attributes = json.loads((out / "zarr.json").read_bytes())["attributes"]
        if attributes["format"] == FORMAT:
            return dict(attributes)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BandstreamError(f"{out} is no group of bandstream's embeddings: name another --out")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
