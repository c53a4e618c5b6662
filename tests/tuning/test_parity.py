"""A dictionary trained through Ray and DeepSpeed is the one that a plain PyTorch loop makes, on 1 and on 2 workers."""

import dataclasses
import json
import time
from contextlib import closing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lexray.storage.store import Store
from lexray.storage.stream import local_stream
from lexray.storage.writer import DatasetWriter
from lexray.training.checkpoint.format import newest_checkpoint
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config
from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.endings.budget import Usage, UsageMeter
from lexray.tuning.planning.row_counts import RowCounts
from lexray.tuning.planning.streams import shape_of
from lexray.tuning.ray_backend.cluster_view import living_nodes
from lexray.tuning.ray_backend.trial import torch_trainer, train_worker
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Footprint, Trial

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, FEW_STEPS, BATCH, D, WIDTH, L0 = 50, 15, 256, 24, 96, 6
PLAIN = ("topk", "relu", "batch_topk")
"""Architectures that the plain loop below knows."""
QUICK = ("gated_p_anneal", "jumprelu", "matryoshka_batch_topk", "mp", "relaxed_archetypal", "crosscoder", "snmf")
"""Of the others, one of each kind."""
SLOW = [(name, FEW_STEPS) for name in ARCHITECTURES if name not in (*PLAIN, *QUICK)]
NEEDED = {"pca": {"width": 20}, "kmeans": {"target_l0": 1}, "nmf": {"signed_input": "split"}}
OPTIMIZER = OptimizerConfig(lr=2e-3, eps=1e-4, warmup=0.1, decay=0.2, clip_norm=1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = Store.at(str(tmp_path_factory.mktemp("data")))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(48, D))
    codes = rng.exponential(size=(9000, 48)) * (rng.random((9000, 48)) < 0.08)
    writer = DatasetWriter(store=store, sites={"site": D, "other": 16}, chunk_rows=128, shard_rows=1280)
    rows = torch.from_numpy(codes @ features + 3.0).float()
    other = torch.relu(rows @ torch.from_numpy(rng.normal(size=(D, 16)) / D**0.5).float())
    number = np.arange(len(rows))
    writer.add(
        {"site": rows, "other": other}, {"token_id": number % 7, "position": number % 50, "document": number // 50}
    )
    return store, writer.close()


def config(dataset, architecture: str, steps: int, workers: int) -> TrainingConfig:
    store, manifest = dataset
    kind = ARCHITECTURES[architecture].kind
    # A latent silent for 300 rows counts as dead, so that AuxK takes part.
    options = {"width": WIDTH, "target_l0": L0, "dead_after_rows": 300, "sample_rows": 1024}
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": architecture, **options, **NEEDED.get(architecture, {})}),
        data=DataConfig(
            url=store.url,
            dataset_id=manifest.id,
            inputs=("site", "other") if kind == "crosscoder" else ("site",),
            outputs=("other",) if kind == "transcoder" else (),
            batch_rows=BATCH,
        ),
        rows=steps * BATCH,
        optimizer=dataclasses.replace(OPTIMIZER, decay=OPTIMIZER.decay if steps > 1 else 0.0, warmup=0.0),
        mesh=MeshConfig(data=workers, zero_stage=workers),
        every=EveryConfig(log=1, evaluate=1000, checkpoint=1000),
    )


@pytest.fixture(scope="module")
def trained(dataset, ray_session, tmp_path_factory):
    """Folder of each (architecture, steps, workers), trained by the trial's own worker function when first asked for.

    All that a test may need of one kind are trained in one group of workers: starting one takes longer than these
    trainings.
    """
    folders: dict[tuple[str, int, int], Store] = {}

    def by(architecture: str, steps: int, workers: int) -> Store:
        for wanted in ([*((a, n) for a in PLAIN for n in (1, STEPS)), *((a, FEW_STEPS) for a in QUICK)], SLOW):
            if (architecture, steps, workers) not in folders and (architecture, steps) in wanted:
                folders.update(train_all(dataset, wanted, workers, tmp_path_factory.mktemp(f"workers{workers}")))
        return folders[architecture, steps, workers]

    return by


def train_all(dataset, wanted, workers: int, place) -> dict[tuple[str, int, int], Store]:
    def train_in_turn(loop_config):
        for run in loop_config["run"]:
            train_worker({**loop_config, "run": run})

    folder = SweepFolder(Store.at(str(place)))
    trials = [
        Trial(
            id=f"{architecture}-{steps}",
            name=architecture,
            config=config(dataset, architecture, steps, workers),
            footprint=Footprint(workers=workers, cpus_per_worker=1, gpus_per_worker=0),
        )
        for architecture, steps in wanted
    ]
    counts = RowCounts()
    shapes = [shape_of(trial, dataset[1], counts) for trial in trials]
    with closing(WindowServers(trials=trials, shapes=shapes, cache=None)) as window_servers:
        servers = window_servers.on(living_nodes())
        storage_path = folder.store.local_path + "/ray"
        runs = [TrialRun(trial=t, folder=folder, servers=servers, ray_storage_path=storage_path) for t in trials]
        meter = UsageMeter(store=folder.store, footprint=trials[0].footprint, before=Usage(), began_s=time.time())
        trainer = torch_trainer(runs[0], meter)
        trainer.train_loop_per_worker = train_in_turn
        trainer.train_loop_config = {**trainer.train_loop_config, "run": runs}
        trainer.fit()
    return {(run.trial.name, run.trial.config.num_steps, workers): run.store for run in runs}


class Plain:
    """The equations of the three architectures, densely, in one process."""

    def __init__(self, dataset, architecture: str) -> None:
        self.architecture = architecture
        site = dataset[1].sites["site"]
        self.mean = torch.tensor(site.mean)
        self.scale = (site.mean_squared_norm - sum(m * m for m in site.mean)) ** 0.5
        atoms = F.normalize(torch.randn(WIDTH, D, generator=torch.Generator().manual_seed(0)), dim=1)
        encoder = atoms * min(1.0, 2 * D / WIDTH) if architecture == "relu" else atoms
        self.parameters = {
            "W_enc": encoder.clone(),
            "b_enc": torch.zeros(WIDTH),
            "W_dec": atoms.clone(),
            "b_dec": torch.zeros(D),
        }
        for p in self.parameters.values():
            p.requires_grad_(True)
        self.silent_rows = torch.zeros(WIDTH)
        self.log_coefficient = np.log(0.01)

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        W_enc, b_enc, W_dec, b_dec = self.parameters.values()
        x = (rows.float() - self.mean) / self.scale
        z = (x - b_dec) @ W_enc.T + b_enc
        atoms = W_dec / W_dec.norm(dim=1, keepdim=True)
        f = self.code(z)
        error = x - f @ atoms - b_dec
        loss = error.square().sum(1).mean()
        dead = self.silent_rows >= 300
        if self.architecture == "relu":
            loss = loss + np.exp(self.log_coefficient) * f.sum(1).mean()
            l0 = float((f > 0).sum(1).float().mean())
            self.log_coefficient += 0.06 * np.clip(np.log(l0 / L0), -0.5, 0.5)
        elif dead.any():
            loss = loss + self.auxk(z, error.detach(), atoms, dead) / 32
        self.silent_rows = torch.where((f > 0).any(0), 0, self.silent_rows + len(rows))
        return loss

    def code(self, z: torch.Tensor) -> torch.Tensor:
        f = F.relu(z)
        if self.architecture == "relu":
            return f
        scores, k = (f.flatten()[None], L0 * len(z)) if self.architecture == "batch_topk" else (f, L0)
        kept = torch.topk(scores, k, dim=1).indices
        return f * torch.zeros_like(scores).scatter(1, kept, 1.0).view_as(f)

    def auxk(self, z, e, atoms, dead):
        z_dead = F.relu(z[:, dead])
        kept = torch.topk(z_dead, min(D // 2, int(dead.sum())), dim=1)
        code = torch.zeros_like(z_dead).scatter(1, kept.indices, kept.values)
        e_hat = code @ atoms[dead]
        return (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()


@pytest.fixture(scope="module")
def plain(dataset):
    """Losses, first gradients and final weights of the plain loop, by architecture."""
    results = {}
    stream = local_stream(config(dataset, "topk", STEPS, 1).data.stream_spec("train"), batch_rows=BATCH)
    for architecture in PLAIN:
        model = Plain(dataset, architecture)
        adam = torch.optim.Adam(model.parameters.values(), lr=0.0, eps=1e-4)
        losses, first = [], None
        for t in range(STEPS):
            adam.param_groups[0]["lr"] = 2e-3 * min(1.0, (STEPS - t) / 10)
            adam.zero_grad()
            loss = model.loss(stream.batch(t).vectors["site"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters.values(), 1.0)
            first = first or {name: p.grad.clone() for name, p in model.parameters.items()}
            losses.append(loss.item())
            adam.step()
        results[architecture] = losses, first, model
    return results


def losses_of(store: Store) -> list[float]:
    """The logged loss of every step."""
    return [json.loads(line)["train/loss"] for line in store.read("metrics.jsonl").decode().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("architecture", PLAIN)
class TestSharedTrainingEqualsThePlainLoop:
    def test_losses_of_fifty_steps(self, trained, plain, architecture, workers):
        losses = losses_of(trained(architecture, STEPS, workers))
        assert len(losses) == STEPS
        np.testing.assert_allclose(losses, plain[architecture][0], rtol=1e-5)

    def test_first_gradients(self, trained, plain, architecture, workers):
        # After one step Adam's first moment is a tenth of the gradient.
        moments = newest_checkpoint(trained(architecture, 1, workers).at_path("checkpoints")).moments
        for name, gradient in plain[architecture][1].items():
            torch.testing.assert_close(10 * moments[f"exp_avg.{name}"], gradient, atol=1e-5, rtol=0)
            assert gradient.abs().max() > 1e-3

    def test_final_weights(self, trained, plain, architecture, workers):
        folder = trained(architecture, STEPS, workers).local_path
        weights = load_file(f"{folder}/dictionary/dictionary.safetensors")
        model = plain[architecture][2]
        for name, expected in model.parameters.items():
            expected = F.normalize(expected, dim=1) if name == "W_dec" else expected
            torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=0)
        assert torch.equal(weights["rows_since_fired_F"], model.silent_rows.long())


OTHERS = [
    *QUICK,
    *(pytest.param(name, marks=pytest.mark.slow) for name, _ in SLOW),
]


@pytest.mark.parametrize("architecture", OTHERS)
class TestTwoWorkersTrainWhatOneDoes:
    def test_losses(self, trained, architecture):
        one, two = (losses_of(trained(architecture, FEW_STEPS, workers)) for workers in (1, 2))
        assert len(one) == FEW_STEPS
        assert min(one) != max(one)
        np.testing.assert_allclose(two, one, rtol=1e-5)

    def test_final_weights(self, trained, architecture):
        folders = (trained(architecture, FEW_STEPS, workers).local_path for workers in (1, 2))
        one, two = (load_file(f"{folder}/dictionary/dictionary.safetensors") for folder in folders)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-4)
