"""Everything that lexray reads of what others may have written: a valid sample, and the function that reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import yaml
from mutations import mutated_json, mutated_lines, mutated_safetensors, mutated_text
from safetensors.torch import save
from sweeps import sweep_content, write_dataset, write_sweep
from training_cases import find_case, random_dictionary

from lexray.cluster.follow.sweep_status import sweep_status
from lexray.cluster.output import dataset_summary
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.storage.config_file import read_config_file
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.manifest import MANIFEST, Manifest, dataset_id, load_manifest
from lexray.storage.store import Store
from lexray.training.checkpoint.format import folder_of, open_checkpoint, write_manifest, write_part
from lexray.training.checkpoint.parts import WHOLE
from lexray.training.checkpoint.saved import load_dictionary, save_dictionary
from lexray.training.export.import_sae_lens import import_sae_lens
from lexray.training.measures.held_out import read_measures
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.results.provenance import read_dataset
from lexray.tuning.results.provenance import told as shown_values
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import SweepFolder, TrialRecord
from lexray.tuning.sweep_plan import plan_sweep
from lexray.tuning.views.wandb_ids import RunIds

D, F = 12, 24
EVERY_REPORT = 40
"""A report takes a second: of the cases that reach it, every so many are drawn whole."""

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Reader:
    """One document in a folder made for it, and what reads it."""

    file: Path
    mutate: Mutate
    read: Callable[[int], object]
    """Gets the number of the case."""
    finish: Callable[[bytes], bytes] = bytes
    """Completes a mutated document: what an attacker can recompute proves nothing."""


def manifest(folder: Path) -> Reader:
    url = write_dataset(folder / "data")

    def read(case: int) -> None:
        dataset_summary(load_manifest(Store.at(url)))

    return Reader(folder / "data" / MANIFEST, mutated_json, read, with_its_own_id)


def with_its_own_id(document: bytes) -> bytes:
    try:
        content = json.loads(document)
        content["id"] = dataset_id(Manifest.model_validate(content))
        return json.dumps(content).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return document


def sweep_file(folder: Path) -> Reader:
    content = sweep_content(write_dataset(folder / "data"), str(folder / "out"))
    content |= {"rules": [{"when": {"architecture": "relu"}, "set": {"workers": 2}}], "wandb": {"project": "a/b"}}
    content |= {
        "storage": {"retry_budget_s": 1},
        "search": {"kind": "grid"},
        "exclude": [{"architecture": "topk", "target_l0": 4}],
    }
    write_sweep(folder / "sweep.yaml", content)
    file = folder / "sweep.yaml"
    return Reader(file, mutated_text, lambda case: plan_sweep(read_config_file(str(file), SweepFile), file.read_text()))


def harvest_file(folder: Path) -> Reader:
    content = {
        "output": str(folder / "out"),
        "model": str(folder / "model"),
        "sites": {"mid": {"hidden_state": 1}, "mlp": {"layer": 1, "read": "mlp_out"}},
        "text": {"files": "texts/*.txt"},
        "context_length": 32,
    }
    file = folder / "harvest.yaml"
    file.write_text(yaml.safe_dump(content))
    return Reader(file, mutated_text, lambda case: read_config_file(str(file), HarvestFile))


def cluster_description(folder: Path) -> Reader:
    content = {
        "schema": 1, "name": "mine", "provider": "ray", "access": {"kind": "direct", "address": "http://127.0.0.1:8265"},
        "token": {"kind": "file", "path": "token"}, "pools": [{"name": "gpus", "max_nodes": 2, "cpus": 8, "gpus": 1,
        "memory_gib": 32, "instance_types": ["g5.xlarge"]}], "tags": {"team": "x"},
    }  # fmt: skip
    file = folder / "cluster.json"
    file.write_text(json.dumps(content))
    return Reader(file, mutated_json, lambda case: read_config_file(str(file), ClusterDescription))


def sae_lens_folder(folder: Path) -> tuple[Path, Path]:
    made = folder / "sae"
    made.mkdir()
    tensors = {"W_enc": torch.randn(D, F), "b_enc": torch.randn(F), "W_dec": torch.randn(F, D), "b_dec": torch.randn(D)}
    config = {
        "architecture": "topk", "k": 4, "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.1.hook_mlp_out"},
    }  # fmt: skip
    (made / "cfg.json").write_text(json.dumps(config))
    (made / "sae_weights.safetensors").write_bytes(save(tensors))
    return made / "cfg.json", made / "sae_weights.safetensors"


def sae_lens_config(folder: Path) -> Reader:
    config, _ = sae_lens_folder(folder)
    return Reader(config, mutated_json, lambda case: import_afresh(config.parent, folder / "out"))


def sae_lens_tensors(folder: Path) -> Reader:
    _, tensors = sae_lens_folder(folder)
    return Reader(tensors, mutated_safetensors, lambda case: import_afresh(tensors.parent, folder / "out"))


def import_afresh(source: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    import_sae_lens(str(source), str(output))


def dictionary_config(folder: Path) -> Reader:
    return saved_dictionary(folder, "config.json", mutated_json)


def dictionary_tensors(folder: Path) -> Reader:
    return saved_dictionary(folder, "dictionary.safetensors", mutated_safetensors)


def saved_dictionary(folder: Path, name: str, mutate: Mutate) -> Reader:
    made = folder / "dictionary"
    save_dictionary(Store.at(str(made)), random_dictionary(find_case("jumprelu")))
    return Reader(made / name, mutate, lambda case: load_dictionary(str(made)))


def checkpoint_manifest(folder: Path) -> Reader:
    return checkpoint(folder, "manifest.json", mutated_json)


def checkpoint_part(folder: Path) -> Reader:
    return checkpoint(folder, "*.safetensors", mutated_safetensors)


def checkpoint(folder: Path, pattern: str, mutate: Mutate) -> Reader:
    store, name = Store.at(str(folder)), folder_of(10, "")
    state = [("weights/W", torch.randn(F, D)), ("step", torch.zeros(1))]
    part = write_part(store, name, 0, dict(WHOLE.to_write(state)))
    write_manifest(store, name, 10, [part], {"dictionary": {"architecture": "topk"}})
    (file,) = (folder / name).glob(pattern)
    return Reader(file, mutate, lambda case: open_checkpoint(store, name).read())


def swept(folder: Path) -> SweepFolder:
    """A sweep of two trials, finished and running, with all that lies in its folder."""
    made = SweepFolder(Store.at(str(folder / "sweep")))
    made.store.write("sweep.yaml", yaml.safe_dump(sweep_content("s3://b/data", "s3://b/out")).encode())
    result = {"l0": 4.0, "fvu": 0.25, "explained_variance": 0.75, "dead_fraction": 0.0}
    dictionary = {"architecture": "topk", "width": 64, "target_l0": 4}
    config = {"dictionary": dictionary, "data": {"inputs": ["site"], "batch_rows": 128}, "num_rows": 12800, "seed": 0}
    for trial, status in (("a", "done"), ("b", "running")):
        record = TrialRecord(
            trial=trial, name=f"topk-{trial}", config=config, point={"width": 64}, status=status,
            result=result if status == "done" else {}, timing={"total_s": 1.0, "train_s": 0.5, "rows_per_s": 1000.0},
            curve=[{"k": 4.0, "fvu": 0.25}],
        )  # fmt: skip
        made.write_trial(record)
        lines = [{"step": step, "rows": 128 * step, "train/loss": 1 / step, "train/l0": 4.0} for step in (10, 20, 30)]
        made.trial_store(trial).write("metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        made.trial_store(trial).write(
            "measures.json", json.dumps({"fvu": 0.25, "rows": 1000, "firing": [1, 2]}).encode()
        )
    driver = {"claim": "x", "host": "h", "machine": "m", "process": "1:2", "cluster": "", "job": "", "started_s": 1.0,
              "seen_s": 2.0, "state": "running", "waits": {}, "links": {"a": "https://wandb.ai/x"}}  # fmt: skip
    planned = {
        "id": "a", "name": "topk-a", "reused": False, "data": 1, "feature": 1, "zero_stage": 1, "cpus": 1.0,
        "gpus": 0.0, "steps": 100, "memory": {"resident": 1000}, "seconds": 1.0, "is_bound": False, "workers": 1,
    }  # fmt: skip
    speed = {"rows_per_s": 1000.0, "source": "measured"}
    plan = {"trials": [planned], "seconds": 10.0, "store_bytes": 1000, "speeds": {"topk": speed}, "warnings": []}
    site = {"width": 16, "dtype": "float32", "source": "hidden_state 1 of m"}
    dataset = {"format": "lexray-dataset-of-a-sweep", "version": 1, "url": "s3://b/data", "id": "d", "rows": 10,
               "sites": {"site": site}, "provenance": {"model": "m", "files": ["a", "b"]}}  # fmt: skip
    documents = {"driver": driver, "plan": plan, "dataset": dataset, "wandb": {"nonce": "n"}}
    for name, content in documents.items():
        made.store.write(f"{name}.json", json.dumps(content).encode())
    return made


def follow(folder: SweepFolder, case: int) -> None:
    """As `lexray status`, `report` and `wandb sync` read a folder."""
    sweep_status(folder, 10.0)
    RunIds.of_folder(folder.store)
    for trial in ("a", "b"):
        folder.read_trial(trial)
        folder.read_metrics(trial)
        read_measures(folder.trial_store(trial))
    dataset = read_dataset(folder.store)
    if dataset is not None:
        shown_values(dataset)
    if case % EVERY_REPORT == 0:
        build_results(folder, ["a", "b"])


def in_a_sweep(name: str, mutate: Mutate = mutated_json) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        made = swept(folder)
        return Reader(folder / "sweep" / name, mutate, lambda case: follow(made, case))

    return make


READERS: dict[str, Callable[[Path], Reader]] = {
    "manifest": manifest,
    "sweep-file": sweep_file,
    "harvest-file": harvest_file,
    "cluster-description": cluster_description,
    "sae-lens-config": sae_lens_config,
    "sae-lens-tensors": sae_lens_tensors,
    "dictionary-config": dictionary_config,
    "dictionary-tensors": dictionary_tensors,
    "checkpoint-manifest": checkpoint_manifest,
    "checkpoint-part": checkpoint_part,
    "trial": in_a_sweep("trials/a/trial.json"),
    "metrics": in_a_sweep("trials/b/metrics.jsonl", mutated_lines),
    "measures": in_a_sweep("trials/a/measures.json"),
    "driver": in_a_sweep("driver.json"),
    "plan": in_a_sweep("plan.json"),
    "dataset": in_a_sweep("dataset.json"),
    "wandb": in_a_sweep("wandb.json"),
}
