"""One codec serves threads, forks and asyncio; each result is that of a single caller."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import GEOMETRIES, tiny_model

from codecplus import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tiny_model(**GEOMETRIES["16khz"]))


def clip(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.standard_normal(800 + 300 * number).astype(np.float32)


def everything(codec: Codec, number: int) -> list[bytes]:
    """All that a codec gives for one clip: codes, audio, a file and its audio, a live stream."""
    audio = clip(number)
    codes = codec.encode(audio)
    data = codec.compress(audio)
    damaged = bytearray(codec.compress(audio, n_quantizers=2)) + b"junk"
    stream = codec.encoder_stream()
    pieces = [stream.push(piece) for piece in np.array_split(audio, 3)] + [stream.flush()]
    return [
        codes.tobytes(),
        codec.decode(codes).tobytes(),
        data,
        codec.decompress(data).tobytes(),
        codec.decompress(bytes(damaged), recover=True).tobytes(),
        codec.read_codes(data).tobytes(),
        np.concatenate(pieces, axis=-1).tobytes(),
    ]


@pytest.fixture(scope="module")
def expected(codec) -> list[list[bytes]]:
    return [everything(codec, number) for number in range(8)]


def test_eight_threads_get_what_one_gets(codec, expected):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: everything(codec, number), range(8)))
    assert results == expected


def test_asyncio_gets_what_one_caller_gets(codec, expected):
    async def run() -> list[list[bytes]]:
        calls = [asyncio.to_thread(everything, codec, number) for number in range(8)]
        return list(await asyncio.gather(*calls))

    # In a thread of its own: a browser that other tests drive keeps an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(run())).result() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_what_its_parent_gets(codec, expected):
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int(everything(codec, number) != expected[number])
            finally:
                os._exit(status)  # no exit handlers of the test runner
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert everything(codec, 7) == expected[7]
