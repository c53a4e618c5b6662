"""Base of every dictionary: normalisation of its sites, and the contract with the training loop.

Shapes: B rows on this rank, D width of the input sites side by side, O that of the output sites (D again for all but
transcoders), F latents on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Because, Count, FileSettings, Positive
from lexray.training.codes.folding import Folding
from lexray.training.dictionaries.normalisers import Normaliser, NormaliserName, Sites
from lexray.training.mesh.axes import ONE_PROCESS, Axes
from lexray.training.objectives.forward import BatchSums, LossOutput
from lexray.training.ops.sparse_code import RowFrame, SparseCode

DEAD_AFTER_ROWS, DEAD_AFTER_SHARE = 10_000_000, 0.04
"""Rows after which an inactive latent is dead where no number is given: a share of the training's, and so many at most
(the number of Gao et al., 2024, whose trainings are long)."""


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig(FileSettings):
    """Options that all architectures share. Classes of dictionaries add their own fields."""

    learns_by: ClassVar[Literal["gradient", "statistics"]] = "gradient"
    """Method of learning: Adam on the loss, or `learn` from sums over batches."""
    architecture: str
    """Name in the table of architectures."""
    width: Annotated[int, Field(ge=1, lt=2**31), Because("latents are numbered with 32 bits")]
    """Number of latents."""
    target_l0: Positive
    """Target mean number of active latents per row."""
    normaliser: NormaliserName = "standard"
    """Normalisation of raw activations: none, centre, unit_norm, standard (centre and scale), layer_norm, whiten."""
    dead_after_rows: Count | None = None
    """A latent is dead when it has been inactive for this many rows of the global stream; None is a share of 4 % of the
    training's rows, and 10 M at most."""
    sample_rows: Count = 65_536
    """Training rows from which data-dependent initial values are computed, where there are any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 > self.width:
            raise UserError(f"target_l0: {self.target_l0:g} must be at most the width {self.width}")

    def check_rows(self, training_rows: int) -> None:
        """Raise UserError when the dictionary needs more training rows than there are."""

    def check_slices(self, slices: int) -> None:
        """Raise UserError when the latents cannot be split into so many slices of one size."""

    @property
    def needs_nonnegative(self) -> bool:
        """Whether negative activations are refused."""
        return False

    @property
    def resamples_every_rows(self) -> int:
        """Rows between restarts of dead latents; 0 never."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a sweep file spells them, with the architecture's name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class RawRows(NamedTuple):
    """Raw rows of this rank (B, D) and their raw targets (B, O): the same tensor unless a transcoder."""

    x_BD: Tensor
    y_BO: Tensor


Kind = Literal["sae", "transcoder", "crosscoder"]
"""Sites that a dictionary is built for: one; an input and an output; several at once."""

Sample = Callable[[], Iterable[RawRows]]
"""Yields the same training rows at each call."""


class Dictionary(nn.Module):
    """Contract of all dictionaries, with their shared state: sites and counters of dead latents."""

    Config: ClassVar[type[DictionaryConfig]]
    paper: ClassVar[str]
    """Source of the equations."""
    kind: ClassVar[Kind] = "sae"
    signed_codes: bool = False
    """Whether values of codes have both signs, so that an atom and its negative stand for the same latent."""
    atoms_from_data: ClassVar[bool] = False
    """Whether the atoms at step 0 are computed from data; otherwise the seed alone gives them."""
    per_latent: ClassVar[tuple[str, ...]] = ("rows_since_fired_F",)
    """Parameters and buffers with a row for each latent; those of base classes are included."""
    config: DictionaryConfig
    rows_since_fired_F: Tensor

    def __init__(
        self,
        config: DictionaryConfig,
        sites: Sites,
        *,
        seed: int = 0,
        axes: Axes = ONE_PROCESS,
    ) -> None:
        super().__init__()
        self.check_sites(config, sites)
        self.config, self.sites, self.seed = config, sites, seed
        self.rows, self.latents, self.pairs = axes
        self.step, self.num_steps = 0, 1
        self.rows_to_train = DEAD_AFTER_ROWS / DEAD_AFTER_SHARE
        self.input = Normaliser(config.normaliser, sites.inputs)
        if not sites.reconstructs_its_input:
            self.target = Normaliser(config.normaliser, sites.outputs)
        owned = self.latents.slice_of(config.width)
        self.register_buffer("rows_since_fired_F", torch.zeros(owned.stop - owned.start, dtype=torch.int64))

    # The contract ----------------------------------------------------------------------------------------------

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        """Raise UserError when the dictionary cannot be built for these sites."""
        if cls.kind != "crosscoder" and len(sites.inputs) > 1:
            raise UserError(f"{config.architecture} reads one site, {len(sites.inputs)} are given")
        if cls.kind != "transcoder" and not sites.reconstructs_its_input:
            raise UserError(
                f"{config.architecture} reconstructs what it reads, but another site is given as its output"
            )
        if config.normaliser == "layer_norm" and (len(sites.inputs) > 1 or not sites.reconstructs_its_input):
            raise UserError(
                "normaliser: layer_norm is undone by a row's own mean and scale, so it needs one site that is both "
                "read and reconstructed"
            )
        if config.normaliser == "whiten" and len(sites.inputs) > 1:
            raise UserError(f"normaliser: whiten works on one site, {len(sites.inputs)} are given")

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        """Set data-dependent initial values before the first step (collective); equal on all ranks afterwards."""
        for normaliser, column in ((self.input, 0), (self.output, 1)):
            if normaliser.needs_sample:
                normaliser.fit((batch[column] for batch in sample()), self.rows)

    @property
    def needs_sample(self) -> bool:
        """Whether `prepare` has anything to do."""
        return self.input.needs_sample

    def encode(self, x_BD: Tensor) -> SparseCode:
        """Return the code of raw activations, as at inference."""
        raise NotImplementedError

    def fold(self) -> Folding:
        """Return the form in which the code is exported. Raises UserError where no format can represent it."""
        raise UserError(f"{self.config.architecture}: no format is known that has a place for it")

    def decode(self, code: SparseCode, x_BD: Tensor | None = None) -> Tensor:
        """Decode a code to raw activations (B, O); a dictionary with a skip connection needs the raw input too."""
        raise NotImplementedError

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the reconstruction (B, O) of raw activations (B, D)."""
        return self.decode(self.encode(x_BD), x_BD)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        """Return the loss on this rank's raw rows of a batch of `total_rows`; `y_BO`: a transcoder's targets."""
        raise NotImplementedError

    def learn(self, x_BD: Tensor, total_rows: int) -> LossOutput:
        """Run one step of a dictionary that learns by statistics on this rank's raw rows (collective)."""
        raise NotImplementedError

    def at_step(self, step: int, num_steps: int) -> None:
        """Set the next step, on which schedules depend."""
        self.step, self.num_steps = step, num_steps

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        """Update state that is not learned by gradient: dead-latent counters; thresholds in subclasses."""
        self.rows_since_fired_F += batch.rows
        self.rows_since_fired_F[batch.fired_F > 0] = 0

    def calibrate(self, sample: Sample) -> None:
        """Set thresholds of inference from validation rows (collective)."""

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Update state from the held-out metrics, which are equal on every rank."""

    def own_metrics(self) -> dict[str, float]:
        """Return metrics of the parameters alone, by name, equal on every rank (collective)."""
        return {}

    def projections(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return projections of constrained parameters by name, applied after each step to the full tensor."""
        return {}

    def eval_ks(self) -> list[int]:
        """Return additional values of k at which the trained dictionary is evaluated; `encode` then takes `k=`."""
        return []

    def become_saved_form(self) -> None:
        """Take the parameters and buffers of a saved dictionary, for inference only; their values are loaded next."""

    def tensors_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the full state as saved, with constraints folded in."""
        return tensors

    @classmethod
    def starting_numbers(cls, config: Any, sites: Sites) -> int:
        """Return the number of values that are drawn for all latents before a rank keeps its slice."""
        return 0

    # Slices of a mesh -------------------------------------------------------------------------------------------

    def split_names(self) -> frozenset[str]:
        """Return the names of the parameters and buffers that a feature axis splits, along their first dimension."""
        return frozenset(name for made in type(self).__mro__ for name in vars(made).get("per_latent", ()))

    def slice_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's shards of full tensors by name."""
        owned, split = self.latents.slice_of(self.config.width), self.split_names()
        return {name: whole[owned] if name in split else whole for name, whole in tensors.items()}

    def gather_full(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Gather full tensors by name from the ranks' shards (collective: each rank iterates over the same names)."""
        split = self.split_names()
        for name, part in tensors.items():
            yield name, self.latents.gather(part) if name in split else part

    # Shared pieces ---------------------------------------------------------------------------------------------

    @property
    def output(self) -> Normaliser:
        """Normaliser of the output sites."""
        return self.input if self.sites.reconstructs_its_input else self.target

    @property
    def axes(self) -> Axes:
        """Axes of the mesh: of rows, of latents, and of both."""
        return Axes(self.rows, self.latents, self.pairs)

    @property
    def takes_k(self) -> bool:
        """Whether `encode` accepts a number of active latents, `k`."""
        return False

    @property
    def progress(self) -> float:
        """Completed fraction of the training, 0 to 1."""
        return self.step / self.num_steps

    def normalised(self, x_BD: Tensor, y_BO: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return raw rows and their targets, normalised."""
        x_n_BD = self.input.normalise(x_BD)
        if self.sites.reconstructs_its_input:
            return x_n_BD, x_n_BD
        assert y_BO is not None, "this dictionary reconstructs another site than it reads"
        return x_n_BD, self.output.normalise(y_BO)

    def normalised_sample(self, sample: Sample) -> Callable[[], Iterable[Tensor]]:
        """Return a function that yields the sample's normalised targets from the start at each call."""
        return lambda: (self.output.normalise(batch.y_BO) for batch in sample())

    def normalised_with_frame(self, x_BD: Tensor) -> tuple[Tensor, RowFrame | None]:
        frame = self.input.frame(x_BD)
        return self.input.normalise(x_BD, frame), frame

    @property
    def dead_F(self) -> Tensor:
        """Mask of dead latents (F), bool."""
        return self.rows_since_fired_F >= self.dead_after_rows

    @property
    def dead_after_rows(self) -> int:
        """Rows after which an inactive latent counts as dead."""
        return self.config.dead_after_rows or min(DEAD_AFTER_ROWS, max(1, int(DEAD_AFTER_SHARE * self.rows_to_train)))

    def batch_stats(self, y_BO: Tensor, error_BO: Tensor, active: Tensor) -> dict[str, Tensor]:
        """Return the sums that all architectures report: squared error, squared distance from the mean, L0."""
        with torch.no_grad():
            variance = (y_BO - self.output.normalised_mean_D).square().sum()
            num_active = self.latents.all_reduce(active.sum().float())
            return {"error": error_BO.square().sum(), "variance": variance, "active": num_active}
