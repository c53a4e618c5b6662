"""Write the trained dictionary where people and other tools find it."""

from __future__ import annotations

from lexray.storage.anonymous import without_home
from lexray.storage.store import Store
from lexray.training.checkpoint.saved import save_dictionary, to_state_dict
from lexray.training.config import TrainingConfig
from lexray.training.loop.setup import Setup
from lexray.training.measures.metrics import METRICS_VERSION


def publish(store: Store, setup: Setup, config: TrainingConfig, *, trial: str, metrics: dict[str, float]) -> None:
    """Write the whole dictionary with its origin under `store`, from rank 0. Every rank calls it to gather.

    `metrics` are those on test rows.
    """
    engine, manifest, is_first = setup.engine, setup.stream.manifest, setup.mesh.place.rank == 0
    wholes = engine.dictionary.gather_full(to_state_dict(engine.full_parameters(), engine.dictionary))
    tensors = {name: whole for name, whole in wholes if is_first}  # the others only help to gather
    if not is_first:
        return
    data = config.data
    about = {
        "trial": trial,
        "sites": {
            kind: [{"name": name, "source": manifest.sites[name].source} for name in names]
            for kind, names in (("inputs", data.inputs), ("outputs", data.reconstructed))
        },
        "data": {"url": data.url, "id": data.dataset_id, "provenance": manifest.provenance},
        "training": config.to_dict(),
        "held_out": {"metrics_version": METRICS_VERSION, "part": "test", **metrics},
    }
    save_dictionary(store, engine.dictionary, tensors, without_home(about))
