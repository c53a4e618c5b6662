"""Learning rate and AuxK of each family in each world: the grid that all share, and what was chosen from it.

`tuned.json` beside this file holds the chosen settings, and every setting that was tried. `lexray bench ground-truth
--tune` writes it (`tuning.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lexray.training.codes.shared_terms import SharedTermsConfig
from lexray.training.codes.topk import TopKConfig
from lexray.training.dictionaries import architecture

TUNED_FILE = Path(__file__).with_name("tuned.json")
LEARNING_RATES = (1e-2, 3e-2, 1e-1)
AuxKChoice = Literal["usual", "off", "strong"]
AUXK: dict[AuxKChoice, tuple[float, int | None]] = {"usual": (1 / 32, None), "off": (0.0, None), "strong": (1.0, 10)}
"""Weight of AuxK, and the steps after which an inactive latent is dead (None: 4 % of the training, lexray's default).
`usual` is the default of TopK families; that of penalty families is `off`."""
TUNED_ON = {
    **dict.fromkeys(("superposed", "correlated", "mixtures"), "superposed"),
    **dict.fromkeys(("tree-0", "tree-0.3", "tree-0.5", "tree-0.7"), "tree-0.3"),
}
"""World on which the families of each world are tuned, with features of its own: one world of each kind."""
L0_TOLERANCE = 0.1
"""A setting whose L0 exceeds the target by a larger share is chosen only if all do."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A point of the grid."""

    lr: float = 1e-2
    auxk: AuxKChoice = "usual"

    def options(self, options: Mapping[str, Any], batch_rows: int) -> dict[str, Any]:
        """Return the options of a dictionary together with those of AuxK, where its code can have that."""
        weight, dead_after_steps = AUXK[self.auxk]
        code = architecture(options["architecture"]).code(options.get("code"))
        if code is None or not issubclass(code.Config, SharedTermsConfig):
            return dict(options)
        term: dict[str, Any] = {"aux_weight": weight} if issubclass(code.Config, TopKConfig) else {}
        if not term and weight:
            term = {"terms": {"auxk": weight}}
        return {**options, **term, **({"dead_after_rows": dead_after_steps * batch_rows} if dead_after_steps else {})}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting and what a training with it came to, on rows and features that judge nothing else."""

    lr: float
    auxk: AuxKChoice
    cosine: float
    """Matched cosine with the true features."""
    l0: float
    """L0 over its target."""

    @property
    def setting(self) -> Setting:
        return Setting(lr=self.lr, auxk=self.auxk)


def best(tried: Sequence[Tried]) -> Tried:
    """Return the setting with the largest matched cosine among those that hold the L0, or among all if none does."""
    holding = [one for one in tried if one.l0 <= 1 + L0_TOLERANCE]
    return max(holding or tried, key=lambda one: one.cosine)


Tuned = Mapping[str, Mapping[str, Sequence[Tried]]]
"""Settings that were tried, by world and family."""


@cache
def read_tuned() -> Tuned:
    """Read `tuned.json`."""
    content = json.loads(TUNED_FILE.read_text()) if TUNED_FILE.exists() else {}
    return {w: {f: [Tried(**one) for one in entry["tried"]] for f, entry in by.items()} for w, by in content.items()}


def tuned_text(tuned: Tuned) -> str:
    """Return the content of `tuned.json`."""
    return json.dumps(
        {
            world: {
                family: {"chosen": asdict(best(tried).setting), "tried": [asdict(one) for one in tried]}
                for family, tried in by_family.items()
            }
            for world, by_family in tuned.items()
        },
        indent=1,
    )


def setting_of(tuned: Tuned, world: str, family: str) -> Setting:
    """Return the chosen setting, or the middle of the grid for a family that was not tuned."""
    tried = tuned.get(TUNED_ON[world], {}).get(family)
    return best(tried).setting if tried else Setting()
