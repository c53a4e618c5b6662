"""dictionary_learning: same weights, same rows, same code, reconstruction, loss and gradients.

Its squared error is lexray's: the mean over rows of the sum over dimensions. It keeps atoms at length 1 by taking the
part along the atom out of the gradient, which is what normalising atoms in the forward pass comes to: gradients of
W_dec are compared after that.
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
from dictionary_learning.trainers import (
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    PAnnealTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

from lexray.training.objectives.forward import BatchSums

X_BD = rows()
LATE = 5000
"""A step at which nothing warms up."""
NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
"""Their names of parameters to ours; others are the same."""
TRANSPOSED = ("decoder.weight",)


def trainer_of(made, trainer_class, *, transposed=TRANSPOSED, **options):
    """A trainer whose dictionary has the weights of ours."""
    common = {"steps": 20_000, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "none", "device": "cpu"}
    trainer = trainer_class(**common, **options)
    trainer.ae.double()
    own = {name: tensor.detach() for name, tensor in made.named_parameters()}
    if "scaled_log_threshold" in own:
        own["threshold"] = made.code.threshold_F.detach()
    for name, parameter in trainer.ae.named_parameters():
        value = own[NAMES.get(name, name)]
        parameter.data = (value.T if name in transposed else value).clone()
    return trainer


def their_gradients(trainer, loss, made, *, transposed=TRANSPOSED, unit=True):
    """In lexray's layout; of W_dec without the part along the atoms where these are of length 1."""
    found = gradients(loss, dict(trainer.ae.named_parameters()))
    named = {NAMES.get(name, name): g.T if name in transposed else g for name, g in found.items()}
    if unit:
        named["W_dec"] = along_the_sphere(named["W_dec"], made.W_dec)
    return named


def hold(held, made, trainer, code_BF, *, unit=True, **layout):
    """Code, reconstruction, loss and gradients of a late step."""
    log = trainer.loss(X_BD, step=LATE, logging=True)
    loss = trainer.loss(X_BD, step=LATE)
    held("code", code_BF, log[2])
    held("reconstruction", reconstructed(made, code_BF), log[1])
    terms = made.loss(X_BD, B)
    held("loss", terms.loss, loss)
    held.gradients(lexray_gradients(made, terms.loss), their_gradients(trainer, loss, made, unit=unit, **layout))


def with_dead(trainer, count):
    """Their trainer with the last latents dead at every call: it counts rows in `loss` itself, before AuxK looks."""

    def auxiliary(*args):
        trainer.num_tokens_since_fired[:] = 0
        trainer.num_tokens_since_fired[-count:] = trainer.dead_feature_threshold
        return own(*args)

    own, trainer.get_auxiliary_loss = trainer.get_auxiliary_loss, auxiliary
    return trainer


def test_relu_is_their_standard(against):
    made = dictionary("relu", initial_coefficient=0.3)
    trainer = trainer_of(made, StandardTrainer, l1_penalty=float(made.code.coefficient), sparsity_warmup_steps=None)
    hold(against("dictionary_learning", "relu"), made, trainer, made.encode(X_BD).dense())


def test_steps_with_constrained_atoms_are_those_of_their_constrained_adam(against):
    """It takes the part along the atom out of the gradient before a step and puts atoms back to length 1 after it."""
    made = dictionary("relu", initial_coefficient=0.3, decoder_norm="constrained")
    trainer = trainer_of(made, StandardTrainer, l1_penalty=float(made.code.coefficient), sparsity_warmup_steps=None)
    theirs = trainer.optimizer
    theirs.param_groups[0]["lr"] = 0.01
    ours = torch.optim.Adam(made.parameters(), lr=0.01)
    for seed in range(5):
        x_BD = rows(seed=seed)
        for optimizer, loss in ((ours, made.loss(x_BD, B).loss), (theirs, trainer.loss(x_BD, step=LATE))):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for name, project in made.projections().items():
                made.get_parameter(name).copy_(project(made.get_parameter(name)))
    held = against("dictionary_learning", "relu, constrained steps")
    for name, parameter in trainer.ae.named_parameters():
        expected = parameter.T if name in TRANSPOSED else parameter
        held(NAMES[name], made.get_parameter(NAMES[name]), expected)


def test_norm_weighted_relu_is_their_april_update(against):
    made = dictionary("relu_norm_weighted", initial_coefficient=0.3)
    options = {"l1_penalty": float(made.code.coefficient), "sparsity_warmup_steps": None}
    trainer = trainer_of(made, StandardTrainerAprilUpdate, **options)
    held = against("dictionary_learning", "relu_norm_weighted")
    hold(held, made, trainer, made.encode(X_BD).dense(), unit=False)


def test_gated_is_theirs_with_its_frozen_auxiliary_decoder(against):
    made = dictionary("gated", initial_coefficient=0.3)
    trainer = trainer_of(made, GatedSAETrainer, l1_penalty=float(made.code.coefficient), sparsity_warmup_steps=None)
    hold(against("dictionary_learning", "gated"), made, trainer, made.encode(X_BD).dense())


@pytest.mark.parametrize("p", [1.0, 0.6])
def test_p_annealing_is_theirs_at_every_p(against, p):
    """Their `Lp^p`. lexray takes (f + epsilon)^p - epsilon^p; as epsilon goes to zero that is f^p."""
    made = dictionary(
        "p_anneal", initial_coefficient=0.3, p_end=0.6, p_from=0.0, p_until=0.5, p_jumps=1, p_smoothing=1e-13
    )
    made.at_step(0 if p == 1 else 60, 100)
    trainer = trainer_of(
        made, PAnnealTrainer, initial_sparsity_penalty=float(made.code.coefficient), sparsity_function="Lp^p",
        sparsity_warmup_steps=None, anneal_start=9000, n_sparsity_updates=2,
    )  # fmt: skip
    trainer.p = p
    hold(against("dictionary_learning", f"p_anneal, p = {p:g}"), made, trainer, made.encode(X_BD).dense())


@pytest.mark.parametrize("p", [1.0, 0.6])
def test_gated_p_annealing_is_theirs_at_every_p(against, p):
    """Their `Lp^p` of the gate; gates at zero have no part in it, in lexray because its derivative is taken as zero."""
    made = dictionary(
        "gated_p_anneal", initial_coefficient=0.3, p_end=0.6, p_from=0.0, p_until=0.5, p_jumps=1, p_smoothing=1e-13
    )
    made.at_step(0 if p == 1 else 60, 100)
    trainer = trainer_of(
        made, GatedAnnealTrainer, initial_sparsity_penalty=float(made.code.coefficient), sparsity_warmup_steps=None,
        anneal_start=9000, n_sparsity_updates=2,
    )  # fmt: skip
    trainer.p = p
    hold(against("dictionary_learning", f"gated_p_anneal, p = {p:g}"), made, trainer, made.encode(X_BD).dense())


def test_a_jump_of_p_rescales_the_coefficient_as_theirs_does(against):
    """By the mean penalty at the old p over that at the new one; theirs over a queue of batches, here of one.

    With L0 on target lexray's controller stands still, so that the jump is all that moves the coefficient.
    """
    options = {"p_end": 0.5, "p_from": 0.0, "p_until": 1.0, "p_jumps": 1, "p_smoothing": 1e-13}
    made = dictionary("p_anneal", initial_coefficient=0.3, **options)
    trainer = trainer_of(
        made, PAnnealTrainer, sparsity_function="Lp^p", sparsity_warmup_steps=None, sparsity_queue_length=1,
        anneal_start=0, anneal_end=1, n_sparsity_updates=2, p_end=0.5, initial_sparsity_penalty=0.3,
    )  # fmt: skip
    for at in (0, 1):
        trainer.loss(X_BD, step=at)
    made.at_step(99, 100)
    terms = made.loss(X_BD, B)
    sums = {name: float(value) for name, value in terms.sums.items()} | {"active": float(K * B)}
    made.after_step(BatchSums(rows=B, sums=sums, fired_F=terms.fired_F, observed=terms.observed))
    assert made.code.coefficient != pytest.approx(0.3, rel=1e-3)
    theirs = torch.tensor(trainer.sparsity_coeff)
    against("dictionary_learning", "p_anneal, the jump")("coefficient", made.code.coefficient.float(), theirs)


def test_topk_with_auxk_is_theirs(against):
    """AuxK as in the paper: rectified dead latents, no bias, over the residual's variance, weight 1/32."""
    made = dictionary("topk", dead=9)
    trainer = trainer_of(made, TopKTrainer, k=K)
    hold(against("dictionary_learning", "topk, AuxK"), made, with_dead(trainer, 9), training_code(made, X_BD))
    assert made.loss(X_BD, B).sums["aux"] > 0


def test_batch_topk_with_auxk_is_theirs(against):
    made = dictionary("batch_topk", dead=9)
    trainer = trainer_of(made, BatchTopKTrainer, k=K)
    hold(against("dictionary_learning", "batch_topk, AuxK"), made, with_dead(trainer, 9), training_code(made, X_BD))


def test_batch_topks_running_threshold_is_theirs(against):
    """Both start at the first batch's smallest kept activation; theirs decays by 0.999 and begins after step 1000.

    Ours has a shorter window in early steps.
    """
    made = dictionary("batch_topk", threshold_decay=0.999)
    made.at_step(10**5, 10**6)
    trainer = trainer_of(made, BatchTopKTrainer, k=K)
    for seed in range(4):
        x_BD = rows(seed=seed)
        trainer.loss(x_BD, step=LATE)
        terms = made.loss(x_BD, B)
        sums = {name: float(value) for name, value in terms.sums.items()}
        made.after_step(BatchSums(rows=B, sums=sums, fired_F=terms.fired_F, observed=terms.observed))
    held = against("dictionary_learning", "batch_topk, inference")
    held("threshold", made.threshold.double(), trainer.ae.threshold.double())
    trainer.ae.threshold.copy_(made.threshold)
    held("code", made.encode(X_BD).dense(), trainer.ae.encode(X_BD))
    held("reconstruction", made(X_BD), trainer.ae(X_BD))


def test_matryoshka_with_auxk_is_theirs_with_weights_that_undo_its_double_mean(against):
    """The paper adds the errors of the G prefixes up. Theirs weighs each by 1 / G and then takes the mean over G, so
    reconstruction counts 1 / G^2 while AuxK keeps 1/32; weights of G give the sum back.
    """
    made = dictionary("matryoshka_batch_topk", dead=9, prefixes=(0.25, 0.5, 1.0))
    trainer = trainer_of(
        made, MatryoshkaBatchTopKTrainer, k=K, group_fractions=[0.25, 0.25, 0.5], group_weights=[3.0] * 3,
        transposed=("W_enc",),
    )  # fmt: skip
    held = against("dictionary_learning", "matryoshka_batch_topk, AuxK")
    hold(held, made, with_dead(trainer, 9), training_code(made, X_BD), transposed=("W_enc",))


def test_jumprelu_is_theirs_up_to_its_sparsity_term(against):
    made = dictionary("jumprelu", l0_loss="step", initial_coefficient=1e-13, bandwidth=0.2)
    trainer = trainer_of(
        made, JumpReluTrainer, bandwidth=0.2, sparsity_penalty=0.0, sparsity_warmup_steps=None, transposed=("W_enc",)
    )
    hold(against("dictionary_learning", "jumprelu"), made, trainer, made.encode(X_BD).dense(), transposed=("W_enc",))


def test_jumprelus_l0_counts_preactivations_so_that_latents_just_below_their_threshold_learn_it(against):
    """The paper's step is of z; theirs is of f, which is zero below the threshold, so that half of the kernel is lost.

    The gradient of L0 with respect to a threshold is - (pairs within half a bandwidth of it) / (B bandwidth). Theirs,
    of (L0 / target - 1)^2 with the batch's mean L0, has the factor 2 (L0 / target - 1) / target before it, and the
    pairs above the threshold alone.
    """
    width = 0.2

    def ours(weight):
        made = dictionary("jumprelu", l0_loss="step", initial_coefficient=weight, bandwidth=width)
        return made, lexray_gradients(made, made.loss(X_BD, B).loss)["threshold"]

    def theirs(weight):
        options = {"bandwidth": width, "target_l0": float(K), "sparsity_penalty": weight, "sparsity_warmup_steps": None}
        trainer = trainer_of(made, JumpReluTrainer, transposed=("W_enc",), **options)
        return gradients(trainer.loss(X_BD, step=LATE), dict(trainer.ae.named_parameters()))["threshold"]

    made, with_term_F = ours(1.0)
    z_BF, theta_F = made.preactivations(X_BD).detach(), made.code.threshold_F.detach()
    near_BF = (z_BF - theta_F).abs() < width / 2
    papers_F, halved_F = (-(pairs.double().sum(0)) / (B * width) for pairs in (near_BF, near_BF & (z_BF > theta_F)))
    held = against("dictionary_learning", "jumprelu, L0 of z")
    held("gradients", with_term_F - ours(1e-13)[1], float(made.code.coefficient) * papers_F, 1e-4)
    l0 = (z_BF > theta_F).double().sum(1).mean()
    held("theirs, of f", theirs(1.0) - theirs(0.0), 2 * (l0 / K - 1) / K * halved_F, 1e-4)
    assert halved_F.abs().sum() < 0.8 * papers_F.abs().sum()
