"""What an audit found, told: lines for a person, and all pairs as rows of a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ingest.checking.audit import EXACT, NEAR, OVERLAP, Audit, Findings
from shards import atomic


def write(audit: Audit, findings: Findings, path: Path) -> int:
    """Write all pairs, a row each, as Parquet, or as JSON lines where the name ends so; how many."""
    rows = (
        {"kind": kind, "measure": round(float(measure), 4)}
        | {
            f"{name}_{end}": value
            for end, number in zip("ab", pair, strict=True)
            for name, value in audit.name(number).items()
        }
        for kind, pairs in findings.pairs.items()
        for pair, measure in zip(pairs.tolist(), findings.measures[kind], strict=True)
    )
    count = sum(map(len, findings.pairs.values()))
    with atomic.replacing(path) as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        else:
            _write_parquet(file, rows)
    return count


def _write_parquet(file: Any, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("kind", pa.string()), ("measure", pa.float32())]
    for end in "ab":
        fields += [(f"{name}_{end}", pa.string()) for name in ("key", "split", "shard")]
        fields.append((f"position_{end}", pa.int32()))
    schema = pa.schema(fields)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := [row for row, _ in zip(rows, range(1 << 14), strict=False)]:
            writer.write_table(pa.Table.from_pylist(batch, schema))


def report(audit: Audit, findings: Findings, shown: int = 3) -> Iterator[str]:
    """Lines for a person, with a few examples, those across splits first."""
    splits = ", ".join(f"{name} {count:,}" for name, count in findings.splits.items())
    yield f"{audit.set.manifest.name}: {findings.samples:,} samples ({splits})"
    groups, members = findings.groups
    yield f"exact copies: {members:,} samples in {groups:,} groups, {findings.across[EXACT]:,} pairs across splits"
    yield from _examples(audit, findings, EXACT, shown)
    yield f"near copies: {len(findings.pairs[NEAR]):,} pairs, {findings.across[NEAR]:,} across splits"
    yield from _examples(audit, findings, NEAR, shown)
    yield f"overlapping footprints across splits: {findings.total_overlaps:,} pairs"
    for (name, other), count in findings.overlapping.items():
        if count:
            share = count / findings.splits[name]
            yield f"  {count:,} of {findings.splits[name]:,} samples of {name} ({share:.1%}) overlap {other}"
    yield from _examples(audit, findings, OVERLAP, shown)
    yield from findings.notes


def _examples(audit: Audit, findings: Findings, kind: str, shown: int) -> Iterator[str]:
    pairs, measures = findings.pairs[kind], findings.measures[kind]
    across = audit.split[pairs[:, 0]] != audit.split[pairs[:, 1]]
    word = {EXACT: "", NEAR: "correlation ", OVERLAP: "share "}[kind]
    for row in np.lexsort((-measures, ~across))[:shown]:
        one, other = (audit.name(int(number)) for number in pairs[row])
        told = f", {word}{measures[row]:.3f}" if word else ""
        yield f"  {one['key']} ({one['split']}) and {other['key']} ({other['split']}){told}"
