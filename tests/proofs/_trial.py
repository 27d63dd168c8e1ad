"""One archive of the proof of damage: damaged, ingested and judged, again and again."""

import random
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ingest.building.build import Options, ingest
from shards.errors import BandstreamError
from shards.shardset import Sample, ShardSet
from shards.verify import verify
from tests.proofs import _damages as damages_
from tests.proofs._subjects import Found, Subject, cells_packed, cells_unpacked

LONGEST_S = 60
OUTSIDE = Path("/tmp") / damages_.OUTSIDE


class Trial:
    """One subject: its undamaged set, and one damage after the other."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self.subject, self.scratch = subject, scratch
        self.whole, self.plain, self.packed, self.target = (
            scratch / name for name in ("whole", "plain", "packed", "set")
        )
        subject.make(self.whole)
        self.bytes = _contents(self.whole)
        shutil.copytree(self.whole, self.plain)
        self._pack({})
        ingest(subject.source(self.packed), self.target, Options(shard_samples=4))  # so that libraries are loaded
        shutil.rmtree(self.target)
        self.peak_mb, _ = self._ingest()
        self.samples = self._taken()
        assert self.samples
        for sample, split in self.samples.values():
            expected = subject.read(self.plain, sample, self.manifest)
            _same(sample, self._stored(sample), expected, f"undamaged {sample.key}")
            assert split

    def damage(self, draw: random.Random) -> str:
        """Damage the archive in one place; what was done."""
        for folder in (self.plain, self.packed, self.target):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole, self.plain)
        self.hit = ""
        if not self.subject.packs or draw.random() < 0.4:
            kind = self._damage_a_file(draw)
            self._pack({})
            return kind
        pack = draw.choice(self.subject.packs)
        suffix = self.subject.suffix
        self.hit = pack
        odd = {".zip": damages_.ZIP_KINDS, ".parquet": ()}.get(suffix, damages_.TAR_KINDS)
        if odd and draw.random() < 0.5:
            kind = draw.choice(odd)
            doubled = self.subject.name == "webdataset" and kind == "twice"  # its samples are then rejected
            if kind not in ("directory", "encrypted", "size", "type") and not doubled:  # files are put in, none changed
                self.hit = ""
            if suffix == ".zip":
                data = damages_.zipped(self.plain / pack, kind, draw)
            else:
                data = damages_.compressed(damages_.tarred(self.plain / pack, kind, draw), suffix)
        else:
            change = draw.choice(damages_.IN_FILES)
            data, kind = change(_packed(self.plain / pack, suffix), draw), change.__name__
        self._pack({pack: data})
        shutil.rmtree(self.plain / pack)
        (self.plain / pack).mkdir()
        if suffix == ".parquet":
            with suppress(Exception):  # whatever pyarrow raises: then nothing can be read of it
                cells_unpacked(data, self.plain / pack)
        else:
            damages_.unpack(data, suffix, self.plain / pack)
        return f"{suffix}: {kind}"

    def _damage_a_file(self, draw: random.Random) -> str:
        files = sorted(path for path in self.plain.rglob("*") if path.is_file())
        if draw.random() < 0.3:  # so that the few that say what all others mean are hit too
            rare = draw.choice(sorted({_kind(path) for path in files}))
            files = [path for path in files if _kind(path) == rare]
        path = draw.choice(files)
        others = [file for file in files if file != path and _kind(file) == _kind(path)]
        if others and draw.random() < 0.1:
            other = draw.choice(others)
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)
            return f"{_kind(path)}: swap"
        if draw.random() < 0.03:
            path.unlink()
            return f"{_kind(path)}: gone"
        change = draw.choice(damages_.IN_FILES)
        path.write_bytes(change(path.read_bytes(), draw))
        return f"{_kind(path)}: {change.__name__}"

    def _pack(self, instead: dict[str, bytes]) -> None:
        """Lay the archive down as the source wants it."""
        shutil.copytree(self.plain, self.packed)
        for pack in self.subject.packs:
            shutil.rmtree(self.packed / pack)
            data = instead.get(pack)
            suffix = self.subject.suffix
            path = self.packed / f"{pack}{suffix}"
            path.write_bytes(_packed(self.plain / pack, suffix) if data is None else data)

    def _ingest(self) -> tuple[float, Sequence[str]]:
        """The peak of resident memory in MB, and reasons of what was rejected. Raises BandstreamError."""
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.monotonic()
        try:
            manifest = ingest(self.subject.source(self.packed), self.target, Options(shard_samples=4)).manifest
        finally:
            seconds = time.monotonic() - begin
            assert seconds < LONGEST_S, f"the ingest took {seconds:.0f} s"
            self.last_peak_mb = _peak_mb()
        self.manifest = manifest
        return self.last_peak_mb, sorted(manifest.rejected)

    def judge(self) -> tuple[str, float]:
        """Ingest the damaged archive, and hold the set to all that is promised; what came of it."""
        refused, rejected = "", ()
        try:
            _, rejected = self._ingest()
        except BandstreamError as error:
            refused = str(error)
        assert not OUTSIDE.exists() and not list(self.scratch.rglob(damages_.OUTSIDE)), "written outside"
        grown = self.last_peak_mb - self.peak_mb
        if refused:
            assert not (self.target / "dataset.json").exists(), "a set stands there, though it was refused"
            assert "\n" not in refused, f"more than a line: {refused}"
            return "refused as a whole", grown
        assert verify(self.target) == []
        now = _contents(self.plain)
        changed = {path for path in self.bytes.keys() | now.keys() if self.bytes.get(path) != now.get(path)}
        touched = {self.subject.owner(path) for path in changed if path in self.bytes}
        if self.hit:  # what lies in it may be lost with it, but not be other than what can be read of it
            touched |= {self.subject.owner(path) for path in self.bytes if path.startswith(f"{self.hit}/")}
        taken, other = self._taken(), set()
        dropped = {"cloud_share"} - (self.manifest.columns or {}).keys()
        for key, (sample, split) in self.samples.items():
            if "" in touched or self.subject.group(sample) in touched:
                continue
            lines = (self.target / "rejected.jsonl").read_text()[:2000]
            assert key in taken, f"{key} was not touched and is lost, touched {sorted(touched)}, rejected {lines}"
            _same(sample, self._stored(taken[key][0]), self._stored(sample), f"{key}, which was not touched,")
            # shares of cloud are recorded for a whole set or not at all: not where a scene has lost its mask
            expected = {name: value for name, value in sample.json.items() if name not in dropped}
            assert expected == taken[key][0].json, f"{key} was not touched, and its json is another"
            if self.manifest.source["split"] == "the archive's":
                assert split == taken[key][1], f"{key} was not touched, and lies in another split"
        damaged = False
        for key, (sample, _) in taken.items():
            group = self.subject.group(sample)
            if key in self.samples and "" not in touched and group not in touched:
                continue
            damaged = True
            expected = self.subject.read(self.plain, sample, self.manifest)
            _same(sample, self._stored(sample), expected, key)
            before = self.samples.get(key)
            if before is None or not _equal(self._stored(before[0]), self._stored(sample)):
                other |= {_kind(Path(path)) for path in changed if self.subject.owner(path) in ("", group)}
        if other:
            return f"taken, other numbers, as an independent reader reads them: {' '.join(sorted(other))}", grown
        if rejected and not set(rejected) <= {"nodata"}:
            return "rejected: " + ", ".join(rejected), grown
        return "taken, the same numbers" if damaged else "harmless", grown

    def _stored(self, sample: Sample) -> Found:
        found: Found = dict(sample.arrays)
        found |= {self.manifest.masks[name].member: mask for name, mask in sample.masks.items()}
        return found | {f"labels {name}": label for name, label in sample.labels.items()}

    def _taken(self) -> dict[str, tuple[Sample, str]]:
        """Key → (sample, split)."""
        opened = ShardSet.open(self.target)
        return {
            sample.key: (sample, split)
            for split in opened.manifest.splits
            for sample in (opened.read(split, index) for index in range(opened.size(split)))
        }


def _kind(path: Path) -> str:
    """What kind of file: its suffix, or its name where that says it."""
    if path.suffix.lower() in (".tif", ".jp2", ".npy", ".png", ".jpg", ".webp", ".bmp", ".parquet", ".xml", ".json"):
        return path.name if path.name == "zarr.json" else path.suffix.lower()
    if path.name.startswith("."):
        return path.name
    return "chunk" if path.name.replace(".", "").isdigit() else path.suffix


def _packed(folder: Path, suffix: str) -> bytes:
    """A folder as the undamaged archive."""
    if suffix == ".parquet":
        return cells_packed(folder)
    if suffix == ".zip":
        return damages_.zipped(folder, "", random.Random(0))
    return damages_.compressed(damages_.tarred(folder, "", random.Random(0)), suffix)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _equal(found: Found, expected: Found) -> bool:
    return all(np.array_equal(found[name], value) for name, value in expected.items())


def _same(sample: Sample, found: Found, expected: Found, what: str) -> None:
    assert expected.keys() >= sample.arrays.keys(), f"{what}: {sorted(expected)}"
    for name, value in expected.items():
        assert np.array_equal(found[name], value), f"{what} has another {name} than was to be expected"


def _peak_mb() -> float:
    """The most resident memory that this process had since its mark was reset, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
