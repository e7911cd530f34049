"""Sample rates of live calls: a short filter, whose delay is a millisecond.

The package's resampler loses less, but gives its samples in blocks of 70 ms: too late for a call.
"""

import math

import numpy as np

_HALF = 12  # taps of the filter on either side, in samples of the lower rate
_PASSED = 0.9  # of the band of the lower rate


class LiveResampler:
    """Resamples a stream (n,) from one rate to another, in Hz; equal rates pass through.

    As much time comes out as goes in, from the first push on, and late by `delay` seconds.
    """

    def __init__(self, source: int, target: int):
        from scipy.signal import firwin

        common = math.gcd(source, target)
        self._up = target // common
        self._down = source // common
        self._filter = np.ones(1, np.float32)
        self.delay = 0.0
        if self._up != self._down:
            widest = max(self._up, self._down)
            taps = firwin(2 * _HALF * widest + 1, _PASSED / widest)
            self._filter = np.asarray(self._up * taps, np.float32)
            self.delay = _HALF * widest / (self._up * source)
        self._inputs = np.zeros(0, np.float32)  # from input `_start` on
        self._start = 0  # a multiple of `_down`, where inputs and outputs fall together
        self._given = 0  # outputs so far

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take samples (n,) and return those (m,) that are ready."""
        if self._up == self._down:
            return samples
        from scipy.signal import upfirdn

        self._inputs = np.concatenate([self._inputs, samples])
        end = self._start + len(self._inputs)
        ready = -(-end * self._up // self._down)
        outputs = np.asarray(upfirdn(self._filter, self._inputs, self._up, self._down))
        first = self._start * self._up // self._down  # the output that `outputs` begins with
        fresh = outputs[self._given - first : ready - first]
        self._given = ready
        needed = end - -(-len(self._filter) // self._up)
        start = max(0, needed // self._down * self._down)
        self._inputs = self._inputs[start - self._start :]
        self._start = start
        return np.asarray(fresh, np.float32)
