"""A second decoder, written from docs/format.md alone with plain integers: it must agree with the
first.
"""

import struct
import zlib

RATES = [
    0,
    8000,
    11025,
    12000,
    16000,
    22050,
    24000,
    32000,
    44100,
    48000,
    88200,
    96000,
    176400,
    192000,
]


def decode(data, arrays=None):
    """Return (facts, codes) with codes[channel][codebook][frame]; a damaged file is an
    AssertionError.

    `arrays` are those of the entropy model, as nested lists. Codebooks that a frame has not are -1.
    """
    facts, head = read_head(data)
    channels, books, width = facts["channels"], facts["num_codebooks"], facts["width"]

    a, b = data[-5] >> 4, data[-5] & 15
    counts = data[-5 - b - a : -5]
    facts["num_samples"] = int.from_bytes(counts[:a], "big")
    excess = int.from_bytes(counts[a:], "big", signed=True)
    seconds_to_frames = facts["original_sample_rate"] * facts["hop_length"]
    facts["num_frames"] = (
        -(-facts["num_samples"] * facts["sample_rate"] // seconds_to_frames) + excess
    )

    full, left = divmod(facts["num_frames"], facts["frames_per_block"])
    codes = [[[] for _ in range(books)] for _ in range(channels)]
    position = len(head)
    for section in range(full + 1):
        frames = facts["frames_per_block"] if section < full else left
        if facts["entropy_model"] is None:
            size = -(-frames * channels * books * width // 8)
        else:
            size = 3 + int.from_bytes(data[position : position + 3], "big")
        end = position + size + (0 if section < full else 1 + a + b)
        body = data[position:end]
        assert zlib.crc32(head + struct.pack(">Q", section) + body) == int.from_bytes(
            data[end : end + 4], "big"
        )
        if facts["entropy_model"] is None:
            bits = "".join(f"{byte:08b}" for byte in body[:size])
            numbers = [
                int(bits[i * width : (i + 1) * width], 2) for i in range(frames * channels * books)
            ]
            for i, number in enumerate(numbers):
                codes[i // books % channels][i % books].append(number)
        elif frames:
            block = Block(body[3:size], channels, books, width, frames, arrays)
            for channel in range(channels):
                for book in range(books):
                    codes[channel][book] += block.codes[block.source[channel]][book]
        position = end + 4
    assert position == len(data)
    return facts, codes


def read_head(data):
    assert data[:3] == b"\xdaC+"
    assert data[3] in (0x10, 0x11)
    flags, rate_and_width, hop, books = struct.unpack(">BBHB", data[4:9])
    assert flags < (64 if data[3] & 1 else 32)
    position = 9 + (8 if flags & 1 else 16)
    facts = {
        "fingerprint": data[9:position],
        "hop_length": hop,
        "num_codebooks": books,
        "width": rate_and_width & 15,
    }
    facts["sample_rate"], position = read_rate(data, rate_and_width >> 4, position)
    facts["channels"], facts["original_sample_rate"], facts["gain"] = 1, facts["sample_rate"], 1.0
    if flags & 2:
        facts["channels"] = data[position]
        position += 1
    if flags & 4:
        facts["original_sample_rate"], position = read_rate(data, data[position], position + 1)
    if flags & 8:
        (facts["gain"],) = struct.unpack(">f", data[position : position + 4])
        position += 4
    facts["frames_per_block"] = max(1, 32768 // (facts["channels"] * books * facts["width"]))
    if flags & 16:
        facts["frames_per_block"] = int.from_bytes(data[position : position + 3], "big")
        position += 3
    facts["entropy_model"] = b"" if data[3] & 1 else None
    if flags & 32:
        facts["entropy_model"] = data[position : position + 4]
        position += 4
    return facts, data[:position]


def read_rate(data, code, position):
    if code:
        return RATES[code], position
    return int.from_bytes(data[position : position + 3], "big"), position + 3


class RangeDecoder:
    def __init__(self, data):
        self.data = data
        self.low, self.range, self.point = 0, 2**64 - 1, 0
        self.position = 0
        for _ in range(2):
            self.next_word()

    def next_word(self):
        word = self.data[self.position : self.position + 4].ljust(4, b"\0")
        self.point = ((self.point << 32) | int.from_bytes(word, "big")) % 2**64
        self.position += 4

    def symbol(self, weights):
        n, total = len(weights), sum(weights)
        frequencies = [1 + w * (2**24 - n) // total for w in weights]
        frequencies[-1] += 2**24 - sum(frequencies)
        scale = self.range >> 24
        q = (self.point - self.low) % 2**64 // scale
        assert q < 2**24
        before, i = 0, 0
        while before + frequencies[i] <= q:
            before += frequencies[i]
            i += 1
        self.low = (self.low + scale * before) % 2**64
        self.range = scale * frequencies[i]
        if self.range < 2**32:
            self.low, self.range = (self.low << 32) % 2**64, (self.range << 32) % 2**64
            self.next_word()
        return i


class Block:
    """One entropy-coded block; codes[channel that is no copy][codebook][frame]."""

    def __init__(self, data, channels, books, width, frames, arrays):
        how, data = data[0], data[1:]
        assert how < 16
        copies = [0] * channels
        if how & 8:
            size = -(-(channels - 1) // 8)
            copies[1:] = [data[c // 8] >> (7 - c % 8) & 1 for c in range(channels - 1)]
            data = data[size:]
        kept = [c for c in range(channels) if not copies[c]]
        self.source = [0 if copies[c] else kept.index(c) for c in range(channels)]
        self.size, self.books, self.frames = 1 << width, books, frames
        self.lows = 1 << width // 2
        self.codes = [[[-1] * frames for _ in range(books)] for _ in kept]
        coder = RangeDecoder(data)
        lengths = self.lengths(coder, len(kept)) if how & 4 else [[books] * frames for _ in kept]
        predictor = [Uniform, Counts, Network][how & 3](self, arrays)
        for step in range(frames + books - 1):
            rows = [
                (c, k)
                for c in range(len(kept))
                for k in range(books)
                if 0 <= step - k < frames and k < lengths[c][step - k]
            ]
            highs = [coder.symbol(predictor.high(c, k, step - k)) for c, k in rows]
            lows = [
                coder.symbol(predictor.low(c, k, step - k, high))
                for (c, k), high in zip(rows, highs, strict=True)
            ]
            for (c, k), high, low in zip(rows, highs, lows, strict=True):
                self.codes[c][k][step - k] = predictor.code(k, high * self.lows + low)
            for c, k in rows:
                predictor.learn(c, k, step - k)

    def lengths(self, coder, channels):
        K = self.books
        weights = [[1 + 8 * K * (p == n) for n in range(K)] for p in range(K)]
        lengths = [[] for _ in range(channels)]
        for _ in range(self.frames):
            used = []
            for c in range(channels):
                p = lengths[c][-1] - 1 if lengths[c] else K - 1
                n = coder.symbol(weights[p])
                lengths[c].append(n + 1)
                used.append((p, n))
            for p, n in used:
                weights[p][n] += 24
        return lengths

    def before(self, c, k, frame, lag):
        """The code so many frames before; 2**W if there is none."""
        code = self.codes[c][k][frame - lag] if frame >= lag else -1
        return self.size if code < 0 else code


class Uniform:
    def __init__(self, block, arrays):
        self.block = block

    def weights(self, c, k, frame):
        return [1] * self.block.size

    def high(self, c, k, frame):
        w, lows = self.weights(c, k, frame), self.block.lows
        return [sum(w[i : i + lows]) for i in range(0, len(w), lows)]

    def low(self, c, k, frame, high):
        return self.weights(c, k, frame)[high * self.block.lows : (high + 1) * self.block.lows]

    def code(self, k, rank):
        return rank

    def learn(self, c, k, frame):
        pass


class Counts(Uniform):
    def __init__(self, block, arrays):
        super().__init__(block, arrays)
        rows = [(c, k) for c in range(len(block.codes)) for k in range(block.books)]
        self.seen = {row: [1] * block.size for row in rows}
        self.repeats = {row: [1, 1] for row in rows}

    def weights(self, c, k, frame):
        weights, p = list(self.seen[c, k]), self.block.before(c, k, frame, 1)
        if p < self.block.size:
            n, y = self.repeats[c, k]
            weights[p] += sum(weights) * y // n
        return weights

    def learn(self, c, k, frame):
        code, p = self.block.codes[c][k][frame], self.block.before(c, k, frame, 1)
        self.seen[c, k][code] += 4
        if p < self.block.size:
            self.repeats[c, k][code == p] += 8


class Network(Uniform):
    def __init__(self, block, arrays):
        super().__init__(block, arrays)
        self.arrays = arrays
        self.all_books = len(arrays["ranks"])
        d = len(arrays["codes"][0][0])
        self.lags = len(arrays["hidden"][0]) // (self.all_books * d)
        self.width = d

    def hidden(self, c, k, frame):
        x = []
        for lag in range(self.lags):
            for j in range(self.all_books):
                if j < k or (j == k and lag > 0):
                    x += self.arrays["codes"][j][self.block.before(c, j, frame, lag)]
                else:
                    x += [0] * self.width
        sums = product(x, self.arrays["hidden"][k], self.arrays["hidden_bias"][k])
        return [min(255, max(0, total >> self.arrays["hidden_shift"][k])) for total in sums]

    def high(self, c, k, frame):
        logits = product(
            self.hidden(c, k, frame), self.arrays["high"][k], self.arrays["high_bias"][k]
        )
        return powers(logits, self.arrays["high_shift"][k])

    def low(self, c, k, frame, high):
        hidden = self.hidden(c, k, frame)
        logits = product(hidden, self.arrays["low"][k][high], self.arrays["low_bias"][k][high])
        return powers(logits, self.arrays["low_shift"][k])

    def code(self, k, rank):
        return self.arrays["ranks"][k].index(rank)


def product(x, matrix, bias):
    return [
        sum(x[i] * matrix[i][o] for i in range(len(x)) if x[i]) + bias[o] for o in range(len(bias))
    ]


def powers(logits, shift):
    weights = []
    for logit in logits:
        lack = min(640, (max(logits) - logit) >> shift)
        # floor(2 ** (20 - lack / 32)) is the largest whole number whose 32nd power is at most 2 **
        # (640 - lack)
        weight = round(2 ** (20 - lack / 32))
        while weight**32 > 2 ** (640 - lack):
            weight -= 1
        while (weight + 1) ** 32 <= 2 ** (640 - lack):
            weight += 1
        weights.append(weight)
    return weights
