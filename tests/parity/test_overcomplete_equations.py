"""overcomplete: pursuits, BatchTopK, JumpReLU, archetypal dictionaries, the updates of NMF and semi-NMF.

It leaves the loss to the user; here it is lexray's, the mean over rows of the squared error. It works in float32.
"""

import torch
from cases import B, D, F, K, along_the_sphere, dictionary, gradients, lexray_gradients, rows, training_code
from overcomplete.optimization.nmf import _one_step_multiplicative_rule as nmf_step
from overcomplete.optimization.semi_nmf import _one_step_snmf_multiplicative_update as snmf_step
from overcomplete.sae import OMPSAE, BatchTopKSAE, JumpSAE, MpSAE, RATopKSAE

from lexray.training.objectives.forward import BatchSums
from lexray.training.ops.nmf import least_squares_atoms, multiplicative, multiplicative_atoms

X_BD = rows().float()


def with_atoms(sae, atoms_FD):
    """Their dictionary layer with these unit atoms, which it does not touch any more."""
    sae.dictionary._weights.data = atoms_FD.detach().float().clone()
    return sae


def mp(**options):
    made = dictionary("mp", decoder_norm="unit", **options).float()
    with torch.no_grad():
        made.b_dec.zero_()
    return made


def test_matching_pursuit_is_theirs(against):
    """Theirs does not rectify, which shows only where no atom has a positive score; here one always has."""
    made = mp(rounds=6)
    sae = with_atoms(MpSAE(D, F, k=6), made.W_dec)
    residual_BD, code_BF = sae.encode(X_BD)
    terms = made.loss(X_BD, B)
    loss = residual_BD.square().sum(1).mean()
    held = against("overcomplete", "mp")
    held("code", made.encode(X_BD).dense(), code_BF)
    held("reconstruction", made(X_BD), sae.decode(code_BF))
    held("loss", terms.loss, loss)
    theirs_FD = gradients(loss, {"W_dec": sae.dictionary._weights})["W_dec"]
    expected = {"W_dec": along_the_sphere(theirs_FD, made.W_dec)}
    held.gradients({"W_dec": lexray_gradients(made, terms.loss)["W_dec"]}, expected)


def test_orthogonal_pursuit_is_theirs(against):
    """Theirs fits the non-negative coefficients by iterations, of which it is given enough."""
    made = mp(rounds=3)
    sae = with_atoms(OMPSAE(D, F, k=3, max_iter=3000), made.W_dec)
    _, theirs_BF = sae.encode(X_BD)
    ours_BF = made.encode(X_BD, inference="omp").dense()
    held = against("overcomplete", "omp")
    held("code", ours_BF, theirs_BF, 1e-4)
    held("reconstruction", ours_BF @ made.W_dec.detach(), theirs_BF @ made.W_dec.detach(), 1e-4)


def linear_sae(made, sae_class, **options):
    """Theirs with our atoms and our encoder, which returns pre-codes and codes as theirs do."""
    encoder = torch.nn.Linear(D, F)
    with torch.no_grad():
        made.b_dec.zero_()
        encoder.weight.copy_(made.W_enc)
        encoder.bias.copy_(made.b_enc)
    return with_atoms(sae_class(D, F, encoder_module=_PreCodes(encoder), **options), made.W_dec), encoder


def linear_gradients(sae, encoder, loss, made):
    """In lexray's layout."""
    found = gradients(loss, {"W_enc": encoder.weight, "b_enc": encoder.bias, "W_dec": sae.dictionary._weights})
    return {**found, "W_dec": along_the_sphere(found["W_dec"], made.W_dec)}


def test_batch_topk_and_its_running_threshold_are_theirs(against):
    """Their `top_k` counts the pairs of a whole batch; their threshold keeps 0.9, as ours does after early steps."""
    made = dictionary("batch_topk", aux_weight=0.0, threshold_decay=0.9).float()
    made.at_step(10**5, 10**6)
    sae, encoder = linear_sae(made, BatchTopKSAE, top_k=K * B)
    held = against("overcomplete", "batch_topk")
    for seed in (21, 22, 11):
        x_BD = rows(seed=seed).float()
        _, code_BF = sae.encode(x_BD)
        terms = made.loss(x_BD, B)
        held("code", training_code(made, x_BD), code_BF)
        loss = (x_BD - sae.decode(code_BF)).square().sum(1).mean()
        held("loss", terms.loss, loss)
        found, expected = lexray_gradients(made, terms.loss), linear_gradients(sae, encoder, loss, made)
        held.gradients({name: found[name] for name in expected}, expected)
        made.after_step(BatchSums(rows=B, sums={}, fired_F=terms.fired_F, observed=terms.observed))
        held("threshold", made.threshold, sae.running_threshold)
    sae.eval()
    _, code_BF = sae.encode(X_BD)
    held("inference", made.encode(X_BD).dense(), code_BF)


def test_jumprelus_kernel_is_divided_by_its_width_once_though_theirs_is_twice(against):
    """The paper: d jump / d theta = - (theta / width) K((z - theta) / width), K of height 1; their kernel has height
    1 / width already. So their gradient of thresholds is lexray's over the width, and all others are the same.
    """
    width = 0.2
    made = dictionary("jumprelu", l0_loss="step", initial_coefficient=1e-13, bandwidth=width).float()
    sae, encoder = linear_sae(made, JumpSAE, kernel="rectangle", bandwidth=width)
    sae.thresholds.data = made.code.threshold_F.detach().log()
    held = against("overcomplete", "jumprelu")
    _, code_BF = sae.encode(X_BD)
    held("code", made.encode(X_BD).dense(), code_BF)
    held("reconstruction", made(X_BD), sae.decode(code_BF))
    terms = made.loss(X_BD, B)
    loss = (X_BD - sae.decode(code_BF)).square().sum(1).mean()
    held("loss", terms.loss, loss)
    found, expected = lexray_gradients(made, terms.loss), linear_gradients(sae, encoder, loss, made)
    held.gradients({name: found[name] for name in expected}, expected)
    theirs_F = gradients(loss, {"log": sae.thresholds})["log"] / made.code.threshold_F.detach()
    held("theirs times the width", found["threshold"], theirs_F * width, 1e-4)


def ra_sae(candidates, num_candidates=F):
    """Ours and theirs, with the same candidates, mixtures, relaxation and encoder."""
    made = dictionary("relaxed_archetypal", candidates=num_candidates, aux_weight=0.0, relaxation=1.0).float()
    generator = torch.Generator().manual_seed(14)
    with torch.no_grad():
        made.candidates_CD.copy_(candidates)
        made.mixture_FC.copy_(made.projections()["mixture_FC"](torch.randn(F, num_candidates, generator=generator)))
        made.relaxation_FD.copy_(made.projections()["relaxation_FD"](torch.randn(F, D, generator=generator)))
        made.b_dec.zero_()
    encoder = torch.nn.Linear(D, F)
    with torch.no_grad():
        encoder.weight.copy_(made.W_enc)
        encoder.bias.copy_(made.b_enc)
    sae = RATopKSAE(D, F, points=candidates, top_k=K, encoder_module=_PreCodes(encoder))
    sae.dictionary.W.data = made.mixture_FC.detach().clone()
    sae.dictionary.Relax.data = made.relaxation_FD.detach().clone()
    sae.dictionary.multiplier.data = made.log_scale.detach().clone()
    return made, sae, encoder


class _PreCodes(torch.nn.Module):
    """Their encoders return pre-codes and codes."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x_BD):
        z_BF = self.linear(x_BD)
        return z_BF, torch.relu(z_BF)


def test_relaxed_archetypal_is_theirs(against):
    made, sae, encoder = ra_sae(torch.randn(F, D, generator=torch.Generator().manual_seed(15)))
    held = against("overcomplete", "relaxed_archetypal")
    _, code_BF = sae.encode(X_BD)
    held("code", made.encode(X_BD).dense(), code_BF)
    held("reconstruction", made(X_BD), sae.decode(code_BF))
    loss = (X_BD - sae.decode(code_BF)).square().sum(1).mean()
    terms = made.loss(X_BD, B)
    held("loss", terms.loss, loss)
    names = {
        "W_enc": encoder.weight,
        "b_enc": encoder.bias,
        "mixture_FC": sae.dictionary.W,
        "relaxation_FD": sae.dictionary.Relax,
        "log_scale": sae.dictionary.multiplier,
    }
    found = lexray_gradients(made, terms.loss)
    held.gradients({name: found[name] for name in names}, gradients(loss, names))


def test_projections_are_theirs(against):
    """Theirs happens in the forward pass, on the data, so that its gradient is not taken either."""
    made, sae, _ = ra_sae(torch.randn(F, D, generator=torch.Generator().manual_seed(15)))
    generator = torch.Generator().manual_seed(16)
    mixture_FC, relaxation_FD = torch.randn(F, F, generator=generator), torch.randn(F, D, generator=generator)
    sae.dictionary.W.data, sae.dictionary.Relax.data = mixture_FC.clone(), relaxation_FD.clone()
    sae.get_dictionary()
    projections = made.projections()
    held = against("overcomplete", "archetypal projections")
    held("mixture", projections["mixture_FC"](mixture_FC), sae.dictionary.W.data)
    held("relaxation", projections["relaxation_FD"](relaxation_FD), sae.dictionary.Relax.data)


def test_atoms_beyond_the_candidates_start_in_the_hull_though_theirs_start_at_zero():
    """A mixture's weights sum to 1; theirs begin as the identity, which has no row beyond the candidates."""
    from lexray.training.dictionaries.archetypal import initial_mixture

    points = torch.randn(10, D, generator=torch.Generator().manual_seed(15))
    sae = RATopKSAE(D, F, points=points, top_k=K, encoder_module=_PreCodes(torch.nn.Linear(D, F)))
    assert (sae.get_dictionary()[10:] == 0).all()
    made = dictionary("archetypal", candidates=10)
    mixture_FC = initial_mixture(made.config, 0)
    torch.testing.assert_close(mixture_FC.sum(1), torch.ones(F))
    assert ((mixture_FC @ points).norm(dim=1) > 0.1).all()


# NMF --------------------------------------------------------------------------------------------------------------

A_BD = rows()
G = torch.Generator().manual_seed(17)
Z_BF = torch.rand(B, 6, generator=G, dtype=torch.float64)
D_FD = torch.randn(6, D, generator=G, dtype=torch.float64)


def test_semi_nmfs_codes_are_theirs(against):
    """One update each, from the same codes: lexray first scales a row's start by the factor that fits it best.

    Theirs adds 1e-8 under the root and to the denominator, lexray 1e-10 to the latter.
    """
    affinity_BF, gram_FF = A_BD @ D_FD.T, D_FD @ D_FD.T
    factor_B1 = (affinity_BF * Z_BF).sum(1, keepdim=True) / ((Z_BF @ gram_FF) * Z_BF).sum(1, keepdim=True)
    theirs_BF, _ = snmf_step(A_BD, Z_BF * factor_B1.clamp_min(0), D_FD, update_D=False)
    against("overcomplete", "snmf, codes")("code", multiplicative(affinity_BF, gram_FF, Z_BF, 1), theirs_BF, 1e-4)


def test_semi_nmfs_atoms_are_theirs(against):
    """Least squares; lexray's ridge, which keeps atoms that no row uses, is set to zero."""
    _, theirs_FD = snmf_step(A_BD, Z_BF, D_FD, update_Z=False)
    ours_FD = least_squares_atoms(Z_BF.T @ Z_BF, Z_BF.T @ A_BD, D_FD, ridge=0.0)
    against("overcomplete", "snmf, atoms")("atoms", ours_FD, theirs_FD)


def test_nmfs_atoms_are_theirs(against):
    A, atoms_FD = A_BD.abs(), D_FD.abs()
    _, theirs_FD = nmf_step(A, Z_BF, atoms_FD, update_Z=False)
    ours_FD = multiplicative_atoms(Z_BF.T @ Z_BF, Z_BF.T @ A, atoms_FD, 1)
    against("overcomplete", "nmf, atoms")("atoms", ours_FD, theirs_FD)
