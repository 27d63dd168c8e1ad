"""What every objective is."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from models.encoder import Encoder

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Embedded = Sequence[torch.Tensor]
"""Tensors whose first dimension is that of the samples: all that a loss needs to know of them."""
GLOBAL = 2
"""The first two views are global ones; with multi-crop, local ones follow (Caron et al. 2020, SwAV, section 3.3)."""


class Outcome(NamedTuple):
    """A step's loss, float32 scalar; the embeddings (n, D) of this rank's first views, detached, for watching; and
    what else is told of the step, detached scalars, the same names each time."""

    loss: torch.Tensor
    embeddings: torch.Tensor
    metrics: dict[str, torch.Tensor]


class ObjectiveKnobs(BaseModel):
    """What all objectives have: a recipe's table [objective]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head_norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation inside the heads; batch in the papers' released code, but for MoCo v2. Without batch statistics,
    steps of micro-batches or of several ranks are exactly those of the joined batch."""


class Objective(nn.Module):
    """Embeds views (`forward`), and compares embeddings (`loss`).

    `forward` knows nothing of other samples but batch statistics, `loss` nothing of views: so a step can be taken in
    micro-batches (training/accumulation.py). Under torch.distributed each rank's loss is such that the mean of all
    ranks' gradients, which DistributedDataParallel takes, is the gradient of the joined batch's loss.

    `encoder` is what is kept in the end. `defaults` are the paper's for training: knobs of the recipe.
    """

    name: ClassVar[str]
    Knobs: ClassVar[type[ObjectiveKnobs]]
    defaults: ClassVar[Mapping[str, Any]]
    per_rank: ClassVar[tuple[str, ...]] = ()
    """Parts whose batch statistics stay those of each rank, also where SyncBatchNorm joins the others'."""

    def __init__(self, encoder: Encoder, knobs: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.knobs = knobs

    @classmethod
    def check(cls, knobs: Any, batch_size: int) -> None:
        """Raises WrongUsage where knobs do not fit a global batch of so many samples."""

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Views, each (n, C, S, S) → what `loss` takes, each float32 (n, D). The first two are global, others local."""
        raise NotImplementedError

    def loss(self, embedded: Embedded) -> Outcome:
        """What `forward` made of a step's samples → the outcome, in float32."""
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """What moves once a step, after the optimiser: `step` of `steps` is done, counted from 0."""


def embed(network: Callable[[torch.Tensor], torch.Tensor], views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`network` of each view, float32 (n, D); adjacent views of one size go through in one pass and share batch
    statistics, as in SimCLR and SwAV."""
    found: list[torch.Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape):
        some = list(group)
        found += network(torch.cat(some)).float().chunk(len(some))
    return found
