"""A step whose loss or gradient is not finite: found on every rank at once, before it changes the dictionary.

A trial resumes once from its newest checkpoint after such a step. The stream is a function of the step, so the same
batch is read again: what came from a fault passes, what came from the training fails again. That it has resumed lies in
the trial's folder, so that neither another attempt nor another run of the sweep resumes it for ever.
"""

from __future__ import annotations

import json
import logging
import math

from pydantic import TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from lexray.storage.documents import read_document
from lexray.storage.errors import CorruptDataError
from lexray.storage.store import Store
from lexray.training.checkpoint.resume import from_rank_0
from lexray.training.mesh.axes import FeatureAxis
from lexray.training.mesh.mesh import Mesh

log = logging.getLogger("lexray")

RESUMED = "non_finite.json"
MAX_REASON = 300
"""Characters of it that are quoted."""


class _Resumed(TypedDict):
    """`non_finite.json`."""

    reason: str


_DOCUMENT: TypeAdapter[_Resumed] = TypeAdapter(_Resumed)


class NonFiniteStepError(RuntimeError):
    """A step was not taken, since its loss or gradient is not finite; one line that names step, terms and norm."""


def check_loss(step: int, sums: dict[str, float], norm: Tensor | None, latents: FeatureAxis) -> None:
    """Raise NonFiniteStepError when the loss of a step (counted from 1) is not finite on any rank.

    `sums` are the global batch's, equal along the data axis; `norm` is the gradient norm of the step before.
    """
    is_bad = not math.isfinite(sums["loss"])
    if latents.count(int(is_bad)):
        terms = ", ".join(f"{name} {value:g}" for name, value in sums.items() if not math.isfinite(value))
        before = "" if norm is None else f"; the gradient norm was {float(norm):.3g} a step before"
        raise NonFiniteStepError(f"step {step} is not finite: {terms or 'the loss on another slice'}{before}")


def gradient_error(step: int, sums: dict[str, float], norm: Tensor | None) -> NonFiniteStepError:
    """Return the error for a step (counted from 1) with a finite loss and the gradient norm `norm`."""
    assert norm is not None
    return NonFiniteStepError(f"step {step} is not finite: gradient norm {float(norm):g}; the loss is {sums['loss']:g}")


def resume_once(store: Store, error: NonFiniteStepError, mesh: Mesh) -> None:
    """Write down in the trial's folder that its training resumes after `error`. Every rank calls it.

    Raises NonFiniteStepError when the trial had resumed before.
    """
    is_first = mesh.place.rank == 0
    first = from_rank_0(_resumed_after(store) if is_first else None, mesh)
    if first is not None:
        raise NonFiniteStepError(
            f"{error}; the trial had resumed from its newest checkpoint once already ({first}); lower the learning rate"
        )
    if is_first:
        store.write(RESUMED, json.dumps({"reason": str(error)}).encode())
        log.warning("%s; the trial resumes once from its newest checkpoint", error)


def _resumed_after(store: Store) -> str | None:
    """Return the line of the step after which the trial resumed, None where it never did."""
    try:
        return read_document(store, RESUMED, _DOCUMENT)["reason"][:MAX_REASON]
    except FileNotFoundError:
        return None
    except CorruptDataError as error:
        return str(error)[:MAX_REASON]
