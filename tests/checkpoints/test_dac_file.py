"""Official .dac files are read as they are meant, and nothing in a file, whatever it holds, is
executed.
"""

import io
import os
import pickle
import random
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from codecplus.checkpoints.dac_file import read_dac_batch, read_dac_file
from codecplus.errors import FileFormatError

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["even44k_whole", "even44k_chunked", "odd16k_whole", "odd16k_chunked"]
NPY_HEADER_SIZE = 128


def artifacts(codes=None, **metadata):
    """What the reference pickles."""
    codes = np.arange(18, dtype=np.uint16).reshape(1, 3, 6) if codes is None else codes
    facts = {
        "input_db": np.array([-16.5], np.float32),
        "original_length": 3000,
        "sample_rate": 44100,
        "chunk_length": 3,
        "channels": 1,
        "padding": False,
        "dac_version": "1.0.0",
    }
    return {"codes": codes, "metadata": facts | metadata}


def dac_file(content, protocol=4):
    """Return an .npy file of one object, as numpy writes it, with a pickle of the given protocol."""
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file.getvalue()[:NPY_HEADER_SIZE] + pickle.dumps(
        np.array(content, dtype=object), protocol=protocol
    )


def with_pickle(data):
    return dac_file({})[:NPY_HEADER_SIZE] + data


def of_other_numpy(data):
    """Give a pickle of numpy 2 the module names of numpy 1, and the other way round."""
    ours, theirs = (
        (b"numpy._core.", b"numpy.core.")
        if b"numpy._core." in data
        else (b"numpy.core.", b"numpy._core.")
    )
    change = len(theirs) - len(ours)
    names = re.compile(
        rb"\x8c.(?=" + re.escape(ours) + rb")", re.DOTALL
    )  # texts with their length before them
    data, in_frame = names.subn(lambda found: bytes([0x8C, found[0][1] + change]), data)
    if in_frame:
        start = data.index(b"\x95", NPY_HEADER_SIZE) + 1
        size = int.from_bytes(data[start : start + 8], "little") + in_frame * change
        data = data[:start] + size.to_bytes(8, "little") + data[start + 8 :]
    return data.replace(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_reference_reads_as_numpy_reads_it(name):
    path = FIXTURES / f"{name}.dac"
    trusted = np.load(path, allow_pickle=True)[()]
    for read in (read_dac_file(path), read_dac_file(str(path)), read_dac_file(path.read_bytes())):
        np.testing.assert_array_equal(read.codes, trusted["codes"])
        assert read.codes.dtype == np.int16
        for field, value in trusted["metadata"].items():
            assert getattr(read, field) == value
            assert type(getattr(read, field)) in (bool, int, float, str)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i8", "u1"])
def test_every_pickle_protocol_and_numpy_generation_reads(protocol, rename, dtype):
    codes = np.arange(18).reshape(1, 3, 6).astype(dtype)
    data = dac_file(artifacts(codes), protocol)
    read = read_dac_file(of_other_numpy(data) if rename else data)
    np.testing.assert_array_equal(read.codes, codes)
    assert read.input_db == -16.5


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_codes_in_column_order_and_numpy_scalars_are_read(protocol):
    codes = np.asfortranarray(np.arange(36, dtype=np.uint16).reshape(2, 3, 6))
    content = artifacts(
        codes, channels=2, input_db=np.float32(-20.5), sample_rate=np.int64(48000), padding=np.True_
    )
    read = read_dac_file(dac_file(content, protocol))
    np.testing.assert_array_equal(read.codes, codes)
    assert (read.input_db, read.sample_rate, read.padding) == (-20.5, 48000, True)
    assert read_dac_file(dac_file(artifacts(input_db=-3.25), protocol)).input_db == -3.25


def test_a_batch_is_read_as_one_recording_each():
    codes = np.arange(72, dtype=np.uint16).reshape(4, 3, 6)
    data = dac_file(artifacts(codes, channels=2, input_db=np.array([-16.0, -20.0], np.float32)))
    batch = read_dac_batch(data)
    assert [item.input_db for item in batch] == [-16.0, -20.0]
    np.testing.assert_array_equal([item.codes for item in batch], codes.reshape(2, 2, 3, 6))
    with pytest.raises(
        FileFormatError, match="expected one recording, got a batch of 2; use read_dac_batch"
    ):
        read_dac_file(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1, 2}, "instruction 0x8f"),
        ("text", "one dictionary, got list"),
        ({"codes": 1}, "metadata in its codes and metadata, got none"),
        ({"codes": np.zeros((1, 1, 1), int), "metadata": 3}, "metadata of type dict, got int"),
        (artifacts([[[1]]]), "codes of type array, got list"),
        (artifacts(np.zeros((1, 2, 3))), "integer codes"),
        (artifacts(np.zeros((2, 3), int)), "integer codes of shape"),
        (artifacts(np.full((1, 2, 3), 40000)), "codes from 0 to 32767, got 40000 to 40000"),
        (artifacts(np.full((1, 2, 3), -1)), "got -1 to -1"),
        (artifacts(channels=2), "channels from 1 to 1, got 2"),
        (
            artifacts(np.zeros((3, 1, 3), int), channels=2),
            "whole recordings of 2 channels, got 3 rows",
        ),
        (
            artifacts(original_length=2**60),
            "original_length from 0 to 393216, got 1152921504606846976",
        ),
        (artifacts(chunk_length=0), "chunk_length from 1 to 6, got 0"),
        (artifacts(chunk_length=10**300), "chunk_length from 1 to 6, got 10000000000000000000;"),
        (artifacts(chunk_length=True), "chunk_length from 1 to 6, got True"),
        (artifacts(sample_rate=44100.0), "sample_rate of type int, got float"),
        (artifacts(padding=1), "padding of type bool, got int"),
        (artifacts(dac_version="2.0.0"), r"version 1\.0\.0, got '2\.0\.0'"),
        (artifacts(input_db=np.array([np.nan])), "1 finite numbers, got 1 with 0 finite"),
        (artifacts(input_db=np.zeros(2)), "1 finite numbers, got 2"),
        (artifacts(input_db=np.array([1e4])), "input_db from -200 to 200, got 10000"),
        (artifacts(input_db=np.array([-1e4])), "input_db from -200 to 200, got -10000"),
        (artifacts(input_db=-300.0), "input_db from -200 to 200, got -300"),
        (artifacts(input_db="loud"), "input_db of floating-point numbers, got str"),
        (artifacts(input_db=None), "got nonetype"),
    ],
)
def test_impossible_facts_are_refused(content, message):
    with pytest.raises(FileFormatError, match=message):
        read_dac_file(dac_file(content))


def test_other_files_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "music.dac"
    path.write_bytes(b"RIFF....WAVE")
    with pytest.raises(
        FileFormatError, match=r"music\.dac: expected an official \.dac file, which starts with"
    ):
        read_dac_file(path)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    with pytest.raises(FileFormatError, match="with the header"):
        read_dac_file(array.getvalue())
    with pytest.raises(FileNotFoundError):
        read_dac_file(tmp_path / "missing.dac")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "call",
    [
        Call(os.system, "echo executed > executed"),
        Call(eval, "open('executed', 'w')"),
        Call(exec, "open('executed', 'w')"),
        Call(open, "executed", "w"),
        Call(np.load, "executed"),
        Call(np.zeros, (1 << 40,)),
        Call(bytearray, 1 << 40),
    ],
)
def test_calls_are_refused_and_not_made(call, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (call, {"codes": call}, artifacts(input_db=call)):
        with pytest.raises(FileFormatError, match="got a pickle with the name "):
            read_dac_file(dac_file(content, protocol))
    assert os.listdir(tmp_path) == []


TEXT = pickle.dumps("a" * 50000, 2)[2:-1].split(b"q")[0]  # BINUNICODE and its argument
DTYPE = b"cnumpy\ndtype\n(X\x02\0\0\0u2\x89\x88tR(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"


@pytest.mark.parametrize(
    "instructions",
    [
        EMPTY_ARRAY
        + b"(K\x01M\xff\xff\x85"
        + DTYPE
        + b"\x89C\x04abcdtb.",  # more elements than bytes
        EMPTY_ARRAY
        + b"(K\x01\x8a\x08\0\0\0\0\0\0\0\x40K\0\x86"
        + DTYPE
        + b"\x89C\0tb.",  # 2**62 by 0 elements
        EMPTY_ARRAY
        + b"(K\x01J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"
        + DTYPE
        + b"\x89C\x04abcdtb.",  # -1 by -2
        EMPTY_ARRAY + b"(K\x01N\x85" + DTYPE + b"\x89C\x04abcdtb.",
        DTYPE.replace(b"u2", b"O8")
        + b"C\x08abcdefgh\x86"
        + b"cnumpy.core.multiarray\nscalar\n\x85R.",
        b"cnumpy.core.multiarray\nscalar\n"
        + DTYPE.replace(b"u2", b"O8")
        + b"C\x08abcdefgh\x86R.",  # a pointer
        b"cnumpy\ndtype\n(X\x0a\0\0\0i4,i4,i4,i\x89\x88tR.",
        b"cnumpy\ndtype\n(X\x05\0\0\0V9999\x89\x88tR.",
        b"cnumpy\nndarray\n(K\xfft\x85R.",
        b"X\xff\xff\xff\xffa.",  # a text longer than the file
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
        TEXT
        + b"q\0"
        + b"("
        + b"c_codecs\nencode\nq\x010"
        + b"h\x01h\0X\x06\0\0\0latin1\x86R" * 20
        + b"t.",
        TEXT + b"q\0" + b"c_codecs\nencode\nq\x01" + b"h\x01h\0X\x06\0\0\0latin1\x86R" * 60 + b".",
        b"c_codecs\nencode\nX\x04\0\0\0aaaaX\x03\0\0\0zip\x86R.",
        b"]q\0" + b"h\0a" * 400 + b".",  # a list that holds itself
        b"(" * 900 + b"t" * 900 + b".",
        b"K\0q\0" + b"h\0h\0\x86q\0" * 300 + b".",  # 2**300 leaves
        b"}K\0q\0" + b"h\0h\0\x86q\0" * 200 + b"h\0Ns.",  # as a key, it would have to be hashed
        # the same, with an instruction that changes nothing between the tuple and its place
        b"}K\0q\0" + b"h\0h\0\x86NN\x86bq\0" * 90 + b"h\0Ns.",
        b"}K\0q\0" + b"h\0h\0\x86(eq\0" * 90 + b"h\0Ns.",
        b"]r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"c_codecs\nencode\nN}X\x0c\0\0\0__defaults__N\x85s\x86b.",  # attributes of a function
        b"cnumpy\ndtype\n(X\x02\0\0\0u2\x89\x88tR}X\x04\0\0\0codeX\x02\0\0\0O8sb.",
        DTYPE.replace(b"X\x01\0\0\0<", b"X\x09\0\0\0(1000000)") + b".",
        b"I" + b"9" * 5000 + b"\n.",
        b"}]Ns.",
        b"}(X\x01\0\0\0au.",
        b"N" * 100000 + b".",
        b"h\0.",
        b"j\xff\xff\xff\xff.",
        b"t.",
        b"(\x85.",
        b"K\0\x87.",
        b"R.",
        b"b.",
        b"K\0K\0R.",
        b"K\0a.",
        b"a.",
        b"\x93.",
        b"cos",
        b"X\x01\0\0\0\xff.",
        b"\x80\x06N.",
        b"(lp0\n.",  # protocol 0
        b"Pexternal\n.",
        b"c__builtin__\neval\nX\x01\0\0\x001\x85R.",
        b"(ios\nsystem\n(S'true'\ntR.",
        b"N.trailing",
        b"NN.",
        b".",
        b"",
    ],
)
def test_hostile_pickles_are_refused_with_little_memory(instructions):
    data = with_pickle(b"\x80\x02" + instructions)
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        read_dac_file(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(data) + 300_000


@pytest.mark.parametrize("name", NAMES[:1])
def test_a_file_cut_anywhere_is_refused(name):
    data = (FIXTURES / f"{name}.dac").read_bytes()
    for size in [*range(600), *range(600, len(data) - 300, 97), *range(len(data) - 300, len(data))]:
        with pytest.raises(FileFormatError):
            read_dac_file(data[:size])
    with pytest.raises(FileFormatError, match="1 and 3 bytes after"):
        read_dac_file(data + b"abc")


def test_thousands_of_mutations_read_or_are_refused():
    rng = random.Random(0)
    files = [dac_file(artifacts(), protocol) for protocol in (2, 3, 4, 5)]
    refused = 0
    for _ in range(15000):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(NPY_HEADER_SIZE if rng.random() < 0.95 else 0, len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at : at + rng.randint(1, 4)] = rng.randbytes(rng.randint(0, 4))
            else:
                to = rng.randrange(NPY_HEADER_SIZE, len(data))
                data[at:at] = data[to : to + rng.randint(1, 30)]
        try:
            assert read_dac_file(bytes(data)).codes.dtype == np.int16
        except FileFormatError:
            refused += 1
    assert refused > 10000
