"""A GPU that is not there. It finds lines where tensors of two devices meet, and where the host waits for the GPU.

Tensors of `GPU` say that they lie on a device of their own, while the host holds their values. A dispatch mode asks
fake tensors of each operation whether its devices go together and whether its result depends on values, and then
computes it on the host, so that control flow goes on as on a GPU. Not seen: limits, speed, rounding, streams and
memory of CUDA, NCCL, waits inside its kernels other than those listed, a Boolean mask that is assigned a tensor.

This rests on private names of torch, which change its whole process: use it in one of its own, as `tests/training/
test_fake_gpu.py` does. They are
- `torch.utils.backend_registration._setup_privateuseone_for_python_backend`: a backend in Python under PrivateUse1,
- `torch._C._set_only_lift_cpu_tensors`: `torch.tensor(..., device=GPU)` becomes a copy, which modes see,
- `torch._subclasses.fake_tensor`: its mode and the errors by which it refuses an operation,
- `Tensor._make_wrapper_subclass`, `torch._C._disabled_torch_function_impl` and `return_and_correct_aliasing`.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from training_cases import DEAD_AFTER, Case, random_rows, untrained

import lexray.training
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.engines.resampling import resample_dead
from lexray.training.loop.loop import global_sums
from lexray.training.measures.measure import measure
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import LOCAL_DATA

_setup_privateuseone_for_python_backend("gpu")
torch._C._set_only_lift_cpu_tensors(True)
GPU, FAKE = torch.device("gpu", 0), fake_tensor.FakeTensorMode()
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
CHECKED_BY_THE_HOST = (aten._linalg_check_errors.default, aten._linalg_eigh.default)
CODE = tuple(str(folder) for folder in (Path(lexray.training.__file__).parent, Path(__file__).parent / "training"))
ROWS = 24


class Noted(NamedTuple):
    """What was seen, by file and line of lexray and the operation of torch: (place, operation) -> times."""

    mixes: dict[tuple[str, str], int]
    """Operations on tensors of the GPU and of the host, which fail on a real one."""
    waits: dict[tuple[str, str], int]
    """Operations for which the host waits until the GPU has done everything before."""


class OnGpu(Tensor):
    """A tensor that says it lies on the GPU; all that is done with it goes through `Device`."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    __torch_dispatch__ = classmethod(lambda cls, func, types, args, kwargs: NotImplemented)

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        layout: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: OnGpu = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=GPU)
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Device(TorchDispatchMode):
    """Computes for the GPU, and notes mixes and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes, self.waits = Counter[tuple[str, str]](), Counter[tuple[str, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        args_held, kwargs_held = tree_map(_held, (args, kwargs))
        is_on_gpu, found = self._is_on_gpu(func, (args, kwargs)), func(*args_held, **kwargs_held)
        if is_on_gpu:
            found = tree_map(lambda value: OnGpu(value) if type(value) is Tensor else value, found)
        return return_and_correct_aliasing(func, args, kwargs, found)

    def _is_on_gpu(self, func: Any, given: Any) -> bool:
        """Return whether the result lies on the GPU, and note what the operation does wrong."""
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        takes_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        try:
            with FAKE:
                args, kwargs = tree_map(_outline, given)
                found = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
        except (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException):
            self.waits[_place(func)] += takes_gpu
            return takes_gpu
        except (fake_tensor.FakeTensorDeviceMismatchError, RuntimeError) as error:
            if "same device" not in str(error) and not isinstance(error, fake_tensor.FakeTensorDeviceMismatchError):
                raise
            self.mixes[_place(func)] += 1
            return True
        gives_gpu = found[0].device == GPU if found else takes_gpu
        sides = {gives_gpu, *(tensor.device == GPU for tensor in tensors if tensor.ndim or func in COPIES)}
        crosses = func in (*COPIES, *INDEXING) and len(sides) == 2
        self.waits[_place(func)] += crosses or (takes_gpu and func in CHECKED_BY_THE_HOST)
        return gives_gpu

    @property
    def noted(self) -> Noted:
        return Noted(dict(+self.mixes), dict(+self.waits))


def _held(value: Any) -> Any:
    return "cpu" if isinstance(value, torch.device) else value.held if isinstance(value, OnGpu) else value


def _outline(x: Any) -> Any:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) if isinstance(x, Tensor) else x


def _place(func: Any) -> tuple[str, str]:
    """Return the innermost line of ours that led to an operation, and the operation."""
    frame: Any = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(CODE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "", str(func).removeprefix("aten.")


def train_on_gpu(case: Case, options: dict[str, Any]) -> dict[str, Noted]:
    """Return what was noted at the start and in the first step, in one with dead latents, in an evaluation, and in the
    measures of a finished trial."""
    devices = {name: Device() for name in ("start", "step", "evaluation", "measures")}
    with torch.autograd.set_multithreading_enabled(False):  # a mode is one thread's
        with devices["start"]:
            made = untrained(case, **options).to(GPU)
            x_BD, y_BO = (part.to(GPU) for part in random_rows(made.sites, 1, ROWS, torch.float32))
            rows = RawRows(x_BD, x_BD if made.sites.reconstructs_its_input else y_BO)
            if made.needs_sample:
                made.prepare(lambda: [rows, rows])
            adam = torch.optim.Adam(made.parameters(), fused=True) if made.config.learns_by == "gradient" else None
            _step(made, adam, rows, 0)
            made.rows_since_fired_F[:9] = DEAD_AFTER
        with devices["step"]:
            _step(made, adam, rows, 1)
        with devices["evaluation"]:
            evaluate(made, [rows])
        with devices["measures"]:
            measure(made, lambda: [rows])
    return {name: device.noted for name, device in devices.items()}


def _step(made: Dictionary, adam: torch.optim.Adam | None, rows: RawRows, number: int) -> None:
    """One step as the engine and the loop do it, in one process."""
    made.at_step(number, 10)
    terms = made.learn(rows.x_BD, ROWS) if adam is None else made.loss(rows.x_BD, ROWS, rows.y_BO)
    if adam is not None:
        terms.loss.backward()
        adam.step()
        adam.zero_grad()

    @torch.no_grad()
    def assign(changes: dict[str, Any], *, reset_moments: bool = False) -> None:
        for name, change in changes.items():
            made.get_parameter(name).copy_(change(made.get_parameter(name).detach()))

    assign(made.projections())
    made.after_step(global_sums(terms, ROWS, LOCAL_DATA))
    engine: Any = SimpleNamespace(dictionary=made, whole_parameters=nullcontext, assign=assign)
    resample_dead(engine, rows, ROWS, LOCAL_DATA)
