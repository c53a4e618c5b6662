"""Whether Adam can see the gradients of rows that keep their own scale."""

from __future__ import annotations

from lexray.storage.errors import UserError
from lexray.training.config import TrainingConfig
from lexray.training.dictionaries.normalisers import Sites

KEEPS_SCALE = ("none", "centre")
"""Normalisers under which losses and gradients have the square of the rows' unit."""


def check_gradient_scale(config: TrainingConfig, sites: Sites) -> None:
    """Raise UserError where Adam's `eps` is above the squared scale of a site: its gradients would be lost in it."""
    dictionary, eps = config.dictionary, config.optimizer.eps
    if dictionary.normaliser not in KEEPS_SCALE or dictionary.learns_by != "gradient":
        return
    named = zip(config.data.inputs + config.data.outputs, sites.inputs + sites.outputs, strict=False)
    for name, site in named:
        if site.scale**2 < eps:
            raise UserError(
                f"normaliser: {dictionary.normaliser} leaves site {name!r} at a squared scale of {site.scale**2:.3g}, "
                f"which is below Adam's eps of {eps:g}, so that nothing is learned; use normaliser: standard"
            )
