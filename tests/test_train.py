"""train.py as a user runs it: from start to export, killed and resumed, on two ranks, and when it goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli import run
from models.encoder import build_encoder
from models.export import EncoderBand, save_encoder
from models.objectives import METHODS
from shards.errors import BandstreamError
from tests.pipeline.making import make_set
from train import main
from training.checkpoint import checkpoints

ROOT = Path(__file__).parent.parent
SMALL = ["--encoder", "cnn", "--view-size", "32", "--batch-size", "8", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("train") / "set", {"train": 44, "val": 12})


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A method with a momentum encoder, and an average of the encoder's weights beside it."""
    path = tmp_path_factory.mktemp("recipe") / "byol.toml"
    path.write_text(
        'method = "byol"\nema = 0.9\nlr = 2.0\nlog_steps = 1\n'
        "[objective]\nprojection_hidden = 32\nprojection_out = 16\nprediction_hidden = 32\n"
    )
    return path


def command(shards, out, *options):
    return [sys.executable, str(ROOT / "train.py"), str(shards), "--out", str(out), *SMALL, *options]


def train(shards, out, *options, cwd=ROOT):
    return subprocess.run(command(shards, out, *options), cwd=cwd, capture_output=True, text=True, check=False)


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(shards, moving, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    options = ["--epochs", "4", "--checkpoint-steps", "2", "--recipe", str(moving)]
    result = train(shards, out, *options, cwd=out.parent)
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
    assert set(last) >= {"loss", "feature_std", "encoder_std", "effective_rank", "alignment", "uniformity", "lr",
                         "samples_per_s", "waiting", "gradient_norm", "val_loss", "knn", "knn_random",
                         "knn_statistics"}  # fmt: skip
    assert set(json.loads((undisturbed / "floors.json").read_text())["scores"]) == {"knn_random", "knn_statistics"}
    best = json.loads((undisturbed / "summary.json").read_text())["best_step"]
    scored = {line["step"] + 1: line["knn"] for line in logged(undisturbed) if "knn" in line}
    assert sorted(scored) == [5, 10, 15, 20] and scored[best] == max(scored.values())
    assert torch.load(undisturbed / "checkpoints" / "best.pt", weights_only=True)["step"] == best


def test_the_recipe_that_is_kept_leaves_nothing_open(undisturbed):
    recipe = json.loads((undisturbed / "recipe.json").read_text())
    assert (recipe["method"], recipe["optimiser"], recipe["lr_scaling"]) == ("byol", "lars", "linear")
    assert None not in (recipe["weight_decay"], recipe["momentum"], recipe["warmup_epochs"])
    assert recipe["objective"]["momentum"] > 0.9 and recipe["objective"]["projection_out"] == 16


def test_the_average_is_what_is_exported(undisturbed):
    saved = torch.load(undisturbed / "checkpoints" / "step-000000020.pt", weights_only=True)
    exported = load_file(undisturbed / "encoder.safetensors")
    averaged = {name.removeprefix("net."): value for name, value in saved["average"]["encoder"].items()}
    assert exported.keys() == averaged.keys() and all(exported[name].equal(averaged[name]) for name in exported)
    assert any(not averaged[name].equal(saved["model"][f"encoder.net.{name}"]) for name in averaged)


def weights_equal(one, other):
    first, second = (load_file(folder / "encoder.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def test_killed_and_told_to_stop_it_ends_with_the_same_weights(shards, moving, undisturbed, tmp_path):
    out = tmp_path / "run"
    options = ["--epochs", "4", "--checkpoint-steps", "2", "--recipe", str(moving)]
    for kind, after, more in ((signal.SIGKILL, 6, ()), (signal.SIGUSR1, 11, ("--resume",))):
        child = subprocess.Popen(
            command(shards, out, *options, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 120
        while not any(int(p.stem.split("-")[1]) >= after for p in (out / "checkpoints").glob("step-*.pt")):
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
            time.sleep(0.01)
        child.send_signal(kind)
        output = child.communicate()[0]
        assert child.returncode == (-9 if kind == signal.SIGKILL else 143), output
        assert not (out / "encoder.safetensors").exists()
    with pytest.raises(BandstreamError, match="--resume"):
        main(command(shards, out, *options)[2:], standalone_mode=False)
    main(command(shards, out, *options, "--resume")[2:], standalone_mode=False)
    assert weights_equal(out, undisturbed)
    timed = ("samples_per_s", "waiting")
    for one, other in zip(logged(out), logged(undisturbed), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_resuming_with_another_recipe_names_what_changed(shards, moving, undisturbed):
    options = [str(shards), "--out", str(undisturbed), *SMALL, "--epochs", "5", "--resume", "--recipe", str(moving)]
    with pytest.raises(BandstreamError, match="another epochs"):
        main(options, standalone_mode=False)


def test_resuming_a_finished_run_exports_it_again(shards, moving, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for name in ("encoder.safetensors", "encoder.json", "README.md"):  # as if killed just before
        (out / name).unlink()
    options = [str(shards), "--out", str(out), *SMALL, "--epochs", "4", "--checkpoint-steps", "7", "--resume",
               "--recipe", str(moving)]  # fmt: skip
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


def test_two_ranks_are_one_process_with_the_joined_batch(shards, tmp_path):
    """An encoder and heads without batch statistics; two micro-batches on each rank; two local views."""
    recipe = tmp_path / "layer.toml"
    recipe.write_text(
        'optimiser = "sgd"\nlr = 1e-3\nlr_scaling = "none"\naccumulate = 2\nlocal_views = 2\nlog_steps = 1\n'
        'precision = "float32"\n[local_view]\nsize = 16\n[objective]\nhead_norm = "layer"\nprojection_hidden = 32\n'
    )
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--epochs", "2", "--recipe", str(recipe), "--encoder", "test_vit"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, *command(shards, two, *options)[1:]]
    both = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    main(command(shards, one, *options)[2:], standalone_mode=False)
    assert json.loads((two / "summary.json").read_text())["processes"] == 2
    assert len([line for line in both.stdout.splitlines() if "steps an epoch" in line]) == 1
    first, second = (load_file(folder / "encoder.safetensors") for folder in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5, msg=name)
    for mine, theirs in zip(logged(one), logged(two), strict=True):
        for name in ("loss", "top1", "gradient_norm", "val_loss", "knn", "knn_statistics"):
            assert (name in mine) == (name in theirs)
            if name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (name, mine["step"])


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
        (["--lr", "inf"], "lr: .*finite"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--weights", "imagenet"], "cnn has no ImageNet weights"),
        (["--weights", "imagenet", "--init", "run"], "leave one out"),
        (["--encoder", "tu-convnext_atto", "--view-size", "16"], "cannot take views of 16 × 16 pixels"),
        (["--encoder", "tu-swin_tiny_patch4_window7_224", "--view-size", "50"], "50 (× 50 )?pixels"),
        ('bands = ["B04", "B04"]', "B04, B04: name each once"),
        ('bands = ["B04", "B99"]', "has no bands B99: it has B01"),
        ('method = "moco-v2"\n[objective]\nqueue = 4', "8 keys a step do not fit the queue of 4"),
        ("[second_view]\nsize = 16", "second_view.size 16 is not view.size 32"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(shards, tmp_path, options, message):
    if isinstance(options, str):
        (tmp_path / "recipe.toml").write_text(options)
        options = ["--recipe", str(tmp_path / "recipe.toml")]
    with pytest.raises(BandstreamError, match=message):
        main([str(shards), "--out", str(tmp_path / "run"), *SMALL, *options], standalone_mode=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [["--method", "simclt"], ["--epochs", "0"]])
def test_wrong_usage_exits_with_2(shards, tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", command(shards, tmp_path / "run", *options)[1:])
    with pytest.raises(SystemExit) as end:
        run(main)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1


def test_what_a_killed_process_left_half_written_goes(shards, tmp_path):
    out = tmp_path / "run"
    main(command(shards, out, "--epochs", "1")[2:], standalone_mode=False)
    left, written = (out / "checkpoints" / f".step-00000000{step}.pt.4567.tmp" for step in (8, 9))
    for path in (left, written):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    main(command(shards, out, "--epochs", "1", "--resume")[2:], standalone_mode=False)
    assert not left.exists() and written.exists(), "but not what may be written now"


def test_a_run_of_another_version_is_not_gone_on_with(shards, undisturbed, moving, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    newest = checkpoints(out / "checkpoints")[-1]
    torch.save(torch.load(newest, weights_only=True) | {"format": 1}, newest)
    options = ["--epochs", "4", "--checkpoint-steps", "2", "--recipe", str(moving), "--resume"]
    with pytest.raises(BandstreamError, match="begun by another version"):
        main(command(shards, out, *options)[2:], standalone_mode=False)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(shards, undisturbed, moving, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    newest = checkpoints(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    options = ["--epochs", "4", "--checkpoint-steps", "2", "--recipe", str(moving), "--resume"]
    main(command(shards, out, *options)[2:], standalone_mode=False)
    assert "set aside, going on from step" in capsys.readouterr().err
    first, second = (load_file(folder / "encoder.safetensors") for folder in (undisturbed, out))
    assert all(first[name].equal(second[name]) for name in first)


def test_an_encoder_to_begin_with_is_the_one_that_was_named(shards, undisturbed, tmp_path):
    with pytest.raises(BandstreamError, match="is a cnn, not a resnet18: leave encoder out"):
        main(command(shards, tmp_path / "run", "--init", str(undisturbed), "--encoder", "resnet18")[2:],
             standalone_mode=False)  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_pair_may_be_of_two_dates_and_two_recipes(shards, tmp_path):
    dated = make_set(tmp_path / "dated", {"train": 20, "val": 12}, dates=2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seasons = "different"\nepochs = 1\n[view]\nsize = 32\n[second_view]\ncutout = 1.0\n')
    options = [*SMALL, "--recipe", str(recipe)]
    main([str(dated), "--out", str(tmp_path / "run"), *options], standalone_mode=False)
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (told["seasons"], told["view"]["cutout"], told["second_view"]["cutout"]) == ("different", 0, 1)
    assert told["second_view"]["size"] == 32 and "knn" in logged(tmp_path / "run")[-1]
    with pytest.raises(BandstreamError, match="holds one date of each place"):
        main([str(shards), "--out", str(tmp_path / "other"), *options], standalone_mode=False)


ROLLBACK = 'optimiser = "sgd"\nlr = 1e6\nwarmup_epochs = 0\nlog_steps = 1\non_nan = "rollback"\n[watch]\n'


def test_a_run_that_breaks_goes_back_and_on_at_a_lower_rate(shards, tmp_path):
    recipe, out = tmp_path / "high.toml", tmp_path / "run"
    recipe.write_text(ROLLBACK + "rollback_factor = 1e-9\n")
    main(command(shards, out, "--recipe", str(recipe), "--epochs", "10")[2:], standalone_mode=False)
    events = [line for line in logged(out) if "event" in line]
    assert [line["rollbacks"] for line in events] == [1] and "back to the weights of step" in events[0]["event"]
    last = logged(out)[-1]
    assert last["step"] == 49 and last["lr"] < 1e-3 and last["loss"] < 10
    assert json.loads((out / "summary.json").read_text())["rollbacks"] == 1


def test_rollbacks_come_to_an_end(shards, tmp_path):
    recipe, out = tmp_path / "high.toml", tmp_path / "run"
    recipe.write_text(ROLLBACK + "rollback_factor = 1.0\nrollbacks = 2\n")
    with pytest.raises(BandstreamError, match="after 2 rollbacks: lower --lr"):
        main(command(shards, out, "--recipe", str(recipe), "--epochs", "30")[2:], standalone_mode=False)


def test_early_stopping_exports_the_best(shards, tmp_path):
    recipe, out = tmp_path / "early.toml", tmp_path / "run"
    recipe.write_text(
        'optimiser = "sgd"\nlr = 1e-12\nwarmup_epochs = 0\nearly_stopping = 2\n'
        'schedule = "plateau"\nplateau_patience = 0\n'
    )
    main(command(shards, out, "--recipe", str(recipe), "--epochs", "30")[2:], standalone_mode=False)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped_early"] and summary["steps"] == summary["exported_step"] + 10 < 150
    rates = [line["lr"] for line in logged(out)]
    assert rates[-1] < 0.5 * rates[0]
    best = torch.load(out / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == summary["exported_step"]
    exported = load_file(out / "encoder.safetensors")
    assert all(value.equal(best["model"][f"encoder.net.{name}"]) for name, value in exported.items())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_with_all_that_a_recipe_can_switch_on(shards, undisturbed, tmp_path, method):
    recipe, out = tmp_path / "all.toml", tmp_path / "run"
    known = METHODS[method].Knobs.model_fields
    small = "".join(f"{name} = 16\n" for name in known if name.endswith(("_hidden", "_out")) or name == "queue")
    recipe.write_text(
        f'method = "{method}"\nepochs = 1\nlocal_views = 1\naccumulate = 2\nema = 0.9\ncheckpointing = true\n'
        f'clip = 1.0\nprecision = "bfloat16"\n[local_view]\nsize = 24\n[objective]\n{small}'
    )
    main(command(shards, out, "--recipe", str(recipe), "--init", str(undisturbed))[2:], standalone_mode=False)
    lines = logged(out)
    assert lines[-1]["step"] == 4 and all(line["loss"] == line["loss"] for line in lines)
    assert json.loads((out / "recipe.json").read_text())["encoder"] == "cnn"


def test_a_run_begins_with_the_encoder_of_another(shards, undisturbed, tmp_path):
    recipe, out = tmp_path / "still.toml", tmp_path / "run"
    recipe.write_text('optimiser = "sgd"\nlr = 1e-12\nweight_decay = 0.0\nepochs = 1\n')
    options = [str(shards), "--out", str(out), "--init", str(undisturbed), "--recipe", str(recipe), "--batch-size", "8",
               "--device", "cpu", "--threads", "1", "--view-size", "32"]  # fmt: skip
    main(options, standalone_mode=False)
    first, second = (load_file(folder / "encoder.safetensors") for folder in (undisturbed, out))
    for name in first:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(first[name], second[name])
    main([*options, "--resume"], standalone_mode=False)  # its architecture is the other run's, also when resumed


def test_a_band_that_init_never_saw_has_a_stand_in_that_the_card_tells_also_of_a_resumed_run(tmp_path):
    made = make_set(tmp_path / "set", {"train": 16}, arrays={"10m.npy": (["B03", "B8A"], 40)})
    bands = [EncoderBand(name=b, wavelength_nm=nm, mean=1000, std=800) for b, nm in (("B03", 560), ("B08", 833))]
    parts = {"reflectance": {}, "data": {}, "recipe": {}, "scores": {}}
    save_encoder(tmp_path / "init", build_encoder("cnn", 2, 32), bands=bands, view_size=32, **parts)
    out = tmp_path / "run"
    options = command(made, out, "--init", str(tmp_path / "init"), "--epochs", "1")[2:]
    with pytest.raises(BandstreamError, match="never saw B8A.*--fallback wavelength"):
        main(options, standalone_mode=False)
    main([*options, "--fallback", "wavelength"], standalone_mode=False)
    card = (out / "README.md").read_text()
    assert "B8A from B08" in card
    (out / "README.md").unlink()
    main([*options, "--fallback", "wavelength", "--resume"], standalone_mode=False)
    assert (out / "README.md").read_text() == card
