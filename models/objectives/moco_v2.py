"""MoCo v2: He et al. 2020, "Momentum contrast for unsupervised visual representation learning", with the head and
augmentations of Chen et al. 2020, "Improved baselines with momentum contrastive learning".

A view attracts the other view's key, which an encoder of averaged weights makes, and is repelled by a queue of the keys
of steps before: many negatives whatever the batch.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from models.encoder import Encoder
from models.objectives.contrast import Contrast, contrast, mean
from models.objectives.gathering import gathered
from models.objectives.momentum import follow, follower
from models.objectives.objective import GLOBAL, Count, Embedded, Objective, ObjectiveKnobs, Outcome, Positive, embed
from models.objectives.projection import head
from shards.errors import WrongUsage


class MoCoKnobs(ObjectiveKnobs):
    """Table 2 of the second paper and section 3.3 of the first."""

    head_norm: Literal["batch", "layer", "none"] = "none"
    """The head of the second paper is two layers with ReLU between them, without normalisation."""
    temperature: Positive = 0.2
    projection_hidden: Count = 2048
    projection_out: Count = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    queue: Annotated[int, Field(ge=2)] = 65_536
    """Keys that are kept as negatives: at least a global batch."""
    bn_samples: Annotated[int, Field(ge=2)] = 32
    """Keys are embedded in shuffled parts of so many, those of the paper's GPUs: else a view would be told from others
    by the batch statistics that it shares with its key ("shuffling BN"). Only where there is batch normalisation."""
    symmetric: bool = False
    """Each view is a query once, not the first alone."""


class MoCoV2(Objective):
    """Queries of the first view (if `symmetric`, of both) and of local ones, then keys: (n, projection_out) each."""

    name = "moco-v2"
    per_rank = ("key_encoder", "key_head")
    Knobs = MoCoKnobs
    # the first paper's section 4.1, the second's section 3: SGD, 0.03 at a batch of 256, cosine, no warm-up
    defaults: ClassVar[dict[str, Any]] = {
        "optimiser": "sgd", "lr": 0.03, "lr_scaling": "linear", "weight_decay": 1e-4, "warmup_epochs": 0.0,
        "momentum": 0.9,
    }  # fmt: skip
    queue: torch.Tensor
    place: torch.Tensor

    def __init__(self, encoder: Encoder, knobs: MoCoKnobs) -> None:
        super().__init__(encoder, knobs)
        self.head = head([encoder.num_features, knobs.projection_hidden, knobs.projection_out], knobs.head_norm)
        self.key_encoder, self.key_head = follower(encoder), follower(self.head)
        self.register_buffer("queue", F.normalize(torch.randn(knobs.queue, knobs.projection_out), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._fresh: list[torch.Tensor] = []
        parts = [*self.key_encoder.modules(), *self.key_head.modules()]
        self._shuffled = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts)

    @classmethod
    def check(cls, knobs: MoCoKnobs, batch_size: int) -> None:
        """Raises WrongUsage where a step's keys do not fit the queue."""
        if (keys := batch_size * (GLOBAL if knobs.symmetric else 1)) > knobs.queue:
            raise WrongUsage(f"{keys} keys a step do not fit the queue of {knobs.queue}: raise queue")

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        asked = [*views[: GLOBAL if self.knobs.symmetric else 1], *views[GLOBAL:]]
        queries = embed(lambda view: self.head(self.encoder(view)), asked)
        with torch.no_grad():
            keys = [self._keys(view) for view in (views[1], views[0])[: GLOBAL if self.knobs.symmetric else 1]]
        return *queries, *keys

    def _keys(self, view: torch.Tensor) -> torch.Tensor:
        """Keys float32 (n, D) of a view, in parts that are shuffled."""
        order = torch.arange(len(view), device=view.device)
        parts = 1
        if self._shuffled and self.training:
            order = torch.randperm(len(view), device=view.device)
            parts = max(1, min(2, len(view) // 2), len(view) // self.knobs.bn_samples)
        found = [self.key_head(self.key_encoder(view[some])) for some in order.tensor_split(parts)]
        return torch.cat(found).float()[order.argsort()]

    def loss(self, embedded: Embedded) -> Outcome:
        count = GLOBAL if self.knobs.symmetric else 1
        with torch.autocast(embedded[0].device.type, enabled=False):
            keys = [F.normalize(key.detach().float(), dim=1) for key in embedded[-count:]]
            queries = [F.normalize(query.float(), dim=1) for query in embedded[:-count]]
            # a global query's key is the other view's; a local one has them all
            pairs = [(queries[n], keys[n]) for n in range(count)]
            pairs += [(query, key) for query in queries[count:] for key in keys]
            queue = self.queue.clone()  # the buffer moves on before a second backward pass
            found = mean([self._contrast(query, key, queue) for query, key in pairs])
        if self.training:
            self._fresh = keys
        return Outcome(found.loss, embedded[0].detach(), found.metrics)

    def _contrast(self, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> Contrast:
        """InfoNCE, equation 1 of the first paper: the key among the queue's."""
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / self.knobs.temperature
        return contrast(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))

    def after_step(self, step: int, steps: int) -> None:
        """Average the weights, and put the step's keys, of all ranks in their order, where the oldest were."""
        follow(self.key_encoder, self.encoder, self.knobs.momentum)
        follow(self.key_head, self.head, self.knobs.momentum)
        if not self._fresh:
            return
        # a view at a time, as one process with the joined batch has them
        keys, self._fresh = torch.cat([gathered(key) for key in self._fresh]), []
        self.check(self.knobs, len(keys) // (GLOBAL if self.knobs.symmetric else 1))
        at = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[at] = keys
        self.place.add_(len(keys)).remainder_(len(self.queue))
