"""train.py as a user runs it: from start to export, killed and resumed, on two ranks, and when it goes wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shards.errors import BandstreamError
from tests.pipeline.making import make_set
from train import main
from training.checkpoint import checkpoints

ROOT = Path(__file__).parent.parent
SMALL = ["--encoder", "tu-resnet10t", "--view-size", "32", "--batch-size", "8", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("train") / "set", {"train": 44})


def command(shards, out, *options):
    return [sys.executable, str(ROOT / "train.py"), str(shards), "--out", str(out), *SMALL, *options]


def train(shards, out, *options, cwd=ROOT):
    return subprocess.run(command(shards, out, *options), cwd=cwd, capture_output=True, text=True, check=False)


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = train(shards, out, "--epochs", "4", "--checkpoint-steps", "2", cwd=out.parent)
    assert result.returncode == 0, result.stderr
    return out


def test_a_run_leaves_what_it_promises(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {"encoder.safetensors", "encoder.json", "README.md", "recipe.json", "metrics.jsonl", "views.png"}
    assert list((undisturbed / "tensorboard").iterdir())
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == 20 and summary["samples_left_out_per_epoch"] == 4
    last = logged(undisturbed)[-1]
    assert last["step"] == 19
    assert set(last) >= {"loss", "top1", "top5", "feature_std", "lr", "samples_per_s", "waiting", "gradient_norm"}


def weights_equal(one, other):
    first, second = (load_file(folder / "encoder.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


@pytest.mark.parametrize(("kind", "after"), [(signal.SIGKILL, 5), (signal.SIGTERM, 11)])
def test_killed_and_resumed_ends_with_the_same_weights(shards, undisturbed, tmp_path, kind, after):
    out = tmp_path / "run"
    options = ["--epochs", "4", "--checkpoint-steps", "2"]
    child = subprocess.Popen(
        command(shards, out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    saved = out / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(int(p.stem.split("-")[1]) >= after for p in saved.glob("step-*.pt")):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
        time.sleep(0.01)
    child.send_signal(kind)
    output = child.communicate()[0]
    assert child.returncode == (-9 if kind == signal.SIGKILL else 143), output
    assert not (out / "encoder.safetensors").exists()
    refused = train(shards, out, *options)
    assert refused.returncode == 1 and "--resume" in refused.stderr
    result = train(shards, out, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert weights_equal(out, undisturbed)
    steps = [line["step"] for line in logged(out)]
    assert steps == sorted(set(steps)) and steps[-1] == 19


def test_resuming_with_another_recipe_names_what_changed(shards, undisturbed):
    options = [str(shards), "--out", str(undisturbed), *SMALL, "--epochs", "5", "--resume"]
    with pytest.raises(BandstreamError, match="another epochs"):
        main(options, standalone_mode=False)


def test_resuming_a_finished_run_exports_it_again(shards, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for name in ("encoder.safetensors", "encoder.json", "README.md"):  # as if killed just before
        (out / name).unlink()
    options = [str(shards), "--out", str(out), *SMALL, "--epochs", "4", "--checkpoint-steps", "7", "--resume"]
    main(options, standalone_mode=False)
    for name in ("encoder.safetensors", "encoder.json", "README.md"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes().replace(
            b'"checkpoint_steps": 2', b'"checkpoint_steps": 7'
        )
    assert "loss" in json.loads((out / "encoder.json").read_text())["scores"]


def test_killed_before_anything_was_saved_the_same_command_begins(shards, undisturbed, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("recipe.json", "metrics.jsonl"):
        (out / name).write_bytes((undisturbed / name).read_bytes()[:50])
    main([str(shards), "--out", str(out), *SMALL, "--epochs", "1", "--resume"], standalone_mode=False)
    assert [line["step"] for line in logged(out)] == [0, 4]


def test_two_ranks_train_together(shards, tmp_path):
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = command(shards, out, "--epochs", "1")[1:]
    result = subprocess.run([*torchrun, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "summary.json").read_text())["processes"] == 2
    assert len([line for line in result.stdout.splitlines() if "steps an epoch" in line]) == 1


def test_a_learning_rate_far_too_high_is_stopped_and_named(shards, tmp_path):
    recipe = tmp_path / "high.toml"
    recipe.write_text('lr = 1e6\nwarmup_epochs = 0\noptimiser = "sgd"\nlog_steps = 1\nclip = 1e9\n')
    result = train(shards, tmp_path / "run", "--recipe", str(recipe), "--epochs", "100")
    assert result.returncode == 1
    assert "lower --lr" in result.stderr and result.stderr.count("\n") == 1
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        model = torch.load(path, weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in model.values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "64"], "full batches only"),
        (["--encoder", "resnet19"], "no encoder 'resnet19'"),
        (["--epochs", "0"], "epochs"),
        (["--recipe", "missing.toml"], "missing.toml"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(shards, tmp_path, options, message):
    with pytest.raises(BandstreamError, match=message):
        main([str(shards), "--out", str(tmp_path / "run"), *SMALL, *options], standalone_mode=False)
    assert not (tmp_path / "run").exists()


def test_a_pair_may_be_of_two_dates_and_two_recipes(shards, tmp_path):
    dated = make_set(tmp_path / "dated", {"train": 20}, dates=2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seasons = "different"\nepochs = 1\n[view]\nsize = 32\n[second_view]\nsize = 32\ncutout = 1.0\n')
    options = [*SMALL, "--recipe", str(recipe)]
    main([str(dated), "--out", str(tmp_path / "run"), *options], standalone_mode=False)
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (told["seasons"], told["view"]["cutout"], told["second_view"]["cutout"]) == ("different", 0, 1)
    with pytest.raises(BandstreamError, match="holds one date of each place"):
        main([str(shards), "--out", str(tmp_path / "other"), *options], standalone_mode=False)
