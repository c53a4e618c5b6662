"""What the loop makes of a step: global sums, the values that are logged, the hooks that are due."""

import ast
import inspect
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from training_synthetic import on_two_ranks

from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.loop.hooks import run_hooks
from lexray.training.loop.loop import StepRecord, global_sums, training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.objectives.forward import BatchSums, LossOutput


def terms(rank: int) -> LossOutput:
    """One rank's part of a step."""
    return LossOutput(
        loss=torch.tensor(0.5 + rank, requires_grad=True),
        sums={"error": torch.tensor(2.0 + rank), "variance": torch.tensor(10.0), "active": torch.tensor(12.0)},
        fired_F=torch.tensor([0, 3, 1 + rank]),
        observed={"threshold": torch.tensor(0.25)},
    )


def record(step: int) -> StepRecord:
    sums = {"loss": 0.7, "error": 3.0, "variance": 12.0, "active": 50.0, "sparsity": 0.2}
    return StepRecord(step, BatchSums(20, sums, torch.zeros(3), {"coefficient": torch.tensor(0.5)}), 1e-3, 4.0)


def test_one_rank_s_terms_are_the_global_ones():
    batch = global_sums(terms(0), 6, LOCAL_DATA)
    assert (batch.rows, batch.sums) == (6, {"loss": 0.5, "error": 2.0, "variance": 10.0, "active": 12.0})
    assert batch.fired_F.tolist() == [0, 3, 1]
    assert batch.observed == terms(0).observed


def test_the_terms_of_two_ranks_are_added_up_and_equal_on_both():
    for batch in on_two_ranks(lambda rank, axes: global_sums(terms(rank), 6, axes.rows)):
        assert batch.sums == {"loss": 2.0, "error": 5.0, "variance": 20.0, "active": 24.0}
        assert batch.fired_F.tolist() == [0, 6, 3]
        assert batch.observed == terms(0).observed


def test_logged_values_are_shares_of_the_global_batch():
    assert record(1).metrics() == {
        "train/fvu": 0.25,
        "train/l0": 2.5,
        "train/lr": 1e-3,
        "train/loss": 0.7,
        "train/sparsity": 0.2,
        "train/coefficient": 0.5,
    }


@dataclass
class Recorder:
    """A hook that remembers when it was called."""

    every: int
    called: list[int] = field(default_factory=list)

    def __call__(self, step_record: StepRecord) -> None:
        self.called.append(step_record.step)


def test_hooks_are_called_when_due_and_after_the_last_step():
    hooks = [Recorder(3), Recorder(5), Recorder(100)]
    for step in range(1, 12):
        run_hooks(hooks, record(step), num_steps=11)
    assert [hook.called for hook in hooks] == [[3, 6, 9, 11], [5, 10, 11], [11]]


def test_a_last_step_that_is_due_anyway_calls_a_hook_once():
    hook = Recorder(5)
    for step in range(1, 11):
        run_hooks([hook], record(step), num_steps=10)
    assert hook.called == [5, 10]


def test_hooks_are_called_in_order():
    called: list[str] = []

    class Named(Recorder):
        def __init__(self, name: str) -> None:
            super().__init__(1)
            self.name = name

        def __call__(self, step_record: StepRecord) -> None:
            called.append(self.name)

    run_hooks([Named("log"), Named("evaluate"), Named("checkpoint")], record(1), num_steps=9)
    assert called == ["log", "evaluate", "checkpoint"]


def test_a_batch_without_variance_has_no_fvu():
    empty = record(1)._replace(batch=BatchSums(20, {"error": 0.0, "variance": 0.0, "active": 0.0}, torch.zeros(3), {}))
    assert math.isnan(empty.metrics()["train/fvu"])


def lines_of(function: Any) -> int:
    """Lines of code of a function, without blank ones and its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
    return sum(bool(line.strip()) for line in source.splitlines()) - docstring


def test_the_loop_and_the_step_of_its_engine_fit_on_one_screen():
    engine = DeepSpeedEngine
    step = (training_steps, global_sums, engine.backward, engine.step, engine._accumulate, engine._clip)
    assert sum(map(lines_of, step)) <= 80, "a code's terms have 40 lines more"
