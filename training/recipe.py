"""Recipes: every knob of a run in one TOML file, checked before anything starts."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.views import Seasons, ViewRecipe
from shards.errors import BandstreamError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Recipe(BaseModel):
    """What both scripts share: where knobs come from, and how wrong ones are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path | None, overrides: Mapping[str, Any]) -> Self:
        """A TOML file (or the defaults), then `overrides`, of which None means not given; dots reach into tables.

        Raises BandstreamError naming the file and the knob that is unknown or out of range.
        """
        content: dict[str, Any] = {}
        if path is not None:
            try:
                content = tomllib.loads(path.read_text())
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise BandstreamError(f"recipe {path} cannot be read: {error}") from None
        for name, value in overrides.items():
            if value is not None:
                *tables, knob = name.split(".")
                place = content
                for table in tables:
                    place = place.setdefault(table, {})
                    if not isinstance(place, dict):
                        raise BandstreamError(f"{path}: {table} is a table of knobs, not one value")
                place[knob] = value
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            told = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors(include_url=False)
            )
            raise BandstreamError(f"{path or 'options'}: {told}") from None


class Pretraining(Recipe):
    """The knobs of train.py. Learning rate and batch size are those of the global batch."""

    encoder: str = "resnet18"
    projection_hidden: Count = 512
    projection_out: Count = 128
    temperature: Positive = 0.2
    batch_size: Annotated[int, Field(ge=2)] = 256
    epochs: Count = 100
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    clip: Positive = 5.0
    """Gradients whose joint norm is larger are scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device has instructions for it, float32 elsewhere."""
    compile: bool = False
    bands: list[str] | None = None
    """Names, in the order of the encoder's channels; by default all bands of the set."""
    seed: int = 0
    window: Count | None = None
    """Shards that an epoch mixes at a time, for sets that memory or disk cannot serve in any order; None: all."""
    log_steps: Count = 10
    checkpoint_steps: Count = 1000
    """Checkpoints are also written at the end of every epoch."""
    seasons: Seasons = "first"
    """Which date of a place that has several the views show: the first, one drawn for both, or a different one each."""
    view: ViewRecipe = ViewRecipe()
    """Both views are drawn from it, independently."""
    second_view: ViewRecipe | None = None
    """The second view's own recipe, where it has one (as T' in BYOL)."""

    @model_validator(mode="after")
    def _one_size(self) -> "Pretraining":
        if self.second_view and self.second_view.size != self.view.size:
            raise ValueError(f"second_view.size {self.second_view.size} is not view.size {self.view.size}")
        return self

    @property
    def views(self) -> list[ViewRecipe]:
        """A recipe a view."""
        return [self.view, self.second_view or self.view]
