"""The sweep file: one YAML that says which dictionaries to train, on what, and with what resources."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from storage.chunk_cache import CacheSettings
from storage.config_file import FileModel, StorageBlock, nearest
from training.dictionaries import ARCHITECTURES, architecture
from training.dictionaries.base import Kind

TRIAL_AXES = ("architecture", "width", "target_l0", "seed", "lr")
"""Axes that every architecture has."""
TRAINING_SETTINGS = ("lr", "rows", "lr_scale", "precision")
"""What a rule may set of the training."""
RULE_SETTINGS = (
    "workers", "mesh", "zero_stage", "offload_optimizer", "micro_batches", "cpus_per_worker", "gpus_per_worker",
    *TRAINING_SETTINGS,
)  # fmt: skip
"""What a rule may set besides options of the architecture."""


class DataBlock(FileModel):
    """Which rows are read."""

    url: str
    """Dataset made by `lexray harvest`: a path, file:// or s3://."""
    site: str | None = None
    """What autoencoders read and reconstruct, and what transcoders read."""
    output_site: str | None = None
    """What transcoders reconstruct."""
    sites: list[str] = Field(default_factory=list)
    """What crosscoders read and reconstruct: two or more."""
    batch_rows: int = Field(default=4096, gt=0)
    """Rows of a global batch."""
    held_out: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of documents kept for evaluation."""
    drop_special: bool = True
    """Leave out rows of tokens that the model's tokenizer calls special."""
    max_norm_ratio: float | None = Field(default=10.0, gt=0)
    """Leave out rows whose norm is above so many times their site's median; null keeps them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Order of the rows; the same for all trials, so that they share one stream."""
    lanes: int = Field(default=16, gt=0)
    window_bytes: int = Field(default=16 * 2**20, gt=0)

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


class TrainingBlock(FileModel):
    """How long and how every dictionary is trained."""

    rows: int | None = Field(default=None, gt=0)
    """Rows to train on, counted with repetition."""
    epochs: float | None = Field(default=None, gt=0)
    """The same as passes over the training rows; give one of the two."""
    lr: float | Literal["auto"] = "auto"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup: float = 0.05
    decay: float = 0.2
    lr_scale: dict[str, float] = Field(default_factory=dict)
    """Factors of the learning rate by name of parameter, as in `{b_dec: 2}`; all others have 1."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products; parameters, moments, losses and reductions are fp32 always."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingBlock:
        if (self.rows is None) == (self.epochs is None):
            raise ValueError("give `rows` or `epochs`, one of the two")
        return self


class EveryBlock(FileModel):
    """How often, in steps unless a name says seconds."""

    log: int = Field(default=50, gt=0)
    evaluate: int = Field(default=1000, gt=0)
    checkpoint: int = Field(default=1000, gt=0)
    checkpoint_s: float | None = Field(default=600, gt=0)
    """Save a checkpoint, too, when the newest is so many seconds old; null: by steps only."""
    eval_rows: int = Field(default=65_536, gt=0)
    """Held-out rows of an evaluation at most."""
    keep: int = Field(default=0, ge=0)
    """Keep the checkpoints of steps that are multiples of this for good; 0 keeps none once a trial is done."""


class MeshBlock(FileModel):
    """The workers of one dictionary: data x feature of them."""

    data: int = Field(default=1, gt=0)
    """Parts into which the rows of a batch are split."""
    feature: int = Field(default=1, gt=0)
    """Parts into which the latents are split; the width must be a multiple."""


class ResourcesBlock(FileModel):
    """What one trial gets."""

    workers: int | None = Field(default=None, gt=0)
    """Workers that split the rows of a batch: short for `mesh: {data: ...}`."""
    mesh: MeshBlock | Literal["auto"] | None = None
    """Workers along both axes; `auto` takes the smallest mesh whose workers have room on the cluster's nodes."""
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a GPU of the cluster, for `mesh: auto`; by default that of this machine's, where there is one."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory and step there; for ZeRO stages 1 to 3."""
    micro_batches: int = Field(default=1, gt=0)
    """Parts in which each worker computes its rows of a batch, one after another: less memory, the same result."""
    check_rows: bool = False
    """For debugging: compare the rows that the workers have of every batch, each planned row once."""
    timeout_s: float = Field(default=600.0, ge=1)
    """How long the workers of a trial wait for each other before the silent ones are named and all start again."""

    @model_validator(mode="after")
    def _one_mesh(self) -> ResourcesBlock:
        if self.workers is not None and self.mesh is not None:
            raise ValueError(f"give `workers` ({self.workers}) or `mesh`, one of the two")
        return self

    @property
    def axes(self) -> MeshBlock:
        """The workers along both axes; one, as long as `auto` is undecided."""
        return self.mesh if isinstance(self.mesh, MeshBlock) else MeshBlock(data=self.workers or 1)


class Rule(FileModel):
    """Trials that match `when` get `set` instead of the general values."""

    when: dict[str, Any]
    """Axis to value, or to a list of values."""
    set: dict[str, Any]

    def matches(self, point: dict[str, Any]) -> bool:
        """Whether a point of the grid has all the values."""
        return all(
            point.get(axis) in (wanted if isinstance(wanted, list) else [wanted]) for axis, wanted in self.when.items()
        )


class CacheBlock(FileModel):
    """Chunks of the dataset kept on a local disk of each node, for this sweep and later ones. Off by default."""

    dir: str
    """Folder on a disk of the node itself; one for all sweeps, whichever datasets they read."""
    bytes: int = Field(gt=0)
    """Bytes that the chunks in it may take together; those used longest ago make room."""

    @property
    def settings(self) -> CacheSettings:
        return CacheSettings(**self.model_dump())


class WandbBlock(FileModel):
    """The view in W&B: one run per dictionary, grouped by sweep. It never changes or stops a sweep."""

    project: str = "lexray"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where an API key is configured, else offline."""


class SweepFile(FileModel):
    """A sweep."""

    name: str
    output: str
    """Folder of the sweep: a path, file:// or s3://."""
    data: DataBlock
    training: TrainingBlock
    axes: dict[str, list[Any]]
    """Values of each axis; the trials are their product."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fixed options by architecture, which win over the axes; `all` goes to whichever architecture has them."""
    rules: list[Rule] = Field(default_factory=list)
    resources: ResourcesBlock = ResourcesBlock()
    every: EveryBlock = EveryBlock()
    retries: int = Field(default=3, ge=0)
    """How often a trial whose worker died is continued from its newest checkpoint."""
    storage: StorageBlock = StorageBlock()
    cache: CacheBlock | None = None
    wandb: WandbBlock = WandbBlock()

    @field_validator("axes", mode="before")
    @classmethod
    def _lists(cls, axes: Any) -> Any:
        if not isinstance(axes, dict):
            return axes
        for axis in ("architecture", "width", "target_l0"):
            if axis not in axes:
                raise ValueError(f"the axis {axis!r} is missing")
        return {axis: values if isinstance(values, list) else [values] for axis, values in axes.items()}

    @model_validator(mode="after")
    def _known_names(self) -> SweepFile:
        for values in self.axes.values():
            if not values:
                raise ValueError("axes: an axis has no values, so there is no trial")
        classes = {name: architecture(name) for name in self.axes["architecture"]}
        for name, made in classes.items():
            self.data.sites_for(made.kind, name)
        options = {f.name for made in classes.values() for f in fields(made.Config)}
        known = [*TRIAL_AXES, *sorted(options - set(TRIAL_AXES))]
        for axis in self.axes:
            _refuse_unknown("axes", axis, known)
        for rule in self.rules:
            for name in rule.when:
                _refuse_unknown("rules.when", name, list(self.axes))
            for name in rule.set:
                _refuse_unknown("rules.set", name, [*RULE_SETTINGS, *sorted(options - set(TRIAL_AXES))])
        for name, given in self.options.items():
            _refuse_unknown("options", name, [*ARCHITECTURES, "all"])
            for option in given:
                having = options - {"width", "target_l0"}
                having = having if name == "all" else {f.name for f in fields(architecture(name).Config)}
                _refuse_unknown(f"options.{name}", option, sorted(having))
        return self


def _refuse_unknown(where: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{where}.{name}: unknown{nearest(name, known)}")
