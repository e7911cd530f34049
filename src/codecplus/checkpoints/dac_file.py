"""Official .dac files as codes and facts. Knows their pickle as data to be read: nothing in a file
is ever executed.
"""

import math
import os
import struct
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
_MAX_SAMPLES_PER_FRAME = (
    1 << 16
)  # ten times what resampling 16 kHz to 192 kHz gives; the hop is not in the file
_MAX_INSTRUCTIONS = 1000  # the reference writes 179
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


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
    """Read an official .dac file, given as a path or as its content, without executing what it
    contains.

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

    Raises as `read_dac_file` does.
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
    array = _PickleReader(_pickle_of_npy(data)).load()
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
    if data[start:end].strip() not in _NPY_HEADERS:
        raise _damaged(
            f"the header {_NPY_HEADERS[0].decode()}", repr(data[start : min(end, start + 80)])
        )
    return data[end:]


def _recordings(content: dict[str, Any]) -> list[DacFile]:
    metadata = _field(content, "codes and metadata", "metadata", dict)
    rows = _codes(_field(content, "codes and metadata", "codes", _Array))
    length = rows.shape[-1]
    channels = _whole(metadata, "channels", 1, len(rows))
    if len(rows) % channels:
        raise _damaged(f"codes of whole recordings of {channels} channels", f"{len(rows)} rows")
    items = rows.reshape(-1, channels, *rows.shape[1:])
    version = _field(metadata, "metadata", "dac_version", str)
    if version not in _VERSIONS:
        raise FileFormatError(
            f"expected a .dac file of version {' or '.join(_VERSIONS)}, got {version[:20]!r}; "
            "encode the audio again with a version that is supported"
        )
    facts = {
        "chunk_length": _whole(metadata, "chunk_length", 1, length),
        "original_length": _whole(metadata, "original_length", 0, length * _MAX_SAMPLES_PER_FRAME),
        "channels": channels,
        "sample_rate": _whole(metadata, "sample_rate", 1, 1 << 24),
        "padding": _field(metadata, "metadata", "padding", bool),
        "dac_version": version,
    }
    loudness = _loudness(metadata, len(items))
    return [
        DacFile(codes=codes, input_db=db, **facts)
        for codes, db in zip(items, loudness, strict=True)
    ]


def _codes(array: "_Array") -> np.ndarray:
    codes = array.value
    if (
        not isinstance(codes, np.ndarray)
        or codes.dtype.kind not in "iu"
        or codes.ndim != 3
        or not codes.size
    ):
        raise _damaged("integer codes of shape (channels, codebooks, frames)", "something else")
    if codes.min() < 0 or codes.max() > 32767:
        raise _damaged("codes from 0 to 32767", f"{codes.min()} to {codes.max()}")
    return np.ascontiguousarray(codes, dtype=np.int16)


def _loudness(metadata: dict[str, Any], items: int) -> list[float]:
    value = metadata.get("input_db")
    numbers = (
        value.value
        if isinstance(value, _Array)
        else np.asarray(value if isinstance(value, float) else None)
    )
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        raise _damaged(
            "input_db of floating-point numbers", type(value).__name__.lstrip("_").lower()
        )
    if numbers.size != items or not np.isfinite(numbers).all():
        raise _damaged(
            f"input_db of {items} finite numbers",
            f"{numbers.size} with {np.isfinite(numbers).sum()} finite",
        )
    return [float(db) for db in numbers.flat]


def _whole(metadata: dict[str, Any], name: str, low: int, high: int) -> int:
    value = _field(metadata, "metadata", name, int)
    if isinstance(value, bool) or not low <= value <= high:
        raise _damaged(f"{name} from {low} to {high}", str(value)[:20])
    return value


def _field(fields: dict[str, Any], where: str, name: str, kind: type[_T]) -> _T:
    if name not in fields:
        raise _damaged(f"{name} in its {where}", "none")
    if not isinstance(fields[name], kind):
        raise _damaged(
            f"{name} of type {kind.__name__.lstrip('_').lower()}", type(fields[name]).__name__
        )
    return fields[name]


def _damaged(expected: str, got: str) -> FileFormatError:
    return FileFormatError(
        f"expected an official .dac file with {expected}, got {got}; fetch or encode it again"
    )


@dataclass(frozen=True)
class _Global:
    """A name that the pickle wants to call; only `_PickleReader` gives it a meaning."""

    name: str


class _DType:
    """A numpy dtype under construction: its kind and size, then its byte order."""

    def __init__(self, code: str):
        self.code, self.order = code, "|"

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """A numpy array under construction: an ndarray, or the list of an array of objects."""

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] | None = None


_MARK = object()

# numpy moved its internals from numpy.core to numpy._core in version 2
_CALLS = {
    "numpy.core.multiarray._reconstruct": "reconstruct",
    "numpy._core.multiarray._reconstruct": "reconstruct",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "frombuffer",
    "numpy._core.numeric._frombuffer": "frombuffer",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
}
_NAMES = {"numpy.ndarray", *_CALLS}


class _PickleReader:
    """Reads the pickle of a dictionary of numpy arrays, protocols 2 to 5, as a list of facts.

    It calls nothing that a file names: the names that numpy writes select one of five constructions
    below, any other name or instruction is refused. Time and memory stay in proportion to the file:
    instructions are counted, arrays are views of its bytes, and `encode`, which copies, works from
    an allowance.
    """

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._allowance = len(data)

    def load(self) -> Any:
        """Return the object the pickle describes; raises FileFormatError if it is not such a
        pickle.
        """
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._take(1)
            if code == b".":
                return self._result()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise self._refused(f"instruction 0x{code.hex()}")
            instruction(self)
        raise self._refused(f"more than {_MAX_INSTRUCTIONS} instructions")

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._position != len(self._data):
            raise _damaged(
                "one object",
                f"{len(self._stack)} and {len(self._data) - self._position} bytes after",
            )
        return self._stack[0]

    def _refused(self, what: str) -> FileFormatError:
        return FileFormatError(
            f"expected a .dac file as descript-audio-codec writes it, got a pickle with {what[:100]}; "
            "it is damaged or made to do harm: do not open it with anything else"
        )

    def _take(self, size: int) -> bytes:
        piece = self._data[self._position : self._position + size]
        if len(piece) != size:
            raise _damaged(
                f"{size} bytes at position {self._position} of its pickle", f"{len(piece)}"
            )
        self._position += size
        return piece

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged("text", "bytes that are not") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + 200)
        if end < 0:
            raise self._refused("a name without an end")
        line = self._take(end - self._position)
        self._position += 1
        return self._text(line)

    def _pop(self, kind: type[_T]) -> _T:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise self._refused(f"no {kind.__name__.lstrip('_').lower()} where one is needed")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise self._refused("nothing where a value is needed")
        return self._stack[-1]

    def _items(self) -> list[Any]:
        """Take everything down to the last mark."""
        for start in range(len(self._stack) - 1, -1, -1):
            if self._stack[start] is _MARK:
                items = self._stack[start + 1 :]
                del self._stack[start:]
                return items
        raise self._refused("no mark where one is needed")

    def _protocol(self) -> None:
        if not 2 <= self._number("B") <= 5:
            raise self._refused("a protocol other than 2 to 5")

    def _frame(self) -> None:
        size = self._number("<Q")
        if size > len(self._data) - self._position:
            raise _damaged(
                f"{size} more bytes in its pickle", str(len(self._data) - self._position)
            )

    def _int_of_bytes(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("B")), "little", signed=True))

    def _last(self, count: int) -> None:
        if len(self._stack) < count or any(
            item is _MARK for item in self._stack[len(self._stack) - count :]
        ):
            raise self._refused("no values where some are needed")
        start = len(self._stack) - count
        self._stack[start:] = [tuple(self._stack[start:])]

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self._refused("an append to what is no list")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        # Keys of text only: hashing nested tuples that share their parts would take exponential
        # time.
        if (
            not isinstance(target, dict)
            or len(items) % 2
            or not all(isinstance(key, str) for key in items[::2])
        ):
            raise self._refused("dictionary keys that are no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _one(self) -> list[Any]:
        return [self._pop(object)]

    def _pair(self) -> list[Any]:
        value = self._pop(object)
        return [self._pop(object), value]

    def _put(self, key: int) -> None:
        self._memo[key] = self._top()

    def _get(self, key: int) -> None:
        if key not in self._memo:
            raise self._refused("a reference to nothing")
        self._stack.append(self._memo[key])

    def _global(self, module: str, name: str) -> None:
        if f"{module}.{name}" not in _NAMES:
            raise self._refused(f"the name {module[:40]}.{name[:40]}")
        self._stack.append(_Global(f"{module}.{name}"))

    def _stack_global(self) -> None:
        name = self._pop(str)
        self._global(self._pop(str), name)

    def _reduce(self) -> None:
        arguments = self._pop(tuple)
        call = _CALLS.get(self._pop(_Global).name)
        match call, arguments:
            case "reconstruct", (_Global(name="numpy.ndarray"), (0,), b"b"):
                made = _Array()
            case "dtype", (str(code), bool() | 0 | 1, bool() | 0 | 1) if code in (*_DTYPES, "O8"):
                made = _DType(code)
            case "scalar", (_DType() as dtype, bytes(data)):
                made = self._array((), dtype, data, fortran=False).item()
            case "frombuffer", (bytes(data), _DType() as dtype, tuple(shape), "C" | "F" as order):
                made = _Array()
                made.value = self._array(shape, dtype, data, fortran=order == "F")
            case "encode", (str(text), "latin1"):
                made = self._encode(text)
            case _:
                raise self._refused(f"a call of {call} that numpy does not write")
        self._stack.append(made)

    def _encode(self, text: str) -> bytes:
        self._allowance -= len(
            text
        )  # a memoised text could be copied once for every few bytes of the file
        if self._allowance < 0:
            raise self._refused("one text used again and again")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise _damaged("bytes", "text that is none") from None

    def _build(self) -> None:
        state = self._pop(tuple)
        target = self._top()
        match target, state:
            case _DType(), (3, "<" | ">" | "|" | "=" as order, None, None, None, -1, -1, int()):
                target.order = order
            case _Array(value=None), (1, tuple(shape), _DType(code="O8"), bool(), list(items)) if (
                shape == ()
            ):
                target.value = items
            case _Array(value=None), (
                1,
                tuple(shape),
                _DType() as dtype,
                bool(fortran),
                bytes(data),
            ):
                target.value = self._array(shape, dtype, data, fortran=fortran)
            case _:
                raise self._refused(
                    f"a state that numpy does not write for {type(target).__name__}"
                )

    def _array(
        self, shape: tuple[Any, ...], dtype: _DType, data: bytes, *, fortran: bool
    ) -> np.ndarray:
        """Return a view of `data`: no memory is taken on the word of a shape."""
        if len(shape) > 8 or not all(type(size) is int and 0 < size <= len(data) for size in shape):
            raise _damaged("arrays that the file can hold", "an impossible shape")
        if dtype.code not in _DTYPES or math.prod(shape) * dtype.numpy().itemsize != len(data):
            raise _damaged("arrays as large as their shape says", f"{len(data)} bytes")
        return np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")


def _push(value: Callable[[_PickleReader], Any]) -> Callable[[_PickleReader], None]:
    return lambda reader: reader._stack.append(value(reader))


_INSTRUCTIONS: dict[bytes, Callable[[_PickleReader], None]] = {
    b"\x80": _PickleReader._protocol,
    b"\x95": _PickleReader._frame,
    b"(": _push(lambda r: _MARK),
    b"N": _push(lambda r: None),
    b"\x88": _push(lambda r: True),
    b"\x89": _push(lambda r: False),
    b"K": _push(lambda r: r._number("B")),
    b"M": _push(lambda r: r._number("<H")),
    b"J": _push(lambda r: r._number("<i")),
    b"\x8a": _PickleReader._int_of_bytes,
    b"G": _push(lambda r: r._number(">d")),
    b"X": _push(lambda r: r._text(r._take(r._number("<I")))),
    b"\x8c": _push(lambda r: r._text(r._take(r._number("B")))),
    b"\x8d": _push(lambda r: r._text(r._take(r._number("<Q")))),
    b"B": _push(lambda r: r._take(r._number("<I"))),
    b"C": _push(lambda r: r._take(r._number("B"))),
    b"\x8e": _push(lambda r: r._take(r._number("<Q"))),
    b"\x96": _push(lambda r: r._take(r._number("<Q"))),  # a bytearray; nothing here writes to it
    b")": _push(lambda r: ()),
    b"]": _push(lambda r: []),
    b"}": _push(lambda r: {}),
    b"t": _push(lambda r: tuple(r._items())),
    b"\x85": lambda r: r._last(1),
    b"\x86": lambda r: r._last(2),
    b"\x87": lambda r: r._last(3),
    b"a": lambda r: r._append(r._one()),
    b"e": lambda r: r._append(r._items()),
    b"s": lambda r: r._set(r._pair()),
    b"u": lambda r: r._set(r._items()),
    b"q": lambda r: r._put(r._number("B")),
    b"r": lambda r: r._put(r._number("<I")),
    b"\x94": lambda r: r._put(len(r._memo)),
    b"h": lambda r: r._get(r._number("B")),
    b"j": lambda r: r._get(r._number("<I")),
    b"c": lambda r: r._global(r._line(), r._line()),
    b"\x93": _PickleReader._stack_global,
    b"R": _PickleReader._reduce,
    b"b": _PickleReader._build,
}
