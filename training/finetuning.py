"""The recipe of fine-tuning."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.views import ViewRecipe
from shards.bands import Fallback
from training.recipe import Count, NotNegative, Positive, Recipe, Seed, Share


class Phase(BaseModel):
    """From `epoch` on (0 is the first), the last `stages` of the encoder are trained besides the head; None: all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: Annotated[int, Field(ge=0)]
    stages: Annotated[int, Field(ge=0)] | None = None


class FineTuning(Recipe):
    """The knobs of finetune.py."""

    task: Literal["classify", "segment"] | None = None
    target: str | None = None
    """Which labels or masks of the set are learned, by name; None: its first."""
    label_fraction: float = 1.0
    """Share of the train split whose labels are used: seeded, stratified, nested."""
    bands: list[str] | None = None
    """Names, in the order of the encoder's channels; by default all bands of the set."""
    fallback: Fallback = "none"
    """Where the encoder never saw one of them: `none`, an error; `wavelength`, the nearest one's weights; `zero`."""
    normalise: Literal["set", "encoder"] = "set"
    """Whose statistics views are standardised with."""
    encoder: str = "resnet18"
    """Of a start from scratch; a run brings its own."""
    decoder: Literal["unet", "unetplusplus", "deeplabv3plus", "fpn", "segformer", "upernet", "dpt"] | None = None
    """Of segmentation; None: dpt for a vision transformer, else unet."""
    dropout: Share = 0.0
    """Before the head."""
    freeze: Literal["none", "encoder", "progressive"] | None = None
    """encoder: all of it, a linear probe; progressive: by the phases of `unfreeze`; None: that, where it has some."""
    unfreeze: tuple[Phase, ...] = ()
    """Phases of progressive unfreezing; before the first the whole encoder is frozen."""
    loss: dict[Literal["ce", "bce", "dice", "focal"], Positive] = Field(default_factory=dict)
    """Terms of the loss with their factors; empty: cross-entropy, binary where labels occur together."""
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    class_weights: Literal["none", "inverse"] = "none"
    """inverse: classes weigh by the inverse of their frequency among the labels used."""
    mixup: NotNegative = 0.0
    """Alpha of MixUp, for single labels; 0: off."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix, for single labels; 0: off."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    epochs: Count = 50
    min_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at least: few labels, of which an epoch has few, are trained for as many more epochs."""
    optimiser: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    lr: Positive = 1e-3
    encoder_lr: Positive = 1.0
    """Factor on the learning rate for the encoder's weights."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Further factor on it for each stage of the encoder, counted from the head."""
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    plateau_patience: Count = 5
    """Validations without a better score after which the learning rate falls, see `validate_steps`."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    clip: Positive = 5.0
    patience: Count = 10
    """Epochs without a better validation score after which training stops; they count from the last phase on."""
    validate_steps: Count = 20
    """Steps at least between two validations, so that few labels do not mean that validation takes all the time."""
    validate_samples: Count | None = None
    """Samples of the val split that a validation looks at, the first of its (shuffled) order; None: all."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Seed = 0
    view: ViewRecipe = ViewRecipe(size=None, crop_scale=(0.6, 1.0))
    """Of training. Evaluation takes whole patches: at the same size to classify, at the patch's own to segment."""

    @model_validator(mode="after")
    def _phases(self) -> "FineTuning":
        if self.freeze == "progressive" and not self.unfreeze:
            raise ValueError("progressive unfreezing takes phases: add [[unfreeze]] tables to the recipe")
        epochs = [phase.epoch for phase in self.unfreeze]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"the phases of unfreeze begin at epochs {epochs}: each must begin after the one before")
        if self.bands is not None and (not all(self.bands) or len(set(self.bands)) < max(len(self.bands), 1)):
            raise ValueError(f"bands {', '.join(self.bands) or 'none'}: name each once, and at least one")
        if self.task == "segment" and (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix are for single labels: set them to 0 to segment")
        return self

    def lengthened(self, epoch_steps: int) -> "FineTuning":
        """The recipe with as many epochs of so many steps as `min_steps` asks for."""
        return self.model_copy(update={"epochs": max(self.epochs, math.ceil(self.min_steps / epoch_steps))})

    @property
    def frozen(self) -> str:
        """In a word: `none`, `encoder` or `progressive`."""
        return self.freeze or ("progressive" if self.unfreeze else "none")

    def stages(self, epoch: int) -> int | None:
        """How many of the encoder's last stages are trained in an epoch; None: all."""
        if self.frozen != "progressive":
            return 0 if self.frozen == "encoder" else None
        return next((phase.stages for phase in reversed(self.unfreeze) if phase.epoch <= epoch), 0)

    @property
    def last_phase(self) -> int:
        """The epoch from which on nothing more is unfrozen."""
        return min(self.unfreeze[-1].epoch, self.epochs - 1) if self.frozen == "progressive" else 0
