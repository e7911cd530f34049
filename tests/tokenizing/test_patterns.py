"""Layouts of tokens for language models: each has its inverse, on arrays and tensors."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecplus import Codes
from codecplus.errors import InputError
from codecplus.tokenizing import patterns
from codecplus.tokenizing.patterns import (
    delay,
    flatten,
    offset,
    undelay,
    unflatten,
    unoffset,
    unwrap,
    wrap,
)


def test_the_examples_of_patterns_run():
    result = doctest.testmod(patterns)
    assert result.attempted >= 10
    assert result.failed == 0


@st.composite
def codes(draw):
    shape = [
        *draw(st.lists(st.integers(1, 2), max_size=2)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 7)),
    ]
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 16, shape)
    kind = draw(st.sampled_from(["int16", "uint16", "int64", "latents", "tensor"]))
    if kind == "tensor":
        return torch.from_numpy(array)
    return Codes(array) if kind == "latents" else array.astype(kind)


def same(a, b):
    return tuple(a.shape) == tuple(b.shape) and np.array_equal(np.asarray(a), np.asarray(b))


@given(codes(), st.integers(0, 99))
def test_every_layout_has_its_inverse(x, first):
    k = x.shape[-2]
    assert same(undelay(delay(x, fill=16)), x)
    assert same(undelay(delay(x, 16, delays=[2] * k), delays=[2] * k), x)
    assert same(unflatten(flatten(x), k), x)
    assert same(unoffset(offset(x, 16, first), 16, first), x)
    assert isinstance(delay(x, 16), torch.Tensor) == isinstance(x, torch.Tensor)


@given(codes())
def test_unwrap_returns_the_wrapped_sequence(x):
    tokens = flatten(x).reshape(-1)
    assert same(unwrap(wrap(tokens, bos=98, eos=99), bos=98, eos=99), tokens)
    assert same(unwrap(wrap(tokens, eos=99), eos=99), tokens)
    assert same(unwrap(tokens, eos=99), tokens)


def test_offsets_do_not_overflow_the_small_integers_of_latents():
    assert offset(np.full((40, 1), 1023, np.int16), 1024).max() == 40 * 1024 - 1


def test_tokens_that_no_layout_gives_are_refused():
    with pytest.raises(InputError, match="whole frames of 4 codes, got 7"):
        unflatten(np.arange(7), 4)
    with pytest.raises(InputError, match="from 0 to 7, got 8 to 8"):
        offset(np.array([[8]]), 8)
    with pytest.raises(InputError, match="ids of each codebook"):
        unoffset(np.array([[3], [3]]), 8)  # of the first codebook, in the place of the second
    with pytest.raises(InputError, match="starts with 1"):
        unwrap(np.array([7, 8]), bos=1)
    with pytest.raises(InputError, match="2 delays"):
        delay(np.zeros((2, 3), int), 0, delays=[1])
    with pytest.raises(InputError, match="-1 does not fit into uint16"):
        delay(np.zeros((2, 3), np.uint16), -1)
    with pytest.raises(InputError, match="integers"):
        flatten(np.zeros((2, 3)))
