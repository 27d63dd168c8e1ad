"""SimSiam: Chen and He 2021, "Exploring simple Siamese representation learning".

Neither negatives nor averaged weights: a view predicts the other's projection, through which no gradient flows.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from models.encoder import Encoder
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, embed
from models.objectives.projection import head


class SimSiamKnobs(ObjectiveKnobs):
    """Section 3 of the paper. The output of its projector is normalised, too; the predictor is a bottleneck."""

    projection_hidden: Count = 2048
    projection_out: Count = 2048
    projection_layers: Count = 3
    prediction_hidden: Count = 512


class SimSiam(Objective):
    """Predictions of all views, then projections of the two global ones: (n, projection_out) each."""

    name = "simsiam"
    Knobs = SimSiamKnobs
    # section 3: SGD, 0.05 · batch / 256, cosine, weight decay 1e-4, no warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "sgd", "lr": 0.05, "lr_scaling": "linear", "weight_decay": 1e-4, "warmup_epochs": 0.0,
        "momentum": 0.9,
    }  # fmt: skip

    def __init__(self, encoder: Encoder, knobs: SimSiamKnobs) -> None:
        super().__init__(encoder, knobs)
        out, hidden = knobs.projection_out, [knobs.projection_hidden] * (knobs.projection_layers - 1)
        self.head = head([encoder.num_features, *hidden, out], knobs.head_norm, last_norm=True)
        self.predictor = head([out, knobs.prediction_hidden, out], knobs.head_norm)

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        projections = embed(lambda view: self.head(self.encoder(view)), views)
        joined = self.predictor(torch.cat(projections)).float()  # one pass: batch statistics of all views
        return *joined.chunk(len(views)), *(projection.detach() for projection in projections[:GLOBAL])

    def loss(self, embedded: Embedded) -> Outcome:
        """Equation 4, -1 at best: the mean over all pairs of a view and another, global one."""
        predictions, projections = embedded[:-GLOBAL], embedded[-GLOBAL:]
        with torch.autocast(predictions[0].device.type, enabled=False):
            similarities = [
                F.cosine_similarity(predictions[p].float(), projections[z].detach().float()).mean()
                for p in range(len(predictions)) for z in range(GLOBAL) if p != z
            ]  # fmt: skip
            return Outcome(-torch.stack(similarities).mean(), projections[0].detach(), {})
