"""Reads official `.dac` files. It knows their pickle and never executes it, and knows no model."""

import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from codecplus.errors import FileFormatError

_T = TypeVar("_T")

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADERS = tuple(
    f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (), }}".encode()
    for descr in ("|O", "O")
    for fortran in (False, True)
)
_VERSIONS = ("1.0.0",)
# Ten times the factor from 16 kHz to 192 kHz; the hop is not in the file.
_MAX_SAMPLES_PER_FRAME = 1 << 16
_MAX_DECIBELS = 200  # range of gains for float32 audio, with room
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_OBJECTS = "O8"

_MAX_INSTRUCTIONS = 1000  # the reference writes 179
_NAMES = {
    *("PROTO", "FRAME", "STOP", "MARK"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT1", "BININT2", "BININT", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
_INSTRUCTIONS = {op.code.encode("latin-1"): op for op in pickletools.opcodes if op.name in _NAMES}
# Makers of values that may be fetched from the memo more than once. Tuples are not among them:
# sharing their parts, a few bytes make one of 2**300 leaves, which a dictionary would hash.
_REUSABLE = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE"),
    *("BINGET", "LONG_BINGET"),
}


@dataclass(frozen=True, kw_only=True)
class DacFile:
    """One recording as an official .dac file holds it."""

    codes: np.ndarray
    """int16 (channels, codebooks, frames), all windows one after the other."""
    chunk_length: int
    """Frames per window; the windows were encoded apart from each other."""
    original_length: int
    """Samples per channel at `sample_rate`."""
    input_db: float
    """Loudness before encoding, LUFS."""
    channels: int
    """Channels, each with codes of its own."""
    sample_rate: int
    """Rate of the original audio, Hz; the model's rate is not in the file."""
    padding: bool
    """Whether the convolutions padded their input (one window) or not (several)."""
    dac_version: str
    """Version of the file format."""


def read_dac_file(path_or_bytes: str | os.PathLike[str] | bytes) -> DacFile:
    """Read an official .dac file, given as a path or as its content, without executing it.

    Raises FileFormatError if it is damaged, hostile or holds a batch of several recordings, OSError
    if it cannot be opened.
    """
    recordings = read_dac_batch(path_or_bytes)
    if len(recordings) != 1:
        raise FileFormatError(
            f"expected one recording, got a batch of {len(recordings)}; use read_dac_batch"
        )
    return recordings[0]


def read_dac_batch(path_or_bytes: str | os.PathLike[str] | bytes) -> list[DacFile]:
    """Read every recording of an official .dac file; the reference writes several when given a
    batch of audio.

    Raises the errors of `read_dac_file`.
    """
    if isinstance(path_or_bytes, bytes):
        return _parse(path_or_bytes)
    with open(path_or_bytes, "rb") as file:
        data = file.read()
    try:
        return _parse(data)
    except FileFormatError as error:
        raise FileFormatError(f"{os.fspath(path_or_bytes)}: {error}") from error


def _parse(data: bytes) -> list[DacFile]:
    array = _load(_pickle_of_npy(data))
    content = array.value if isinstance(array, _Array) else None
    if not (isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict)):
        raise _damaged("one dictionary", type(content).__name__)
    return _recordings(content[0])


def _pickle_of_npy(data: bytes) -> bytes:
    """Return the pickle inside an .npy file that holds a single object."""
    if data[:6] != _NPY_MAGIC:
        raise FileFormatError(
            f"expected an official .dac file, which starts with {_NPY_MAGIC!r}, got {data[:6]!r}; "
            "a .dacp file is read by codecplus.bitstream"
        )
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    header = data[start:end]
    if header.strip() not in _NPY_HEADERS:
        raise _damaged(f"the header {_NPY_HEADERS[0].decode()}", repr(header[:80]))
    return data[end:]


# ---- the values of the fields


def _recordings(content: dict[str, Any]) -> list[DacFile]:
    metadata = _field(content, "codes and metadata", "metadata", dict)
    codes = _codes(_field(content, "codes and metadata", "codes", _Array))
    num_rows, _, frames = codes.shape
    channels = _whole(metadata, "channels", 1, num_rows)
    if num_rows % channels:
        raise _damaged(f"codes of whole recordings of {channels} channels", f"{num_rows} rows")
    version = _field(metadata, "metadata", "dac_version", str)
    if version not in _VERSIONS:
        raise FileFormatError(
            f"expected a .dac file of version {' or '.join(_VERSIONS)}, got {version[:20]!r}; "
            "encode the audio again with a version that is supported"
        )
    facts = {
        "chunk_length": _whole(metadata, "chunk_length", 1, frames),
        "original_length": _whole(metadata, "original_length", 0, frames * _MAX_SAMPLES_PER_FRAME),
        "channels": channels,
        "sample_rate": _whole(metadata, "sample_rate", 1, 1 << 24),
        "padding": _field(metadata, "metadata", "padding", bool),
        "dac_version": version,
    }
    items = codes.reshape(-1, channels, *codes.shape[1:])
    return [
        DacFile(codes=item, input_db=loudness, **facts)
        for item, loudness in zip(items, _loudness(metadata, len(items)), strict=True)
    ]


def _codes(array: "_Array") -> np.ndarray:
    codes = array.value
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu" or codes.ndim != 3:
        raise _damaged("integer codes of shape (channels, codebooks, frames)", "something else")
    if codes.min() < 0 or codes.max() > 32767:
        raise _damaged("codes from 0 to 32767", f"{codes.min()} to {codes.max()}")
    return np.ascontiguousarray(codes, dtype=np.int16)


def _loudness(metadata: dict[str, Any], items: int) -> list[float]:
    """Return `input_db` as one number for each item of the batch."""
    value = metadata.get("input_db")
    numbers = value
    if isinstance(value, _Array):
        numbers = value.value
    elif isinstance(value, float):
        numbers = np.array(value)
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        raise _damaged("input_db of floating-point numbers", _kind(type(value)))
    finite = np.isfinite(numbers)
    if numbers.size != items or not finite.all():
        raise _damaged(
            f"input_db of {items} finite numbers", f"{numbers.size} with {finite.sum()} finite"
        )
    loudest = numbers.flat[np.abs(numbers).argmax()]
    if abs(loudest) > _MAX_DECIBELS:
        raise _damaged(f"input_db from -{_MAX_DECIBELS} to {_MAX_DECIBELS}", f"{loudest:g}")
    return [float(decibels) for decibels in numbers.flat]


def _whole(metadata: dict[str, Any], name: str, low: int, high: int) -> int:
    value = _field(metadata, "metadata", name, int)
    if isinstance(value, bool) or not low <= value <= high:
        raise _damaged(f"{name} from {low} to {high}", str(value)[:20])
    return value


def _field(fields: dict[str, Any], where: str, name: str, kind: type[_T]) -> _T:
    if name not in fields:
        raise _damaged(f"{name} in its {where}", "none")
    if not isinstance(fields[name], kind):
        raise _damaged(f"{name} of type {_kind(kind)}", type(fields[name]).__name__)
    return fields[name]


def _kind(cls: type) -> str:
    return cls.__name__.lstrip("_").lower()


def _damaged(expected: str, got: str) -> FileFormatError:
    return FileFormatError(
        f"expected an official .dac file with {expected}, got {got}; fetch or encode it again"
    )


def _refused(got: str) -> FileFormatError:
    return FileFormatError(
        f"expected a .dac file as descript-audio-codec writes it, got a pickle with {got[:100]}; "
        "it is damaged or made to do harm: do not open it with anything else"
    )


# ---- the pickle


def _load(data: bytes) -> Any:
    """Return the object of a pickle of numpy arrays, protocols 2 to 5.

    Raises FileFormatError for any other pickle, before it costs more time or memory than a few
    copies of the file.
    """
    _check_instructions(data)
    try:
        return _Unpickler(data).load()
    except FileFormatError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = ascii(str(error))[1:-1]
        raise _refused(f"an instruction that cannot be followed ({reason})") from error


def _check_instructions(data: bytes) -> None:
    """Raise FileFormatError unless a pickle has few instructions, all of which numpy needs, and
    whose arguments lie within the file.
    """
    file = io.BytesIO(data)
    latest = ""  # the instruction that made or changed the value on top of the stack
    memo: dict[int, str] = {}  # place -> the instruction that made the value there
    for _ in range(_MAX_INSTRUCTIONS):
        name, argument = _next_instruction(file)
        if name == "STOP":
            break
        if name == "MEMOIZE":
            memo[len(memo)] = latest
        elif name in ("BINPUT", "LONG_BINPUT"):
            if argument > _MAX_INSTRUCTIONS:  # the memo is an array, as long as its last place
                raise _refused("a place that is far away")
            memo[argument] = latest
        elif name in ("BINGET", "LONG_BINGET") and memo.get(argument) not in _REUSABLE:
            raise _refused("a value used again that numpy uses once")
        elif name == "FRAME":
            rest = len(data) - file.tell()
            if argument > rest:
                raise _damaged(f"{argument} more bytes in its pickle", str(rest))
        elif name != "PROTO":
            latest = name
    else:
        raise _refused(f"more than {_MAX_INSTRUCTIONS} instructions")
    rest = len(data) - file.tell()
    if rest:
        raise _damaged("one object", f"1 and {rest} bytes after")


def _next_instruction(file: io.BytesIO) -> tuple[str, Any]:
    """Read the name of the next instruction and its argument, without following it."""
    code = file.read(1)
    if not code:
        raise _damaged("an end of its pickle", "none")
    instruction = _INSTRUCTIONS.get(code)
    if instruction is None:
        raise _refused(f"instruction 0x{code.hex()}")
    if instruction.name == "GLOBAL":  # pickletools warns of names with backslashes
        return "GLOBAL", (file.readline(), file.readline())
    if instruction.arg is None:
        return instruction.name, None
    try:
        return instruction.name, instruction.arg.reader(file)
    except ValueError as error:
        raise _damaged("whole instructions in its pickle", str(error)[:100]) from error


class _Array:
    """A numpy array under construction."""

    value: np.ndarray | list[Any] | None = None
    """A view of bytes of the file, or the list of an array of objects."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.code == _OBJECTS and shape == () and isinstance(data, list):
            self.value = data
        else:
            self.value = _array(shape, dtype, data, "F" if fortran else "C")


class _DType:
    """A numpy dtype under construction: its kind and size, then its byte order."""

    def __init__(self, code: str):
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise _refused("a byte order that numpy does not write")
        self.order = order


class _Call:
    """A function that a pickle may call. It has no attributes that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _refused("a function that it changes")


class _Unpickler(pickle.Unpickler):
    """Makes the types that numpy's pickles name from the file's bytes, and refuses other names."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self._allowance = len(data)

    def find_class(self, module: str, name: str) -> _Call:
        """Return the function that stands in for one of numpy's."""
        # numpy moved its internals from numpy.core to numpy._core in version 2
        functions = {
            "numpy.ndarray": _refuse_call,
            "numpy.dtype": _make_dtype,
            "numpy.core.multiarray._reconstruct": _make_array,
            "numpy.core.multiarray.scalar": _make_scalar,
            "numpy.core.numeric._frombuffer": _make_array_of_bytes,
            "_codecs.encode": self._encode,
        }
        function = functions.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if function is None:
            raise _refused(f"the name {ascii(f'{module[:40]}.{name[:40]}')[1:-1]}")
        return _Call(function)

    def _encode(self, text: str, encoding: str) -> bytes:
        """Return the bytes that protocol 2 writes as a text."""
        if encoding != "latin1":
            raise _refused("a text of another encoding")
        # A text in the memo could be copied once for every few bytes of the file.
        self._allowance -= len(text)
        if self._allowance < 0:
            raise _refused("one text used again and again")
        return str.encode(text, encoding)


def _refuse_call(*arguments: Any) -> None:
    raise _refused("a call that numpy does not write")


def _make_dtype(code: str, *flags: Any) -> _DType:
    if code not in (*_DTYPES, _OBJECTS):
        raise _refused("a dtype that is no number")
    return _DType(code)


def _make_array(*arguments: Any) -> _Array:
    return _Array()


def _make_scalar(dtype: _DType, data: bytes) -> int | float | bool:
    return _array((), dtype, data, "C").item()


def _make_array_of_bytes(data: bytes, dtype: _DType, shape: tuple, order: Any) -> _Array:
    array = _Array()
    array.value = _array(shape, dtype, data, order)
    return array


def _array(shape: tuple[Any, ...], dtype: _DType, data: bytes, order: Any) -> np.ndarray:
    """Return a view of `data`: no memory is taken on the word of a shape."""
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple) or len(shape) > 8:
        raise _damaged("arrays of bytes", "an impossible array")
    if not all(type(size) is int and 0 < size <= len(data) for size in shape):
        raise _damaged("arrays that the file can hold", "an impossible shape")
    if dtype.code not in _DTYPES:
        raise _refused("an array of objects that numpy does not write")
    numbers = np.dtype(dtype.order + dtype.code)
    if math.prod(shape) * numbers.itemsize != len(data):
        raise _damaged("arrays as large as their shape says", f"{len(data)} bytes")
    return np.frombuffer(data, numbers).reshape(shape, order=order)
