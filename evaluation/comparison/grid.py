"""The grid of a comparison: what its encoders and protocols come to, and the cells, in the order of their running."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from evaluation.comparison.spec import EncoderTable, Knobs, Options, ProtocolTable, Spec, Table
from shards.errors import BandstreamError
from training.finetuning import FineTuning
from training.recipe import Pretraining, Recipe

WHOLE = ("cluster", "retrieval", "map")
"""Protocols that few labels say nothing about: unless told otherwise, they run on all."""


@dataclass(frozen=True)
class Encoder:
    """One encoder: a table of the spec at one point of its axes, or with one of its variants."""

    name: str
    key: str
    """Of its folder; of the table as it is, its name."""
    variant: str
    settings: Knobs
    plain: bool
    """Whether it is its table's recipe as it is."""
    how: str
    """scratch, run, pretrain or supervised."""
    source: str | None
    """The architecture of random weights (None: the protocol's), or the run that is taken."""
    recipe: Any
    every_seed: bool
    shards: str
    baseline: str | None
    """Whom its differences are to, where that is not the comparison's."""

    @property
    def told(self) -> str:
        return _with(self.name, self.variant, self.settings, " ({})")

    def folder(self, seed: int) -> Path | None:
        """Of what is trained for a seed, in the comparison's folder; None where nothing is trained."""
        if self.recipe is None:
            return None
        return Path("encoders", self.key, f"seed-{seed if self.every_seed else self.recipe.seed}")


@dataclass(frozen=True)
class Protocol:
    """One protocol: a table of the spec at one point of its axes, or with one of its variants."""

    name: str
    """As told: with the point or variant, where there are several."""
    key: str
    settings: Knobs
    evaluate: str | None
    """The protocol of `evaluate`; None: fine-tuning."""
    recipe: FineTuning | None
    options: Options
    of: "Protocol | None"
    encoders: tuple[str, ...]
    label_fractions: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One run: the training of an encoder (no protocol), or a protocol on an encoder."""

    encoder: Encoder
    protocol: Protocol | None
    label_fraction: float
    seed: int
    folder: Path
    """In the comparison's folder."""
    needs: Path | None
    """The folder of the cell that must be finished before."""

    @property
    def told(self) -> str:
        if self.protocol is None:
            kind = "pretraining" if self.encoder.how == "pretrain" else "supervised pretraining"
            return f"{kind}, {self.encoder.told}, {self.folder.name.replace('-', ' ')}"
        share = f"{100 * self.label_fraction:g} % of the labels"
        return f"{self.protocol.name}, {self.encoder.told}, {share}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    encoders: list[Encoder]
    protocols: list[Protocol]
    cells: list[Cell]


def expand(spec: Spec, path: Path) -> Grid:
    """The grid of a spec that stands in the file `path`, beside which recipes are looked for first.

    Cells stand encoder by encoder, each after what it needs. Raises BandstreamError, naming file and key.
    """
    encoders: list[Encoder] = []
    for name, table in spec.encoders.items():
        encoders += _encoders(path, name, table, spec.shards)
    protocols: list[Protocol] = []
    for name in sorted(spec.protocols, key=lambda name: spec.protocols[name].of is not None):
        protocols += _protocols(path, name, spec.protocols[name], spec, protocols)
    for kind, keys in (("encoders", [one.key for one in encoders]), ("protocols", [one.key for one in protocols])):
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise BandstreamError(f"{path}: {kind}: two would have the folder {twice[0]}: rename one")
    for protocol in protocols:
        for encoder in encoders:
            unsaid = encoder.how == "scratch" and not encoder.source and encoder.name in protocol.encoders
            if unsaid and protocol.evaluate and not protocol.of:
                raise BandstreamError(
                    f'{path}: encoders.{encoder.name}: {protocol.name} has to know: add encoder = "…"'
                )
    for encoder in encoders:
        if encoder.how == "supervised":
            refuse_own_classifier(encoder, protocols, f"{path}: ")
    return Grid(encoders, protocols, list(_cells(encoders, protocols)))


def refuse_own_classifier(encoder: Encoder, protocols: list[Protocol], place: str = "") -> None:
    """Raises BandstreamError where ood, which judges a fine-tuned run's own classifier, would not probe an encoder.

    It stood beside probes, though it was taught other labels.
    """
    for protocol in protocols:
        if protocol.evaluate == "ood" and not protocol.of and encoder.name in protocol.encoders:
            raise BandstreamError(
                f"{place}protocols.{protocol.name}: encoders.{encoder.name} is a classifier, which ood would judge as "
                "it is and not probe: name the others in encoders, or fine-tune all and say of"
            )


def _cells(encoders: Iterable[Encoder], protocols: list[Protocol]) -> Iterable[Cell]:
    there: set[Path] = set()
    for encoder in encoders:
        for protocol in (one for one in protocols if encoder.name in one.encoders):
            for fraction, seed in product(protocol.label_fractions, protocol.seeds):
                needs = encoder.folder(seed)
                if needs is not None and needs not in there:
                    there.add(needs)
                    yield Cell(encoder, None, 1.0, seed, needs, None)
                if protocol.of:
                    needs = _folder(protocol.of, encoder, fraction, seed)
                    if needs not in there:
                        continue
                folder = _folder(protocol, encoder, fraction, seed)
                there.add(folder)
                yield Cell(encoder, protocol, fraction, seed, folder, needs)


def _folder(protocol: Protocol, encoder: Encoder, fraction: float, seed: int) -> Path:
    return Path("runs", protocol.key, encoder.key, f"fraction-{fraction:.12g}", f"seed-{seed}")


def _encoders(path: Path, name: str, table: EncoderTable, shards: str) -> list[Encoder]:
    place = f"{path}: encoders.{name}"
    file = table.pretrain if table.pretrain is not None else table.supervised
    source = table.encoder if table.how == "scratch" else table.run
    if file is None:
        return [Encoder(name, name, "", {}, True, table.how, source, None, False, shards, table.baseline)]
    kind: type[Recipe] = Pretraining if table.how == "pretrain" else FineTuning
    return [
        Encoder(
            name,
            key,
            variant,
            settings,
            plain,
            table.how,
            None,
            recipe,
            table.every_seed,
            table.shards or shards,
            table.baseline,
        )
        for key, variant, settings, plain, recipe in _points(path, place, table.how, name, file, table, kind)
    ]


def _protocols(path: Path, name: str, table: ProtocolTable, spec: Spec, before: list[Protocol]) -> list[Protocol]:
    encoders = table.encoders or tuple(spec.encoders)
    whole = table.evaluate in WHOLE or (table.evaluate == "ood" and not table.of)
    fractions = table.label_fractions or ((1.0,) if whole else spec.label_fractions)
    where = encoders, fractions, table.seeds or spec.seeds
    if table.evaluate is None:
        assert table.finetune is not None
        points = _points(path, f"{path}: protocols.{name}", "finetune", name, table.finetune, table, FineTuning)
        return [
            Protocol(_with(name, variant, given, ", {}"), key, given, None, recipe, table.options, None, *where)
            for key, variant, given, _, recipe in points
        ]
    if table.of is None:
        return [Protocol(name, name, {}, table.evaluate, None, table.options, None, *where)]
    made = []
    for of in (one for one in before if one.key.split("--")[0] == table.of):
        if of.recipe and of.recipe.task == "segment":
            raise BandstreamError(f"{path}: protocols.{name}.of: {of.name} segments, ood is of classifiers")
        own = (table.encoders or of.encoders, table.label_fractions or of.label_fractions, table.seeds or of.seeds)
        for kind, asked, there in zip(("encoders", "label_fractions", "seeds"), own,
                                      (of.encoders, of.label_fractions, of.seeds), strict=True):  # fmt: skip
            if lacking := [str(value) for value in asked if value not in there]:
                raise BandstreamError(
                    f"{path}: protocols.{name}.{kind}: {of.name} is not run with {', '.join(lacking)}: it has "
                    f"{', '.join(map(str, there))}"
                )
        key, told = name + of.key.removeprefix(table.of), name + of.name.removeprefix(table.of)
        made.append(Protocol(told, key, of.settings, table.evaluate, None, table.options, of, *own))
    return made


def _points(
    path: Path, place: str, way: str, name: str, file: str, table: Table, kind: type[Recipe]
) -> list[tuple[str, str, Knobs, bool, Any]]:
    """(key, variant, settings, whether as it is, recipe) of a table's combinations of axes, then of its variants.

    The recipe as it is stands among them, unless there are axes alone.
    """
    recipe_file = _find(path, f"{place}.{way}", file)

    def read(knobs: Knobs, where: str) -> Any:
        try:
            recipe: Any = kind.read(recipe_file, table.knobs | knobs)
            if isinstance(recipe, Pretraining):
                recipe.check_parts(1)
                return recipe.resolved()
        except BandstreamError as error:
            raise type(error)(f"{where}: {error}") from None
        if recipe.task is None:
            raise BandstreamError(
                f'{where}: nothing says what to learn: add knobs = {{ task = "classify" }} or segment'
            )
        return recipe

    plain = read({}, place)
    made: list[tuple[str, str, Knobs, bool, Any]] = []
    for values in product(*table.axes.values()) if table.axes else []:
        settings = dict(zip(table.axes, values, strict=True))
        key = "--".join([name, *(f"{knob}-{_slug(_value(value))}" for knob, value in settings.items())])
        recipe = read(settings, f"{place}.axes")
        made.append((key, "", settings, recipe == plain, recipe))
    if not table.axes or (table.variants and not any(point[3] for point in made)):
        made.append((name, "", {}, True, plain))
    for variant, knobs in table.variants.items():
        key = f"{name}--{_slug(variant)}"
        made.append((key, variant, knobs, False, read(knobs, f"{place}.variants.{variant}")))
    return made


def _find(path: Path, place: str, file: str) -> Path | None:
    if not file:
        return None
    for found in (path.parent / file, Path(file)):
        if found.is_file():
            return found
    raise BandstreamError(f"{place}: there is no recipe {file}, neither in {path.parent} nor here")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-") or "-"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _with(name: str, variant: str, settings: Knobs, pattern: str) -> str:
    told = variant or ", ".join(f"{knob} {_value(value)}" for knob, value in settings.items())
    return name + pattern.format(told) if told else name
