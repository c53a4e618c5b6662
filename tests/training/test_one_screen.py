"""A training step reads on one screen: the loop, the engine's step, and a code's forward pass and terms."""

import ast
import inspect
import textwrap

from lexray.training.codes.topk import TopK
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.loop.loop import global_sums, training_steps
from lexray.training.objectives.forward import weighted_sum

MOST_LINES = 120
STEP = (
    training_steps, DeepSpeedEngine.backward, DeepSpeedEngine.step, DeepSpeedEngine._accumulate,
    LearnedDictionary.loss, TopK.forward, TopK.chosen_forward, TopK.topk_terms, weighted_sum, global_sums,
)  # fmt: skip


def lines_of(function) -> int:
    """Lines of a function without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    doc = node.body[0].value if isinstance(node.body[0], ast.Expr) else None
    docstring = doc.end_lineno - doc.lineno + 1 if isinstance(doc, ast.Constant) else 0
    return len(source.splitlines()) - docstring


def test_a_training_step_reads_on_one_screen():
    assert sum(map(lines_of, STEP)) <= MOST_LINES
