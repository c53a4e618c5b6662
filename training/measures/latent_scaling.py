"""Latent Scaling: classify crosscoder latents as shared between sites, site-specific, or only apparently specific.

Minder et al., Overcoming sparsity artifacts in crosscoders (2025), arXiv:2504.02922. A crosscoder's L1 penalty can take
a latent's atom away from a site that has the feature, because another latent represents it there (decoupling) or
because of shrinkage. The check: let d be latent j's atom at the site where it is longest, f its
activations. For every site s the factor that fits a target Y best along d is

    beta_s = <d, sum over rows of f Y_s> / (||d||^2 * sum over rows of f^2)

for two targets: the error that site has without the latent, Y_s = x_s - (x_hat_s - f D_s), and the reconstruction,
Y_s = x_hat_s. nu = beta_s / beta_(its own site) near 0 says that site s lacks the feature; nu of the error near 1, that
it has it but shrinkage removed it; nu of the reconstruction near 1, that other latents represent it there.

Shapes: S sites (of the same width D), F latents, N active pairs. All in normalised units, so that sites compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.crosscoder import Crosscoder
from lexray.training.ops.sparse_products import sparse_decode, sum_by_latent

ALONE_BELOW, SHARED_ABOVE = 0.2, 0.8
"""Relative length (to the longest site) below which an atom is absent at a site; above which it is present."""
DECOUPLED_ABOVE, SHRUNK_ABOVE = 0.5, 0.2
"""The paper's limits of nu on the reconstruction and on the error, above which a specific latent is an artefact."""

SHARED, SPECIFIC, PARTIAL, SILENT = "shared", "specific", "partial", "silent"
SHRINKAGE, DECOUPLING = "artefact of shrinkage", "artefact of decoupling"


@dataclass(frozen=True, kw_only=True)
class LatentScaling:
    """Result of Latent Scaling for every latent."""

    norms_FS: Tensor
    """Length of each latent's atom at each site."""
    nu_error_FS: Tensor
    """nu of the error: 1 at the latent's own site; NaN for latents that were never active."""
    nu_reconstruction_FS: Tensor
    own_site_F: Tensor
    """Site at which the atom is longest."""
    verdicts: list[str]

    def counts(self) -> dict[str, int]:
        """Return the number of latents of each verdict."""
        return dict(Counter(self.verdicts))


@torch.no_grad()
def latent_scaling(dictionary: Dictionary, batches: Iterable[RawRows]) -> LatentScaling:
    """Diagnose a crosscoder on raw rows, in one pass. Raises UserError for other dictionaries or unequal sites."""
    if not isinstance(dictionary, Crosscoder):
        raise UserError(f"latent scaling compares sites, and {dictionary.config.architecture} reconstructs only one")
    widths = {site.width for site in dictionary.sites.inputs}
    if len(widths) > 1:
        raise UserError(f"latent scaling compares atoms across sites of one width, these have {sorted(widths)}")
    atoms_FSD = dictionary.atoms_FD().unflatten(1, (len(dictionary.sites.inputs), -1))
    norms_FS = atoms_FSD.norm(dim=2)
    own_F = norms_FS.argmax(1)
    direction_FD = atoms_FSD[torch.arange(len(own_F)), own_F]
    error_FS, reconstruction_FS = _betas(dictionary, batches, atoms_FSD, direction_FD)
    nu_error_FS, nu_reconstruction_FS = (_against_own(beta_FS, own_F) for beta_FS in (error_FS, reconstruction_FS))
    rows = zip(norms_FS, nu_error_FS, nu_reconstruction_FS, own_F.tolist(), strict=True)
    return LatentScaling(
        norms_FS=norms_FS,
        nu_error_FS=nu_error_FS,
        nu_reconstruction_FS=nu_reconstruction_FS,
        own_site_F=own_F,
        verdicts=[verdict(norms, error, reconstruction, own) for norms, error, reconstruction, own in rows],
    )


def _betas(
    dictionary: Crosscoder, batches: Iterable[RawRows], atoms_FSD: Tensor, direction_FD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return beta of the error and of the reconstruction (F, S); NaN for latents that were never active."""
    num_latents = len(atoms_FSD)
    residual_FSD = torch.zeros_like(atoms_FSD, dtype=torch.float64)
    reconstructed_FSD = torch.zeros_like(residual_FSD)
    squares_F = residual_FSD.new_zeros(num_latents)
    for x_BD, _ in batches:
        code = dictionary.encode(x_BD)
        x_hat_BD = sparse_decode(code.values, code.chosen, dictionary.atoms_FD()) + dictionary.b_dec
        rest_BD = dictionary.input.normalise(x_BD) - x_hat_BD
        for total_FSD, rows_BD in ((residual_FSD, rest_BD), (reconstructed_FSD, x_hat_BD - dictionary.b_dec)):
            total_FSD += sum_by_latent(code.values, code.chosen, rows_BD, num_latents).view_as(total_FSD)
        squares_F.index_add_(0, code.indices, code.values.double().square())
    d_F1D = direction_FD.double()[:, None]
    scale_F1 = (squares_F * direction_FD.double().square().sum(1))[:, None]
    scale_F1 = torch.where(scale_F1 > 0, scale_F1, torch.nan)
    own_part_FS = squares_F[:, None] * (d_F1D * atoms_FSD.double()).sum(2)
    error_FS = ((d_F1D * residual_FSD).sum(2) + own_part_FS) / scale_F1
    return error_FS, (d_F1D * reconstructed_FSD).sum(2) / scale_F1


def _against_own(beta_FS: Tensor, own_F: Tensor) -> Tensor:
    return beta_FS / beta_FS.gather(1, own_F[:, None])


def verdict(norms_S: Tensor, nu_error_S: Tensor, nu_reconstruction_S: Tensor, own: int) -> str:
    """Classify a latent by its lengths and its nu at every site."""
    if nu_error_S.isnan().any():
        return SILENT
    others = [site for site in range(len(norms_S)) if site != own]
    shares = norms_S[others] / norms_S[own]
    if (shares > SHARED_ABOVE).all():
        return SHARED
    if not (shares < ALONE_BELOW).all():
        return PARTIAL
    if (nu_error_S[others] >= SHRUNK_ABOVE).any():
        return SHRINKAGE
    if (nu_reconstruction_S[others] >= DECOUPLED_ABOVE).any():
        return DECOUPLING
    return SPECIFIC
