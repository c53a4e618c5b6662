"""Name and parameters of a generated dataset: `synthetic://NAME?rows=N&seed=0`. Pure functions; nothing is generated.

SynthSAEBench-16k (Chanin and Garriga-Alonso, arXiv:2602.14687): values of the paper's table and of the benchmark's
published configuration. Three things differ, so that numbers compare with the paper's in kind and not digit by digit:

- The released features (a file of 50 MB) are not read. The features here are drawn from the same distributions.
- Directions: the benchmark takes 100 Adam steps (rate 3e-4) down sum_{i != j} (d_i . d_j)^2. Here that sum is set to
  its minimum directly (`lexray.storage.synthetic.features.tight_frame`); that of random directions is 5 % larger.
- A child's magnitude is not multiplied by its parent's over the parent's mean. The paper's script does so, the released
  benchmark does not (its configuration has no such entry).

`synthsaebench-1k` is no part of the paper: a sixteenth of the features and trees, at a width and `max_probability` that
leave L0 ln(G / L0) / D about the same, so that rows are about as hard to take apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from urllib.parse import parse_qsl

from lexray.storage.errors import UserError

SCHEME = "synthetic"
VERSION = 1
"""Version of the generator: raised by a change that gives other rows for the same parameters."""
CHUNK_ROWS = 1024
"""Rows of a chunk, which is one document: held-out documents are whole chunks."""
QUERY = ("rows", "seed", "features_seed")
MAX_ROWS = 2**32
MAX_SEED = 2**63 - 1
EXAMPLE = f"{SCHEME}://synthsaebench-1k?rows=1000000&seed=0"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of the features, G of them in D dimensions. Feature 0 is the most frequent."""

    features: int = 16_384
    width: int = 768
    zipf_exponent: float = 0.5
    max_probability: float = 0.4
    """Firing probability of feature 0."""
    min_probability: float = 5e-4
    """Firing probability of the last feature."""
    roots: int = 128
    """Trees of features. Their nodes are numbered level by level from 0; features after them are in no tree."""
    branching: int = 4
    """Children of a feature; at most one of them fires in a row, and only where their parent does."""
    depth: int = 3
    """Levels of a tree below its root."""
    correlation_rank: int = 25
    correlation_scale: float = 0.1
    """Standard deviation of the entries of the correlation's factor."""
    first_magnitude: float = 5.0
    """Mean magnitude of feature 0; means fall linearly with the feature's number."""
    last_magnitude: float = 4.0
    spread_mean: float = 0.5
    """The standard deviations of the features' magnitudes are |N(spread_mean, spread_std^2)|."""
    spread_std: float = 0.5
    bias_norm: float = 0.5
    """Euclidean norm of the vector that is added to every row."""
    features_seed: int = 42
    """Seed of the features; rows of other row seeds have the same features."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Features of each level of the trees, roots first."""
        return tuple(self.roots * self.branching**level for level in range(self.depth + 1))


PARAMETERS = {
    "synthsaebench-16k": Parameters(),
    "synthsaebench-1k": Parameters(features=1024, width=96, roots=8, max_probability=0.25),
}


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A generated dataset, as its url names it."""

    name: str
    rows: int
    seed: int = 0
    """Seed of the rows."""
    parameters: Parameters

    @property
    def url(self) -> str:
        """The one way to write this url, so that equal datasets share a stream."""
        features = self.parameters.features_seed
        other = f"&features_seed={features}" if features != PARAMETERS[self.name].features_seed else ""
        return f"{SCHEME}://{self.name}?rows={self.rows}&seed={self.seed}{other}"

    def entropy(self, purpose: str, *, of_rows: bool) -> list[int]:
        """Return 8 words of 32 bits that seed the random numbers of a purpose.

        They hash the parameters and the generator's version; with `of_rows` also the seed of the rows. The number of
        rows has no part in it: a longer dataset begins with the rows of a shorter one.
        """
        content = {"version": VERSION, "purpose": purpose, "parameters": asdict(self.parameters)}
        if of_rows:
            content["seed"] = self.seed
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
        return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


def parse(url: str) -> Synthetic:
    """Return what `synthetic://NAME?rows=N&seed=0` names. Raises UserError saying what is wrong with it."""
    name, _, query = url.removeprefix(f"{SCHEME}://").partition("?")
    if name not in PARAMETERS:
        raise UserError(
            f"url {url!r}: no generated dataset is called {name[:60]!r}; there are {', '.join(PARAMETERS)}, as in "
            f"{EXAMPLE}"
        )
    given = parse_qsl(query, keep_blank_values=True)
    names = [key for key, _ in given]
    for key in names:
        if key not in QUERY:
            raise UserError(f"url {url!r}: {key[:60]!r} is no parameter; there are {', '.join(QUERY)}")
        if names.count(key) > 1:
            raise UserError(f"url {url!r}: {key!r} is given {names.count(key)} times; give it once")
    values = dict(given)
    if "rows" not in values:
        raise UserError(f"url {url!r}: says no number of rows; write {EXAMPLE}")
    parameters = PARAMETERS[name]
    if "features_seed" in values:
        parameters = replace(parameters, features_seed=_number(url, "features_seed", values, 0, MAX_SEED))
    return Synthetic(
        name=name,
        rows=_number(url, "rows", values, 1, MAX_ROWS),
        seed=_number(url, "seed", values, 0, MAX_SEED) if "seed" in values else 0,
        parameters=parameters,
    )


def _number(url: str, key: str, values: dict[str, str], low: int, high: int) -> int:
    text = values[key].replace("_", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high):
        raise UserError(f"url {url!r}: {key} {values[key][:30]!r} is no whole number from {low:,} to {high:,}")
    return int(text)
