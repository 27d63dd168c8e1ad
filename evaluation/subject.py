"""What is evaluated: a pretrained encoder, one with random weights, or image statistics, and the floors beside it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evaluation.features import Features, frozen, image_statistics
from evaluation.standardising import Statistics, of_encoder
from models.encoder import Encoder, build_encoder
from models.export import load_encoder
from shards.bands import Fallback
from shards.errors import BandstreamError
from shards.manifest import Reflectance

STATISTICS, RANDOM = "statistics", "random:"
FINE_TUNED = "best.safetensors"
"""What a fine-tuning run has, beside its encoder, and a pretraining run has not."""
IMAGE_STATISTICS = "image statistics"


@dataclass(frozen=True)
class Subject:
    """A function of views, what it is called, the module in it (image statistics have none), and how its stem came from
    other bands, in words, if it did."""

    told: str
    features: Features
    net: nn.Module | None
    adapted: str = ""

    def fingerprint(self) -> str:
        """A SHA-256 of the weights: two subjects with the same one give the same features."""
        digest = hashlib.sha256(self.told.split()[-1].encode())
        for name, tensor in sorted((self.net.state_dict() if self.net else {}).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Subjects:
    """The one that is evaluated, the floors beside it, and the views that all of them see.

    `view_size` None: the patch's own. `statistics` None: those of the set.
    """

    main: Subject
    floors: list[Subject]
    view_size: int | None
    statistics: Statistics | None

    @property
    def all(self) -> list[Subject]:
        return [self.main, *self.floors]


def find_subjects(
    encoder: str,
    bands: Sequence[str],
    patch: int,
    *,
    stages: bool,
    view_size: int | None,
    normalise: str,
    reflectance: Reflectance,
    seed: int,
    device: torch.device,
    fallback: Fallback = "none",
) -> Subjects:
    """What `--encoder` names: a run's folder, `random:NAME`, or `statistics`; met by the names of `bands`.

    The floors are image statistics, and the same architecture with random weights (of `seed`), each unless it is itself
    what is evaluated; statistics have no architecture. `patch`: side in pixels, of views where nothing else says;
    `reflectance`: of the set whose views are standardised; `fallback`: what stands in for bands it never saw.
    Raises BandstreamError on an unknown encoder, on a band that it never saw, and on views of a size it cannot take.
    """
    statistics: Statistics | None = None
    floors = [Subject(IMAGE_STATISTICS, image_statistics, None)]
    if encoder == STATISTICS:
        if stages:
            raise BandstreamError("image statistics have no stages: leave --features out")
        main, floors = floors[0], []
    elif encoder.startswith(RANDOM):
        main = random_subject(encoder.removeprefix(RANDOM), bands, view_size or patch, seed, device, stages)
    else:
        net, info = load_encoder(encoder, bands, fallback)
        view_size = view_size or info.view_size
        main = Subject(f"pretrained {net.name}", frozen(net, device, stages), net, str(net.adaptation or ""))
        floors.append(random_subject(net.name, bands, view_size, seed, device, stages))
        if normalise == "encoder":
            statistics = of_encoder(info, reflectance)
    for subject in (main, *floors):
        if view_size and isinstance(subject.net, Encoder):
            subject.net.check([(view_size, view_size)])
    if normalise == "encoder" and statistics is None:
        raise BandstreamError("--normalise encoder needs the encoder of a run: name one with --encoder")
    return Subjects(main, floors, view_size, statistics)


def random_subject(
    name: str, bands: Sequence[str], view_size: int, seed: int, device: torch.device, stages: bool
) -> Subject:
    """An architecture with the random weights of a seed."""
    torch.manual_seed(seed)
    net = build_encoder(name, len(bands), view_size)
    return Subject(f"random {name}", frozen(net, device, stages), net)
