"""A reader for the pickles of CIFAR that cannot be made to run anything.

A pickle is a program: loading one of an unknown origin with `pickle.load` runs whatever its author wrote. The files of CIFAR
need lists, dictionaries, numbers, text and one array of bytes; this reader knows these and refuses all else by name. Even
numpy is out of the file's reach: stand-ins collect what an array needs, and it is built here.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from lcm.errors import UserError


class _Refused(pickle.UnpicklingError):
    """The file asks for something that CIFAR files never hold."""


class _Dtype:
    """Stands for numpy.dtype: of bytes, or refused."""

    def __init__(self, code, *_):
        if code not in ("u1", b"u1"):
            raise _Refused(f"an array of type {code!r}")

    def __setstate__(self, state):
        pass


class _Array:
    """Stands for numpy.ndarray; `values` is the array, uint8."""

    values = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.values = _array(data, dtype, shape, "F" if fortran else "C").values


def _array(data, dtype, shape, order):
    """Stands for numpy's _frombuffer (pickle protocol 5)."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise _Refused("an array of something else than bytes")
    array = _Array()
    array.values = np.frombuffer(data, np.uint8).reshape(shape, order=order)
    return array


def _reconstruct(*_):
    """Stands for numpy's _reconstruct: an empty array, filled by __setstate__."""
    return _Array()


def _encode(text, encoding):
    """Stands for _codecs.encode, by which Python 3 writes bytes into pickles of protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle._Unpickler):
    """The reader written in Python, as fast here: in the other, a flipped bit in a memo index can claim gigabytes."""

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]


def read_cifar_pickle(data: bytes, path: Path) -> dict:
    """The record in a pickle of CIFAR: text -> list, text, number or uint8 array. `path` is where `data` came from.

    Raises `UserError` for a file that is damaged, of another kind, or asks for anything that CIFAR files never hold.
    """
    try:
        record = _Reader(io.BytesIO(data), encoding="bytes").load()
    except _Refused as error:
        raise UserError(
            f"{path} asks for {error}, which the files of CIFAR never hold. It was refused and nothing in it was run. "
            "Do not use this copy: get the official archive."
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200] if data else "it is empty"
        raise UserError(
            f"{path} ({len(data):,} bytes) is damaged, it cannot be read to its end ({reason}). "
            f"Delete {path.parent} to have the archive unpacked or downloaded again."
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{path} is no file of CIFAR: it holds a {type(record).__name__} where a dictionary is expected. "
            "Replace it by the official file."
        )
    # Python 2 wrote the official files: its text arrives as bytes.
    record = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in record.items()}
    return {key: value.values if isinstance(value, _Array) else value for key, value in record.items()}
