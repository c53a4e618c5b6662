"""Everything that decides one trained dictionary, as frozen plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from lexray.storage.config_file import recorded
from lexray.storage.errors import UserError
from lexray.storage.file_settings import MAX_SECONDS, Because, Count, Decay, FileSettings, Positive, Seed, Share
from lexray.storage.manifest import Manifest, Site
from lexray.storage.selection import HeldOutUnit, Part, Selection
from lexray.storage.store import StorageSettings, Store
from lexray.storage.windows import StreamSpec
from lexray.training.dictionaries import recorded_config
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.identity.hash import identity_hash
from lexray.training.identity.versions import BEFORE_VERSIONS, changed_training_defaults
from lexray.training.mesh.settings import MeshConfig


@dataclass(frozen=True, kw_only=True)
class RowsConfig(FileSettings):
    """Which rows of a dataset are read, and in which order."""

    batch_rows: Count = 4096
    """Rows of a global batch, over all workers."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the dataset kept out of training, in whole documents: half for validation while it lasts, half for test
    when it is over."""
    held_out_of: HeldOutUnit = "rows"
    """Unit of the share `held_out`. Documents differ in length: a tenth of them may have a thirtieth of the rows."""
    drop_special: bool = True
    """Leave out rows of tokens that the model's tokenizer calls special."""
    max_norm_ratio: Positive | None = 10.0
    """Leave out rows whose norm is above so many times their site's median; null keeps them."""
    seed: Seed = 0
    """Order of the rows and choice of the held-out documents; the same for all trials, so that they share a stream."""
    lanes: Count = 16
    """Parts into which the chunks of an epoch are dealt; a batch takes an equal share of its rows from each."""
    window_bytes: Count = 16 * 2**20
    """Bytes of consecutive chunks of a lane whose rows are permuted together."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """Which rows of which sites of a dataset are read."""

    url: str
    dataset_id: str
    """Id of the dataset's manifest: the same rows have the same id wherever they lie."""
    inputs: tuple[str, ...]
    """Sites that the dictionary reads, side by side."""
    outputs: tuple[str, ...] = ()
    """Site that it reconstructs; none given: those it reads."""
    storage: StorageSettings = field(default_factory=StorageSettings)

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
                held_out_of=self.held_out_of,
                drop_special=self.drop_special,
                max_norm_ratio=self.max_norm_ratio,
                seed=self.seed,
            ),
            seed=self.seed,
            lanes=self.lanes,
            window_bytes=self.window_bytes,
        )


Precision = Literal["fp32", "bf16"]
MIN_CLIP_NORM, MAX_LR_SCALE = 1e-9, 1e3
LONG_STEPS, MAX_LR_FACTOR = 36_000, 6.0
"""Steps from which on `lr: auto` follows the width alone, and its factor in trainings of up to 1,000 steps: with 4 to 8
FVU hardly differs, with 16 wide dictionaries lose a fifth of their latents (`benchmarks/RESULTS.md`)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(FileSettings):
    """Adam, its schedule, and in which precision it computes. Bounds are what float32 can compute with."""

    lr: (
        Annotated[float, Field(gt=0, le=10), Because("Adam moves every weight by about as much a step")]
        | Literal["auto"]
    ) = "auto"
    """Peak learning rate; `auto` follows `lr_rule`."""
    lr_rule: Literal["width", "width_and_steps"] = "width_and_steps"
    """Rule of `lr: auto`. `width`: 2e-4 / sqrt(width / 2^14), that of Gao et al. (2024), figure 3, whose trainings have
    10^5 steps. `width_and_steps`: times sqrt(36,000 / steps), at least 1 and at most 6."""
    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients."""
    eps: Annotated[
        float,
        Field(ge=1e-15, le=1),
        Because(
            "Adam divides by it where a gradient was always 0, as that of a dead latent, "
            "and 0 / 0 makes its weights NaN"
        ),
    ] = 1e-8
    """Added to the root of the mean squared gradient by which Adam divides."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Bound on the global gradient norm; 0 switches clipping off."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    decay: Share = 0.2
    """Share of the steps, at the end, over which it falls linearly to zero."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate by name of parameter, as in `{b_dec: 2}`; all others have 1."""
    precision: Precision = "fp32"
    """Precision of matrix products. With bf16 their factors are rounded, and pre-activations with them; parameters,
    moments, sums, losses and gradients across workers stay fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, factor in self.lr_scale.items():
            if not 0 <= factor <= MAX_LR_SCALE:
                raise UserError(f"lr_scale.{name}: {factor:g} must be at least 0 and at most {MAX_LR_SCALE:g}")
        if self.warmup + self.decay > 1:
            raise UserError(f"warmup: {self.warmup} and decay: {self.decay} must not add up to more than 1")
        if 0 < self.clip_norm < MIN_CLIP_NORM:
            raise UserError(
                f"clip_norm: {self.clip_norm} must be at least {MIN_CLIP_NORM:g}, or 0 to switch clipping off: "
                "squares of smaller gradients are no float32 numbers"
            )

    def peak_lr(self, width: int, num_steps: int) -> float:
        if self.lr != "auto":
            return self.lr
        factor = (LONG_STEPS / num_steps) ** 0.5 if self.lr_rule == "width_and_steps" else 1.0
        return 2e-4 / (width / 2**14) ** 0.5 * min(max(1.0, factor), MAX_LR_FACTOR)

    def lr_at(self, step: int, num_steps: int, width: int) -> float:
        """Learning rate of the step that makes `step` finished steps into step + 1."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * num_steps))
        fall = min(1.0, (num_steps - step) / max(1.0, self.decay * num_steps))
        return self.peak_lr(width, num_steps) * min(rise, fall)


@dataclass(frozen=True, kw_only=True)
class EveryConfig(FileSettings):
    """Intervals of what happens periodically, in steps unless a name says seconds.

    Evaluations steer target L0s, so they belong to a trial's identity; logs and checkpoints do not.
    """

    log: Count = 50
    """Steps between two lines of metrics."""
    evaluate: Count = 1000
    """Steps between two evaluations on validation rows."""
    checkpoint: Count = 1000
    """Steps between two checkpoints."""
    checkpoint_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = 600.0
    """A checkpoint is saved, too, when the newest is so old, asked every `log` steps; null: by steps only."""
    eval_rows: Count = 65_536
    """Validation rows used by an evaluation, and test rows used at the end (all of them when there are fewer)."""
    keep: Annotated[int, Field(ge=0)] = 0
    """Checkpoints of steps that are multiples of this are kept for good; 0 keeps none once the training is done."""


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
            old = {block: changed_training_defaults(BEFORE_VERSIONS, block) for block in ("data", "optimizer")}
            storage = recorded(StorageSettings, content["data"]["storage"])
            return TrainingConfig(
                dictionary=recorded_config(content["dictionary"]),
                data=recorded(DataConfig, {**old["data"], **content["data"], "storage": storage}),
                rows=_whole(content, "rows"),
                optimizer=recorded(OptimizerConfig, {**old["optimizer"], **content["optimizer"]}),
                seed=_whole(content, "seed"),
                mesh=recorded(MeshConfig, content["mesh"]),
                every=recorded(EveryConfig, content["every"]),
            )
        except KeyError as error:
            raise UserError(f"training configuration: {error.args[0]} is missing") from error
        except (TypeError, AttributeError) as error:
            raise UserError(f"training configuration: a field is of another type ({error})") from error


def _whole(content: dict[str, Any], name: str) -> int:
    if type(content[name]) is not int:
        raise UserError(f"{name}: {content[name]!r} is not a whole number")
    return int(content[name])
