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
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.crosscoder import Crosscoder
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode

ALONE_BELOW, SHARED_ABOVE = 0.2, 0.8
"""Relative length (to the longest site) below which an atom is absent at a site; above which it is present."""
DECOUPLED_ABOVE, SHRUNK_ABOVE = 0.5, 0.2
"""The paper's limits of nu on the reconstruction and on the error, above which a specific latent is an artefact."""

SHARED, SPECIFIC, PARTIAL, SILENT = "shared", "specific", "partial", "silent"
SHRINKAGE, DECOUPLING = "artefact of shrinkage", "artefact of decoupling"


VERDICTS = (SILENT, SHARED, PARTIAL, SHRINKAGE, DECOUPLING, SPECIFIC)

CHUNK_NUMBERS = 2**24
"""Numbers of rows and atoms of active pairs that are held at once."""


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

    def document(self) -> dict[str, Any]:
        """Return the section `latent_scaling` of `measures.json`; None where a share is of no latent.

        specific_fraction   specific latents over those that were active
        artefact_fraction   artefacts over latents whose atom is at one site alone
        nu_error            median over the latter of the largest nu of the error at another site
        nu_reconstruction   the same of the reconstruction
        """
        counts = {name: self.verdicts.count(name) for name in VERDICTS}
        artefacts = counts[SHRINKAGE] + counts[DECOUPLING]
        active, alone = len(self.verdicts) - counts[SILENT], artefacts + counts[SPECIFIC]
        alone_F = torch.tensor([verdict in (SHRINKAGE, DECOUPLING, SPECIFIC) for verdict in self.verdicts])
        return {
            "latents": counts,
            "specific_fraction": counts[SPECIFIC] / active if active else None,
            "artefact_fraction": artefacts / alone if alone else None,
            "nu_error": self._median_elsewhere(self.nu_error_FS, alone_F),
            "nu_reconstruction": self._median_elsewhere(self.nu_reconstruction_FS, alone_F),
        }

    def _median_elsewhere(self, nu_FS: Tensor, among_F: Tensor) -> float | None:
        among_F = among_F.to(nu_FS.device)
        elsewhere_FS = nu_FS.scatter(1, self.own_site_F[:, None], -torch.inf)
        return float(elsewhere_FS.amax(1)[among_F].median()) if among_F.any() else None


def can_scale(dictionary: Dictionary) -> bool:
    """Whether the dictionary is a crosscoder of sites of one width."""
    return isinstance(dictionary, Crosscoder) and len({site.width for site in dictionary.sites.inputs}) == 1


@torch.no_grad()
def latent_scaling(dictionary: Dictionary, batches: Iterable[RawRows]) -> LatentScaling:
    """Diagnose a crosscoder on raw rows, in one pass. Raises UserError for other dictionaries or unequal sites."""
    if not isinstance(dictionary, Crosscoder):
        raise UserError(f"latent scaling compares sites, and {dictionary.config.architecture} reconstructs only one")
    if not can_scale(dictionary):
        widths = sorted({site.width for site in dictionary.sites.inputs})
        raise UserError(f"latent scaling compares atoms across sites of one width, these have {widths}")
    sums = ScalingSums(dictionary)
    for x_BD, _ in batches:
        sums.add(dictionary.encode(x_BD), x_BD)
    return sums.result()


class ScalingSums:
    """Sums over rows from which beta follows, of F x S numbers each: a crosscoder is as wide as it may be."""

    def __init__(self, dictionary: Crosscoder) -> None:
        self.dictionary = dictionary
        self.atoms_FSD = dictionary.atoms_FD().unflatten(1, (len(dictionary.sites.inputs), -1))
        self.norms_FS = self.atoms_FSD.norm(dim=2)
        self.own_F = self.norms_FS.argmax(1)
        self.direction_FD = self.atoms_FSD[torch.arange(len(self.own_F), device=self.own_F.device), self.own_F]
        self.residual_FS = torch.zeros_like(self.norms_FS, dtype=torch.float64)
        self.reconstructed_FS = torch.zeros_like(self.residual_FS)
        self.squares_F = self.residual_FS.new_zeros(len(self.own_F))

    @torch.no_grad()
    def add(self, code: SparseCode, x_BD: Tensor) -> None:
        """Add raw rows and their code."""
        decoded_BD = sparse_decode(code.values, code.chosen, self.dictionary.atoms_FD())
        rest_BD = self.dictionary.input.normalise(x_BD) - decoded_BD - self.dictionary.b_dec
        self._add_along(self.residual_FS, code, rest_BD)
        self._add_along(self.reconstructed_FS, code, decoded_BD)
        self.squares_F.index_add_(0, code.indices, code.values.double().square())

    def _add_along(self, total_FS: Tensor, code: SparseCode, rows_BD: Tensor) -> None:
        """Add <d, f Y_s> of every active pair."""
        rows_BSD = rows_BD.view(len(rows_BD), *self.atoms_FSD.shape[1:])
        pairs = max(1, CHUNK_NUMBERS // rows_BD.shape[1])
        chunks = zip(code.rows.split(pairs), code.indices.split(pairs), code.values.split(pairs), strict=True)
        for rows_N, latents_N, values_N in chunks:
            along_NS = (rows_BSD[rows_N] @ self.direction_FD[latents_N, :, None])[:, :, 0]
            total_FS.index_add_(0, latents_N, (values_N[:, None] * along_NS).double())

    @torch.no_grad()
    def result(self) -> LatentScaling:
        """Return nu and the verdicts."""
        scale_F1 = (self.squares_F * self.direction_FD.double().square().sum(1))[:, None]
        scale_F1 = torch.where(scale_F1 > 0, scale_F1, torch.nan)
        own_part_FS = self.squares_F[:, None] * (self.atoms_FSD @ self.direction_FD[:, :, None])[:, :, 0].double()
        nu_error_FS = _against_own((self.residual_FS + own_part_FS) / scale_F1, self.own_F)
        nu_reconstruction_FS = _against_own(self.reconstructed_FS / scale_F1, self.own_F)
        return LatentScaling(
            norms_FS=self.norms_FS,
            nu_error_FS=nu_error_FS,
            nu_reconstruction_FS=nu_reconstruction_FS,
            own_site_F=self.own_F,
            verdicts=verdicts(self.norms_FS, nu_error_FS, nu_reconstruction_FS, self.own_F),
        )


def _against_own(beta_FS: Tensor, own_F: Tensor) -> Tensor:
    return beta_FS / beta_FS.gather(1, own_F[:, None])


def verdicts(norms_FS: Tensor, nu_error_FS: Tensor, nu_reconstruction_FS: Tensor, own_F: Tensor) -> list[str]:
    """Classify latents by their lengths and their nu at every site: the first of `VERDICTS` that holds."""
    own_FS = torch.zeros_like(norms_FS, dtype=torch.bool).scatter(1, own_F[:, None], True)
    shares_FS = norms_FS / norms_FS.gather(1, own_F[:, None])
    holds = (
        nu_error_FS.isnan().any(1),
        ((shares_FS > SHARED_ABOVE) | own_FS).all(1),
        ~((shares_FS < ALONE_BELOW) | own_FS).all(1),
        ((nu_error_FS >= SHRUNK_ABOVE) & ~own_FS).any(1),
        ((nu_reconstruction_FS >= DECOUPLED_ABOVE) & ~own_FS).any(1),
        torch.ones_like(own_F, dtype=torch.bool),
    )
    return [VERDICTS[index] for index in torch.stack(holds).int().argmax(0).tolist()]
