"""A reader for the pickles of CIFAR that runs no code from them.

A pickle is a program: `pickle.load` runs whatever its author wrote. The files of CIFAR need lists,
dictionaries, numbers, text and one array of bytes; this reader refuses everything else by name. Not
even numpy's constructors are called, which do not check the types and buffers that a pickle gives
them: substitutes collect what an array needs.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from lcm.errors import UserError, one_line


class _Refused(pickle.UnpicklingError):
    """The file asks for something that no CIFAR file has."""


class _Dtype:
    """In place of numpy.dtype; refuses every type but bytes."""

    def __init__(self, code, *_):
        if code not in ("u1", b"u1"):
            raise _Refused(f"an array of type {code!r}")

    def __setstate__(self, state):
        # Byte order, alignment and fields: a byte has none.
        pass


class _Array:
    """In place of numpy.ndarray and numpy's functions that rebuild one; `values` is uint8."""

    def __init__(self, *_):
        self.values = None

    def __setstate__(self, state):
        # What numpy's arrays store: version, shape, dtype, Fortran's order or not, bytes.
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise _Refused("an array that is not of bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _frombuffer(data, dtype, shape, order):
    """In place of numpy's function of this name (pickle protocol 5)."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    # Python 3 writes bytes into pickles of protocol 2 by this function, as latin1 and nothing else.
    # No codec is looked up by a name from the file.
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # numpy 1 writes numpy.core
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2 writes numpy._core
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _Reader(pickle._Unpickler):
    """The unpickler written in Python: that in C may allocate gigabytes for a flipped bit."""

    def find_class(self, module, name):
        # Whatever opcode names a class or a function, it comes through here.
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_cifar_pickle(path: Path) -> dict:
    """The record in a pickle of CIFAR, its keys as text.

    Raises `UserError` for a file that is damaged, of another kind, or asks for anything that CIFAR
    files never hold.
    """
    data = path.read_bytes()
    try:
        # Strings of Python 2, the pixels too, stay bytes: ASCII, the default, would fail.
        record = dict(_Reader(io.BytesIO(data), encoding="bytes").load())
    except _Refused as error:
        raise UserError(
            f"{path} asks for {error}, which no CIFAR file has. It was refused and "
            "nothing in it was run. Do not use this copy: get the official archive."
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(
            f"{path} ({len(data):,} bytes) is damaged and cannot be read to its end "
            f"({one_line(error) if data else 'it is empty'}). "
            f"Delete {path.parent} to unpack or download the archive again."
        ) from error
    # Python 2 wrote the official files: its text arrives as bytes.
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: (
            value.values if isinstance(value, _Array) else value
        )
        for key, value in record.items()
    }
