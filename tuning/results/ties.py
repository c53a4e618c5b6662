"""Tells trials apart: the standard error of the difference of their FVUs on the same test documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lexray.training.measures.documents import TIE_ERRORS, difference_error
from lexray.tuning.results.measured import Document


@dataclass(frozen=True)
class FvuErrors:
    """Standard errors of differences of FVU between rows of a frontier table."""

    load: Callable[[str], Document | None] = lambda trial: None
    """Returns `measures.json` of a trial; None where it was not measured."""
    _sections: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def between(self, first: Any, second: Any) -> float:
        """Return the standard error of the difference; NaN where a row has none, as at another number of latents."""
        return difference_error(self.section(first), self.section(second))

    def tied(self, first: Any, second: Any) -> bool:
        """Whether the FVUs differ by no more than two standard errors; False where these are unknown."""
        return bool(abs(first["fvu"] - second["fvu"]) <= TIE_ERRORS * self.between(first, second))

    def section(self, row: Any) -> Mapping[str, Any] | None:
        """Return the section `documents` of a row's measures; None where its FVU has no standard error."""
        trial = row["trial"]
        if math.isnan(row["fvu_error"]):
            return None
        if trial not in self._sections:
            self._sections[trial] = (self.load(trial) or {}).get("documents")
        return self._sections[trial]


UNKNOWN = FvuErrors()
"""No standard errors: no two trials are called tied."""


def tied_with_frontier(rows: pd.DataFrame, errors: FvuErrors) -> npt.NDArray[np.bool_]:
    """Return the mask of rows beside the frontier whose FVU is tied with that of each trial on it that beats them."""
    best = rows[rows["on_frontier"]].to_dict("records")
    return np.array([_is_tied(row, best, errors) for row in rows.to_dict("records")], dtype=np.bool_)


def _is_tied(row: Mapping[Any, Any], best: list[dict[Any, Any]], errors: FvuErrors) -> bool:
    beaten_by = [other for other in best if other["l0"] <= row["l0"] and other["fvu"] <= row["fvu"]]
    return not row["on_frontier"] and bool(beaten_by) and all(errors.tied(row, other) for other in beaten_by)
