"""sparsify: same weights, same rows, same code, reconstruction, loss and gradients.

Its loss is the FVU of the batch, the summed squared error over the summed squared distance of the targets from the
batch's mean; lexray's is the mean over rows. So lexray's is theirs times variance / B, gradients too.
"""

import pytest
import torch
from cases import B, D, K, along_the_sphere, dictionary, gradients, lexray_gradients, rows, training_code
from sparsify import SparseCoder, SparseCoderConfig

from lexray.training.ops.sparse_code import SparseCode

X_BD = rows()
Y_BD = rows(seed=13)


def theirs(made, activation="topk", **options):
    """Their coder with the weights of ours."""
    config = SparseCoderConfig(
        activation=activation,
        num_latents=made.config.width,
        k=int(made.config.target_l0),
        normalize_decoder=False,
        **options,
    )
    coder = SparseCoder(D, config, dtype=torch.float64)
    own = dict(made.named_parameters())
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.copy_(own[{"encoder.weight": "W_enc", "encoder.bias": "b_enc"}.get(name, name)])
    return coder


def their_gradients(coder, loss, atoms_FD=None):
    """In lexray's layout; with unit atoms, of W_dec without the part along them."""
    found = gradients(loss, dict(coder.named_parameters()))
    named = {{"encoder.weight": "W_enc", "encoder.bias": "b_enc"}.get(name, name): g for name, g in found.items()}
    if atoms_FD is not None:
        named["W_dec"] = along_the_sphere(named["W_dec"], atoms_FD)
    return named


def dense(out, width):
    return torch.zeros(B, width, dtype=torch.float64).scatter_add(1, out.latent_indices, out.latent_acts)


def hold(held, made, coder, target_BD=X_BD, *, unit=True):
    out = coder(X_BD, None if target_BD is X_BD else target_BD)
    factor = (target_BD - target_BD.mean(0)).square().sum() / B
    code_BF = training_code(made, X_BD)
    held("code", code_BF, dense(out, made.config.width))
    held("reconstruction", made.decode(SparseCode.where(code_BF != 0, code_BF), X_BD), out.sae_out)
    terms = made.loss(X_BD, B, target_BD)
    held("loss", terms.loss, out.fvu * factor)
    held.gradients(
        lexray_gradients(made, terms.loss), their_gradients(coder, out.fvu * factor, made.W_dec if unit else None)
    )


def test_topk_is_theirs_without_auxk(against):
    made = dictionary("topk", aux_weight=0.0)
    hold(against("sparsify", "topk"), made, theirs(made))


def test_group_max_is_theirs_where_every_group_has_a_positive_latent(against):
    made = dictionary("group_max", aux_weight=0.0)
    with torch.no_grad():
        made.b_enc += 3.0
    hold(against("sparsify", "group_max"), made, theirs(made, "groupmax"))


def test_a_latent_that_was_chosen_with_value_zero_gets_no_gradient_though_it_does_in_theirs(against):
    """relu' is zero below zero; their backward pass sends the decoder's gradient to every chosen latent."""
    made = dictionary("group_max", aux_weight=0.0)
    with torch.no_grad():
        made.b_enc[:8] = -30.0  # the first of the 5 groups is silent
        made.b_enc[8:] += 3.0
    coder = theirs(made, "groupmax")
    out = coder(X_BD)
    found = lexray_gradients(made, made.loss(X_BD, B).loss)
    against("sparsify", "group_max, a silent group")("code", training_code(made, X_BD), dense(out, 40))
    assert found["b_enc"][:8].abs().max() == 0
    assert their_gradients(coder, out.fvu)["b_enc"][:8].abs().max() > 0


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_transcoders_are_theirs(against, architecture):
    made = dictionary(architecture, aux_weight=0.0, decoder_norm="ignored")
    coder = theirs(made, transcode=True, skip_connection=architecture == "skip_transcoder")
    hold(against("sparsify", architecture), made, coder, Y_BD, unit=False)


def test_auxk_teaches_the_encoders_of_dead_latents_though_theirs_does_not(against):
    """Their fused encoder drops the gradient of pre-activations, so that AuxK reaches the decoder alone.

    The paper's term, from the equations: dead latents' rectified pre-activations, the k_aux = D / 2 largest, decoded
    without bias against the residual, over the residual's variance. Theirs divides by the input's variance.
    """
    made = dictionary("topk", dead=9, aux_weight=1.0)
    coder = theirs(made)
    dead_F = made.dead_F
    out = coder(X_BD, dead_mask=dead_F)
    assert their_gradients(coder, out.auxk_loss)["W_enc"].abs().max() == 0
    e_BD = (X_BD - out.sae_out).detach()
    atoms_FD = made.atoms_FD()
    z_BF = torch.relu((X_BD - made.b_dec) @ made.W_enc.T + made.b_enc)
    best = torch.where(dead_F, z_BF, -torch.inf).topk(D // 2, dim=1)
    e_hat_BD = (best.values[:, :, None] * atoms_FD[best.indices]).sum(1)
    papers = (e_BD - e_hat_BD).square().sum() / (e_BD - e_BD.mean(0)).square().sum()
    terms = made.loss(X_BD, B)
    held = against("sparsify", "topk, AuxK")
    held("loss", terms.sums["aux"], papers)
    plain = dictionary("topk", dead=9, aux_weight=0.0)
    without = lexray_gradients(plain, plain.loss(X_BD, B).loss)
    with_term = lexray_gradients(made, terms.loss)
    found = {name: with_term[name] - without[name] for name in without}
    assert found["W_enc"][-9:].abs().max() > 0
    held.gradients(found, gradients(papers, dict(made.named_parameters())))
    scaled = out.auxk_loss * (X_BD - X_BD.mean(0)).square().sum() / (e_BD - e_BD.mean(0)).square().sum()
    held("theirs, rescaled", terms.sums["aux"], scaled.detach())


def test_multi_topk_teaches_the_encoder_though_theirs_does_not(against):
    """1/8 of the squared error with 4 k latents; theirs has the value, and the decoder's gradient alone."""
    made, plain = dictionary("topk", aux_weight=0.0, multi_topk=True), dictionary("topk", aux_weight=0.0)
    coder = theirs(made, multi_topk=True)
    out = coder(X_BD)
    factor = (X_BD - X_BD.mean(0)).square().sum() / B
    terms = made.loss(X_BD, B)
    held = against("sparsify", "topk, Multi-TopK")
    held("loss", terms.sums["multi"], out.multi_topk_fvu.detach() * factor)
    assert their_gradients(coder, out.multi_topk_fvu)["W_enc"].abs().max() == 0
    z_BF = torch.relu((X_BD - made.b_dec) @ made.W_enc.T + made.b_enc)
    best = z_BF.topk(4 * K, dim=1)
    x_hat_BD = (best.values[:, :, None] * made.atoms_FD()[best.indices]).sum(1) + made.b_dec
    papers = (X_BD - x_hat_BD).square().sum(1).mean() / 8
    without, with_term = lexray_gradients(plain, plain.loss(X_BD, B).loss), lexray_gradients(made, terms.loss)
    found = {name: with_term[name] - without[name] for name in without}
    held.gradients(found, gradients(papers, dict(made.named_parameters())))
