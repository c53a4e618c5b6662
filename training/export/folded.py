"""Fold a trained dictionary into one linear encoder and decoder of *raw* rows: normalisers, norms and biases.

With x_n = x A + c the normalised input and y = y_n U + m the raw output, both affine for every normaliser but
`layer_norm`, an encoder z = W_enc x_n + b becomes W_enc A^T x + (b + W_enc c), and atoms become atoms U. Folding is
done in float64. Multiplying a latent's encoder, biases and threshold by c and dividing its atom by c changes no
reconstruction; it changes the code by c, which is kept as `code_scale_F`, and it changes which latents are chosen
where pre-activations of different latents are compared.

Shapes: B rows, D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.folding import COMPARING, Activation, Folding, Gate
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.dictionaries.normalisers import Normaliser
from lexray.training.ops.linear import LinearEncoder
from lexray.training.ops.pursuit import StopRule

EQUAL_NORMS = 1e-5
"""Relative difference below which norms count as equal: float32 rounding."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """z = W_enc x + bias, f = activation(z), y_hat = f W_dec + b_dec (+ W_skip x), on raw rows; float64."""

    activation: Activation
    W_enc_FD: Tensor
    bias_F: Tensor
    W_dec_FO: Tensor
    b_dec_O: Tensor
    code_scale_F: Tensor
    """Ratio of the folded code to the dictionary's."""
    transcodes: bool = False
    """Whether the output site differs from the input site."""
    W_skip_OD: Tensor | None = None
    k: int | None = None
    """Active latents per row (the mean for BatchTopK); None where the code does not set it."""
    prefix_widths: tuple[int, ...] = ()
    """Matryoshka's prefix widths, where they are fixed over steps."""
    threshold_F: Tensor | None = None
    """Thresholds of `jumprelu`, above which a latent is active."""
    gate: Gate | None = None
    pursuit: StopRule | None = None
    """Stopping rule of `pursuit`, which encodes x - b_dec with the decoder's atoms."""

    @property
    def norms_F(self) -> Tensor:
        return self.W_dec_FO.norm(dim=1)

    def with_scaled_latents(self, by_F: Tensor) -> Folded:
        """Return the dictionary with codes multiplied by `by_F` > 0 and unchanged reconstructions."""
        gate = self.gate
        if gate is not None:
            gate = replace(gate, b_gate_F=gate.b_gate_F * by_F, b_mag_F=gate.b_mag_F * by_F)
        return replace(
            self,
            W_enc_FD=self.W_enc_FD * by_F[:, None],
            bias_F=self.bias_F * by_F,
            W_dec_FO=self.W_dec_FO / by_F[:, None],
            threshold_F=None if self.threshold_F is None else self.threshold_F * by_F,
            gate=gate,
            code_scale_F=self.code_scale_F * by_F,
        )

    def with_unit_atoms(self) -> Folded:
        """Return the dictionary with unit atoms, so that codes are lengths of contributions. Raises UserError."""
        norms_F = _positive(self.norms_F)
        if self.pursuit is not None:
            if (norms_F - 1).abs().max() > EQUAL_NORMS:
                raise UserError("unit atoms: matching pursuit with atoms of other lengths gives other codes with these")
            return self
        if self.activation in COMPARING and not are_equal(norms_F):
            raise UserError(
                f"unit atoms: {self.activation} compares latents, and atoms of raw activations are {norms_F.min():.3g} "
                f"to {norms_F.max():.3g} long; dividing by that would change which are chosen. Export without it"
            )
        return self.with_scaled_latents(norms_F)

    def bias_of_centred_F(self) -> Tensor:
        """Return the bias that accompanies W_enc (x - b_dec), for formats that subtract b_dec."""
        return self.bias_F + self.W_enc_FD @ self.b_dec_O


def _positive(norms_F: Tensor) -> Tensor:
    """Return the norms with a small positive floor relative to the longest, to divide by."""
    return norms_F.clamp_min(1e-12 * float(norms_F.max()) or 1.0)


def are_equal(values_F: Tensor) -> bool:
    """Return whether values differ by rounding alone."""
    return bool((values_F.max() - values_F.min()) <= EQUAL_NORMS * values_F.abs().max())


@torch.no_grad()
def fold(dictionary: Dictionary) -> Folded:
    """Fold a dictionary to raw rows. Raises UserError with the reason where it is not one encoder and one decoder."""
    folding = dictionary.fold()
    if dictionary.config.normaliser == "layer_norm":
        raise UserError(
            "normaliser: layer_norm cannot be folded, and where formats have one of their own it adds its 1e-5 in "
            "another place, which changes codes; train with `standard` to export"
        )
    dictionary = copy.deepcopy(dictionary).double()
    folding = dictionary.fold()
    assert isinstance(dictionary, LearnedDictionary), "only these have one encoder and one decoder"
    if folding.pursuit is not None:
        return _fold_pursuit(dictionary, folding.pursuit)
    return _on_raw_rows(dictionary, _normalised(dictionary, folding))


def _normalised(made: LearnedDictionary, folding: Folding) -> Folded:
    """Return the dictionary on normalised rows, as z = W_enc x + bias."""
    decoder, encoder = made.decoder(), made.encoder()
    assert isinstance(encoder, LinearEncoder)
    folded = Folded(
        activation=folding.activation,
        W_enc_FD=encoder.W_FD.detach(),
        bias_F=encoder.bias_F,
        W_dec_FO=decoder.atoms_FO,
        b_dec_O=made.b_dec.detach(),
        code_scale_F=encoder.W_FD.new_ones(len(encoder.W_FD)),
        transcodes=not made.sites.reconstructs_its_input,
        W_skip_OD=getattr(made, "W_skip", None),
        k=folding.k,
        prefix_widths=folding.prefix_widths,
        gate=folding.gate,
    )
    if folding.ranks_by_norm and decoder.norms_F is not None:
        # Latents are ranked by code times norm, which becomes the code.
        folded = folded.with_scaled_latents(_positive(decoder.norms_F))
    return replace(folded, threshold_F=folding.threshold_F)


def _on_raw_rows(made: LearnedDictionary, folded: Folded) -> Folded:
    c_D, m_O = _shift(made.input), _offset(made.output)
    bias_F = folded.bias_F + folded.W_enc_FD @ c_D
    b_dec_O, W_skip_OD, gate = folded.b_dec_O, folded.W_skip_OD, folded.gate
    if W_skip_OD is not None:
        b_dec_O = b_dec_O + W_skip_OD @ c_D
        W_skip_OD = _to_raw(made.output, _of_raw(made.input, W_skip_OD).T).T
    if gate is not None:  # its two halves have separate biases: the shared one goes into both
        gate = replace(gate, b_gate_F=gate.b_gate_F + bias_F, b_mag_F=gate.b_mag_F + bias_F * gate.r_mag_F.exp())
        bias_F = torch.zeros_like(bias_F)
    return replace(
        folded,
        W_enc_FD=_of_raw(made.input, folded.W_enc_FD),
        bias_F=bias_F,
        W_dec_FO=_to_raw(made.output, folded.W_dec_FO),
        b_dec_O=_to_raw(made.output, b_dec_O) + m_O,
        W_skip_OD=W_skip_OD,
        gate=gate,
    )


def _fold_pursuit(made: LearnedDictionary, rule: StopRule) -> Folded:
    """Fold matching pursuit: atoms also encode, so they are kept and the scale goes into the code."""
    if made.config.normaliser == "whiten":
        raise UserError("normaliser: whiten bends matching pursuit's atoms, which are encoder and decoder in one")
    scale_O, m_O = made.output.scale_D, _offset(made.output)
    assert are_equal(scale_O), "one site has one scale"
    scale, atoms_FD = float(scale_O[0]), made.atoms_FD()
    return Folded(
        activation="pursuit",
        W_enc_FD=atoms_FD,
        bias_F=torch.zeros(len(atoms_FD), dtype=torch.float64),
        W_dec_FO=atoms_FD,
        b_dec_O=made.b_dec.detach() * scale + m_O,
        code_scale_F=torch.full((len(atoms_FD),), scale, dtype=torch.float64),
        pursuit=rule._replace(residual_norm=rule.residual_norm * scale),
    )


def _of_raw(normaliser: Normaliser, map_FD: Tensor) -> Tensor:
    """Return a linear map of normalised rows as one of raw rows: W A^T."""
    if normaliser.kind == "whiten":
        map_FD = map_FD @ normaliser.get_buffer("whiten_DD").T
    return map_FD / normaliser.scale_D


def _to_raw(normaliser: Normaliser, atoms_FO: Tensor) -> Tensor:
    """Return directions of normalised rows as those of raw rows: atoms U."""
    if normaliser.kind == "whiten":
        atoms_FO = atoms_FO @ normaliser.get_buffer("unwhiten_DD")
    return atoms_FO * normaliser.scale_D


def _shift(normaliser: Normaliser) -> Tensor:
    """Return c (D) of x_n = x A + c."""
    return normaliser.normalise(torch.zeros_like(normaliser.mean_D)[None])[0]


def _offset(normaliser: Normaliser) -> Tensor:
    """Return m (O) of y = y_n U + m."""
    return normaliser.denormalise(torch.zeros_like(normaliser.mean_D)[None])[0]
