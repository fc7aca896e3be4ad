"""Arrays out of a file that torch.save wrote, without torch, and without running what such a file may ask to be run.

The file is a zip: a pickle that says what there is, and the bytes of every storage. Of what the pickle asks for, dicts,
tensors and the kinds of storage are made here; anything else is refused by name, as torch's `weights_only` does, or
stands as an `Opaque` for what was asked.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
}


class Opaque:
    """Stands for what a pickle asks for beside arrays: none of its code runs, and the state it was to have is kept."""

    def __new__(cls, *_: Any, **__: Any) -> Opaque:
        made = object.__new__(cls)
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def ignore(self, *_: Any) -> None:
        pass

    append = extend = add = __setitem__ = ignore


def read(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays by name, read-only and mapped. Raises ValueError for a file that holds, or asks for, anything else."""
    path = Path(path)
    found = _loaded(path, refuse=True)
    if not isinstance(found, dict) or not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError(f"{path} holds more than arrays by name; give a file of weights alone (a state_dict)")
    return dict(found)


def load(path: Path | str) -> Any:
    """All that the file holds: dicts, lists, plain values and arrays (mapped), and an `Opaque` for anything else."""
    return _loaded(Path(path), refuse=False)


def _loaded(path: Path, refuse: bool) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            listing = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(listing) as file:
                return _Unpickler(file, path, archive, listing.removesuffix("data.pkl"), refuse).load()
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(f"{path} is no zip that torch.save wrote: of an old version, or not whole") from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); fetch it again") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, archive: zipfile.ZipFile, prefix: str, refuse: bool):
        super().__init__(file)
        self.path, self.archive, self.prefix, self.refuse = path, archive, prefix, refuse

    def find_class(self, module: str, name: str) -> Any:
        known = {"collections.OrderedDict": OrderedDict, "torch._utils._rebuild_tensor_v2": _tensor}
        known |= {f"torch.{kind}": dtype for kind, dtype in STORAGES.items()}
        if (asked := f"{module}.{name}") in known:
            return known[asked]
        if self.refuse:
            raise ValueError(
                f"{self.path} asks for {asked}, which is not made of a checkpoint's bytes: only arrays are"
            )
        return type(asked, (Opaque,), {})

    def persistent_load(self, asked: tuple) -> np.ndarray | Opaque:
        """A storage, mapped where the zip holds it."""
        _, dtype, key, _, size = asked
        if not isinstance(dtype, np.dtype):  # of integers, such as a generator's state
            return Opaque()
        entry = self.archive.getinfo(f"{self.prefix}data/{key}")
        with self.path.open("rb") as file:  # its own header comes before it: 30 bytes, name, extra field
            file.seek(entry.header_offset + 26)
            begin = entry.header_offset + 30 + sum(int.from_bytes(file.read(2), "little") for _ in range(2))
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size * dtype.itemsize:
            raise ValueError(f"{self.path}: storage {key} has {entry.file_size} bytes, not {size} of {dtype}")
        return np.memmap(self.path, dtype, "r", begin, (size,)) if size else np.zeros(0, dtype)


def _tensor(storage: np.ndarray | Opaque, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray | Opaque:
    if isinstance(storage, Opaque):
        return storage
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and not (0 <= offset <= last < len(storage) and all(stride >= 0 for stride in strides)):
        raise ValueError(f"a tensor of shape {shape} reaches to {last} in a storage of {len(storage)}")
    strides = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
