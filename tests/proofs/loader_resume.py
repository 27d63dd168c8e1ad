"""A loader killed at random moments goes on with the same bits; so does one epoch over 4, then 2, then 8 ranks.

    python -m tests.proofs loader_resume      about ten minutes

Every rank is a process with a real loader, which writes down the SHA-256 of every view that it serves. Ranks go in
step, as training does, and the first saves the loader's state as train.py saves it. All are killed (SIGKILL) at a
random moment: while the loader is set up, while it reads, serves or saves. What each life served is compared with one
undisturbed process, at the place in the epoch where it was served.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tests.pipeline.making import make_set

SEED = 0
KILLS = {1: 50, 2: 50}
"""By ranks."""
IN_THE_SET_UP = 0.2
"""The share of kills whose clock starts with the processes; that of the others starts when the loader stands."""
ORDERS = {"shuffled globally": None, "in windows of 4 shards": 4}
EPOCHS, SAMPLES, SHARD, BATCH = 2, 250, 20, 12
STEP_SECONDS = 0.03
"""What a step of training takes here: it makes the moments between batches as likely as those inside the loader."""
Legs = Sequence[tuple[int, int, int | None]]
LEGS: Mapping[str, Legs] = {
    "the same batch": ((4, 24, 4), (2, 24, 3), (8, 24, None)),
    "other batches": ((4, 24, 4), (2, 30, 3), (8, 40, None)),
}
"""Ranks, global batch and batches, one after the other in one epoch; None: to its end."""

SET_UP = "in the set-up"
Place = tuple[int, int]
"""Epoch, and the position in it at which a global batch begins."""
Truth = Mapping[int, Sequence[Any]]
"""Epoch → all samples in order, each with the SHA-256 of its views."""


@dataclass(frozen=True)
class Run:
    """What the loaders of all ranks of a run have in common. `batches`: after how many it leaves, saved."""

    shards: Path
    folder: Path
    world_size: int
    batch_size: int
    window: int | None
    epochs: int = EPOCHS
    batches: int | None = None
    save_every: int = 3
    step_seconds: float = STEP_SECONDS

    @property
    def local_batch(self) -> int:
        return self.batch_size // self.world_size


def serve(run: Run, life: int, rank: int, together: Barrier) -> None:
    """One rank of a run, begun or gone on with: `LIFE-RANK.jsonl` gets a line a batch."""
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe
    from training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

    view = ViewRecipe(size=32, blur=0.5, gain=0.2, offset=0.1, noise=0.1, grey=0.2, band_dropout=0.3)
    loader = Loader(
        run.shards, "train", run.batch_size, [view] * 2, seed=SEED, rank=rank, world_size=run.world_size, threads=1,
        window=run.window,
    )  # fmt: skip
    saved, done = run.folder / "checkpoints", 0
    if checkpoints(saved):
        state = load_checkpoint(checkpoints(saved)[-1])
        other_batch = state["loader"]["fingerprint"]["batch size"] != run.batch_size
        loader.load_state_dict(state["loader"], elastic=other_batch)
        done = state["step"]
    log = os.open(run.folder / f"{life}-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(line: dict[str, Any]) -> None:
        os.write(log, json.dumps(line).encode() + b"\n")

    write({"epoch": loader.epoch, "cursor": loader.cursor, "left_out": loader.left_out})
    last = None if run.batches is None else done + run.batches
    for _ in range(loader.epoch, run.epochs):
        for batch in loader:
            pairs = zip(*batch.views, strict=True)
            hashes = [[hashlib.sha256(image.numpy()).hexdigest() for image in pair] for pair in pairs]
            served = list(zip(batch.indices.tolist(), hashes, strict=True))
            write({"epoch": loader.epoch, "start": loader.cursor - run.batch_size, "served": served})
            time.sleep(run.step_seconds)
            together.wait()
            done += 1
            if rank == 0 and (done % run.save_every == 0 or done == last):
                save_checkpoint(saved, done, {"loader": loader.state_dict(), "step": done})
            if done == last:
                return
    write({"ended": loader.epoch})


def live(run: Run, life: int, kill_after: tuple[bool, float] | None = None) -> float | None:
    """Run all ranks until they end, or kill all so many seconds after they were started, or (True) after the first
    began to serve. Returns for how many seconds it served; None where it was killed."""
    context = multiprocessing.get_context("forkserver")  # processes that begin with everything imported
    context.set_forkserver_preload(["pipeline.loader", "training.checkpoint", "tests.proofs.loader_resume"])
    together = context.Barrier(run.world_size)
    run.folder.mkdir(parents=True, exist_ok=True)
    ranks = [context.Process(target=serve, args=(run, life, rank, together)) for rank in range(run.world_size)]
    for rank in ranks:
        rank.start()
    serving, after = kill_after or (True, None)
    while serving and ranks[0].is_alive() and not (run.folder / f"{life}-0.jsonl").exists():
        time.sleep(0.001)
    begin = time.perf_counter()
    if after is not None:
        time.sleep(after)
        for rank in ranks:
            rank.kill()
    for rank in ranks:
        rank.join()
    codes = {rank.exitcode for rank in ranks}
    assert codes <= ({0} if kill_after is None else {0, -signal.SIGKILL}), codes
    return time.perf_counter() - begin if codes == {0} else None


def lines(run: Run, life: int, rank: int) -> Iterator[dict[str, Any]]:
    """What a rank wrote down in one life, without a line that was cut short."""
    path = run.folder / f"{life}-{rank}.jsonl"
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        yield json.loads(line)


def undisturbed(shards: Path, folder: Path, window: int | None) -> Truth:
    """What one process serves that nobody disturbs, in batches of one."""
    run = Run(shards, folder, 1, 1, window, save_every=SAMPLES * EPOCHS, step_seconds=0)
    live(run, 0)
    truth: dict[int, list[Any]] = {epoch: [] for epoch in range(EPOCHS)}
    for line in lines(run, 0, 0):
        if "start" in line:
            assert line["start"] == len(truth[line["epoch"]])
            truth[line["epoch"]] += line["served"]
    for served in truth.values():
        assert sorted(sample for sample, _ in served) == list(range(SAMPLES))
    return truth


def served_in(run: Run, life: int, rank: int, truth: Truth) -> tuple[Place | None, list[Place]]:
    """Where a life began (None: it was killed before) and what batches it served, each compared with the truth."""
    first, *rest = [*lines(run, life, rank)] or [None]
    places = []
    for line in rest:
        if "start" in line:
            begin = line["start"] + rank * run.local_batch
            expected = truth[line["epoch"]][begin : begin + run.local_batch]
            assert line["served"] == expected, (
                f"life {life}, rank {rank}: other bits at {line['epoch']}, {line['start']}"
            )
            places.append((line["epoch"], line["start"]))
    return (first and (first["epoch"], first["cursor"])), places


def killed(
    shards: Path, folder: Path, world_size: int, window: int | None, kills: int, draw: random.Random, truth: Truth
) -> dict[str, Any]:
    """Runs that are killed and begun again until they end, as many as it takes for so many kills."""
    begin = time.perf_counter()
    seconds = live(Run(shards, folder / "calm", world_size, BATCH, window), 0)
    assert seconds is not None
    set_up = time.perf_counter() - begin - seconds
    expected = [(epoch, start) for epoch in range(EPOCHS) for start in range(0, SAMPLES - BATCH + 1, BATCH)]
    moments: list[str] = []
    runs = views = 0
    while len(moments) < kills:
        run = Run(shards, folder / f"killed-{runs}", world_size, BATCH, window)
        runs, lives, ended = runs + 1, 0, False
        while not ended:
            early = draw.random() < IN_THE_SET_UP
            after = draw.uniform(0, set_up if early else seconds / 2)
            ended = live(run, lives, (not early, after) if len(moments) < kills else None) is not None
            if not ended:
                begun, places = served_in(run, lives, 0, truth)
                moments.append(f"{len(places)} batches after {begun[0]}, {begun[1]}" if begun else SET_UP)
            lives += 1
        for rank in range(world_size):
            lived = [served_in(run, life, rank, truth) for life in range(lives)]
            views += 2 * run.local_batch * sum(len(places) for _, places in lived)
            begins = [begun for begun, _ in lived if begun is not None]
            kept: list[Place] = []
            for (_, places), following in zip((each for each in lived if each[0]), [*begins[1:], None], strict=True):
                # of a life counts what it served before the place at which the next one went on
                kept += [place for place in places if following is None or place < following]
            assert kept == expected, f"run {runs}, rank {rank} of {world_size}: {kept}"
    served = [moment for moment in moments if moment != SET_UP and not moment.startswith("0 batches")]
    return {
        "kills": len(moments),
        "runs": runs,
        "views_compared": views,
        "undisturbed_s": {"set-up": round(set_up, 2), "serving": round(seconds, 2)},
        "killed_in_the_set_up": moments.count(SET_UP),
        "killed_after_batches_were_served": len(served),
        "moments": moments,
    }


def over_ranks(shards: Path, folder: Path, legs: Legs, window: int | None, truth: Truth) -> dict[str, Any]:
    """One epoch over several numbers of ranks, each of which goes on where the one before was saved."""
    cursor, seen, left_out = 0, [], -1
    for life, (world_size, batch_size, batches) in enumerate(legs):
        run = Run(shards, folder, world_size, batch_size, window, epochs=1, batches=batches)
        live(run, life)
        count = (SAMPLES - cursor) // batch_size if batches is None else batches
        left_out = (SAMPLES - cursor) % batch_size
        for rank in range(world_size):
            begun, places = served_in(run, life, rank, truth)
            assert begun == (0, cursor), f"{world_size} ranks began at {begun}"
            assert places == [(0, cursor + number * batch_size) for number in range(count)], places
            assert next(lines(run, life, rank))["left_out"] == left_out
            seen += [sample for line in lines(run, life, rank) for sample, _ in line.get("served", ())]
        cursor += count * batch_size
    assert len(set(seen)) == len(seen) == SAMPLES - left_out, "a sample twice, or one missing that was not reported"
    return {"ranks_batch_batches": legs, "samples": SAMPLES, "served": len(seen), "left_out": left_out}


def main(
    kills: Mapping[int, int] = KILLS, orders: Mapping[str, int | None] = ORDERS, legs: Mapping[str, Legs] = LEGS
) -> dict[str, Any]:
    """For each order kills on each number of ranks (an equal part of them), then an epoch over 4, 2 and 8 ranks."""
    draw = random.Random(SEED)
    cut: dict[str, Any] = {}
    elastic: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        shards = make_set(Path(name) / "set", {"train": SAMPLES}, shard_samples=SHARD)
        for number, (order, window) in enumerate(orders.items()):
            folder = Path(name) / str(number)
            truth = undisturbed(shards, folder / "undisturbed", window)
            for world_size, count in kills.items():
                own = folder / f"on {world_size}"
                cut[f"{world_size} ranks, {order}"] = killed(
                    shards, own, world_size, window, count // len(orders), draw, truth
                )
            for told, chosen in legs.items():
                elastic[f"{told}, {order}"] = over_ranks(shards, folder / told, chosen, window, truth)
    total, views, serving = (
        sum(each[key] for each in cut.values())
        for key in ("kills", "views_compared", "killed_after_batches_were_served")
    )
    assert 2 * serving >= total or total < 20, f"{total - serving} of {total} kills met loaders that had served nothing"
    return {
        "outcome": f"{total} kills on {' and '.join(map(str, kills))} ranks, {serving} after batches had been served: "
        f"{views:,} views had the undisturbed run's bits, no batch missing, none twice; "
        "4, 2, then 8 ranks in one epoch: the same bits, all but the reported tail",
        "n": total,
        "killed": cut,
        "elastic": elastic,
    }
