"""The sweep file: one YAML that says which dictionaries to train, on what, and with what resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.config_file import PATH, nearest
from lexray.storage.errors import UnreachableError, UserError
from lexray.storage.file_settings import Count, Positive
from lexray.storage.objects.settings import StorageSettings
from lexray.training.config import EveryConfig, OptimizerConfig, RowsConfig
from lexray.training.dictionaries import ARCHITECTURES, architecture
from lexray.training.dictionaries.base import Kind
from lexray.training.identity.versions import NEWEST
from lexray.tuning.file.axes import SITE_AXES, TRIAL_AXES, Point, Range, Values, axis_values
from lexray.tuning.file.resources import PricesBlock, ResourcesBlock
from lexray.tuning.file.rules import Condition, Rule
from lexray.tuning.file.search import SearchBlock
from lexray.tuning.file.stop_block import EndsBlock
from lexray.tuning.file.wandb_block import WandbBlock

TRAINING_SETTINGS = ("lr", "rows", "lr_scale", "precision")
"""Settings of the training that a rule may set."""
RULE_SETTINGS = (
    "workers", "mesh", "zero_stage", "offload_optimizer", "micro_batches", "cpus_per_worker", "gpus_per_worker",
    *TRAINING_SETTINGS,
)  # fmt: skip
"""Settings that a rule may set in addition to options of the architecture."""


@dataclass(frozen=True, kw_only=True)
class DataBlock(RowsConfig):
    """Which rows are read."""

    url: str
    """Dataset made by `lexray harvest`: a path, file:// or s3://; or rows of known features, synthetic://NAME?rows=N."""
    site: str | None = None
    """Site that autoencoders read and reconstruct, and that transcoders read."""
    output_site: str | None = None
    """Site that transcoders reconstruct."""
    sites: tuple[str, ...] = ()
    """Sites that crosscoders read and reconstruct: two or more."""

    def sites_for(self, kind: Kind, architecture: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Inputs and outputs of a dictionary of this kind. Raises ValueError naming the field that is missing."""
        if kind == "crosscoder":
            if len(self.sites) < 2:
                raise ValueError(f"data.sites: {architecture} reads several sites at once, {len(self.sites)} given")
            for site in self.sites:
                if self.sites.count(site) > 1:
                    raise ValueError(f"data.sites: {site!r} stands there {self.sites.count(site)} times; name it once")
            return tuple(self.sites), ()
        if self.site is None:
            raise ValueError(f"data.site: required for {architecture}, but not given")
        if kind == "sae":
            return (self.site,), ()
        if self.output_site is None:
            raise ValueError(f"data.output_site: {architecture} reads one site and reconstructs another: name that")
        if self.output_site == self.site:
            raise ValueError(f"data.output_site: {architecture} cannot reconstruct the site it reads, {self.site!r}")
        return (self.site,), (self.output_site,)


@dataclass(frozen=True, kw_only=True)
class TrainingBlock(OptimizerConfig):
    """Length, optimizer and precision of every training."""

    rows: Count | None = None
    """Rows to train on, counted with repetition."""
    epochs: Positive | None = None
    """The same as passes over the training rows; give one of the two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rows is None) == (self.epochs is None):
            raise ValueError("give `rows` or `epochs`, one of the two")


class SweepFile(EndsBlock):
    """A sweep."""

    name: str = Field(min_length=1)
    output: str = Field(min_length=1)
    """Folder of the sweep: a path, file:// or s3://."""
    data: DataBlock
    training: TrainingBlock
    axes: dict[str, list[Any] | Range]
    """Values of each axis, or a range to draw from; the trials are their product, or drawn from it by `search`."""
    search: SearchBlock = SearchBlock()
    exclude: list[Condition] = Field(default_factory=list)
    """Points of the axes that meet one of these conditions are left out."""
    include: list[Condition] = Field(default_factory=list)
    """Points to train besides; an axis that an entry does not name has all its values."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fixed options by architecture, which win over the axes; `all` goes to whichever architecture has them."""
    rules: list[Rule] = Field(default_factory=list)
    resources: ResourcesBlock = ResourcesBlock()
    every: EveryConfig = EveryConfig()
    retries: int = Field(default=3, ge=0)
    """Times that a trial whose worker died is resumed from its newest checkpoint."""
    storage: StorageSettings = StorageSettings()
    cache: CacheSettings | None = None
    prices: PricesBlock | None = None
    wandb: WandbBlock = WandbBlock()
    defaults: int | None = Field(default=None, ge=1, le=NEWEST)
    """Version of lexray's defaults; a sweep that began goes on with those that it began with."""
    _path: str = PrivateAttr(default="")

    def model_post_init(self, context: Any) -> None:
        self._path = (context or {}).get(PATH, "")

    @property
    def path_prefix(self) -> str:
        """`FILE: `, for errors about what stands in it; empty for a sweep that was not read from a file."""
        return f"{self._path}: " if self._path else ""

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Put the file in front of a user error about what stands in it."""
        try:
            yield
        except UnreachableError:
            raise
        except UserError as error:
            raise UserError(f"{self.path_prefix}{error}") from error

    @field_validator("axes", mode="before")
    @classmethod
    def _lists(cls, axes: Any) -> Any:
        if not isinstance(axes, dict):
            return axes
        for axis in ("architecture", "target_l0"):
            if axis not in axes:
                raise ValueError(f"the axis {axis!r} is missing")
        if ("width" in axes) == ("expansion" in axes):
            both = "both `width` and `expansion` are given" if "width" in axes else "the axis 'width' is missing"
            raise ValueError(f"{both}; give one of `width` and `expansion` (times the site's width)")
        return {axis: axis_values(axis, values) for axis, values in axes.items()}

    @model_validator(mode="after")
    def _consistent(self) -> SweepFile:
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{axis}: has no values, so there is no trial")
            if isinstance(values, Range) and self.search.kind == "grid":
                raise ValueError(
                    f"axes.{axis}: a range is for `search: {{kind: random}}` or optuna; list its values for a grid"
                )
        for name in self.architectures:
            self.data_at({axis: _first(values) for axis, values in self.axes.items()}, name)
        self._check_names()
        return self

    @property
    def architectures(self) -> list[str]:
        """Those of the axes and of `include`, each once."""
        listed = [axis_values("architecture", entry.get("architecture", [])) for entry in self.include]
        named = [name for values in (self.axes["architecture"], *listed) if isinstance(values, list) for name in values]
        return [name for number, name in enumerate(named) if name not in named[:number]]

    def data_at(self, point: Point, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Inputs and outputs of an architecture at a point of the axes. Raises ValueError naming the field."""
        sites = {axis: point[axis] for axes in SITE_AXES.values() for axis in axes if axis in point}
        if isinstance(sites.get("site"), dict):
            sites |= _pair(sites["site"])
        if not isinstance(sites.get("sites", []), list):
            raise ValueError(f"axes.sites: {sites['sites']!r} is no list of sites")
        data = replace(self.data, **sites)
        return data.sites_for(architecture(name).kind, name)

    def _check_names(self) -> None:
        """Refuse axes and options that no architecture of the sweep has."""
        options = frozenset().union(*(self._options(name) for name in self.architectures))
        kinds = {architecture(name).kind for name in self.architectures}
        sites = [axis for kind in sorted(kinds) for axis in SITE_AXES[kind]]
        axes = list(dict.fromkeys((*TRIAL_AXES, *sites, *sorted(options))))
        for axis in self.axes:
            _refuse_other_code("axes", axis, axes, self.architectures)
            _refuse_unknown("axes", axis, axes)
        for entry in self.include:
            for axis in entry:
                _refuse_unknown("include", axis, axes)
        for condition in self.exclude:
            for axis in condition:
                _refuse_unknown("exclude", axis, list(self.axes))
        named = list(dict.fromkeys((*self.axes, *(axis for entry in self.include for axis in entry))))
        for rule in self.rules:
            for name in rule.when:
                _refuse_unknown("rules.when", name, named)
            for name in rule.set:
                _refuse_unknown("rules.set", name, [*RULE_SETTINGS, *sorted(options - set(TRIAL_AXES))])
        for name, given in self.options.items():
            _refuse_unknown("options", name, [*ARCHITECTURES, "all"])
            for option in given:
                having = options - {"width", "target_l0"}
                having = having if name == "all" else self._options(name)
                if name != "all":
                    _refuse_other_code(f"options.{name}", option, sorted(having), [name])
                _refuse_unknown(f"options.{name}", option, sorted(having))

    def _options(self, name: str) -> frozenset[str]:
        """Options that an architecture has with one of the codes that it may have in this sweep."""
        made = architecture(name)
        layers = [self.options.get("all", {}), self.options.get(name, {}), *(rule.set for rule in self.rules)]
        given = [layer["code"] for layer in layers if "code" in layer]
        for axes in (self.axes, *self.include):
            values = axis_values("code", axes.get("code", []))
            given += values if isinstance(values, list) else []
        kinds = {code.get("kind") if isinstance(code, dict) else code for code in given} & set(made.kinds)
        if not kinds or ("code" not in self.options.get(name, {}) and "code" not in self.axes):
            kinds |= {*made.kinds[:1]}
        return frozenset().union(*(made.option_names(kind) for kind in kinds or {None}))


def _first(values: Values) -> Any:
    return values.low if isinstance(values, Range) else values[0]


def _pair(given: dict[str, Any]) -> dict[str, str]:
    """The sites of `{input: a, output: b}`."""
    if set(given) != {"input", "output"}:
        raise ValueError(f"axes.site: {given} is neither the name of a site nor {{input: NAME, output: NAME}}")
    return {"site": str(given["input"]), "output_site": str(given["output"])}


def _refuse_other_code(where: str, name: str, known: list[str], architectures: list[str]) -> None:
    """Raise ValueError for an option of codes that the architectures could have, and do not have in this sweep."""
    made = [architecture(one) for one in architectures]
    having = {kind for one in made for kind in one.kinds if name in one.option_names(kind)}
    if name not in known and having:
        raise ValueError(f"{where}.{name}: an option of code {' and '.join(sorted(having))}, which no trial here has")


def _refuse_unknown(where: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{where}.{name}: unknown{nearest(name, known)}")
