"""SAELens: same weights, same rows, same code, reconstruction, loss and gradients.

Its squared error is lexray's: the mean over rows of the sum over dimensions. Its dictionaries learn free atoms and
weigh by their norms, which is `decoder_norm: free`; its TopK family returns code * norm, lexray the code.
"""

import pytest
import torch
from cases import (
    B,
    D,
    F,
    K,
    along_the_sphere,
    dictionary,
    gradients,
    lexray_gradients,
    reconstructed,
    rows,
    training_code,
)
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig

from lexray.training.objectives.forward import BatchSums

FREE = {"decoder_norm": "free"}
X_BD = rows()


def theirs(made, sae_class, config_class, *, minus_b_dec=True, **options):
    """SAELens' dictionary with the weights of ours."""
    config = config_class(d_in=D, d_sae=F, dtype="float64", device="cpu", apply_b_dec_to_input=minus_b_dec, **options)
    sae = sae_class(config)
    own = {name: tensor.detach().clone() for name, tensor in made.named_parameters()}
    if "W_enc" in own:
        own["W_enc"] = own["W_enc"].T.contiguous()
    if hasattr(sae, "threshold"):
        own.pop("scaled_log_threshold")
        own["threshold"] = made.code.threshold_F.detach().float()
    for name, parameter in sae.named_parameters():
        assert parameter.shape == own[name].shape, name
        parameter.data = own[name]
    return sae


def step(sae, coefficients, dead_F=None):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=X_BD, coefficients=coefficients, dead_neuron_mask=dead_F, n_training_steps=10, is_logging_step=False
        )
    )


def their_gradients(sae, loss):
    """In lexray's layout."""
    found = gradients(loss, dict(sae.named_parameters()))
    if "W_enc" in found:
        found["W_enc"] = found["W_enc"].T
    return {name: gradient.double() for name, gradient in found.items()}


def hold(held, made, sae, out, code_BF, *, scale=1.0):
    """Code, reconstruction, loss and gradients of one step."""
    terms = made.loss(X_BD, B)
    held("code", code_BF * scale, out.feature_acts)
    held("reconstruction", reconstructed(made, code_BF), out.sae_out)
    held("loss", terms.loss, out.loss)
    held.gradients(lexray_gradients(made, terms.loss), their_gradients(sae, out.loss))


def test_norm_weighted_relu_is_their_standard(against):
    made = dictionary("relu_norm_weighted", initial_coefficient=0.3)
    sae = theirs(made, StandardTrainingSAE, StandardTrainingSAEConfig)
    out = step(sae, {"l1": float(made.code.coefficient)})
    held = against("SAELens", "relu_norm_weighted")
    hold(held, made, sae, out, made.encode(X_BD).dense())


def test_gated_is_theirs_with_the_papers_auxiliary_term(against):
    """The paper freezes the decoder in the auxiliary term; SAELens lets it learn from it.

    So code, reconstruction and loss are SAELens' own, and gradients are SAELens' two other terms and the paper's third.
    """
    made = dictionary("gated", initial_coefficient=0.3, **FREE)
    sae = theirs(made, GatedTrainingSAE, GatedTrainingSAEConfig)
    out = step(sae, {"l1": float(made.code.coefficient)})
    terms = made.loss(X_BD, B)
    held = against("SAELens", "gated")
    held("code", made.encode(X_BD).dense(), out.feature_acts)
    held("reconstruction", made(X_BD), out.sae_out)
    held("loss", terms.loss, out.loss)
    found = lexray_gradients(made, terms.loss)
    pi_BF = torch.relu((X_BD - sae.b_dec) @ sae.W_enc + sae.b_gate)
    frozen_B = (X_BD - pi_BF @ sae.W_dec.detach() - sae.b_dec.detach()).square().sum(1)
    papers = out.losses["mse_loss"] + out.losses["l1_loss"] + frozen_B.mean()
    held.gradients(found, their_gradients(sae, papers))
    differs = their_gradients(sae, out.loss)["W_dec"] - found["W_dec"]
    assert differs.abs().max() > 0.01 * found["W_dec"].abs().max()


@pytest.mark.parametrize("gradient", ["threshold", "threshold_and_input"])
def test_jumprelu_with_step_loss_is_theirs(against, gradient):
    made = dictionary("jumprelu", l0_loss="step", initial_coefficient=0.3, bandwidth=0.2, gradient=gradient)
    sae = theirs(
        made, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, minus_b_dec=False, jumprelu_bandwidth=0.2,
        jumprelu_ste_to_input=gradient == "threshold_and_input",
    )  # fmt: skip
    out = step(sae, {"l0": float(made.code.coefficient)})
    held = against("SAELens", f"jumprelu step, {gradient}")
    code_BF = made.encode(X_BD).dense()
    held("code", code_BF, out.feature_acts)
    held("reconstruction", made(X_BD), out.sae_out)
    terms = made.loss(X_BD, B)
    held("loss", terms.loss, out.loss)
    expected = their_gradients(sae, out.loss)
    expected["W_dec"] = along_the_sphere(expected["W_dec"], made.W_dec)
    held.gradients(lexray_gradients(made, terms.loss), expected)


def test_jumprelu_with_quadratic_loss_is_theirs(against):
    """SAELens: c * (2 / target) * (L0 - target)^2; lexray: weight * (L0 / target - 1)^2. So weight = 2 c target."""
    c = 0.01
    made = dictionary("jumprelu", initial_coefficient=2 * c * K, bandwidth=0.2, l0_loss="quadratic", **FREE)
    sae = theirs(
        made, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, minus_b_dec=False, jumprelu_bandwidth=0.2,
        jumprelu_sparsity_loss_mode="quadratic", target_l0=float(K),
    )  # fmt: skip
    hold(against("SAELens", "jumprelu quadratic"), made, sae, step(sae, {"l0": c}), made.encode(X_BD).dense())


def test_jumprelu_with_tanh_and_preactivation_loss_is_theirs(against):
    """SAELens' scale is for rows of norm sqrt(D), lexray's for rows of norm 1: theirs is ours times sqrt(D)."""
    made = dictionary(
        "jumprelu", dead=7, initial_coefficient=0.3, bandwidth=0.2, l0_loss="tanh", tanh_scale=1.5, preact_weight=0.2,
        gradient="threshold_and_input", **FREE,
    )  # fmt: skip
    sae = theirs(
        made, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, minus_b_dec=False, jumprelu_bandwidth=0.2,
        jumprelu_sparsity_loss_mode="tanh", jumprelu_tanh_scale=1.5 * D**0.5, pre_act_loss_coefficient=0.2,
        jumprelu_ste_to_input=True,
    )  # fmt: skip
    out = step(sae, {"l0": float(made.code.coefficient)}, made.dead_F)
    assert out.losses["pre_act_loss"] > 0
    hold(against("SAELens", "jumprelu tanh, preact"), made, sae, out, made.encode(X_BD).dense())


@pytest.mark.parametrize(
    ("architecture", "sae_class", "config_class"),
    [
        ("topk", TopKTrainingSAE, TopKTrainingSAEConfig),
        ("abs_topk", AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig),
        ("batch_topk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    ],
)
def test_the_topk_family_is_theirs_without_auxk(against, architecture, sae_class, config_class):
    made = dictionary(architecture, aux_weight=0.0, **FREE)
    sae = theirs(made, sae_class, config_class, k=K)
    hold(
        against("SAELens", architecture), made, sae, step(sae, {}), training_code(made, X_BD),
        scale=made.W_dec.detach().norm(dim=1),
    )  # fmt: skip


def test_the_running_threshold_starts_at_the_first_batchs_though_theirs_starts_at_zero(against):
    """An average that starts at zero is 1 - 0.99^n of what it averages after n steps: too many latents are active."""
    made = dictionary("batch_topk", aux_weight=0.0, threshold_decay=0.99)
    sae = theirs(made, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, k=K, topk_threshold_lr=0.01)
    smallest = []
    for _ in range(5):
        step(sae, {})
        terms = made.loss(X_BD, B)
        smallest.append(terms.observed["smallest_kept"])
        made.after_step(BatchSums(rows=B, sums={}, fired_F=terms.fired_F, observed=terms.observed))
    held = against("SAELens", "batch_topk, threshold")
    held("threshold", made.threshold.double(), smallest[0])
    held("theirs", sae.topk_threshold, (1 - 0.99**5) * smallest[0])


def test_matryoshka_is_theirs_without_auxk(against):
    """Both add the squared errors of all prefixes up with weight 1."""
    made = dictionary("matryoshka_batch_topk", aux_weight=0.0, prefixes=(0.25, 0.5, 1.0), **FREE)
    options = {"k": K, "matryoshka_widths": [F // 4, F // 2, F]}
    sae = theirs(made, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, **options)
    hold(
        against("SAELens", "matryoshka_batch_topk"), made, sae, step(sae, {}), training_code(made, X_BD),
        scale=made.W_dec.detach().norm(dim=1),
    )  # fmt: skip


def test_auxk_is_theirs_over_the_residuals_variance_where_all_dead_latents_are_positive(against):
    """SAELens neither rectifies candidates nor divides by the residual's variance; the paper does both.

    With positive candidates and at least D / 2 dead latents, SAELens' term (a mean over rows) times B over the summed
    squared distance of the residuals from their mean is lexray's.
    """
    made = dictionary("topk", dead=10, aux_weight=1.0, **FREE)
    with torch.no_grad():
        made.b_enc[-10:] += 20.0
        made.W_enc[-10:] *= 0.1
        made.W_dec[-10:] *= 0.001  # dead latents are not the ones that are chosen
    sae = theirs(made, TopKTrainingSAE, TopKTrainingSAEConfig, k=K)
    out = step(sae, {}, made.dead_F)
    e_BD = (X_BD - out.sae_out).detach()
    variance = (e_BD - e_BD.mean(0)).square().sum()
    papers = out.losses["auxiliary_reconstruction_loss"] * B / variance
    terms = made.loss(X_BD, B)
    held = against("SAELens", "topk AuxK")
    held("loss", terms.sums["aux"], papers)
    expected = their_gradients(sae, out.losses["mse_loss"] + papers)
    held.gradients(lexray_gradients(made, terms.loss), expected)


def test_dead_latents_below_zero_have_no_part_in_auxk_though_they_have_in_theirs(against):
    """Theirs decodes negative pre-activations of dead latents, which they can never have as activations."""
    made = dictionary("topk", dead=10, aux_weight=1.0, **FREE)
    with torch.no_grad():
        made.b_enc[-10:] -= 20.0
    sae = theirs(made, TopKTrainingSAE, TopKTrainingSAEConfig, k=K)
    out = step(sae, {}, made.dead_F)
    e_BD = (X_BD - out.sae_out).detach()
    silent = e_BD.square().sum() / (e_BD - e_BD.mean(0)).square().sum()
    terms = made.loss(X_BD, B)
    against("SAELens", "topk AuxK, nothing positive")("loss", terms.sums["aux"], silent)
    assert lexray_gradients(made, terms.loss)["W_enc"][-10:].abs().max() == 0
    assert their_gradients(sae, out.losses["auxiliary_reconstruction_loss"])["W_enc"][-10:].abs().max() > 0


@pytest.mark.parametrize("at_repeat", [False, True])
def test_matching_pursuit_is_theirs(against, at_repeat):
    """Atoms of length 1 stay so in lexray: its gradient is theirs without the part along the atom."""
    made = dictionary("mp", rounds=8, stop_at_repeat=at_repeat, residual_threshold=0.5, decoder_norm="unit")
    sae = theirs(
        made, MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig, residual_threshold=0.5, max_iterations=8,
        stop_on_duplicate_support=at_repeat, decoder_init_norm=1.0,
    )  # fmt: skip
    out, terms = step(sae, {}), made.loss(X_BD, B)
    held = against("SAELens", f"mp, at_repeat={at_repeat}")
    held("code", made.encode(X_BD).dense(), out.feature_acts)
    held("reconstruction", made(X_BD), out.sae_out)
    held("loss", terms.loss, out.loss)
    expected = their_gradients(sae, out.loss)
    expected["W_dec"] = along_the_sphere(expected["W_dec"], made.W_dec)
    held.gradients(lexray_gradients(made, terms.loss), expected)


def test_matching_pursuit_with_free_atoms_is_theirs_with_the_whole_gradient(against):
    """SAELens, as the paper's code, lets lengths drift from 1; `decoder_norm: ignored` does too."""
    made = dictionary("mp", rounds=6, decoder_norm="ignored")
    with torch.no_grad():
        made.W_dec *= (torch.linspace(0.9, 1.1, F) / made.W_dec.norm(dim=1))[:, None]
    options = {"residual_threshold": 0.0, "max_iterations": 6, "stop_on_duplicate_support": False}
    sae = theirs(made, MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig, decoder_init_norm=1.0, **options)
    hold(against("SAELens", "mp, free atoms"), made, sae, step(sae, {}), made.encode(X_BD).dense())


@pytest.mark.parametrize(
    ("architecture", "sae_class", "config_class"),
    [
        ("transcoder", Transcoder, TranscoderConfig),
        ("skip_transcoder", SkipTranscoder, SkipTranscoderConfig),
    ],
)
def test_transcoders_are_theirs(against, architecture, sae_class, config_class):
    """SAELens has their forward pass only: the loss is the mean over rows of the squared error, the penalty none."""
    y_BO = rows(9, seed=13)
    made = dictionary(architecture, output_width=9, code="relu", initial_coefficient=1e-12, decoder_norm="ignored")
    sae = theirs(made, sae_class, config_class, minus_b_dec=False, d_out=9)
    held = against("SAELens", f"{architecture}, relu")
    held("code", made.encode(X_BD).dense(), sae.encode(X_BD))
    held("reconstruction", made(X_BD), sae(X_BD))
    loss = (y_BO - sae(X_BD)).square().sum(1).mean()
    terms = made.loss(X_BD, B, y_BO)
    held("loss", terms.loss, loss)
    held.gradients(lexray_gradients(made, terms.loss), their_gradients(sae, loss))
