// Inference: a residual unit of DAC in one pass over memory: snake, dilated convolution of 7 taps, snake, pointwise convolution,
// residual. Rows are (B, T, C), channels together. A block of rows stays in the cache from the first step to the last.
#include "vectors.h"

// ---- bf16, on AMX tiles or by dot products of pairs ----
#ifdef __AVX512BF16__
#include "tiles.h"

template <bool WIDE>
static void bf16_block(const Unit& unit, const bf16* x, const bf16* tail, bf16* y, bf16* hidden, const bf16* weight1,
                       const bf16* weight2, long length, long first, long rows) {
  static thread_local Scratch scratch1, scratch2;
  alignas(64) float sums[32 * 32];
  const long C = unit.channels, width = WIDE ? 32 : 16, padded = (rows + 31) / 32 * 32, needed = padded + 6 * unit.dilation;
  bf16* s1 = scratch1.get<bf16>(needed * C);
  bf16* s2 = scratch2.get<bf16>(padded * C);
  snaked_rows(unit, x, tail, length, first - unit.left, needed, s1);
  configure_tiles(C < 32 ? C : 32);
  for (long n = 0; n < C; n += width)
    for (long m = 0; m < padded; m += 32) {
      tile_product<WIDE>(s1 + m * C, unit.dilation, 7, weight1 + n * 7 * C, C, sums);
      for (long c = n; c < n + width; c += 16) {
        const vec bias = load(unit.bias1 + c), turns = load(unit.turns2 + c), reciprocal = load(unit.reciprocal2 + c);
        for (long i = 0; i < 32; i++) {
          vec h = load(sums + i * width + c - n) + bias;
          if (hidden) {  // what the way back will read, rounded alike
            h = widened(narrowed(h));
            if (m + i < rows) store(hidden + (first + m + i) * C + c, h);
          }
          store(s2 + (m + i) * C + c, snake(h, turns, reciprocal));
        }
      }
    }
  for (long n = 0; n < C; n += width)
    for (long m = 0; m < padded; m += 32) {
      tile_product<WIDE>(s2 + m * C, 0, 1, weight2 + n * C, C, sums);
      const long left = rows - m < 32 ? rows - m : 32;
      for (long i = 0; i < left; i++)
        for (long c = n; c < n + width; c += 16) {
          const long at = (first + m + i) * C + c;
          store(y + at, load(sums + i * width + c - n) + load(unit.bias2 + c) + load(x + at));
        }
    }
  release_tiles();
}

// `tail` and `tail_after` (B, left, C): see `snaked_rows`; `hidden` (B, T, C): what the first convolution gave. All three,
// and `lengths` (B), may be null.
extern "C" void unit_bf16(const bf16* x, bf16* y, bf16* hidden, const bf16* tail, bf16* tail_after, const int64_t* lengths,
                          const float* vectors, const bf16* weight1, const bf16* weight2, long B, long T, long C,
                          long dilation, long left, int threads) {
  const Unit unit(vectors, C, dilation, left);
  // As many rows as leave room for a panel of weights in a cache of 1 MB, and so many that weights are read seldom.
  long rows = 262144 / C / 32 * 32;
  rows = rows < 256 ? 256 : rows;
  while (rows > 128 && B * ((T + rows - 1) / rows) < 2 * threads) rows = rows / 64 * 32;
  in_blocks(B, T, rows, threads, [&](long b, long first, long n) {
    const long length = lengths ? lengths[b] : T, item = b * T * C;
    const bf16* before = tail ? tail + b * left * C : nullptr;
    auto block = C == 16 ? bf16_block<false> : bf16_block<true>;
    block(unit, x + item, before, y + item, hidden ? hidden + item : nullptr, weight1, weight2, length, first, n);
  });
  if (tail_after)
    for (long b = 0; b < B; b++)
      next_tail(unit, x + b * T * C, tail ? tail + b * left * C : nullptr, T, tail_after + b * left * C);
}
#endif

// ---- fp32: of 7 taps, 4 outputs need 10 products and not 28 (Toom and Cook; Winograd 1980, F(4, 7)) ----
constexpr int POINTS = 10;  // at which the polynomials are multiplied; `transforms` holds what units.py derives of them:
                            // inputs to points (10, 10), then points to outputs (4, 10)

// Rows in groups of 12, their channels in groups of 16: what a product reads lies together. Of row r, channels from c on:
static inline long grouped(long r, long c, long C) {
  return (r / 12 * (C / 16) + c / 16) * 12 * 16 + r % 12 * 16 + c % 16;
}

// So many rows and columns have their sums in registers at once.
constexpr int SUM_ROWS = REGISTERS == 32 ? 12 : 6, SUM_COLUMNS = 2 * LANES;

// out (12, 32) = a group of rows (12, K) times a panel (K, 32)
static inline void rows_times_panel(const float* A, const float* panel, long K, float* out) {
  for (int column = 0; column < 32; column += SUM_COLUMNS)
    for (int row = 0; row < 12; row += SUM_ROWS) {
      const float *a = A + row * 16, *b = panel + column;
      vec sums[SUM_ROWS][2] = {};
      for (long c = 0; c < K; c += 16, a += 12 * 16)
        for (long k = 0; k < 16; k++, b += 32) {
          const vec left = load(b), right = load(b + LANES);
#pragma GCC unroll 12
          for (int r = 0; r < SUM_ROWS; r++) {
            sums[r][0] += a[r * 16 + k] * left;
            sums[r][1] += a[r * 16 + k] * right;
          }
        }
#pragma GCC unroll 12
      for (int r = 0; r < SUM_ROWS; r++) {
        store(out + 32 * (row + r) + column, sums[r][0]);
        store(out + 32 * (row + r) + column + LANES, sums[r][1]);
      }
    }
}

// Seven taps, `d` apart, over rows s1 (block_rows + 6 d, C), computed as `transforms` says: put(row, c, v) gets the sums v of
// channels from c on for each row, without a bias.
template <class F>
static void seven_taps(const float* s1, const float* weight, const float* transforms, long C, long d, long block_rows, F put) {
  static thread_local Scratch scratch1, scratch2;
  const float *input = transforms, *output = transforms + POINTS * POINTS;
  const long tiles = block_rows / 4;
  float* points = scratch1.get<float>(POINTS * tiles * C);  // (point, tile and channel, grouped)
  float* sums = scratch2.get<float>(POINTS * tiles * 32);
  for (long i = 0; i < tiles; i++) {
    const float* in = s1 + (i / d * 4 * d + i % d) * C;  // outputs of a tile lie d apart, so do its inputs
    for (long c = 0; c < C; c += LANES) {
      vec v[POINTS];
#pragma GCC unroll 10
      for (int k = 0; k < POINTS; k++) v[k] = load(in + k * d * C + c);
#pragma GCC unroll 10
      for (int p = 0; p < POINTS; p++) {
        vec sum = {};
#pragma GCC unroll 10
        for (int k = 0; k < POINTS; k++) sum += v[k] * input[p * POINTS + k];
        store(points + p * tiles * C + grouped(i, c, C), sum);
      }
    }
  }
  for (long n = 0; n < C; n += 32) {
    for (int p = 0; p < POINTS; p++)
      for (long i = 0; i < tiles; i += 12)
        rows_times_panel(points + (p * tiles + i) * C, weight + (n * POINTS + p * 32) * C, C, sums + (p * tiles + i) * 32);
    for (long c = n; c < n + 32; c += LANES)
      for (long i = 0; i < tiles; i++) {
        vec out[4] = {};
#pragma GCC unroll 10
        for (int p = 0; p < POINTS; p++) {
          const vec v = load(sums + (p * tiles + i) * 32 + c - n);
#pragma GCC unroll 4
          for (int o = 0; o < 4; o++) out[o] += v * output[o * POINTS + p];
        }
        const long row = i / d * 4 * d + i % d;
#pragma GCC unroll 4
        for (int o = 0; o < 4; o++) put(row + o * d, c, out[o]);
      }
  }
}

static void fp32_block(const Unit& unit, const float* x, float* y, float* hidden, const float* weight1, const float* weight2,
                       const float* transforms, long length, long first, long rows, long block_rows) {
  static thread_local Scratch scratch1, scratch2;
  const long C = unit.channels, d = unit.dilation;
  float* s1 = scratch1.get<float>((block_rows + 6 * d) * C);
  float* s2 = scratch2.get<float>(block_rows * C);  // grouped
  alignas(64) float sums[12 * 32];
  snaked_rows<float>(unit, x, nullptr, length, first - unit.left, block_rows + 6 * d, s1);
  seven_taps(
      s1, weight1, transforms, C, d, block_rows,
      [&](long row, long c, vec v) {
        v += load(unit.bias1 + c);
        if (hidden && row < rows) store(hidden + (first + row) * C + c, v);
        store(s2 + grouped(row, c, C), snake(v, load(unit.turns2 + c), load(unit.reciprocal2 + c)));
      });
  for (long n = 0; n < C; n += 32)
    for (long m = 0; m < rows; m += 12) {
      rows_times_panel(s2 + m * C, weight2 + n * C, C, sums);
      for (long i = 0; i < 12 && m + i < rows; i++)
        for (long c = 0; c < 32; c += LANES) {
          const long at = (first + m + i) * C + n + c;
          store(y + at, load(sums + 32 * i + c) + load(unit.bias2 + n + c) + load(x + at));
        }
    }
}

// The gradient at the input of a unit whose weights rest, from that at its output; `hidden` is what the first convolution gave.
static void fp32_back_block(const Unit& unit, const float* gradient, const float* x, const float* hidden, float* at_x,
                            const float* back1, const float* back2, const float* transforms, long T, long first, long rows,
                            long block_rows) {
  static thread_local Scratch scratch1, scratch2;
  const long C = unit.channels, d = unit.dilation, needed = block_rows + 6 * d, start = first - (6 * d - unit.left);
  float* above = scratch1.get<float>((needed + 11) / 12 * 12 * C);  // the gradient, grouped
  float* at_hidden = scratch2.get<float>(needed * C);
  alignas(64) float sums[12 * 32];
  const auto inside = [&](long i) { return start + i >= 0 && start + i < T; };
  for (long i = 0; i < (needed + 11) / 12 * 12; i++)
    for (long c = 0; c < C; c += LANES)
      store(above + grouped(i, c, C), inside(i) ? load(gradient + (start + i) * C + c) : vec{});
  for (long n = 0; n < C; n += 32)
    for (long m = 0; m < needed; m += 12) {
      rows_times_panel(above + m * C, back2 + n * C, C, sums);
      for (long i = 0; i < 12 && m + i < needed; i++)
        for (long c = 0; c < 32; c += LANES) {
          vec v = {};
          if (inside(m + i)) {
            const vec h = load(hidden + (start + m + i) * C + n + c);
            v = load(sums + 32 * i + c) * snake_slope(h, load(unit.turns2 + n + c));
          }
          store(at_hidden + (m + i) * C + n + c, v);
        }
    }
  seven_taps(
      at_hidden, back1, transforms, C, d, block_rows,
      [&](long row, long c, vec v) {
        if (row >= rows) return;
        const long at = (first + row) * C + c;
        store(at_x + at, load(gradient + at) + v * snake_slope(load(x + at), load(unit.turns1 + c)));
      });
}

// T rows in blocks of 144, or a multiple; the dilation must divide 36. block(item, first row, rows, rows of a block)
template <class F>
static void in_fp32_blocks(long B, long T, long C, int threads, F block) {
  // Wide layers in larger blocks, since each reads all weights; but none that would be mostly padding.
  const long wanted = C >= 256 && B * T >= 576 * threads ? 288 : 144, blocks = (T + wanted - 1) / wanted;
  const long rows = ((T + blocks - 1) / blocks + 143) / 144 * 144;
  in_blocks(B, T, rows, threads, [&](long b, long first, long n) { block(b, first, n, rows); });
}

// `hidden` (B, T, C), what the first convolution gave, may be null, and so may `lengths`.
extern "C" void unit_fp32(const float* x, float* y, float* hidden, const int64_t* lengths, const float* vectors,
                          const float* weight1, const float* weight2, const float* transforms, long B, long T, long C,
                          long dilation, long left, int threads) {
  const Unit unit(vectors, C, dilation, left);
  in_fp32_blocks(B, T, C, threads, [&](long b, long first, long n, long rows) {
    const long length = lengths ? lengths[b] : T, item = b * T * C;
    fp32_block(unit, x + item, y + item, hidden ? hidden + item : nullptr, weight1, weight2, transforms, length, first, n, rows);
  });
}

// `back1` and `back2` are the weights turned around, packed as those of the way there.
extern "C" void unit_back_fp32(const float* gradient, const float* x, const float* hidden, float* at_x, const float* vectors,
                               const float* back1, const float* back2, const float* transforms, long B, long T, long C,
                               long dilation, long left, int threads) {
  const Unit unit(vectors, C, dilation, left);
  in_fp32_blocks(B, T, C, threads, [&](long b, long first, long n, long rows) {
    const long item = b * T * C;
    fp32_back_block(unit, gradient + item, x + item, hidden + item, at_x + item, back1, back2, transforms, T, first, n, rows);
  });
}

// ---- the snake alone: rows (N, C), vectors (2, C) ----
template <class T>
static void snake_rows(const T* x, T* y, const float* vectors, long N, long C, int threads) {
  in_blocks(1, N, 16384 / C + 1, threads, [&](long, long first, long n) {
    for (long i = first; i < first + n; i++)
      for (long c = 0; c < C; c += LANES)
        store(y + i * C + c, snake(load(x + i * C + c), load(vectors + c), load(vectors + C + c)));
  });
}
extern "C" void snake_fp32(const float* x, float* y, const float* vectors, long N, long C, int threads) {
  snake_rows(x, y, vectors, N, C, threads);
}
// The gradient at the input of a snake whose α rests.
extern "C" void snake_back_fp32(const float* gradient, const float* x, float* at_x, const float* vectors, long N, long C, int threads) {
  in_blocks(1, N, 16384 / C + 1, threads, [&](long, long first, long n) {
    for (long i = first * C; i < (first + n) * C; i += C)
      for (long c = 0; c < C; c += LANES)
        store(at_x + i + c, load(gradient + i + c) * snake_slope(load(x + i + c), load(vectors + c)));
  });
}
#ifdef __AVX512BF16__
extern "C" void snake_bf16(const bf16* x, bf16* y, const float* vectors, long N, long C, int threads) {
  snake_rows(x, y, vectors, N, C, threads);
}
#endif

// ---- two sums that tell the bytes of a weight from others: of words, and of the sums so far ----
extern "C" void checksum(const void* bytes, uint64_t* sums, long size) {
  typedef uint64_t words __attribute__((vector_size(64)));
  typedef uint64_t words_in_memory __attribute__((vector_size(64), aligned(1), may_alias));
  words plain = {}, weighted = {};
  const char* p = (const char*)bytes;
  for (; size >= 64; size -= 64, p += 64) weighted += plain += *(const words_in_memory*)p;
  words rest = {};
  memcpy(&rest, p, size);
  weighted += plain += rest;
  sums[0] = sums[1] = 0;
  for (int i = 0; i < 8; i++) {
    sums[0] = sums[0] * 0x9E3779B97F4A7C15u + plain[i];
    sums[1] = sums[1] * 0x9E3779B97F4A7C15u + weighted[i];
  }
}
