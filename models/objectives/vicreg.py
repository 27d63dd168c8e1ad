"""VICReg: Bardes, Ponce and LeCun 2022, "VICReg: variance-invariance-covariance regularization for self-supervised
learning".

Two views of a sample attract; what keeps them from becoming one point is that each dimension has to vary over the
batch, and no two of them together.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from models.encoder import Encoder
from models.objectives.gathering import gathered
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, embed
from models.objectives.projection import head

Weight = Annotated[float, Field(ge=0)]
EPSILON = 1e-4


class VICRegKnobs(ObjectiveKnobs):
    """Section 4 and appendix of the paper."""

    invariance: Weight = 25.0
    variance: Weight = 25.0
    covariance: Weight = 1.0
    projection_hidden: Count = 8192
    projection_out: Count = 8192
    projection_layers: Count = 3


class VICReg(Objective):
    """Embeds each view as (n, projection_out)."""

    name = "vicreg"
    Knobs = VICRegKnobs
    # section 4.2: LARS, 0.2 · batch / 256, weight decay 1e-6, ten epochs of warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "lars", "lr": 0.2, "lr_scaling": "linear", "weight_decay": 1e-6, "warmup_epochs": 10.0,
        "momentum": 0.9,
    }  # fmt: skip

    def __init__(self, encoder: Encoder, knobs: VICRegKnobs) -> None:
        super().__init__(encoder, knobs)
        hidden = [knobs.projection_hidden] * (knobs.projection_layers - 1)
        self.head = head([encoder.num_features, *hidden, knobs.projection_out], knobs.head_norm)

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(embed(lambda view: self.head(self.encoder(view)), views))

    def loss(self, embedded: Embedded) -> Outcome:
        """Equation 6 as the released code weighs it: invariance per dimension, the mean of the views' variance terms,
        the sum of the two views' covariance terms. With local views, means over the pairs and over the views."""
        with torch.autocast(embedded[0].device.type, enabled=False):
            z = [view.float() for view in embedded]
            pairs = [(one, other) for other in range(len(z)) for one in range(min(other, GLOBAL))]
            invariance = torch.stack([F.mse_loss(z[one], z[other]) for one, other in pairs]).mean()
            everyone = [gathered(view) for view in z]  # (N, D): both terms are of the global batch
            variance = torch.stack([variance_of(view) for view in everyone]).mean()
            covariance = 2 * torch.stack([covariance_of(view) for view in everyone]).mean()
            knobs = self.knobs
            loss = knobs.invariance * invariance + knobs.variance * variance + knobs.covariance * covariance
        metrics = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return Outcome(loss, embedded[0].detach(), {name: value.detach() for name, value in metrics.items()})


def variance_of(z: torch.Tensor) -> torch.Tensor:
    """Equation 1: how far, on average, the standard deviation of a dimension of (N, D) falls short of 1."""
    return F.relu(1 - (z.var(0) + EPSILON).sqrt()).mean()


def covariance_of(z: torch.Tensor) -> torch.Tensor:
    """Equations 3 and 4: squares of the covariances of different dimensions of (N, D), summed, over D."""
    centred = z - z.mean(0)
    matrix = centred.T @ centred / (len(z) - 1)  # (D, D)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
