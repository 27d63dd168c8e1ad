"""SimCLR: Chen et al. 2020, "A simple framework for contrastive learning of visual representations".

Two views of a sample attract, the views of all other samples of the global batch repel.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from models.encoder import Encoder
from models.objectives.contrast import mean, nt_xent
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, Positive, embed
from models.objectives.projection import head


class SimCLRKnobs(ObjectiveKnobs):
    """Temperature of the NT-Xent loss, and the projection head (section 2.1 and appendix B.7 of the paper)."""

    temperature: Positive = 0.1
    projection_hidden: Count = 2048
    projection_out: Count = 128
    projection_layers: Count = 2


class SimCLR(Objective):
    """Embeds each view as (n, projection_out). With local views, the loss is the mean over all pairs of views of which
    one is global."""

    name = "simclr"
    Knobs = SimCLRKnobs
    # section 2.2: LARS, 0.3 · batch / 256, weight decay 1e-6, ten epochs of warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "lars", "lr": 0.3, "lr_scaling": "linear", "weight_decay": 1e-6, "warmup_epochs": 10.0,
        "momentum": 0.9,
    }  # fmt: skip

    def __init__(self, encoder: Encoder, knobs: SimCLRKnobs) -> None:
        super().__init__(encoder, knobs)
        hidden = [knobs.projection_hidden] * (knobs.projection_layers - 1)
        self.head = head([encoder.num_features, *hidden, knobs.projection_out], knobs.head_norm)

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(embed(lambda view: self.head(self.encoder(view)), views))

    def loss(self, embedded: Embedded) -> Outcome:
        pairs = [(one, other) for other in range(len(embedded)) for one in range(min(other, GLOBAL))]
        found = mean([nt_xent(embedded[one], embedded[other], self.knobs.temperature) for one, other in pairs])
        return Outcome(found.loss, embedded[0].detach(), found.metrics)
