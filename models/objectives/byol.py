"""BYOL: Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning".

No negatives: a view, through encoder, projector and predictor, predicts what a network of averaged weights makes of the
other view.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from models.encoder import Encoder
from models.objectives.momentum import follow, follower, rising
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, embed
from models.objectives.projection import head


class BYOLKnobs(ObjectiveKnobs):
    """Section 3.2 of the paper."""

    projection_hidden: Count = 4096
    projection_out: Count = 256
    prediction_hidden: Count = 4096
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.996
    """Of the first step: it rises to 1 along half a cosine."""


class BYOL(Objective):
    """Predictions of all views, then targets of the two global ones: (n, projection_out) each."""

    name = "byol"
    Knobs = BYOLKnobs
    # section 3.2: LARS, 0.2 · batch / 256, weight decay 1.5e-6, ten epochs of warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "lars", "lr": 0.2, "lr_scaling": "linear", "weight_decay": 1.5e-6, "warmup_epochs": 10.0,
        "momentum": 0.9,
    }  # fmt: skip

    def __init__(self, encoder: Encoder, knobs: BYOLKnobs) -> None:
        super().__init__(encoder, knobs)
        out = knobs.projection_out
        self.head = head([encoder.num_features, knobs.projection_hidden, out], knobs.head_norm)
        self.predictor = head([out, knobs.prediction_hidden, out], knobs.head_norm)
        self.target_encoder, self.target_head = follower(encoder), follower(self.head)

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        predictions = embed(lambda view: self.predictor(self.head(self.encoder(view))), views)
        with torch.no_grad():
            targets = embed(lambda view: self.target_head(self.target_encoder(view)), views[:GLOBAL])
        return *predictions, *targets

    def loss(self, embedded: Embedded) -> Outcome:
        """Equation 2, of all pairs of a view and another, global one: their mean, times the two of a plain pair."""
        predictions, targets = embedded[:-GLOBAL], embedded[-GLOBAL:]
        with torch.autocast(predictions[0].device.type, enabled=False):
            distances = [
                (2 - 2 * F.cosine_similarity(predictions[p].float(), targets[t].detach().float())).mean()
                for p in range(len(predictions)) for t in range(GLOBAL) if p != t
            ]  # fmt: skip
            return Outcome(2 * torch.stack(distances).mean(), predictions[0].detach(), {})

    def after_step(self, step: int, steps: int) -> None:
        """Average the weights."""
        momentum = rising(self.knobs.momentum, step, steps)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_head, self.head, momentum)
