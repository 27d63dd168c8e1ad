"""MoCo v3: Chen, Xie and He 2021, "An empirical study of training self-supervised vision transformers".

No queue: a view, through encoder, projector and predictor, finds the other view's key among those of the batch.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from models.encoder import Encoder
from models.objectives.contrast import Contrast, contrast, mean
from models.objectives.gathering import gathered, place
from models.objectives.momentum import follow, follower, rising
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, Positive, embed
from models.objectives.projection import head


class MoCoV3Knobs(ObjectiveKnobs):
    """Section 4 of the paper and its released configuration, for ViT; but positions are the encoder's own, in timm
    learned ones, where the paper's are fixed sines."""

    temperature: Positive = 0.2
    """0.2 for ViT; the paper's ResNet-50 takes 1.0."""
    projection_hidden: Count = 4096
    projection_out: Count = 256
    projection_layers: Count = 3
    """3 for ViT; the paper's ResNet-50 takes 2."""
    prediction_hidden: Count = 4096
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the first step: it rises to 1 along half a cosine."""
    freeze_patches: bool = True
    """The patch projection of a ViT stays random, against instability (section 4.2); one that was fitted from other
    bands is trained. Other encoders have none."""


class MoCoV3(Objective):
    """Predictions of all views, then keys of the two global ones: (n, projection_out) each."""

    name = "moco-v3"
    Knobs = MoCoV3Knobs
    # section 4.1: AdamW, 1.5e-4 · batch / 256, weight decay 0.1, 40 epochs of warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "adamw", "lr": 1.5e-4, "lr_scaling": "linear", "weight_decay": 0.1, "warmup_epochs": 40.0,
        "momentum": 0.9,
    }  # fmt: skip

    def __init__(self, encoder: Encoder, knobs: MoCoV3Knobs) -> None:
        super().__init__(encoder, knobs)
        out, hidden = knobs.projection_out, [knobs.projection_hidden] * (knobs.projection_layers - 1)
        self.head = head([encoder.num_features, *hidden, out], knobs.head_norm, last_norm=True)
        self.predictor = head([out, knobs.prediction_hidden, out], knobs.head_norm, last_norm=True)
        patches = getattr(encoder.net, "patch_embed", None)
        if knobs.freeze_patches and patches is not None and encoder.adaptation is None:
            patches.requires_grad_(False)
        self.key_encoder, self.key_head = follower(encoder), follower(self.head)

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        queries = embed(lambda view: self.predictor(self.head(self.encoder(view))), views)
        with torch.no_grad():
            keys = embed(lambda view: self.key_head(self.key_encoder(view)), views[:GLOBAL])
        return *queries, *keys

    def loss(self, embedded: Embedded) -> Outcome:
        queries, keys = embedded[:-GLOBAL], embedded[-GLOBAL:]
        pairs = [(q, k) for q in range(len(queries)) for k in range(GLOBAL) if q != k]
        pairs.sort(key=lambda pair: pair[0] >= GLOBAL)
        found = mean([self._contrast(queries[q], keys[k]) for q, k in pairs])
        # both directions are added up, and scaled by 2 τ (algorithm 1)
        loss = found.loss * 2 * 2 * self.knobs.temperature
        return Outcome(loss, queries[0].detach(), found.metrics)

    def _contrast(self, query: torch.Tensor, key: torch.Tensor) -> Contrast:
        """InfoNCE (algorithm 1) of this rank's queries with the keys of all ranks."""
        with torch.autocast(query.device.type, enabled=False):
            query = F.normalize(query.float(), dim=1)
            everyone = gathered(F.normalize(key.detach().float(), dim=1))
            own = place()[0] * len(query) + torch.arange(len(query), device=query.device)
            return contrast(query @ everyone.T / self.knobs.temperature, own)

    def after_step(self, step: int, steps: int) -> None:
        """Average the weights."""
        momentum = rising(self.knobs.momentum, step, steps)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_head, self.head, momentum)
