"""A sweep's folder in which everything that a report may show is there."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lexray.storage.store import Store
from lexray.tuning.sweep_folder import DONE, FAILED, PENDING, STOPPED, TARGET_MISSED, SweepFolder, TrialRecord

DATA_FILES = {
    "trial.json",
    "metrics.jsonl",
    "measures.json",
    "fired.npy",
    "dictionary/config.json",
    "dictionary/dictionary.safetensors",
}
SWEEP = "name: full\nprices: {cpu_hour: 0.5, gpu_hour: 2, currency: EUR}\n"
LONG = "a_long_name_without_any_place_to_break_it_" * 4
STATUSES = (DONE, DONE, DONE, TARGET_MISSED, STOPPED, FAILED, PENDING, DONE, DONE)


def point_record(number: int, **fields: Any) -> TrialRecord:
    """A trial; of nine, all statuses occur, and 0, 1 and 2 differ in the seed alone."""
    status, is_seed = STATUSES[number % len(STATUSES)], number < 3
    architecture = "topk" if is_seed else ("relu", "topk", "batch_topk")[number % 3]
    width, target = (64, 8) if is_seed else ((64, 128)[number % 2], 4 * (number + 1))
    fvu = 0.9 / (number + 3)
    l0 = target * (1.5 if status == TARGET_MISSED else 1.01)
    measured = {"l0": l0, "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.2}
    values: dict[str, Any] = {
        "trial": f"{architecture}-{number}",
        "name": f"{architecture}-w{width}-l{target}-s{number}",
        "config": {
            "dictionary": {"architecture": architecture, "width": width, "target_l0": target},
            "data": {"inputs": ["layer3"], "url": f"s3://bucket/{LONG}", "dataset_id": "abc", "held_out": 0.1},
            "seed": number if is_seed else 0,
        },
        "status": status,
        "reason": LONG if status == FAILED else "",
        "result": measured if status in (DONE, TARGET_MISSED, STOPPED) else {},
        "timing": {} if status == PENDING else {"total_s": 100.0 + number, "train_s": 60.0},
    }
    return TrialRecord(**values | fields)


def firing(bins: dict[float, int]) -> dict[str, Any]:
    """The `firing` section of `measures.json`, from lower edges (log10) to numbers of latents."""
    edges = [-7 + number / 4 for number in range(29)]
    return {
        "dense_above": 0.1,
        "dense_fraction": 0.125,
        "dead_fraction": 0.25,
        "log10_edges": edges,
        "histogram": [bins.get(edge, 0) for edge in edges[:-1]],
    }


def measures(bits: dict[str, Any], scale: float = 1.0) -> dict[str, Any]:
    """A hand-made `measures.json` whose numbers differ from each other."""
    points = [{"k": None, "l0": 8.0, "fvu": 0.4}, {"k": 2, "l0": 2.0, "fvu": 0.8}, {"k": 16, "l0": 16.0, "fvu": 0.2}]
    return {
        "version": 1,
        "firing": firing({-2.5: 10, -1.0: 3}),
        "likeness": {"cosine": 0.91 * scale, "cosine_centred": 0.5},
        "curve": {"method": "encode", "points": points},
        "description_length": {"points": [], "bits_at_fvu": bits},
        "coherence": {
            "max_cosine": 0.72 * scale,
            "mean_max_cosine": 0.31 * scale,
            "babel": 2.25 * scale,
            "duplicate_fraction": 0.0625 * scale,
            "duplicate_pairs": 2,
        },
        "documents": {"count": 30, "hash": "0123", "fvu_error": 0.0025 * scale, "fvu_resamples": [0.39, 0.4, 0.41]},
        "latent_scaling": {"specific_fraction": 0.375 * scale, "artefact_fraction": 0.1875 * scale},
    }


def full_sweep(place: Path) -> tuple[SweepFolder, list[str]]:
    """Nine trials, six of them measured, and what was compared of three seeds."""
    folder = SweepFolder(Store.at(str(place)))
    folder.store.write("sweep.yaml", SWEEP.encode())
    records = [point_record(number) for number in range(9)]
    for number, record in enumerate(records):
        folder.write_trial(record)
        store = folder.trial_store(record.trial)
        lines = [
            {"step": n, "rows": 100 * n, "train/fvu": 1 / (n + 1), "train/l0": 9.0, "eval/dead_fraction": 0.1}
            for n in range(9)
        ]
        store.write("metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
        if record.result:
            measures = {"version": 1, "firing": firing({-2.5: 10, -1.0: 3})}
            for name in ("fired.npy", "dictionary/config.json", "dictionary/dictionary.safetensors"):
                store.write(name, b"")
            if record.status != STOPPED:
                store.write("measures.json", json.dumps(measures).encode())
        if number < 6:
            store.write("spent.json", json.dumps({"cpu_s": 3600.0, "gpu_s": 1800.0}).encode())
    folder.store.write("stability.json", json.dumps(_stability([r.trial for r in records[:3]])).encode())
    return folder, [record.trial for record in records]


def _stability(trials: list[str]) -> dict[str, Any]:
    """What an earlier report computed of three dictionaries; one pair of them it could not."""
    a, b, c = trials
    numbers: dict[str, Any] = {f"end {a} {b}": [0.91, "hungarian"], f"end {a} {c}": [0.82, "hungarian"]}
    numbers |= {f"start {one} {other}": 0.2 for one, other in ((a, b), (a, c), (b, c))}
    numbers |= {f"size {trial}": [61, 16, 0] for trial in trials} | {f"moved {trial}": 0.5 for trial in trials}
    numbers |= {f"dead {trial}": 3 for trial in trials}
    numbers["floor 61x16 0"] = 0.3
    return {"version": 2, "seeds": [], "widths": [], "chosen": [], "numbers": numbers}


class Links(HTMLParser):
    """Where the links of a page lead, and what can be led to inside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"] or "")
        if values.get("id"):
            self.ids.add(values["id"] or "")
