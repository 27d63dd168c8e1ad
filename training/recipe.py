"""Recipes: every knob of a run in one TOML file, checked before anything starts."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.views import Seasons, ViewRecipe
from shards.bands import Fallback
from shards.errors import WrongUsage

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Optimiser = Literal["adamw", "adam", "sgd", "lars"]

OPTIMISERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "lr_scaling": "none", "weight_decay": 1e-4, "momentum": 0.9},
    "adam": {"lr": 1e-3, "lr_scaling": "none", "weight_decay": 0.0, "momentum": 0.9},
    "sgd": {"lr": 0.05, "lr_scaling": "linear", "weight_decay": 1e-4, "momentum": 0.9},
    "lars": {"lr": 0.3, "lr_scaling": "linear", "weight_decay": 1e-6, "momentum": 0.9},
}
"""What a recipe leaves out where it names another optimiser than its method's paper: rates of one mean nothing to
another. SGD's rate is SimSiam's, that of LARS SimCLR's."""


class Recipe(BaseModel):
    """What both scripts share: where knobs come from, and how wrong ones are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path | None, overrides: Mapping[str, Any]) -> Self:
        """A TOML file (or the defaults), then `overrides`, of which None means not given; dots reach into tables.

        Raises WrongUsage naming the file and the knob that is unknown or out of range.
        """
        content: dict[str, Any] = {}
        if path is not None:
            try:
                content = tomllib.loads(path.read_text())
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise WrongUsage(f"recipe {path} cannot be read: {error}") from None
        for name, value in overrides.items():
            if value is not None:
                *tables, knob = name.split(".")
                place = content
                for table in tables:
                    place = place.setdefault(table, {})
                    if not isinstance(place, dict):
                        raise WrongUsage(f"{path}: {table} is a table of knobs, not one value")
                place[knob] = value
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise WrongUsage(f"{path or 'options'}: {_told(error)}") from None


class LocalView(BaseModel):
    """How the small views of multi-crop differ from `view` (Caron et al. 2020, section 3.3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=8)] = 48
    crop_scale: tuple[float, float] = (0.05, 0.25)

    @model_validator(mode="after")
    def _range(self) -> "LocalView":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} is no range within (0, 1]")
        return self


class Watching(BaseModel):
    """When features count as collapsed, and what is done about it; see training/watch.py."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature_std: Share = 0.05
    """Spread of the embeddings over the sphere (1: even, 0: one point) below which they have collapsed, unless they
    began with little more."""
    encoder_std: Share = 0.1
    """The same for the encoder's features, whose spread may be small from the beginning."""
    of_beginning: Share = 0.15
    """Share of the spread that either began with: what is above it has not collapsed."""
    samples: Annotated[int, Field(ge=4)] = 64
    """Of a process's batch, whose features before the head are looked at."""
    rollbacks: Annotated[int, Field(ge=0)] = 3
    """How often a run with on_nan = "rollback" goes back before it ends."""
    rollback_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """On the learning rate, at every rollback."""


class Pretraining(Recipe):
    """The knobs of train.py. Learning rate and batch size are those of the global batch.

    Where a recipe says nothing (None), `resolved` takes what the method's paper says.
    """

    method: str = "simclr"
    """An objective of models/objectives."""
    objective: dict[str, Any] = {}
    """The method's own knobs, such as temperature, momentum, projection_hidden."""
    encoder: str = "resnet18"
    weights: str = "none"
    """What a new encoder begins with: `none` (random), `imagenet`, or a .safetensors file of the same."""
    init: str | None = None
    """A run (or folder, or repository) whose encoder is trained on; it brings its architecture: an `encoder` that names
    another is refused."""
    fallback: Fallback = "none"
    """Where that encoder never saw one of the bands: `none`, an error; `wavelength`, the nearest one's weights; `zero`.
    """
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Samples of a step, over all processes and micro-batches."""
    accumulate: Count = 1
    """Micro-batches that a step is computed in, which saves memory; the step is that of the whole batch (GradCache)."""
    epochs: Count = 100
    optimiser: Optimiser | None = None
    lr: Positive | None = None
    """Base rate; the peak is `peak_lr`."""
    lr_scaling: Literal["linear", "sqrt", "none"] | None = None
    """How the peak rate follows from the base rate: times batch_size / 256, times its root, or as it is."""
    weight_decay: NotNegative | None = None
    momentum: Share | None = None
    """Of SGD and LARS; beta1 of Adam and AdamW."""
    warmup_epochs: NotNegative | None = None
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    plateau_patience: Annotated[int, Field(ge=0)] = 10
    """Validations without a lower loss after which a plateau schedule lowers the rate."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    early_stopping: Count | None = None
    """Epochs without a better validation after which the run ends, and exports its best; None: never."""
    validate_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs from one validation to the next; 0: never."""
    validate_samples: Count = 4096
    """Samples of val, and of train as neighbours, that a validation looks at, at most."""
    knn: str = "auto"
    """Labels that nearest neighbours are scored by during training: a name, `auto` (the first there are) or `none`."""
    ema: Share = 0.0
    """Decay of an exponential moving average of the encoder's weights, which is then exported and scored by neighbours
    (val_loss stays that of the weights in training, whose heads know them); 0: none."""
    clip: Positive | None = None
    """Gradients whose joint norm is larger are scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device has instructions for it, float32 elsewhere."""
    compile: bool = False
    checkpointing: bool = False
    """Activations of the encoder are computed again in the backward pass, which saves memory for a third more time."""
    bands: list[str] | None = None
    """Names, in the order of the encoder's channels; by default all bands of the set."""
    seed: Seed = 0
    window: Count | None = None
    """Shards that an epoch mixes at a time, for sets that memory or disk cannot serve in any order; None: all."""
    log_steps: Count = 10
    checkpoint_steps: Count = 1000
    """Checkpoints are also written at the end of every epoch."""
    keep: Count = 2
    """Newest checkpoints that are kept, beside the best."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """What happens when a number is not finite or features collapse: the run ends, or its weights go back."""
    seasons: Seasons = "first"
    """Which date of a place that has several the views show: the first, one drawn for both, or a different one each."""
    view: ViewRecipe = ViewRecipe()
    """Both views are drawn from it, independently."""
    second_view: ViewRecipe | None = None
    """The second view's own recipe, where it has one (as T' in BYOL); of the first one's size."""
    local_views: Annotated[int, Field(ge=0)] = 0
    """Small views beside the two (multi-crop)."""
    local_view: LocalView = LocalView()
    watch: Watching = Watching()

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, content: Any) -> Any:
        view, second = (content.get(name) if isinstance(content, dict) else None for name in ("view", "second_view"))
        if isinstance(view, dict) and isinstance(second, dict) and "size" in view:
            content = content | {"second_view": {"size": view["size"]} | second}
        return content

    @model_validator(mode="after")
    def _fits(self) -> "Pretraining":
        if self.init and self.weights != "none":
            raise ValueError(f"init and weights {self.weights!r} both say what the encoder begins with: leave one out")
        if self.second_view and self.second_view.size != self.view.size:
            raise ValueError(f"second_view.size {self.second_view.size} is not view.size {self.view.size}")
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not {self.accumulate} (accumulate) batches of 2 or more")
        if not self.validate_epochs and (self.schedule == "plateau" or self.early_stopping):
            raise ValueError("a plateau schedule and early stopping need validations: validate_epochs is 0")
        if self.early_stopping and self.early_stopping < self.validate_epochs:
            raise ValueError(f"early_stopping {self.early_stopping} is below validate_epochs {self.validate_epochs}")
        return self

    @property
    def views(self) -> list[ViewRecipe]:
        """A recipe a view: two global ones, then the local ones."""
        local = self.view.multi_crop(self.local_views, self.local_view.size, self.local_view.crop_scale)[2:]
        return [self.view, self.second_view or self.view, *local]

    def check_parts(self, ranks: int) -> None:
        """Raises WrongUsage where so many ranks leave a micro-batch without two samples."""
        if self.batch_size < 2 * self.accumulate * ranks:
            raise WrongUsage(
                f"batch_size {self.batch_size} leaves fewer than two samples to each of {ranks} processes' "
                f"{self.accumulate} micro-batches: raise it, or lower accumulate"
            )

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up. Of a resolved recipe."""
        assert self.lr is not None
        power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[self.lr_scaling or "none"]
        return self.lr * math.pow(self.batch_size / 256, power)

    def resolved(self) -> "Pretraining":
        """The recipe with nothing left open: what it does not say is as in the method's paper (`Objective.defaults`).

        Rates belong to an optimiser: a recipe that names another than the paper's takes that one's of `OPTIMISERS`.
        Warm-up takes a tenth of the epochs at most, unless the recipe says more. Raises WrongUsage naming an
        unknown method, or knobs of `objective` that it does not have.
        """
        from models.objectives import METHODS

        if self.method not in METHODS:
            close = difflib.get_close_matches(self.method, METHODS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(METHODS))}"
            raise WrongUsage(f"no method {self.method!r}: {hint}")
        method = METHODS[self.method]
        try:
            knobs = method.Knobs.model_validate(self.objective)
        except ValidationError as error:
            raise WrongUsage(f"[objective] of {self.method}: {_told(error)}") from None
        method.check(knobs, self.batch_size)
        paper = dict(method.defaults)
        optimiser = self.optimiser or paper["optimiser"]
        warmup = min(paper.get("warmup_epochs", 0.0), self.epochs / 10)
        values = OPTIMISERS[optimiser] | (paper if optimiser == paper["optimiser"] else {})
        values |= {"optimiser": optimiser, "warmup_epochs": warmup}
        open_ = {name: value for name, value in values.items() if getattr(self, name) is None}
        return self.model_copy(update=open_ | {"objective": knobs.model_dump(mode="json")})


def _told(error: ValidationError) -> str:
    """What is wrong with which knobs, in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors(include_url=False))
