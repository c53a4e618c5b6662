"""Interface of every code: a map from normalised rows to a sparse code, with its loss terms, cost and export form.

A code belongs to one dictionary, its host, which has the encoder, the decoder and the axes. The tensors of a code are
registered on the host under plain names (`threshold`, `b_gate`), the names in files, `lr_scale` and papers.

A class that sets `kind` must define its loss terms, cost and export form in its own body; otherwise creating the class
fails. None of the three is inherited, since the parent's may not apply.

Shapes: B rows on this rank, D input width, F latents on this rank, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lexray.storage.file_settings import FileSettings
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import Batch, BatchSums, Forward, Weighted
from lexray.training.ops.linear import Decoder, Encoder
from lexray.training.ops.sparse_code import SparseCode

REQUIRED = ("terms", "cost", "fold")
"""Methods that a class with a `kind` must define in its own body."""


@dataclass(frozen=True, kw_only=True)
class CodeConfig(FileSettings):
    """Options of every code."""

    kind: str
    """Name of the code."""

    def check(self, width: int, target_l0: float) -> None:
        """Raise UserError when the options do not fit a dictionary of this width and target L0."""

    def check_decoder(self, decoder_norm: str) -> None:
        """Raise UserError when the code cannot work with atoms of such norms."""

    def check_slices(self, slices: int, target_l0: float) -> None:
        """Raise UserError when the latents cannot be split into so many slices of one size."""

    def options(self) -> dict[str, Any]:
        """Return the options by name, without the kind."""
        return {name: value for name, value in asdict(self).items() if name != "kind"}


class Host(Protocol):
    """Interface of the dictionary to its code. Tensors that a code registers become attributes of it."""

    config: Any
    """Configuration with `width` (latents of all slices) and `target_l0`."""
    sites: Any
    seed: int
    step: int
    num_steps: int

    @property
    def axes(self) -> Axes: ...

    @property
    def progress(self) -> float:
        """Completed fraction of the training, 0 to 1."""

    @property
    def dead_F(self) -> Tensor:
        """Mask of dead latents (F), bool."""

    def encoder(self) -> Encoder: ...

    def decoder(self) -> Decoder: ...

    def living_mean(self, value_F: Tensor, default: float) -> float: ...

    def __getattr__(self, name: str) -> Any: ...


class Code:
    """Map from normalised rows to a sparse code."""

    kind: ClassVar[str]
    Config: ClassVar[type[CodeConfig]]
    paper: ClassVar[str]
    """Source of the equations."""
    per_latent: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers of the code with a row for each latent; those of base classes are included."""
    encoder_tensors: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc")
    """Parameters of the host's encoder that the code uses."""
    centres_input: ClassVar[bool] = True
    """Whether b_dec is subtracted from the input, for dictionaries that reconstruct their input."""
    takes_k: ClassVar[bool] = False
    """Whether `encode` takes another number of active latents than was trained."""
    needs_sample: ClassVar[bool] = False
    """Whether `prepare` has anything to do."""
    signed: ClassVar[bool] = False
    """Whether values have both signs, so that an atom and its negative stand for the same latent."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        missing = [name for name in REQUIRED if name not in vars(cls)]
        changed = [name for name in vars(cls) if callable(getattr(cls, name)) and not name.startswith("__")]
        if missing and ("kind" in vars(cls) or (changed and getattr(cls, "kind", None))):
            raise TypeError(
                f"code {cls.__name__} must define {', '.join(missing)} itself: what it inherits is said of another code"
            )

    def __init__(self, config: CodeConfig, host: Host) -> None:
        self.config: Any = config
        self.host = host

    # What a code defines ---------------------------------------------------------------------------------------

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        """Return the code of normalised rows, as at inference; `k` overrides the trained number of active latents."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Forward:
        """Return the code of a training batch, with gradient, and the reconstruction error."""
        raise NotImplementedError

    def terms(self) -> list[Weighted]:
        """Return the terms of the loss at this step."""
        raise NotImplementedError

    def fold(self) -> Folding:
        """Return the form in which the code is exported. Raises UserError where no format can represent it."""
        raise NotImplementedError

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Return the cost of a training step."""
        raise NotImplementedError

    # What a code may define ------------------------------------------------------------------------------------

    def prepare(self, inputs: Callable[[], Iterable[Tensor]]) -> None:
        """Set initial values from normalised rows of this rank; each call of `inputs` yields the same rows."""

    def after_step(self, batch: BatchSums) -> None:
        """Update state that is not learned by gradient."""

    def calibrate(self, inputs: Callable[[], Iterable[Tensor]]) -> None:
        """Set thresholds of inference, without gradient, from normalised validation rows of this rank (collective)."""

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Update state from the validation metrics, which are equal on every rank."""

    def restart_values(self, share: float) -> dict[str, float]:
        """Return the values of a restarted dead latent's parameters, by name (`engines.resampling`).

        Its encoder row gets `share` of the mean length of living ones.
        """
        return {name: 0.0 for name in self.encoder_tensors if name != "W_enc"}

    def eval_ks(self) -> list[int]:
        """Return additional numbers of active latents at which the trained dictionary is evaluated."""
        return []

    # Shared pieces ---------------------------------------------------------------------------------------------

    @classmethod
    def split_names(cls) -> frozenset[str]:
        """Return the names of all parameters and buffers with a row for each latent."""
        return frozenset(name for made in cls.__mro__ for name in vars(made).get("per_latent", ()))

    @property
    def target_l0(self) -> float:
        return float(self.host.config.target_l0)

    @property
    def width(self) -> int:
        """Latents of all slices."""
        return int(self.host.config.width)

    @property
    def num_latents(self) -> int:
        """Latents of this rank."""
        owned = self.host.axes.latents.slice_of(self.width)
        return owned.stop - owned.start


def powers_of_two_to(largest: int) -> list[int]:
    """Return 1, 2, 4... and `largest`: numbers of active latents at which a dictionary is evaluated."""
    return sorted({*(2**i for i in range(largest.bit_length())), largest})
