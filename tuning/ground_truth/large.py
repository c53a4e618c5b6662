"""Measure how much of a generated dataset's features a dictionary has found, on fresh rows of the same features.

The measures of SynthSAEBench (arXiv:2602.14687, section 4), by their formulas:

    mcc        mean |cosine| of atoms and features matched one to one with the largest sum (Hungarian algorithm), over
               min(F, G) pairs
    f1         each latent is judged as a detector of the feature that its atom has the largest |cosine| with; F1 is
               2 TP / (2 TP + FP + FN) of 'is active' against 'fires', 0 where neither happens; mean over latents
    precision  the same of TP / (TP + FP)
    recall     the same of TP / (TP + FN)
    unique     number of features that some latent has its largest |cosine| with, over F

By band of frequency, since a mean over features hides which are missing: features in the order of their firing
probability are cut into ten bands of equal size; in each

    recovered      share of features whose matched atom has |cosine| >= FOUND_ABOVE
    cosine         mean |cosine| of matched atoms, 0 for an unmatched feature
    f1             mean F1 of the matched latents as detectors of their features, 0 for an unmatched feature

Shapes: G features, F latents, D width, P pairs, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.synthetic.rows import RowGenerator
from lexray.storage.synthetic_url import CHUNK_ROWS, SCHEME, Synthetic, parse
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.measures.coherence import cosine_blocks, unit_rows
from lexray.training.measures.matching import FOUND_ABOVE, Match, match

BANDS = 10
FRESH = "ground truth"
"""Purpose of the rows that dictionaries are judged on: they are in no dataset, whatever its row seed."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Recovery of the features of one band of frequency."""

    features: int
    frequency: float
    """Mean share of the fresh rows in which a feature of the band fires."""
    recovered: float
    cosine: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Recovery of all features, on `rows` fresh rows."""

    rows: int
    latents: int
    true_l0: float
    """Mean number of features that fire in a row."""
    l0: float
    r2: float
    """1 - sum |x - x_hat|^2 / sum |x - mean|^2."""
    mcc: float
    f1: float
    precision: float
    recall: float
    unique: float
    recovered: float
    """Share of all features whose matched atom has |cosine| >= FOUND_ABOVE."""
    dead: float
    """Share of latents that no fresh row activates."""
    bands: tuple[Band, ...]
    """From the most frequent features to the rarest."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Counts:
    """Counts of rows for latents that are judged as detectors of features."""

    active_F: Tensor
    present_G: Tensor
    both_F: Tensor
    """Rows in which a latent is active and the feature nearest its atom fires."""
    both_P: Tensor
    """Rows in which both of a matched pair are there."""
    rows: int = 0
    residual: float = 0.0
    squares: float = 0.0
    total_D: Tensor | float = 0.0

    @staticmethod
    def empty(latents: int, features: int, pairs: int) -> Counts:
        active_F, present_G, both_F, both_P = (
            torch.zeros(size, dtype=torch.int64) for size in (latents, features, latents, pairs)
        )
        return Counts(active_F, present_G, both_F, both_P)

    def add(self, active_BF: Tensor, present_BG: Tensor, nearest_F: Tensor, matched: Match) -> None:
        """Add a chunk's rows; `matched` has features as atoms and latents as others."""
        self.rows += len(active_BF)
        self.active_F += active_BF.sum(0).cpu()
        self.present_G += present_BG.sum(0).cpu()
        self.both_F += (active_BF & present_BG[:, nearest_F]).sum(0).cpu()
        self.both_P += (active_BF[:, matched.others_P] & present_BG[:, matched.atoms_P]).sum(0).cpu()

    def add_reconstruction(self, x_BD: Tensor, x_hat_BD: Tensor) -> None:
        self.residual += float((x_BD.double() - x_hat_BD.double()).square().sum())
        self.squares += float(x_BD.double().square().sum())
        self.total_D = self.total_D + x_BD.double().sum(0).cpu()


def dataset_of(url: str, name: str) -> Synthetic:
    """Return the generated dataset of a training. Raises UserError where `name` was trained on another."""
    if not url.startswith(f"{SCHEME}://"):
        raise UserError(
            f"{name}: was trained on {url}, whose features are unknown; train it on {SCHEME}://synthsaebench-1k?rows=N "
            "or synthsaebench-16k"
        )
    return parse(url)


@torch.no_grad()
def measure_recovery(
    dictionary: LearnedDictionary,
    dataset: Synthetic,
    *,
    max_rows: int,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recovery:
    """Judge a dictionary on `max_rows` fresh rows, up to a multiple of a chunk's.

    `on_progress` is called with the chunks done and their number. Raises UserError where widths differ.
    """
    generator = RowGenerator(dataset, purpose=FRESH)
    features_GD = torch.from_numpy(generator.features.directions_GD.copy())
    atoms_FD = dictionary.to(device).atoms_FD().detach().float().cpu()
    if atoms_FD.shape[1] != features_GD.shape[1]:
        raise UserError(
            f"dictionary: has atoms of {atoms_FD.shape[1]} dimensions, {dataset.url} has rows of {features_GD.shape[1]}"
        )
    nearest_F = nearest_features(atoms_FD, features_GD)
    matched = match(features_GD, atoms_FD, signed_codes=True)
    counts = Counts.empty(len(atoms_FD), len(features_GD), len(matched.atoms_P))
    chunks = -(-max_rows // CHUNK_ROWS)
    for number in range(chunks):
        firing = generator.firing(number)
        x_BD = torch.from_numpy(generator.vectors(firing)).to(device)
        present_BG = torch.zeros(CHUNK_ROWS, len(features_GD), dtype=torch.bool)
        present_BG[torch.from_numpy(firing.rows_N), torch.from_numpy(firing.features_N)] = True
        code = dictionary.encode(x_BD)
        counts.add(code.dense().cpu() != 0, present_BG, nearest_F, matched)
        counts.add_reconstruction(x_BD, dictionary.decode(code, x_BD))
        on_progress(number + 1, chunks)
    return recovery(counts, nearest_F, matched)


def nearest_features(atoms_FD: Tensor, features_GD: Tensor) -> Tensor:
    """Return the number of the feature that each atom has the largest |cosine| with (F)."""
    blocks = cosine_blocks(unit_rows(atoms_FD), unit_rows(features_GD))
    return torch.cat([cos_QG.abs_().argmax(1) for _, cos_QG in blocks])


def recovery(counts: Counts, nearest_F: Tensor, matched: Match) -> Recovery:
    """Return the measures of these counts."""
    active_F, present_G, both_F = counts.active_F.double(), counts.present_G.double(), counts.both_F.double()
    present_F = present_G[nearest_F]
    cosines_G, f1_G = torch.zeros_like(present_G), torch.zeros_like(present_G)
    cosines_G[matched.atoms_P] = matched.cosines_P
    f1_G[matched.atoms_P] = f1(counts.both_P.double(), active_F[matched.others_P], present_G[matched.atoms_P])
    mean_D = torch.as_tensor(counts.total_D) / counts.rows
    spread = counts.squares - counts.rows * float(mean_D.square().sum())
    return Recovery(
        rows=counts.rows,
        latents=len(active_F),
        true_l0=float(present_G.sum()) / counts.rows,
        l0=float(active_F.sum()) / counts.rows,
        r2=1 - counts.residual / spread if spread > 0 else 0.0,
        mcc=float(matched.cosines_P.mean()),
        f1=float(f1(both_F, active_F, present_F).mean()),
        precision=float((both_F / active_F.clamp_min(1)).mean()),
        recall=float((both_F / present_F.clamp_min(1)).mean()),
        unique=len(nearest_F.unique()) / len(nearest_F),
        recovered=float((cosines_G >= FOUND_ABOVE).double().mean()),
        dead=float((active_F == 0).double().mean()),
        bands=bands(present_G / counts.rows, cosines_G, f1_G),
    )


def f1(both: Tensor, active: Tensor, present: Tensor) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN) elementwise, 0 of nothing."""
    return 2 * both / (active + present).clamp_min(1)


def bands(frequency_G: Tensor, cosines_G: Tensor, f1_G: Tensor) -> tuple[Band, ...]:
    """Cut features, which are numbered by falling firing probability, into bands of equal size."""
    parts = [torch.from_numpy(part) for part in np.array_split(np.arange(len(frequency_G)), BANDS) if len(part)]
    return tuple(
        Band(
            features=len(part),
            frequency=float(frequency_G[part].mean()),
            recovered=float((cosines_G[part] >= FOUND_ABOVE).double().mean()),
            cosine=float(cosines_G[part].mean()),
            f1=float(f1_G[part].mean()),
        )
        for part in parts
    )
