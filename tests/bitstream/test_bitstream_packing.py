"""Codes of every width are the bits that arithmetic says they are."""

import numpy as np
import pytest

from codecplus.bitstream.packing import pack_codes, packed_size, unpack_codes


@pytest.mark.parametrize("bits", range(1, 16))
def test_packed_codes_are_one_long_number(bits):
    rng = np.random.default_rng(bits)
    for count in [*range(20), 1000]:
        codes = rng.integers(0, 1 << bits, count)
        text = "".join(f"{code:0{bits}b}" for code in codes)
        size = packed_size(count, bits)
        expected = int(text.ljust(size * 8, "0") or "0", 2).to_bytes(size, "big")
        assert pack_codes(codes, bits) == expected
        np.testing.assert_array_equal(unpack_codes(expected, count, bits), codes)
