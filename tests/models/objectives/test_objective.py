"""What all objectives have in common: names, knobs, discovery, embedding in parts, half precision, resuming."""

import copy
import sys

import pytest
import torch
from torch import nn

from models import objectives
from models.objectives import METHODS, Objective, build_objective
from shards.errors import BandstreamError
from tests.models.objectives.tiny import Tiny, tiny, views

SIZES = (8, 8, 6, 6)


def test_methods_have_names_knobs_and_training_defaults():
    assert list(METHODS) == ["byol", "moco-v2", "moco-v3", "simclr", "simsiam", "vicreg"]
    for name, method in METHODS.items():
        assert method.name == name
        assert set(method.defaults) == {"optimiser", "lr", "lr_scaling", "weight_decay", "warmup_epochs", "momentum"}
        method.Knobs()  # the paper's


@pytest.mark.parametrize(
    ("name", "knobs", "told"),
    [
        ("dino", {}, "no method 'dino': there are byol, moco-v2, moco-v3, simclr, simsiam, vicreg"),
        ("byol", {"temperature": 0.1}, "[objective] of byol: temperature: Extra inputs are not permitted"),
        ("simclr", {"temperature": 0}, "[objective] of simclr: temperature: Input should be greater than 0"),
        ("moco-v2", {"momentum": 1.0}, "[objective] of moco-v2: momentum: Input should be less than 1"),
        (
            "vicreg",
            {"variance": -1, "head_norm": "group"},
            "[objective] of vicreg: head_norm: Input should be 'batch', 'layer' or 'none'; "
            "variance: Input should be greater than or equal to 0",
        ),
        (
            "moco-v2",
            {"queue": "long"},
            "[objective] of moco-v2: queue: Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_wrong_names_and_knobs_are_told_in_a_line(name, knobs, told):
    with pytest.raises(BandstreamError) as raised:
        build_objective(name, Tiny(), knobs)
    assert str(raised.value) == told


L, B, R, A = "Linear {}".format, "BatchNorm", "ReLU", "BatchNorm without affine"
HEADS = {
    # model_util.projection_head of the TensorFlow code, but that the output is not normalised: section 2.1
    "simclr": ([L(2048), B, R, L(128)], None),
    "moco-v2": ([L(2048), R, L(128)], None),  # section 3; no normalisation in moco/builder.py
    # section 4.1 and _build_mlp of moco/builder.py, for ViT
    "moco-v3": ([L(4096), B, R, L(4096), B, R, L(256), A], [L(4096), B, R, L(256), A]),
    "byol": ([L(4096), B, R, L(256)], [L(4096), B, R, L(256)]),  # section 3.3
    # section 3, and simsiam/builder.py for the affine
    "simsiam": ([L(2048), B, R, L(2048), B, R, L(2048), A], [L(512), B, R, L(2048)]),
    "vicreg": ([L(8192), B, R, L(8192), B, R, L(8192)], None),  # section 4.2
}
"""Of each paper: projector and predictor."""


def layers(network: nn.Sequential) -> list[str]:
    found = []
    for part in network:
        if isinstance(part, nn.Linear):
            found.append(L(part.out_features))
        elif isinstance(part, nn.BatchNorm1d):
            found.append(B if part.affine else A)
        else:
            found.append(type(part).__name__)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_heads_are_the_papers(name):
    projector, predictor = HEADS[name]
    with torch.device("meta"):  # no memory for wide ones
        objective = build_objective(name, Tiny(), {})
    assert layers(objective.head) == projector
    assert (layers(objective.predictor) if hasattr(objective, "predictor") else None) == predictor


SEVENTH = """
from models.objectives.objective import ObjectiveKnobs, Outcome
from models.objectives.simclr import SimCLR


class Knobs(ObjectiveKnobs):
    pull: float = 2.0


class Pull(SimCLR):
    name = "pull"
    Knobs = Knobs

    def __init__(self, encoder, knobs):
        super(SimCLR, self).__init__(encoder, knobs)

    def forward(self, views):
        return tuple(self.encoder(view) for view in views)

    def loss(self, embedded):
        return Outcome(self.knobs.pull * (embedded[0] - embedded[1]).square().mean(), embedded[0].detach(), {})
"""


def test_a_new_objective_is_a_new_file(tmp_path, monkeypatch):
    (tmp_path / "seventh.py").write_text(SEVENTH)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    try:
        found = objectives._methods()
    finally:
        sys.modules.pop("models.objectives.seventh", None)
    assert list(found) == sorted([*METHODS, "pull"])
    assert all(found[name] is method for name, method in METHODS.items())
    monkeypatch.setattr(objectives, "METHODS", found)
    objective = build_objective("pull", Tiny(), {"pull": 3})
    first, second = objective(views(4))
    assert objective.loss([first, second]).loss.item() == pytest.approx(3 * (first - second).square().mean().item())


def step(objective: Objective, optimiser: torch.optim.Optimizer, number: int) -> torch.Tensor:
    optimiser.zero_grad()
    loss = objective.loss(objective(views(8, SIZES, seed=number))).loss
    loss.backward()
    optimiser.step()
    objective.after_step(number, 4)
    return loss.detach()


def trained(objective: Objective) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter for parameter in objective.parameters() if parameter.requires_grad], 0.01)


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_state_goes_on_bit_by_bit(name):
    knobs = {"bn_samples": 4, "queue": 20} if name == "moco-v2" else {}
    objective = tiny(name, "batch", **knobs)
    optimiser = trained(objective)
    for number in range(2):
        step(objective, optimiser, number)
    kept = copy.deepcopy((objective.state_dict(), optimiser.state_dict(), torch.get_rng_state()))
    wanted = [step(objective, optimiser, number) for number in (2, 3)]
    resumed = tiny(name, "batch", seed=1, **knobs)
    again = trained(resumed)
    resumed.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    torch.set_rng_state(kept[2])
    assert [step(resumed, again, number) for number in (2, 3)] == wanted
    for key, value in objective.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_embed_what_the_batch_does(name):
    objective = tiny(name)
    whole = objective(views(8, SIZES))
    parts = [objective([view[part] for view in views(8, SIZES)]) for part in (slice(0, 3), slice(3, 8))]
    for number, tensor in enumerate(whole):
        assert tensor.dtype == torch.float32 and tensor.shape == (8, 6)
        torch.testing.assert_close(torch.cat([part[number] for part in parts]), tensor)


@pytest.mark.parametrize(
    ("name", "predicts", "targets"),
    [
        ("simclr", False, []),
        ("vicreg", False, []),
        ("simsiam", True, ["encoder", "head"]),
        ("byol", True, ["target_encoder", "target_head"]),
        ("moco-v3", True, ["key_encoder", "key_head"]),
    ],
)
def test_what_is_embedded(name, predicts, targets):
    objective = tiny(name)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # targets are no copies any more
    given = views(5, SIZES)
    wanted = [objective.head(objective.encoder(view)) for view in given]
    if predicts:
        wanted = [objective.predictor(projection) for projection in wanted]
    if targets:
        encoder, head = (objective.get_submodule(target) for target in targets)
        wanted += [head(encoder(view)) for view in given[:2]]
    found = objective(given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    if targets:
        assert [tensor.requires_grad for tensor in found] == [True] * 4 + [False] * 2


def test_moco_v2_embeds_queries_of_one_view_and_keys_of_the_other():
    for symmetric, queried, keyed in ((False, [0, 2, 3], [1]), (True, [0, 1, 2, 3], [1, 0])):
        objective = tiny("moco-v2", symmetric=symmetric)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        given = views(5, SIZES)
        wanted = [objective.head(objective.encoder(given[view])) for view in queried]
        wanted += [objective.key_head(objective.key_encoder(given[view])) for view in keyed]
        found = objective(given)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        assert [tensor.requires_grad for tensor in found] == [True] * len(queried) + [False] * len(keyed)


@pytest.mark.parametrize("name", METHODS)
def test_views_of_a_size_share_a_pass(name):
    objective = tiny(name, "batch")
    sizes: list[tuple[int, ...]] = []
    objective.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape)))
    objective(views(4, SIZES))
    globals_ = 4 if name == "moco-v2" else 8
    assert sizes == [(globals_, 3, 8, 8), (8, 3, 6, 6)]


@pytest.mark.parametrize(("name", "count"), [("simclr", 2), ("moco-v2", 2), ("moco-v3", 4)])
@pytest.mark.parametrize("seed", range(3))
def test_embeddings_of_one_point_are_no_hits(name, count, seed):
    objective = tiny(name, seed=seed, projection_out=31)
    point = torch.randn(1, 31)
    if name == "moco-v2":
        objective.queue.copy_(torch.nn.functional.normalize(point, dim=1).expand_as(objective.queue))
    # rounding makes similarities of equal vectors differ
    metrics = objective.loss([point.repeat(33, 1)] * count).metrics
    assert metrics["top1"] == metrics["top5"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_embeddings_are_compared_in_float32(name):
    objective = tiny(name)
    embedded = [torch.randn_like(each).bfloat16() for each in objective(views(8, SIZES))]
    with torch.autocast("cpu", torch.bfloat16):
        inside = objective.loss(embedded).loss
        assert all(each.dtype == torch.float32 for each in objective(views(8, SIZES)))
    assert inside.dtype == torch.float32
    outside = objective.loss([each.float() for each in embedded]).loss
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-6)
