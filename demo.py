"""All stages of bandstream on a made-up archive, in minutes, on a CPU; it ends with a report.

    bandstream demo --out runs/demo

Every stage is a command that a user would type: it is printed, run as typed, timed, and kept in OUT/stages.json. The
same stages at real size differ in the recipes only. Run again on the same folder, the demo replaces what it made there.
"""

import io
import json
import shlex
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import click

from cli import bandstream, run
from shards import atomic
from shards.errors import BandstreamError

STAGES = "stages.json"
RECIPES = Path(__file__).parent / "recipes"


def plan(out: Path, patches: int, seed: int, fraction: float) -> list[tuple[str, str, list[str]]]:
    """The stages: what a stage does, what it leaves behind in `out`, and its command."""
    archive, shards, encoder = out / "archive", out / "shards", out / "pretrained"
    inits = {"scratch": "scratch", "pretrained": str(encoder)}
    ingest = ["ingest", "bigearthnet", str(archive), str(shards), "--shard-samples", "256"]
    train = ["train", str(shards), "--out", str(encoder), "--recipe", str(RECIPES / "demo.toml")]
    stages = [
        ("Make up an archive of Sentinel-2 patches", "archive", ["synth", str(archive), "--patches", str(patches)]),
        ("Convert the archive into shards", "shards", ingest),
        ("Check every byte of the shards", "shards", ["verify", str(shards)]),
        ("Draw a contact sheet", "preview.png", ["preview", str(shards), "--out", str(out / "preview.png")]),
        ("Pretrain an encoder without labels", "pretrained", train),
    ]
    for task in ("classify", "segment"):
        for name, init in inits.items():
            folder = f"{task}-{name}"
            command = ["finetune", str(shards), "--task", task, "--init", init, "--label-fraction", str(fraction)]
            command += ["--recipe", str(RECIPES / f"demo-{task}.toml"), "--out", str(out / folder)]
            stages.append((f"Fine-tune to {task}, {name}, with {fraction:.0%} of the labels", folder, command))
    for _, _, command in stages:
        if command[0] not in ("verify", "preview"):
            command += ["--seed", str(seed)]
    stages.append(("Write the report", "report.html", ["report", str(out), "--out", str(out / "report.html")]))
    return stages


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the demo.")
@click.option("--patches", type=click.IntRange(100), default=4000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--label-fraction", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True)
def main(out: Path, patches: int, seed: int, label_fraction: float) -> None:
    """All stages on a made-up archive, from patches to a report."""
    began = time.perf_counter()
    stages = plan(out, patches, seed, label_fraction)
    clear(out, {output for _, output, _ in stages})
    done: list[dict[str, object]] = []
    atomic.write_json(out / STAGES, done)
    for number, (title, output, command) in enumerate(stages, 1):
        typed = shlex.join(["bandstream", *command])
        click.echo(f"\n[{number}/{len(stages)}] {title}\n  $ {typed}")
        start = time.perf_counter()
        with redirect_stdout(Indented(sys.stdout)) as said:
            bandstream.main(args=command, prog_name="bandstream", standalone_mode=False)
        seconds = time.perf_counter() - start
        click.echo(f"  {seconds:.1f} s, in {out / output}")
        told = said.getvalue().strip().splitlines()
        stage = {"stage": title, "command": typed, "seconds": seconds, "output": output}
        done.append(stage | {"told": told[-1] if told else ""})
        if number < len(stages):  # the report is written from this file
            atomic.write_json(out / STAGES, done)
    click.echo(f"\n{summary(out)}\n{time.perf_counter() - began:.0f} s in all. The report: {out / 'report.html'}")


def clear(out: Path, outputs: set[str]) -> None:
    """Make `out` ready: an earlier demo's outputs go, any other content is refused."""
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.iterdir()):
        return
    foreign = sorted(path.name for path in out.iterdir() if path.name not in outputs | {STAGES})
    if foreign or not (out / STAGES).is_file():
        raise BandstreamError(
            f"{out} holds {', '.join(foreign[:3]) or 'files'} that no demo wrote: name an empty or a new folder"
        )
    for name in outputs & {path.name for path in out.iterdir()}:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def summary(out: Path) -> str:
    """The scores on the test split, as they came out, a line a run."""
    lines = []
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        lines.append(f"  {path.parent.name:<22}{results['score'].replace('_', ' '):<12}{results_score(results):.3f}")
    return "On the test split:\n" + "\n".join(lines)


def results_score(results: dict[str, dict[str, float]]) -> float:
    return results["test"][str(results["score"])]


class Indented(io.StringIO):
    """What a stage says: kept, and passed on two columns in."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._new = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(f"  {line}" if self._new else line)
            self._new = line.endswith("\n")
        self._stream.flush()
        return super().write(text)


if __name__ == "__main__":
    run(main)
