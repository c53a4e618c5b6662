"""The controller brings a plant whose L0 follows the coefficient late, and as some power of it, to the target."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.training.codes.controller import ControllerGains, L0Controller

STEPS = 900


class Plant:
    """log L0 moves by 1 / lag of the way to `strength - power * log(coefficient)` in every step."""

    def __init__(self, *, power: float, lag: float, strength: float = 2.0) -> None:
        self.power, self.lag, self.strength = power, lag, strength
        self.log_l0 = strength + 3.0

    def step(self, coefficient: float) -> float:
        goal = self.strength - self.power * math.log(coefficient)
        self.log_l0 += (goal - self.log_l0) / self.lag
        return math.exp(self.log_l0)


def drive(controller: L0Controller, plant: Plant, steps: int = STEPS) -> list[float]:
    """L0 of every step."""
    seen = []
    for _ in range(steps):
        seen.append(plant.step(float(controller.coefficient)))
        controller.after_step(seen[-1])
    return seen


@pytest.mark.parametrize("target", [2.0, 8.0, 32.0, 128.0, 512.0])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_every_target_is_met_and_held(target, power):
    seen = drive(L0Controller(target, 0.01), Plant(power=power, lag=5))
    assert all(abs(l0 / target - 1) < 0.02 for l0 in seen[-200:])


@given(st.floats(0.4, 1.5), st.floats(1, 10), st.floats(1, 1000), st.floats(1e-4, 1.0))
@settings(max_examples=40)
def test_any_plant_is_brought_within_a_tenth_of_the_target(power, lag, target, initial_coefficient):
    plant = Plant(power=power, lag=lag)
    seen = drive(L0Controller(target, initial_coefficient), plant, steps=1500)
    assert abs(seen[-1] / target - 1) < 0.1


@given(st.floats(0, 1e6), st.floats(0.5, 1000), st.floats(-1, 1))
def test_a_step_moves_the_coefficient_by_the_equation_and_within_its_bound(l0, target, log_ratio):
    gains = ControllerGains(gain=0.06, limit=0.5)
    controller = L0Controller(target, 0.1, gains)
    controller.log_ratio.fill_(log_ratio)
    before = float(controller.log_coefficient)
    controller.after_step(l0)
    error = math.log(max(l0, 1e-3) / target) + log_ratio
    moved = float(controller.log_coefficient) - before
    assert moved == pytest.approx(0.06 * min(0.5, max(-0.5, error)), abs=1e-12)


def test_too_many_active_latents_raise_the_coefficient_and_too_few_lower_it():
    controller = L0Controller(10, 0.1)
    controller.after_step(20)
    raised = float(controller.coefficient)
    assert raised > 0.1
    controller.after_step(5)
    controller.after_step(5)
    assert float(controller.coefficient) < raised


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_evaluations_teach_the_ratio_and_bring_the_held_out_l0_to_the_target(ratio):
    controller, plant = L0Controller(16, 0.01), Plant(power=0.7, lag=3)
    for _ in range(30):
        l0 = drive(controller, plant, steps=60)[-1]
        controller.after_evaluation(ratio * l0)
    assert float(controller.log_ratio) == pytest.approx(math.log(ratio), abs=1e-3)
    assert ratio * l0 == pytest.approx(16, rel=0.02)


def test_an_evaluation_keeps_half_of_the_last_estimate():
    controller = L0Controller(10, 0.1)
    controller.after_step(10)
    controller.after_evaluation(12)
    assert float(controller.log_ratio) == pytest.approx(0.5 * math.log(1.2))
    controller.after_evaluation(12)
    assert float(controller.log_ratio) == pytest.approx(0.75 * math.log(1.2))


@pytest.mark.parametrize(("batch_l0", "held_out_l0"), [(None, 12.0), (10.0, 0.0)])
def test_an_evaluation_without_two_positive_l0s_teaches_nothing(batch_l0, held_out_l0):
    controller = L0Controller(10, 0.1)
    if batch_l0 is not None:
        controller.after_step(batch_l0)
    controller.after_evaluation(held_out_l0)
    assert float(controller.log_ratio) == 0


def test_a_controller_with_the_saved_state_goes_on_in_the_same_way():
    controller, plant = L0Controller(16, 0.01), Plant(power=0.7, lag=3)
    drive(controller, plant, steps=50)
    controller.after_evaluation(20)
    other = L0Controller(16, 123.0)
    other.load_state_dict(controller.state_dict())
    other_plant = Plant(power=0.7, lag=3)
    other_plant.log_l0 = plant.log_l0
    assert drive(controller, plant, steps=50) == drive(other, other_plant, steps=50)
