"""Micro-batches with the exact loss and gradient of the whole batch.

Rows depend on each other only through reductions over the axes: BatchTopK's threshold, the variance of all residuals.
Micro-batches are therefore given axes that reduce over the whole batch. They are dry-run without gradient up to their
first unresolved reduction; it is done over all micro-batches and ranks, and they are rerun; repeat. A last dry run of
one micro-batch finds none unresolved; then all run once with gradient. All micro-batches request the same reductions,
since their control flow may depend on reduction results only.

TopK requests none while no latent is dead. BatchTopK requests the smallest activation to keep and the number kept, so
it computes its pre-activations three times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.mesh.axes import Axes, DataAxis, WorldAxis
from lexray.training.objectives.forward import LossOutput

T = TypeVar("T")


class _UnansweredError(Exception):
    """Interrupts a part at a reduction whose result is not available until all parts have requested it."""


class _Asked(NamedTuple):
    """A reduction that a part requested."""

    value: Any
    answer: Callable[[list[Any]], list[Any]]
    """Map from the values of all parts to the results of all parts."""


@dataclass
class Questions:
    """Reductions over the whole batch that parts request, in order, and the results so far."""

    num_parts: int
    _answers: list[list[Any]] = field(default_factory=list)
    """Results by reduction, then part."""
    _open: list[_Asked] = field(default_factory=list)
    """Requests of the unresolved reduction at which this pass ends, one per part so far."""
    _part: int = 0
    _next: int = 0

    def parts(self) -> Iterator[int]:
        """Yield the parts, each starting at its first reduction."""
        for part in range(self.num_parts):
            self._part, self._next = part, 0
            yield part

    def settle(self, compute: Callable[[int], Any]) -> None:
        """Rerun `compute` for the parts until every reduction that it requests is resolved."""
        while True:
            for part in self.parts():
                try:
                    compute(part)
                except _UnansweredError:
                    continue
                assert part == 0, "a part asked nothing where the one before it did"
                return
            assert len(self._open) == self.num_parts
            self._answers.append(self._open[0].answer([asked.value for asked in self._open]))
            self._open = []

    def ask(self, value: T, answer: Callable[[list[T]], list[Any]]) -> Any:
        """Return the reduction's result for this part; interrupts the part where it is unresolved."""
        if self._next == len(self._answers):
            self._open.append(_Asked(value, answer))
            raise _UnansweredError
        self._next += 1
        return self._answers[self._next - 1][self._part]


@dataclass(frozen=True)
class PartRows:
    """The data axis of a part: reduces over the parts and the ranks."""

    whole: DataAxis
    questions: Questions

    @property
    def size(self) -> int:
        return self.whole.size

    def all_reduce(self, values: Tensor) -> Tensor:
        total: Tensor = self.questions.ask(
            values, lambda every: [self.whole.all_reduce(torch.stack(every).sum(0))] * len(every)
        )
        return total

    def gather(self, values: Tensor) -> Tensor:
        found: Tensor = self.questions.ask(values, lambda every: [self.whole.gather(torch.cat(every))] * len(every))
        return found

    def exclusive_sum(self, count: int) -> int:
        def answer(counts: list[int]) -> list[int]:
            first = self.whole.exclusive_sum(sum(counts))
            return [first + sum(counts[:part]) for part in range(len(counts))]

        found: int = self.questions.ask(count, answer)
        return found


@dataclass(frozen=True)
class PartPairs:
    """Both axes of a part: reduces over the parts and the ranks."""

    whole: WorldAxis
    questions: Questions

    def gather(self, values: Tensor) -> Tensor:
        """Gather the ranks' values, each the concatenation of its parts'."""
        found: Tensor = self.questions.ask(values, lambda every: [self.whole.gather(torch.cat(every))] * len(every))
        return found

    def count(self, number: int) -> int:
        total: int = self.questions.ask(number, lambda every: [self.whole.count(sum(every))] * len(every))
        return total

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        # Only a part's k largest can be among the k largest of all.
        mine = torch.topk(values, min(k, len(values)), sorted=False).values
        found: Tensor = self.questions.ask(
            mine, lambda every: [self.whole.kth_largest(torch.cat(every), k)] * len(every)
        )
        return found


def in_parts(
    dictionary: Dictionary, num_parts: int, look: Callable[[int], Any], learn: Callable[[int], LossOutput]
) -> LossOutput:
    """Return the loss terms of a whole batch, without gradient, computed in sequential parts.

    `look` computes the loss of a part without gradient and may be interrupted; `learn` then computes it fully and adds
    its gradient. Collective: every rank has the same number of parts.
    """
    axes, questions = Axes(dictionary.rows, dictionary.latents, dictionary.pairs), Questions(num_parts)
    dictionary.rows, dictionary.pairs = PartRows(axes.rows, questions), PartPairs(axes.pairs, questions)
    try:
        questions.settle(look)
        return joined_terms([learn(part) for part in questions.parts()])
    finally:
        dictionary.rows, dictionary.pairs = axes.rows, axes.pairs


def parts_of(rows: RawRows, num_parts: int) -> list[RawRows]:
    """Split the rows into consecutive parts of nearly equal size."""
    x_parts = rows.x_BD.tensor_split(num_parts)
    y_parts = x_parts if rows.y_BO is rows.x_BD else rows.y_BO.tensor_split(num_parts)
    return [RawRows(x_BD, y_BO) for x_BD, y_BO in zip(x_parts, y_parts, strict=True)]


def joined_terms(parts: list[LossOutput]) -> LossOutput:
    """Sum the parts' loss terms to those of the whole batch, without gradient."""
    loss = torch.stack([part.loss.detach() for part in parts]).sum()
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum(0) for name in parts[0].sums}
    fired_F = torch.stack([part.fired_F for part in parts]).sum(0)
    return LossOutput(loss, sums, fired_F, parts[0].observed)
