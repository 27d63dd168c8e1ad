"""Specs of comparisons: what is understood, and that whatever is wrong is one line that names file and key."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.comparison.grid import Grid, expand
from evaluation.comparison.spec import read_spec
from shards.errors import BandstreamError

TOP = 'shards = "DST"\nlabel_fractions = [0.1, 1]\n'
SCRATCH = '[encoders.scratch]\nencoder = "cnn"\n'
SIMCLR = '[encoders.simclr]\npretrain = ""\n'
A, B = TOP + SCRATCH, TOP + SIMCLR
LINEAR = '[protocols.linear]\nevaluate = "linear"\n'
SUPERVISED = "[encoders.supervised]\nsupervised = ''\nknobs = { task = 'classify' }\n"
OOD = "[protocols.ood]\nevaluate = 'ood'\nof = 'finetune'\noptions = { against = 'D' }\n"
FINETUNE = '[protocols.finetune]\nfinetune = ""\nknobs = { task = "classify" }\n'

ROOT = Path(__file__).parents[3]
SPECS = [*sorted(ROOT.glob("recipes/compare/*.toml")), *sorted(ROOT.glob("results/*/compare.toml"))]


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text)
    return path


def grid(folder: Path, text: str) -> Grid:
    path = write(folder, text)
    return expand(read_spec(path), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shards = [", "cannot be read"),
        ("label_fractions = [1]\n" + SCRATCH + LINEAR, "shards: no set is named"),
        ('shards = "DST"\n' + SCRATCH + LINEAR, "label_fractions: Field required"),
        (TOP + LINEAR, "encoders: Field required"),
        (TOP + "encoders = {}\n" + LINEAR, "encoders: name at least one, as [encoders.NAME]"),
        ("titel = 'x'\n" + A + LINEAR, "titel: unknown: did you mean title?"),
        ("seeds = [-1]\n" + A + LINEAR, "seeds.0: Input should be greater than or equal to 0"),
        ("seeds = [1, 1]\n" + A + LINEAR, "seeds: takes different values, one at least"),
        (TOP.replace("0.1", "1.1") + SCRATCH + LINEAR, "label_fractions.0: Input should be less than or equal to 1"),
        ("baseline = 'scrach'\n" + A + LINEAR, "baseline: no encoder 'scrach': did you mean scratch?"),
        (B + "pretran = 'x'\n" + LINEAR, "encoders.simclr.pretran: unknown: did you mean pretrain?"),
        (B + "run = 'x'\n" + LINEAR, "encoders.simclr: run and pretrain: an encoder comes about in one way"),
        (A + "knobs = { epochs = 3 }\n" + LINEAR, "encoders.scratch: knobs is of pretraining: add pretrain"),
        (B + 'encoder = "cnn"\n' + LINEAR, "encoders.simclr: encoder is of random weights"),
        (TOP + "[encoders.'a/b']\nencoder = 'cnn'\n" + LINEAR, "encoders.a/b: names are letters"),
        (TOP + "[encoders.a--b]\nencoder = 'cnn'\n" + LINEAR, "encoders.a--b: names are letters"),
        (TOP + "[encoders.a]\n" + LINEAR, "encoders.a: linear has to know: add encoder"),
        (B + "knobs = { epoch = 3 }\n" + LINEAR, "encoders.simclr: options: epoch: Extra inputs"),
        (B + "knobs = { method = 'simklr' }\n" + LINEAR, "encoders.simclr: no method 'simklr': did you mean"),
        (B + "axes = { batch_size = 3 }\n" + LINEAR, "encoders.simclr: axes: batch_size takes a list"),
        (B + "axes = { batch_size = [4, 4] }\n" + LINEAR, "axes: batch_size takes a list of different values"),
        (B + "axes = { batch_size = [4, 'x'] }\n" + LINEAR, "encoders.simclr.axes: options: batch_size: Input"),
        (B + "axes = { batch_size = [2020-01-01] }\n" + LINEAR, "encoders.simclr.axes: options: batch_size: Input"),
        (B + "[encoders.simclr.variants]\nodd = { x = 1 }\n" + LINEAR, "encoders.simclr.variants.odd: options: x"),
        (B + "[encoders.simclr.variants]\n'a b' = { seed = 1 }\n'a-b' = { seed = 2 }\n" + LINEAR,
         "encoders: two would have the folder simclr--a-b"),
        (TOP + "[encoders.a]\npretrain = 'none.toml'\n" + LINEAR, "encoders.a.pretrain: there is no recipe none.toml"),
        (A + "[protocols.a]\n", 'protocols.a: say finetune = "RECIPE"'),
        (A + "[protocols.a]\nevaluate = 'linaer'\n", "protocols.a.evaluate: Input should be 'linear', 'knn'"),
        (A + "[protocols.a]\nfinetune = ''\n", "protocols.a: nothing says what to learn"),
        (A + LINEAR + "knobs = { lr = 1 }\n", "protocols.linear: knobs is of finetune: evaluate takes options"),
        (A + LINEAR + "options = { feature = 'stages' }\n", "options.feature: unknown: did you mean features?"),
        (A + LINEAR + "options = { against = 'D' }\n", "protocols.linear: options: against goes with"),
        (A + LINEAR + "encoders = ['simclr']\n", "protocols.linear.encoders: no encoder 'simclr'"),
        (A + LINEAR + "of = 'finetune'\n", 'protocols.linear: of goes with evaluate = "ood"'),
        (A + "[protocols.ood]\nevaluate = 'ood'\n", "protocols.ood: options: say what is outside"),
        (A + LINEAR + "[protocols.ood]\nevaluate = 'ood'\nof = 'linear'\noptions = { against = 'D' }\n",
         "protocols.ood.of: no fine-tuning protocol 'linear'"),
        (A + FINETUNE + "[protocols.ood]\nevaluate = 'ood'\nof = 'finetune'\noptions = { hold_out = ['a'] }\n",
         "protocols.ood: of: fine-tuned classifiers have seen all classes"),
        (A + FINETUNE.replace("classify", "segment")
         + "[protocols.ood]\nevaluate = 'ood'\nof = 'finetune'\noptions = { against = 'D' }\n",
         "protocols.ood.of: finetune segments, ood is of classifiers"),
        (A + FINETUNE.replace("task", "seed = 3, task"), "protocols.finetune: knobs: seed is the comparison's own"),
        ("sets = 'x'\n" + A + LINEAR, "sets: Input should be a valid dictionary"),
        (TOP + "[encoders.a]\nencoder = 'cnn'\nbaseline = 'b'\n" + LINEAR, "encoders.a.baseline: no encoder 'b'"),
        (B + "every_seed = true\nknobs = { seed = 5 }\n" + LINEAR, "encoders.simclr: knobs: seed is each of the"),
        (B + "every_seed = true\naxes = { seed = [1, 2] }\n" + LINEAR, "encoders.simclr: axes: seed is each of the"),
        (A + FINETUNE + OOD + "seeds = [7]\n", "protocols.ood.seeds: finetune is not run with 7: it has 0"),
        (A + FINETUNE + OOD + "label_fractions = [1, 0.2]\n", "ood.label_fractions: finetune is not run with 0.2"),
        (A + SCRATCH.replace("scratch", "b") + FINETUNE + "encoders = ['b']\n" + OOD + "encoders = ['scratch', 'b']\n",
         "protocols.ood.encoders: finetune is not run with scratch"),
        (A + FINETUNE + OOD.replace("against", "bands = ['B02'], against"), "of: fine-tuned classifiers have bands"),
        (A + SUPERVISED + LINEAR + OOD.replace("of = 'finetune'\n", ""),
         "protocols.ood: encoders.supervised is a classifier, which ood would judge as it is"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BandstreamError) as caught:
        grid(tmp_path, text)
    told = str(caught.value)
    assert said in told and told.startswith(str(tmp_path / "spec.toml"))
    assert len(told.splitlines()) == 1 or said == "cannot be read"


def test_a_missing_file_and_a_set_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(BandstreamError, match="none.toml cannot be read"):
        read_spec(tmp_path / "none.toml")
    path = write(tmp_path, "label_fractions = [1]\n" + SCRATCH + LINEAR)
    assert read_spec(path, "OTHER").shards == "OTHER"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_that_come_along_are_understood(path: Path) -> None:
    found = expand(read_spec(path, "DST", dict.fromkeys(spec_sets(path), "ELSEWHERE")), path)
    assert len({cell.folder for cell in found.cells}) == len(found.cells) > 0
    recipes = [(encoder.shards, encoder.recipe) for encoder in found.encoders if encoder.recipe]
    assert all(one not in recipes[:k] for k, one in enumerate(recipes)), "none is pretrained twice"
    run = {cell.protocol.key for cell in found.cells if cell.protocol}
    assert run == {protocol.key for protocol in found.protocols}
    assert {one.shards for one in found.encoders} <= {"DST", "ELSEWHERE"}, "no path of somebody's machine"
    for protocol in (one for one in found.protocols if one.evaluate and not one.of):
        ways = {encoder.how == "scratch" for encoder in found.encoders if encoder.name in protocol.encoders}
        assert len(ways) == 1 or protocol.options.view_size, "else random weights see whole patches, and others views"


def spec_sets(path: Path) -> set[str]:
    """Names of sets that a spec leaves to the command line."""
    spec = read_spec(path, "DST")
    named = {table.shards for table in spec.encoders.values()} | {p.options.against for p in spec.protocols.values()}
    return {name for name in named if name}


def test_sets_are_spoken_of_by_name(tmp_path: Path) -> None:
    text = "shards = 'ours'\nlabel_fractions = [1]\n[sets]\nours = 'A'\ntheirs = 'B'\n" + SCRATCH
    text += SIMCLR + "shards = 'theirs'\n" + FINETUNE + OOD.replace("'D'", "'far'")
    path = write(tmp_path, text)

    def places(*given: Any) -> tuple[Any, ...]:
        spec = read_spec(path, *given)
        against = spec.protocols["ood"].options.against
        shards = [encoder.shards for encoder in expand(spec, path).encoders]
        return spec.shards, shards, against

    assert places() == ("A", ["A", "B"], "far"), "what no name is a place"
    assert places(None, {"far": "s3://C"}) == ("A", ["A", "B"], "s3://C")
    assert places("D", {"theirs": "E", "far": "F"}) == ("D", ["D", "E"], "F")
    with pytest.raises(BandstreamError, match="spec.toml: no encoder or protocol speaks of a set 'theris'"):
        places(None, {"theris": "E"})
    path.write_text("sets = 'x'\n" + A + LINEAR)
    with pytest.raises(BandstreamError, match="sets: Input should be a valid dictionary"):
        read_spec(path, None, {"DST": "E"})


def test_cells_of_close_label_fractions_have_folders_of_their_own(tmp_path: Path) -> None:
    found = grid(tmp_path, TOP.replace("0.1, 1", "0.1234567, 0.1234568") + SCRATCH + LINEAR)
    assert [folder for folder, _ in told(found)] == [
        f"runs/linear/scratch/fraction-{f}/seed-0" for f in ("0.1234567", "0.1234568")
    ]


def told(found: Grid) -> list[tuple[Any, ...]]:
    """Cells as (folder, what it needs)."""
    return [(cell.folder.as_posix(), cell.needs and cell.needs.as_posix()) for cell in found.cells]


def test_cells_are_encoders_by_protocols_by_fractions_by_seeds_each_after_what_it_needs(tmp_path: Path) -> None:
    ood = '[protocols.ood]\nevaluate = "ood"\nof = "finetune"\noptions = { against = "OUT" }\nlabel_fractions = [1]\n'
    knn = '[protocols.knn]\nevaluate = "knn"\nencoders = ["simclr"]\nseeds = [7]\n'
    clusters = '[protocols.clusters]\nevaluate = "cluster"\nencoders = ["simclr"]\n'
    text = "seeds = [3, 4]\n" + TOP + SCRATCH + SIMCLR + "knobs = { seed = 5 }\n" + ood + FINETUNE + knn + clusters
    expected = []
    for encoder in ("scratch", "simclr"):
        needs = "encoders/simclr/seed-5" if encoder == "simclr" else None
        if needs:
            expected.append((needs, None))
        tuned = [f"runs/finetune/{encoder}/fraction-{f}/seed-{s}" for f in ("0.1", "1") for s in (3, 4)]
        expected += [(folder, needs) for folder in tuned]
        if needs:
            expected += [(f"runs/knn/simclr/fraction-{f}/seed-7", needs) for f in ("0.1", "1")]
            expected += [(f"runs/clusters/simclr/fraction-1/seed-{s}", needs) for s in (3, 4)]
        expected += [(f"runs/ood/{encoder}/fraction-1/seed-{s}", tuned[2 + s - 3]) for s in (3, 4)]
    assert told(grid(tmp_path, text)) == expected


def test_pretrained_once_for_every_seed(tmp_path: Path) -> None:
    found = grid(tmp_path, "seeds = [3, 4]\n" + TOP.replace("0.1, ", "") + SIMCLR + "every_seed = true\n" + LINEAR)
    assert told(found) == [
        ("encoders/simclr/seed-3", None),
        ("runs/linear/simclr/fraction-1/seed-3", "encoders/simclr/seed-3"),
        ("encoders/simclr/seed-4", None),
        ("runs/linear/simclr/fraction-1/seed-4", "encoders/simclr/seed-4"),
    ]


def test_axes_multiply_and_variants_stand_beside_the_recipe_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("epochs = 7\nbatch_size = 64\n[view]\nsize = 32\ngain = 0.1\n")
    text = TOP + "[encoders.a]\npretrain = 'own.toml'\nknobs = { epochs = 9, view.size = 48 }\n"
    text += 'axes = { "objective.temperature" = [0.1, 0.5], batch_size = [64, 128] }\n'
    text += "[encoders.b]\npretrain = 'own.toml'\n[encoders.b.variants]\n'no gain' = { 'view.gain' = 0 }\n"
    text += "'large' = { view = { size = 64 } }\n"
    found = grid(tmp_path, text + FINETUNE + "axes = { lr = [0.1, 0.2] }\n")
    made = [(e.key, e.variant, e.plain, e.recipe.objective["temperature"], e.recipe.batch_size, e.recipe.epochs,
             e.recipe.view.size, e.recipe.view.gain) for e in found.encoders]  # fmt: skip
    # 0.1 is the paper's temperature, 64 the recipe's batch: that point is the recipe as it is
    assert made == [
        ("a--objective.temperature-0.1--batch_size-64", "", True, 0.1, 64, 9, 48, 0.1),
        ("a--objective.temperature-0.1--batch_size-128", "", False, 0.1, 128, 9, 48, 0.1),
        ("a--objective.temperature-0.5--batch_size-64", "", False, 0.5, 64, 9, 48, 0.1),
        ("a--objective.temperature-0.5--batch_size-128", "", False, 0.5, 128, 9, 48, 0.1),
        ("b", "", True, found.encoders[4].recipe.objective["temperature"], 64, 7, 32, 0.1),
        ("b--no-gain", "no gain", False, made[4][3], 64, 7, 32, 0),
        ("b--large", "large", False, made[4][3], 64, 7, 64, 0.1),
    ]
    assert found.encoders[1].settings == {"objective.temperature": 0.1, "batch_size": 128}
    assert found.encoders[6].settings == {"view.size": 64}
    assert [(p.name, p.key, p.recipe and p.recipe.lr) for p in found.protocols] == [
        ("finetune, lr 0.1", "finetune--lr-0.1", 0.1), ("finetune, lr 0.2", "finetune--lr-0.2", 0.2),
    ]  # fmt: skip
    assert len(found.cells) == 7 + 7 * 2 * 2


def test_the_point_of_the_axes_that_is_the_recipe_is_not_made_twice(tmp_path: Path) -> None:
    text = (
        TOP + SIMCLR + "axes = { batch_size = [128, 256] }\n[encoders.simclr.variants]\nfew = { epochs = 3 }\n" + LINEAR
    )
    made = [(encoder.key, encoder.plain) for encoder in grid(tmp_path, text).encoders]
    assert made == [("simclr--batch_size-128", False), ("simclr--batch_size-256", True), ("simclr--few", False)]
