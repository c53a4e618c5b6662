"""A batch in parts, one after another, with the loss and the gradient of the whole.

What a dictionary computes of a row depends on other rows only through its axes: the threshold of the batch, the
variance of all residuals. So a part is given axes that answer for the whole batch. Before the pass with gradient come
passes without: each part runs until it asks something that is not known yet and is cut off there; once all parts have
asked, the whole mesh answers, and the next pass gets further. As many passes as there are questions, then, and a last
one that ends without any, for which one part is enough: parts ask alike, because answers are all that they branch on.

TopK asks nothing while no latent is dead; BatchTopK asks for the smallest activation to keep and for the number kept,
so it computes its pre-activations three times.
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
    """A part is cut off: what it asked is known only when all parts have asked."""


class _Asked(NamedTuple):
    """What a part asked."""

    value: Any
    answer: Callable[[list[Any]], list[Any]]
    """Every part's answer, given every part's value."""


@dataclass
class Questions:
    """What the parts ask of the whole batch, in order, and the answers so far."""

    num_parts: int
    _answers: list[list[Any]] = field(default_factory=list)
    """By question, then part."""
    _open: list[_Asked] = field(default_factory=list)
    """The question at which this pass ends, of the parts so far."""
    _part: int = 0
    _next: int = 0

    def parts(self) -> Iterator[int]:
        """The parts, each from its first question on."""
        for part in range(self.num_parts):
            self._part, self._next = part, 0
            yield part

    def settle(self, compute: Callable[[int], Any]) -> None:
        """Let `compute` run for the parts until nothing that it asks is unknown."""
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
        """This part's answer."""
        if self._next == len(self._answers):
            self._open.append(_Asked(value, answer))
            raise _UnansweredError
        self._next += 1
        return self._answers[self._next - 1][self._part]


@dataclass(frozen=True)
class PartRows:
    """The data axis, as a part of this rank's rows sees it."""

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
    """Both axes, as a part of this rank's rows sees them."""

    whole: WorldAxis
    questions: Questions

    def gather(self, values: Tensor) -> Tensor:
        """A rank's values are those of its parts one after another."""
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
    """The terms of a whole batch, without gradient, of parts that are computed one after another.

    `look` computes the loss of a part without gradient and may be cut off; `learn` then computes it to the end and adds
    its gradient. Every rank calls it with the same number of parts.
    """
    axes, questions = Axes(dictionary.rows, dictionary.latents, dictionary.pairs), Questions(num_parts)
    dictionary.rows, dictionary.pairs = PartRows(axes.rows, questions), PartPairs(axes.pairs, questions)
    try:
        questions.settle(look)
        return joined_terms([learn(part) for part in questions.parts()])
    finally:
        dictionary.rows, dictionary.pairs = axes.rows, axes.pairs


def parts_of(rows: RawRows, num_parts: int) -> list[RawRows]:
    """Consecutive rows, as evenly as they go."""
    x_parts = rows.x_BD.tensor_split(num_parts)
    y_parts = x_parts if rows.y_BO is rows.x_BD else rows.y_BO.tensor_split(num_parts)
    return [RawRows(x_BD, y_BO) for x_BD, y_BO in zip(x_parts, y_parts, strict=True)]


def joined_terms(parts: list[LossOutput]) -> LossOutput:
    """The parts' terms as those of the whole, without gradient."""
    loss = torch.stack([part.loss.detach() for part in parts]).sum()
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum(0) for name in parts[0].sums}
    fired_F = torch.stack([part.fired_F for part in parts]).sum(0)
    return LossOutput(loss, sums, fired_F, parts[0].observed)
