"""The atoms of a dictionary at step 0, kept in the trial's folder where they are computed from data.

Others are drawn from the seed, and can be drawn again. Shapes: F atoms on this rank, O their width.
"""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lexray.storage.errors import UserError, last_line
from lexray.storage.store import Store
from lexray.training.checkpoint.tensor_file import TensorFileError, check_shapes, read_header
from lexray.training.dictionaries.base import Dictionary

INITIAL_FILE = "initial/atoms.safetensors"
ATOMS_BYTES = 4 * 2**30
"""Larger atoms are neither written nor read: nothing compares dictionaries of such a size."""
_ATOMS = "atoms"


def write_initial_atoms(store: Store, dictionary: Dictionary, *, is_first: bool) -> None:
    """Write the atoms of all slices into the trial's folder `store`, from rank 0 (collective)."""
    atoms_FO: Tensor = dictionary.atoms_FD().detach()  # type: ignore[operator]
    if dictionary.config.width * atoms_FO[0].nbytes > ATOMS_BYTES:
        return
    whole = dictionary.latents.gather(atoms_FO)
    if is_first:
        store.write(INITIAL_FILE, save({_ATOMS: whole.cpu().float().contiguous()}))


def read_initial_atoms(store: Store, shape: tuple[int, ...]) -> Tensor | None:
    """Read the atoms at step 0 from a trial's folder; None where there are none, as in trials of older versions.

    Raises UserError for a damaged file, or atoms of another shape.
    """
    try:
        header = read_header(store, INITIAL_FILE)
        check_shapes({name: tensor.shape for name, tensor in header.items()}, {_ATOMS: shape}, by="the dictionary")
        return load(store.read(INITIAL_FILE))[_ATOMS].float()
    except FileNotFoundError:
        return None
    except (TensorFileError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{store.url}/{INITIAL_FILE}: is damaged ({last_line(str(error))})") from error
