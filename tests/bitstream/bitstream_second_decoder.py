"""A second decoder, written from docs/format.md alone with plain integers: it must agree with the first."""

import struct
import zlib

RATES = [0, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000]


def decode(data):
    """Return (facts, codes) with codes[channel][codebook][frame]; a damaged file is an AssertionError."""
    facts, head = read_head(data)
    channels, books, width = facts["channels"], facts["num_codebooks"], facts["width"]
    block_size = -(-facts["frames_per_block"] * channels * books * width // 8)

    a, b = data[-5] >> 4, data[-5] & 15
    counts = data[-5 - b - a : -5]
    facts["num_samples"] = int.from_bytes(counts[:a], "big")
    excess = int.from_bytes(counts[a:], "big", signed=True)
    seconds_to_frames = facts["original_sample_rate"] * facts["hop_length"]
    facts["num_frames"] = -(-facts["num_samples"] * facts["sample_rate"] // seconds_to_frames) + excess

    full, left = divmod(facts["num_frames"], facts["frames_per_block"])
    codes = [[[] for _ in range(books)] for _ in range(channels)]
    position = len(head)
    for section in range(full + 1):
        frames = facts["frames_per_block"] if section < full else left
        size = -(-frames * channels * books * width // 8)
        end = position + size + (0 if section < full else 1 + a + b)
        body = data[position:end]
        assert zlib.crc32(head + struct.pack(">Q", section) + body) == int.from_bytes(data[end : end + 4], "big")
        bits = "".join(f"{byte:08b}" for byte in body[:size])
        numbers = [int(bits[i * width : (i + 1) * width], 2) for i in range(frames * channels * books)]
        for i, number in enumerate(numbers):
            codes[i // books % channels][i % books].append(number)
        position = end + 4
    assert position == len(data) == len(head) + full * (block_size + 4) + size + 1 + a + b + 4
    return facts, codes


def read_head(data):
    assert data[:4] == b"\xdaC+\x10"
    flags, rate_and_width, hop, books = struct.unpack(">BBHB", data[4:9])
    assert flags < 32
    position = 9 + (8 if flags & 1 else 16)
    facts = {"fingerprint": data[9:position], "hop_length": hop, "num_codebooks": books, "width": rate_and_width & 15}
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
    return facts, data[:position]


def read_rate(data, code, position):
    if code:
        return RATES[code], position
    return int.from_bytes(data[position : position + 3], "big"), position + 3
