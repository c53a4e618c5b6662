"""From a sweep file to its trials: a pure expansion, every conflict refused before anything starts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from lexray.storage.config_file import checked_block
from lexray.storage.errors import UnreachableError, UserError
from lexray.storage.file_settings import part_of
from lexray.storage.manifest import Manifest
from lexray.storage.order import check_lanes, rank_lanes, steps_per_epoch
from lexray.storage.store import Store
from lexray.training.config import DataConfig, OptimizerConfig, RowsConfig, TrainingConfig
from lexray.training.dictionaries import architecture, dictionary_config
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.engines.deepspeed_settings import check_names
from lexray.training.engines.gradient_scale import check_gradient_scale
from lexray.training.identity.versions import NEWEST
from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.file.axes import Point, width_of
from lexray.tuning.file.points import code_at, effective, key, points_of, shown
from lexray.tuning.file.resources import ResourcesBlock
from lexray.tuning.file.sweep_file import TRAINING_SETTINGS, SweepFile, TrainingBlock
from lexray.tuning.trials import Footprint, Trial


def expand(sweep: SweepFile, manifest: Manifest, training_rows: Callable[[DataConfig], int]) -> list[Trial]:
    """The trials of a sweep over a dataset; `training_rows` says how many rows a dictionary has to train on.

    Raises UserError naming the field when something does not fit, or two trials are the same.
    """
    trials: dict[str, Trial] = {}
    points: dict[str, str] = {}
    seen: set[str] = set()
    with sweep.named_errors():
        listed = points_of(sweep)
    for point in listed:
        trial, of_point = trial_at(sweep, manifest, training_rows, point), key(effective(sweep, point))
        if key(point) in seen or points.setdefault(trial.id, of_point) != of_point:
            raise UserError(
                f"{sweep.path_prefix}axes: two trials are the same, {trial.name}; remove the repeated value"
            )
        seen.add(key(point))
        trials[trial.id] = trial
    return list(trials.values())


@dataclass(frozen=True, kw_only=True)
class PointBlocks:
    """The blocks of a sweep file at one point: with the point's axes and the settings of the rules that match it."""

    sweep: SweepFile
    point: Point
    settings: dict[str, Any]
    """Settings of the matching rules; the last one wins."""

    @staticmethod
    def at(sweep: SweepFile, point: Point) -> PointBlocks:
        settings: dict[str, Any] = {}
        for rule in sweep.rules:
            if rule.matches(point):
                settings |= rule.set
        return PointBlocks(sweep=sweep, point=point, settings=settings)

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Add to a user error where its field stands in the file, and which trial it is about."""
        try:
            yield
        except UnreachableError:
            raise  # names a store, whichever trial reads it
        except UserError as error:
            field = re.match(r"\w*", str(error))
            path = self._path_of(field[0]) if field else ""
            trial = ", ".join(f"{axis} {value}" for axis, value in self.point.items())
            raise UserError(f"{path}{error} (trial: {trial})") from error

    def _path_of(self, field: str) -> str:
        """Return the block of the file where the value of a field comes from, with a dot; empty for anything else."""
        name, options = self.point["architecture"], self.sweep.options
        own = f"options.{name}."
        found = dict.fromkeys(architecture(name).all_option_names, own)
        for config_class, block in ((RowsConfig, "data"), (TrainingBlock, "training"), (ResourcesBlock, "resources")):
            found |= {setting.name: f"{block}." for setting in fields(config_class)}
        found |= dict.fromkeys(options.get("all", {}), "options.all.") | dict.fromkeys(self.point, "axes.")
        found |= dict.fromkeys(options.get(name, {}), own) | dict.fromkeys(self.settings, "rules.set.")
        return found.get(field, "")

    def resources(self) -> ResourcesBlock:
        """Return the resources; one way to give a mesh replaces the other."""
        found = _part(self.settings, [field.name for field in fields(ResourcesBlock)])
        for given, other in (("mesh", "workers"), ("workers", "mesh")):
            if given in found:
                found.setdefault(other, None)
        return checked_block(self.sweep.resources, found)

    def training(self) -> TrainingBlock:
        changes = _part(self.point, ("lr",)) | _part(self.settings, TRAINING_SETTINGS)
        return checked_block(self.sweep.training, changes | ({"epochs": None} if "rows" in self.settings else {}))

    def dictionary(self, manifest: Manifest, data: DataConfig) -> DictionaryConfig:
        """Take options from `options.all`, the axes, the architecture's own and the rules; the last one wins."""
        name, options = self.point["architecture"], self.sweep.options
        given = {**options.get("all", {}), **self.point, **options.get(name, {}), **self.settings}
        if "width" not in given:
            try:
                given["width"] = width_of(given["expansion"], manifest.sites[data.inputs[0]].width)
            except ValueError as error:
                raise UserError(str(error)) from error
        known = architecture(name).option_names(code_at(self.sweep, self.point))
        return dictionary_config({"architecture": name, **_part(given, known)}, self.sweep.defaults or NEWEST)


def trial_at(sweep: SweepFile, manifest: Manifest, training_rows: Callable[[DataConfig], int], point: Point) -> Trial:
    """Return the trial at a point. Raises UserError naming file, field and trial when something does not fit."""
    blocks = PointBlocks.at(sweep, point)
    with sweep.named_errors(), blocks.named_errors():
        resources = blocks.resources()
        config = _config_at(blocks, resources, manifest, training_rows)
        return Trial(
            id=config.trial,
            name=_name(sweep, point, config),
            config=config,
            footprint=_footprint(resources),
            point=point,
            auto_gpus=resources.gpus_per_worker == "auto",
            auto_mesh=resources.mesh == "auto",
        )


def _config_at(
    blocks: PointBlocks, resources: ResourcesBlock, manifest: Manifest, training_rows: Callable[[DataConfig], int]
) -> TrainingConfig:
    sweep, point, training = blocks.sweep, blocks.point, blocks.training()
    resources.check_gpus()
    data = data_config(sweep, manifest, point)
    dictionary = blocks.dictionary(manifest, data)
    mesh = _mesh_of(resources, dictionary, data)
    available = training_rows(data)
    steps_per_epoch(available, data.batch_rows, data.lanes)
    _check_fits(dictionary, data, manifest, available)
    config = TrainingConfig(
        dictionary=dictionary,
        data=data,
        rows=training.rows or math.ceil((training.epochs or 0) * available),
        optimizer=part_of(OptimizerConfig, training),
        seed=_seed(point),
        mesh=mesh,
        every=sweep.every,
    )
    sites = data.sites_in(manifest)
    check_names(config, sites)
    check_gradient_scale(config, sites)
    return config


def _footprint(resources: ResourcesBlock) -> Footprint:
    axes, gpus = resources.axes, resources.gpus_per_worker
    return Footprint(
        workers=axes.data * axes.feature,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=0.0 if gpus == "auto" else gpus,
        timeout_s=resources.timeout_s,
    )


def _mesh_of(resources: ResourcesBlock, dictionary: DictionaryConfig, data: DataConfig) -> MeshConfig:
    """Return the mesh. Raises UserError where it splits neither the dictionary nor the batch evenly enough."""
    mesh = part_of(MeshConfig, resources, data=resources.axes.data, feature=resources.axes.feature)
    row_parts = mesh.row_parts(dictionary)
    check_lanes(data.batch_rows, data.lanes)
    rank_lanes(0, row_parts, data.lanes)
    mesh.check(dictionary)
    mesh.check_batch(data.batch_rows, row_parts, data.lanes)
    return mesh


def data_config(sweep: SweepFile, manifest: Manifest, point: Point) -> DataConfig:
    """Return the data of the dictionary at a point. Raises UserError naming the field of a site that is missing."""
    try:
        inputs, outputs = sweep.data_at(point, point["architecture"])
    except ValueError as error:
        raise UserError(str(error)) from error
    kind = architecture(point["architecture"]).kind
    for axis, sites in (("sites" if kind == "crosscoder" else "site", inputs), ("output_site", outputs)):
        for site in sites:
            manifest.site(site, field=f"axes.{axis}" if axis in sweep.axes else f"data.{axis}")
    return part_of(
        DataConfig,
        sweep.data,
        url=Store.at(sweep.data.url).url,
        dataset_id=manifest.id,
        inputs=inputs,
        outputs=outputs,
        storage=sweep.storage,
    )


def _check_fits(config: DictionaryConfig, data: DataConfig, manifest: Manifest, training_rows: int) -> None:
    """Raise UserError when the architecture cannot be what is asked of it on these sites and this many rows."""
    architecture(config.architecture).dictionary.check_sites(config, data.sites_in(manifest))
    config.check_rows(training_rows)


def _name(sweep: SweepFile, point: Point, config: TrainingConfig) -> str:
    """Architecture, width, target L0 and whatever else varies in the sweep."""
    return "-".join([config.trial.rsplit("-", 1)[0], *shown(sweep, point)])


def _seed(point: Point) -> int:
    seed = point.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed!r} is not a whole number from 0 to 2^63 - 1")
    return seed


def _part(values: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: values[name] for name in values if name in names}
