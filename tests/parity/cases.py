"""lexray's dictionaries and their gradients in the layout of other libraries.

Everything is in float64 with the normaliser `none`, so that all read the same rows. Shapes: B rows, D width of the
input site, O width of the output site, F latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lexray.training.codes.jumprelu import JumpReLU
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.ops.sparse_code import SparseCode

B, D, F, K = 64, 12, 40, 5
DEAD_AFTER = 1000


def rows(width: int = D, seed: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, width, generator=generator, dtype=torch.float64) + 0.3


def dictionary(architecture: str, *, dead: int = 0, output_width: int = D, **options: Any) -> Dictionary:
    """Random parameters: unit or free atoms, biases away from zero, the last `dead` latents dead."""
    config = dictionary_config(
        {"architecture": architecture, "width": F, "target_l0": K, "normaliser": "none", "dead_after_rows": DEAD_AFTER}
        | options
    )
    read, written = (SiteStatistics(mean=(0.0,) * n, mean_squared_norm=1.0) for n in (D, output_width))
    sites = Sites(inputs=(read,), outputs=(written,)) if "transcoder" in architecture else Sites.same(read)
    made = make_dictionary(config, sites).double()
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1 * noise)
        if getattr(config, "unit_atoms", False) and "W_dec" in dict(made.named_parameters()):
            made.W_dec.copy_(made.W_dec / made.W_dec.norm(dim=1, keepdim=True))
        if isinstance(getattr(made, "code", None), JumpReLU):
            made.code.set_threshold((0.2 * torch.randn(F, generator=generator, dtype=torch.float64) - 1.2).exp())
        if dead:
            made.rows_since_fired_F[-dead:] = DEAD_AFTER
    return made


def gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of each parameter by name."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def lexray_gradients(made: Dictionary, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of lexray's parameters; of thresholds themselves where it learns their logarithms."""
    found = gradients(loss, dict(made.named_parameters()))
    if isinstance(getattr(made, "code", None), JumpReLU):
        # d loss / d (log t / rate) = d loss / d t * t * rate
        gradient_F = found.pop("scaled_log_threshold")
        found["threshold"] = gradient_F / (made.code.threshold_F.detach() * made.config.code.threshold_rate)
    return found


def along_the_sphere(gradient_FD: Tensor, atoms_FD: Tensor) -> Tensor:
    """A gradient without its part along unit atoms: what lexray's normalisation in the forward pass leaves of it."""
    return gradient_FD - (gradient_FD * atoms_FD).sum(1, keepdim=True) * atoms_FD


def training_code(made: Dictionary, x_BD: Tensor) -> Tensor:
    """The code (B, F) that a batch trains with, where it differs from the one at inference."""
    z_BF = made.preactivations(made.input.normalise(x_BD)).detach()
    chosen, _ = made.code.choose(z_BF, made.code.k, len(x_BD), made.decoder())
    code_BF = torch.zeros_like(z_BF)
    code_BF[chosen.rows, chosen.latents] = made.code.value(z_BF[chosen.rows, chosen.latents])
    return code_BF


def reconstructed(made: Dictionary, code_BF: Tensor) -> Tensor:
    """lexray's reconstruction from a code (B, F)."""
    return made.decode(SparseCode.where(code_BF != 0, code_BF))
