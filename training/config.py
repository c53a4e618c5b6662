"""Everything that decides one trained dictionary, as frozen plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lexray.storage.config_file import checked_config, typed_config
from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest, Site
from lexray.storage.selection import Part, Selection
from lexray.storage.store import StorageSettings, Store
from lexray.storage.windows import StreamSpec
from lexray.training.dictionaries import architecture, recorded_config
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.identity.hash import identity_hash


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows are read, in which order."""

    url: str
    dataset_id: str
    """Id of the dataset's manifest: the same rows have the same id wherever they lie."""
    inputs: tuple[str, ...]
    """Sites that the dictionary reads, side by side."""
    outputs: tuple[str, ...] = ()
    """Site that it reconstructs; none given: those it reads."""
    storage: StorageSettings = field(default_factory=StorageSettings)
    batch_rows: int = 4096
    """Rows of a global batch, over all workers."""
    seed: int = 0
    """Order of the rows and choice of the held-out documents; the same for all trials of a sweep."""
    held_out: float = 0.05
    """Share of documents kept out of training: half for validation while it lasts, half for test when it is over."""
    drop_special: bool = True
    max_norm_ratio: float | None = 10.0
    """Rows of a norm above so many times their site's median are left out; None keeps them."""
    lanes: int = 16
    window_bytes: int = 16 * 2**20

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that is read from the store, each once."""
        return tuple(dict.fromkeys((*self.inputs, *self.outputs)))

    @property
    def reconstructed(self) -> tuple[str, ...]:
        """The sites that the dictionary reconstructs."""
        return self.outputs or self.inputs

    def sites_in(self, manifest: Manifest) -> Sites:
        """Statistics of the sites that a dictionary reads and reconstructs.

        Raises UserError naming dataset and site where all rows are equal: FVU has no meaning there.
        """

        inputs = tuple(self._statistics(name, manifest.site(name)) for name in self.inputs)
        outputs = tuple(self._statistics(name, manifest.site(name)) for name in self.outputs)
        return Sites(inputs=inputs, outputs=outputs or inputs)

    def _statistics(self, name: str, site: Site) -> SiteStatistics:
        found = SiteStatistics(mean=tuple(site.mean), mean_squared_norm=site.mean_squared_norm)
        if not found.has_variance:
            raise UserError(
                f"dataset {self.url}: site {name!r} has no variance: its rows have a mean squared norm of "
                f"{found.mean_squared_norm:.3g} and differ from their mean by {found.variance:.3g}, so a dictionary "
                "has nothing to explain; choose another site"
            )
        return found

    def stream_spec(self, part: Part) -> StreamSpec:
        """Return the stream of one part of the rows."""
        return StreamSpec(
            store=Store.at(self.url, self.storage),
            sites=self.sites,
            selection=Selection(
                part=part,
                held_out=self.held_out,
                drop_special=self.drop_special,
                max_norm_ratio=self.max_norm_ratio,
                seed=self.seed,
            ),
            seed=self.seed,
            lanes=self.lanes,
            window_bytes=self.window_bytes,
        )


Precision = Literal["fp32", "bf16"]
MIN_EPS, MIN_CLIP_NORM, MAX_LR, MAX_LR_SCALE = 1e-15, 1e-9, 10.0, 1e3
"""What Adam can compute with in float32."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule, and in which precision it computes."""

    lr: float | Literal["auto"] = "auto"
    """Peak learning rate; `auto` is 2e-4 / sqrt(width / 2^14), the rule of Gao et al. (2024), figure 3."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Bound on the global gradient norm; 0 switches clipping off."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    decay: float = 0.2
    """Share of the steps, at the end, over which it falls linearly to zero."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate by name of parameter (`b_dec`, `scaled_log_threshold`...); others have 1."""
    precision: Precision = "fp32"
    """Of matrix products. With bf16 their factors are rounded, and pre-activations with them; parameters, moments,
    sums, losses and gradients across workers stay fp32."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UserError(f"precision: {self.precision!r} is not one of {', '.join(get_args(Precision))}")
        for name, factor in self.lr_scale.items():
            if not 0 <= factor <= MAX_LR_SCALE:
                raise UserError(f"lr_scale.{name}: {factor:g} must be at least 0 and at most {MAX_LR_SCALE:g}")
        if self.lr != "auto" and not 0 < self.lr <= MAX_LR:
            raise UserError(
                f"lr: {self.lr} must be above 0 and at most {MAX_LR:g}: Adam moves every weight by about as much a step"
            )
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise UserError(f"warmup {self.warmup} and decay {self.decay}: neither below 0, nor their sum above 1")
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise UserError(f"{name}: {value} must be at least 0 and below 1")
        if not MIN_EPS <= self.eps <= 1:
            raise UserError(
                f"eps: {self.eps} must be at least {MIN_EPS:g} and at most 1: Adam divides by it where a gradient "
                "was always 0, as that of a dead latent, and 0 / 0 makes its weights NaN"
            )
        if not (self.clip_norm == 0 or self.clip_norm >= MIN_CLIP_NORM):
            raise UserError(
                f"clip_norm: {self.clip_norm} must be at least {MIN_CLIP_NORM:g}, or 0 to switch clipping off: "
                "squares of smaller gradients are no float32 numbers"
            )

    def peak_lr(self, width: int) -> float:
        return 2e-4 / (width / 2**14) ** 0.5 if self.lr == "auto" else self.lr

    def lr_at(self, step: int, num_steps: int, width: int) -> float:
        """Learning rate of the step that makes `step` finished steps into step + 1."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * num_steps))
        fall = min(1.0, (num_steps - step) / max(1.0, self.decay * num_steps))
        return self.peak_lr(width) * min(rise, fall)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The workers of one dictionary. They do not change what it becomes, so they are no part of a trial's identity."""

    data: int = 1
    """Workers over which rows are split."""
    feature: int = 1
    """Workers over which latents are split; the mesh has data x feature workers."""
    zero_stage: int | Literal["auto"] = "auto"
    """DeepSpeed ZeRO stage, 0 to 3; `auto` is 0 for one worker and 1 for more, and with `offload_optimizer`."""
    offload_optimizer: bool = False
    """Keep Adam's moments and the fp32 masters in the host's memory, and step there."""
    micro_batches: int = 1
    """Parts in which each worker computes its rows of a batch, one after another, with the memory of one."""
    check_rows: bool = False
    """Compare the rows that the workers have of every batch: each planned row once."""

    def __post_init__(self) -> None:
        for name, value in (("data", self.data), ("feature", self.feature)):
            if value < 1:
                raise UserError(f"mesh.{name}: {value} must be at least 1")
        if self.zero_stage != "auto" and self.zero_stage not in range(4):
            raise UserError(f"zero_stage: {self.zero_stage} is not one of 0, 1, 2, 3")
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError("offload_optimizer: not possible with zero_stage 0; use 1, 2, 3 or auto")
        if self.micro_batches < 1:
            raise UserError(f"micro_batches: {self.micro_batches} must be at least 1")

    def row_parts(self, dictionary: DictionaryConfig) -> int:
        """Into how many parts the rows are split: those that learn by statistics split nothing else."""
        splits_latents = architecture(dictionary.architecture).learns_by == "gradient"
        return self.data if splits_latents else self.data * self.feature

    def check(self, dictionary: DictionaryConfig) -> None:
        """Raise UserError when this dictionary cannot be split like this."""
        learns_by = architecture(dictionary.architecture).learns_by
        if self.micro_batches > 1 and learns_by == "statistics":
            raise UserError(
                f"micro_batches: {self.micro_batches}, but {dictionary.architecture} learns from whole batches; "
                f"set it to 1 by a rule for {dictionary.architecture}"
            )
        if self.row_parts(dictionary) != self.data:
            return
        if dictionary.width % self.feature:
            near = max(self.feature, round(dictionary.width / self.feature) * self.feature)
            raise UserError(
                f"mesh.feature: {self.feature} parts, but the width {dictionary.width:,} is not a multiple of that; "
                f"use {near:,}"
            )
        dictionary.check_slices(self.feature)

    def check_batch(self, batch_rows: int, row_parts: int, lanes: int) -> None:
        """Raise UserError when some worker would have fewer rows of a batch than micro-batches."""
        fewest = (lanes // row_parts) * (batch_rows // lanes)
        if self.micro_batches > fewest:
            raise UserError(f"micro_batches: {self.micro_batches}, but a worker has only {fewest} rows of a batch")

    @property
    def stage(self) -> int:
        if self.zero_stage == "auto":
            return 1 if self.data > 1 or self.offload_optimizer else 0
        return self.zero_stage


@dataclass(frozen=True, kw_only=True)
class EveryConfig:
    """How often the periodic things happen, in steps unless a name says seconds.

    Evaluations steer target L0s, so they belong to a trial's identity; logs and checkpoints do not.
    """

    log: int = 50
    evaluate: int = 1000
    checkpoint: int = 1000
    checkpoint_s: float | None = 600.0
    """A checkpoint is saved, too, when the newest is so old, asked every `log` steps; None: by steps only."""
    eval_rows: int = 65_536
    """Validation rows used by an evaluation, and test rows used at the end (all of them when there are fewer)."""
    keep: int = 0
    """Checkpoints of steps that are multiples of this are kept for good; 0 keeps none once the training is done."""

    def __post_init__(self) -> None:
        if self.checkpoint_s is not None and not self.checkpoint_s > 0:
            raise UserError(f"every.checkpoint_s: {self.checkpoint_s:g} must be above 0")
        for name, value in asdict(self).items():
            if name != "checkpoint_s" and value < (name != "keep"):
                raise UserError(f"every.{name}: {value} must be at least {int(name != 'keep')}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One dictionary with its whole configuration."""

    dictionary: DictionaryConfig
    data: DataConfig
    rows: int
    """Rows to train on, counted with repetition; rounded up to whole batches."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = 0
    """Initial weights."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    every: EveryConfig = field(default_factory=EveryConfig)

    @property
    def num_steps(self) -> int:
        return -(-self.rows // self.data.batch_rows)

    @property
    def trial(self) -> str:
        """Id: architecture, width and target L0 for people, then a hash of all that decides the result."""
        d = self.dictionary
        return f"{d.architecture}-w{d.width}-l{d.target_l0:g}-{self.identity_hash()}"

    def identity_hash(self) -> str:
        """Hash of what decides the weights: not where data lies, how many workers there are, or how often we log."""
        content = self.to_dict()
        del content["mesh"]
        for name in ("log", "checkpoint", "checkpoint_s", "keep"):
            del content["every"][name]
        for name in ("url", "storage"):
            del content["data"][name]
        return identity_hash(content)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "dictionary": self.dictionary.to_dict()}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> TrainingConfig:
        """The configuration of `to_dict`. Raises UserError naming the first field that is not as it should be."""
        try:
            data = {**content["data"], "storage": checked_config(StorageSettings, content["data"]["storage"])}
            return TrainingConfig(
                dictionary=recorded_config(content["dictionary"]),
                data=typed_config(DataConfig, data),
                rows=_whole(content, "rows"),
                optimizer=typed_config(OptimizerConfig, content["optimizer"]),
                seed=_whole(content, "seed"),
                mesh=typed_config(MeshConfig, content["mesh"]),
                every=typed_config(EveryConfig, content["every"]),
            )
        except KeyError as error:
            raise UserError(f"training configuration: {error.args[0]} is missing") from error
        except (TypeError, AttributeError) as error:
            raise UserError(f"training configuration: a field is of another type ({error})") from error


def _whole(content: dict[str, Any], name: str) -> int:
    if type(content[name]) is not int:
        raise UserError(f"{name}: {content[name]!r} is not a whole number")
    return int(content[name])
