"""What a comparison is asked for: one TOML file, checked before anything starts."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards.bands import Fallback
from shards.errors import BandstreamError

NAME = re.compile(r"[A-Za-z0-9]([\w.]|-(?!-))*")
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Knobs = dict[str, Any]


class Table(BaseModel):
    """What tables share: nothing unknown in them, and knobs of a recipe, some of which may take several values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knobs: Knobs = {}
    """Over the recipe; dotted names reach into its tables."""
    axes: Knobs = {}
    """Knob → its values; all combinations are made."""
    variants: dict[str, Knobs] = {}
    """Name → knobs, each beside the recipe as it is."""

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, content: Any) -> Any:
        """`view.size = 64` and `"view.size" = 64` are the same."""
        if not isinstance(content, dict):
            return content
        flat = {name: dotted(content[name]) for name in ("knobs", "axes") if isinstance(content.get(name), dict)}
        variants = content.get("variants")
        if isinstance(variants, dict):
            flat["variants"] = {name: dotted(v) if isinstance(v, dict) else v for name, v in variants.items()}
        return content | flat

    @model_validator(mode="after")
    def _values(self) -> "Table":
        for knob, values in self.axes.items():
            if not isinstance(values, list) or not values or any(value in values[:k] for k, value in enumerate(values)):
                raise ValueError(f"axes: {knob} takes a list of different values, such as [1, 2]")
        return self

    def varies(self) -> list[str]:
        return [name for name in ("knobs", "axes", "variants") if getattr(self, name)]


class EncoderTable(Table):
    """How an encoder comes about, in exactly one way; random weights, where none is named."""

    encoder: str | None = None
    """Of random weights: which architecture."""
    run: str | None = None
    """A run's folder, or user/name of the Hub: taken as it is, never written to."""
    pretrain: str | None = None
    """Recipe of train.py; empty: its defaults."""
    supervised: str | None = None
    """Recipe of finetune.py, from scratch."""
    shards: str | None = None
    """Pretrained on this set instead of the one that is compared on."""
    every_seed: bool = False
    """Pretrained once for each of the seeds, instead of once."""
    baseline: str | None = None
    """The encoder that its paired differences are to, where that is another than the comparison's."""

    @model_validator(mode="after")
    def _one_way(self) -> "EncoderTable":
        ways = [way for way in ("run", "pretrain", "supervised") if getattr(self, way) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)}: an encoder comes about in one way, leave one")
        trained = [*self.varies(), *(["shards"] if self.shards else []), *(["every_seed"] if self.every_seed else [])]
        if trained and self.how not in ("pretrain", "supervised"):
            raise ValueError(f'{trained[0]} is of pretraining: add pretrain = "RECIPE" (empty: the defaults)')
        given = {"knobs": self.knobs, "axes": self.axes}
        given |= {f"variants.{name}": knobs for name, knobs in self.variants.items()}
        for place, knobs in given.items():
            if self.every_seed and "seed" in knobs:
                raise ValueError(f"{place}: seed is each of the comparison's with every_seed: leave one of them out")
        if self.encoder and self.how != "scratch":
            raise ValueError(f'encoder is of random weights: with {self.how} say knobs = {{ encoder = "…" }}')
        return self

    @property
    def how(self) -> Literal["scratch", "run", "pretrain", "supervised"]:
        for way in ("run", "pretrain", "supervised"):
            if getattr(self, way) is not None:
                return way
        return "scratch"


class Options(BaseModel):
    """Those of `bandstream evaluate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Literal["last", "stages"] = "last"
    labels: str | None = None
    bands: tuple[str, ...] | None = None
    fallback: Fallback = "none"
    view_size: Annotated[int, Field(ge=8)] | None = None
    normalise: Literal["set", "encoder"] = "set"
    batch_size: Annotated[int, Field(ge=1)] = 128
    clusters: Annotated[int, Field(ge=2)] | None = None
    method: Literal["tsne", "umap"] = "tsne"
    against: str | None = None
    hold_out: tuple[str, ...] = ()
    passes: Annotated[int, Field(ge=2)] = 20
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    neighbours: Annotated[int, Field(ge=1)] = 10


class ProtocolTable(Table):
    """What is done with every encoder."""

    finetune: str | None = None
    """Recipe of finetune.py; empty: its defaults."""
    evaluate: Literal["linear", "knn", "cluster", "retrieval", "map", "ood"] | None = None
    options: Options = Options()
    of: str | None = None
    """Of ood: the protocol whose fine-tuned classifiers are judged, instead of probes on encoders."""
    encoders: tuple[str, ...] | None = None
    label_fractions: tuple[Fraction, ...] | None = None
    seeds: tuple[Seed, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ProtocolTable":
        if (self.finetune is None) == (self.evaluate is None):
            raise ValueError('say finetune = "RECIPE" (empty: the defaults) or evaluate = "linear", one of both')
        if self.evaluate and self.varies():
            raise ValueError(f"{self.varies()[0]} is of finetune: evaluate takes options")
        if self.finetune is not None and self.options != Options():
            raise ValueError("options are of evaluate: finetune takes knobs")
        if self.of is not None and self.evaluate != "ood":
            raise ValueError('of goes with evaluate = "ood"')
        outside = [name for name in ("against", "hold_out") if getattr(self.options, name)]
        if self.evaluate == "ood" and len(outside) != 1:
            raise ValueError("options: say what is outside, against = SHARDS or hold_out = [CLASS], one of both")
        if self.evaluate != "ood" and outside:
            raise ValueError(f'options: {outside[0]} goes with evaluate = "ood"')
        if self.of is not None and self.options.bands:
            raise ValueError("of: fine-tuned classifiers have bands of their own, leave options.bands out")
        if self.of is not None and self.options.hold_out:
            raise ValueError("of: fine-tuned classifiers have seen all classes, hold_out takes encoders")
        given = {"knobs": self.knobs, "axes": self.axes}
        given |= {f"variants.{name}": knobs for name, knobs in self.variants.items()}
        for place, knobs in given.items():
            for knob in ("seed", "label_fraction"):
                if knob in knobs:
                    raise ValueError(f"{place}: {knob} is the comparison's own: say {knob}s")
        return self


class Spec(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "Comparison"
    shards: str
    seeds: tuple[Seed, ...] = (0,)
    label_fractions: tuple[Fraction, ...]
    baseline: str | None = None
    sets: dict[str, str] = {}
    """Name → a folder or URL, by which the file speaks of further shard sets."""
    encoders: dict[str, EncoderTable]
    protocols: dict[str, ProtocolTable]

    @model_validator(mode="after")
    def _fits(self) -> "Spec":
        for kind in ("encoders", "protocols"):
            if not getattr(self, kind):
                raise ValueError(f"{kind}: name at least one, as [{kind}.NAME]")
            for name, table in getattr(self, kind).items():
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind}.{name}: names are letters, digits, '.', '_' and single '-'")
                _lists(table, f"{kind}.{name}.")
        _lists(self, "")
        if self.baseline is not None:
            _known(self.baseline, self.encoders, "baseline", "encoder")
        for name, table in self.encoders.items():
            if table.baseline is not None:
                _known(table.baseline, self.encoders, f"encoders.{name}.baseline", "encoder")
        for name, protocol in self.protocols.items():
            for encoder in protocol.encoders or ():
                _known(encoder, self.encoders, f"protocols.{name}.encoders", "encoder")
            if protocol.of is not None:
                tuned = [other for other, table in self.protocols.items() if table.finetune is not None]
                _known(protocol.of, tuned, f"protocols.{name}.of", "fine-tuning protocol")
        return self


def read_spec(path: Path, shards: str | None = None, sets: Mapping[str, str] = {}) -> Spec:
    """The file, with `shards` and `sets` over its own, and sets by name resolved.

    Raises BandstreamError naming the file and what is wrong with which key.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BandstreamError(f"{path} cannot be read: {error}") from None
    if shards is not None:
        content["shards"] = shards
    if "shards" not in content:
        raise BandstreamError(f"{path}: shards: no set is named: add shards = SHARDS, or give --shards")
    if sets and isinstance(content.setdefault("sets", {}), dict):  # anything else is told of below
        content["sets"] |= sets
    try:
        return _resolved(Spec.model_validate(content), path, sets)
    except ValidationError as error:
        raise BandstreamError(f"{path}: {'; '.join(map(_told, error.errors(include_url=False)))}") from None


def _resolved(spec: Spec, path: Path, given: Mapping[str, str]) -> Spec:
    """The spec with the places of sets instead of their names. Raises BandstreamError on a given one that none is."""
    named = [spec.shards, *(table.shards for table in spec.encoders.values()),
             *(table.options.against for table in spec.protocols.values())]  # fmt: skip
    if unknown := sorted(given.keys() - set(named)):
        raise BandstreamError(f"{path}: no encoder or protocol speaks of a set {unknown[0]!r}: see --set")
    place = {**{name: name for name in named if name}, **spec.sets}

    def encoder(table: EncoderTable) -> EncoderTable:
        return table.model_copy(update={"shards": place[table.shards]} if table.shards else {})

    def protocol(table: ProtocolTable) -> ProtocolTable:
        against = table.options.against
        options = table.options.model_copy(update={"against": place[against]} if against else {})
        return table.model_copy(update={"options": options})

    return spec.model_copy(update={
        "shards": place[spec.shards],
        "encoders": {name: encoder(table) for name, table in spec.encoders.items()},
        "protocols": {name: protocol(table) for name, table in spec.protocols.items()},
    })  # fmt: skip


def dotted(knobs: Mapping[str, Any], place: str = "") -> Knobs:
    """Nested tables as one, with dotted names."""
    flat: Knobs = {}
    for name, value in knobs.items():
        flat |= dotted(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
    return flat


def _lists(table: Any, place: str) -> None:
    for name in ("seeds", "label_fractions", "encoders"):
        values = getattr(table, name, None)
        if isinstance(values, tuple) and len(set(values)) != max(len(values), 1):
            raise ValueError(f"{place}{name}: takes different values, one at least")


def _known(name: str, names: Any, place: str, what: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        raise ValueError(
            f"{place}: no {what} {name!r}: "
            + (f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}")
        )


_MODELS: dict[str, type[BaseModel]] = {"encoders": EncoderTable, "protocols": ProtocolTable}


def _told(error: Any) -> str:
    """Key and fault of one of pydantic's errors."""
    place = [str(part) for part in error["loc"]]
    fault = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        model = Options if "options" in place[2:3] else _MODELS.get(place[0], Spec) if len(place) > 1 else Spec
        known = list(model.model_fields)
        close = difflib.get_close_matches(place[-1], known, 1)
        fault = "unknown: " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
    return f"{'.'.join(place)}: {fault}" if place else fault
