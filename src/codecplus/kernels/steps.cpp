// Steps of live streams in fp32: a convolution over the rows that came and the few before them, as one matrix product. Rows are
// few, so each weight is used a few times only, and the time is that of reading weights. They are fp16 where that is exact.
#include "vectors.h"

constexpr int WIDTH = 16, VECTORS = WIDTH / LANES;  // columns of a panel, as in acceleration/steps.py
constexpr int ROWS = LANES == 16 ? 12 : 6;          // whose sums are in registers at once

using half = uint16_t;
static inline vec widened(const half* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#endif
}
static inline vec widened(const float* p) { return load(p); }

// sums (R, WIDTH) = R rows of `depth` values times (depth, WIDTH) weights, for each tap, whose rows lie `step` apart
template <int R, class W>
static inline void rows_times_panel(const float* const* rows, long taps, long step, long depth, const W* panel, float* out) {
  // A sum waits for the one before it: where there are few rows, several sums are under way.
  constexpr int CHAINS = R == 1 ? 4 : R <= 3 ? 2 : 1;
  vec sums[CHAINS][R][VECTORS] = {};
  const auto add = [&](int chain, long at) {
    vec weights[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) weights[v] = widened(panel + v * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[chain][r][v] += rows[r][at] * weights[v];
    panel += WIDTH;
  };
  for (long tap = 0; tap < taps; tap++) {
    const long first = tap * step;
    long k = 0;
    for (; k + CHAINS <= depth; k += CHAINS)
#pragma GCC unroll 4
      for (int chain = 0; chain < CHAINS; chain++) add(chain, first + k + chain);
    for (; k < depth; k++) add(0, first + k);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      vec sum = sums[0][r][v];
      for (int chain = 1; chain < CHAINS; chain++) sum += sums[chain][r][v];
      store(out + r * WIDTH + v * LANES, sum);
    }
}

template <int R, class W>
static inline void some_rows_times_panel(long count, const float* const* rows, long taps, long step, long depth, const W* panel,
                                         float* out) {
  if (count == R)
    rows_times_panel<R>(rows, taps, step, depth, panel, out);
  else if constexpr (R > 1)
    some_rows_times_panel<R - 1>(count, rows, taps, step, depth, panel, out);
}

// A convolution of C channels to N columns. Its window is `taps` rows, `dilation` apart, and moves on by `stride`.
struct Windows {
  long C, N, taps, stride, dilation;
};

// y (B, windows, N) = the windows of inputs (B, rows, C), times panels (N / WIDTH, taps * C, WIDTH), plus bias and `skip`,
// which is null or like y.
template <class W>
static void convolve(const Windows& of, const float* inputs, long B, long rows, long windows, const W* panels, const float* bias,
                     const float* skip, float* y, int threads) {
  const long K = of.taps * of.C, count = B * windows, columns = (of.N + WIDTH - 1) / WIDTH;
  const bool together = of.dilation == 1;  // the rows of a window lie one behind the other
  const long taps = together ? 1 : of.taps, depth = together ? K : of.C;
  const bool alone = count * K * of.N < 1 << 20;  // less than it takes to wake another thread
  in_turns(columns, alone ? 1 : threads, [&](long column) {
    const long n = column * WIDTH, width = of.N - n < WIDTH ? of.N - n : WIDTH;
    const float* pointers[ROWS];
    alignas(64) float sums[ROWS * WIDTH];
    for (long first = 0; first < count; first += ROWS) {
      const long some = count - first < ROWS ? count - first : ROWS;
      for (long r = 0; r < some; r++) {
        const long row = first + r;
        pointers[r] = inputs + (row / windows * rows + row % windows * of.stride) * of.C;
      }
      some_rows_times_panel<ROWS>(some, pointers, taps, of.dilation * of.C, depth, panels + n * K, sums);
      for (long r = 0; r < some; r++) {
        const float* sum = sums + r * WIDTH;
        const long at = (first + r) * of.N + n;
        for (long c = 0; c < width; c++) y[at + c] = sum[c] + bias[n + c] + (skip ? skip[at + c] : 0);
      }
    }
  });
}

static void convolve(const Windows& of, const float* inputs, long B, long rows, long windows, const void* panels, bool halves,
                     const float* bias, const float* skip, float* y, int threads) {
  if (halves)
    convolve(of, inputs, B, rows, windows, (const half*)panels, bias, skip, y, threads);
  else
    convolve(of, inputs, B, rows, windows, (const float*)panels, bias, skip, y, threads);
}

static void snake_rows(const float* x, float* y, const float* turns, const float* reciprocal, long rows, long C) {
  for (long i = 0; i < rows; i++)
    for (long c = 0; c < C; c += LANES)
      store(y + i * C + c, snake(load(x + i * C + c), load(turns + c), load(reciprocal + c)));
}

// inputs (B, left + n, C): the rows of `tail` (B, left, C), behind them those of x (B, n, C), snaked if there are vectors.
static void joined_rows(const float* x, const float* tail, const float* turns, const float* reciprocal, long B, long n, long left,
                        long C, float* inputs) {
  for (long b = 0; b < B; b++, inputs += (left + n) * C, x += n * C) {
    memcpy(inputs, tail + b * left * C, left * C * sizeof(float));
    if (turns)
      snake_rows(x, inputs + left * C, turns, reciprocal, n, C);
    else
      memcpy(inputs + left * C, x, n * C * sizeof(float));
  }
}

static void last_rows(const float* inputs, long B, long rows, long count, long C, float* out) {
  for (long b = 0; b < B; b++) memcpy(out + b * count * C, inputs + ((b + 1) * rows - count) * C, count * C * sizeof(float));
}

// A convolution behind a snake, or none: `snake` (2, C) may be null. y (B, windows, N) of x (B, n, C) behind tail (B, left, C);
// tail_after (B, kept, C) are the last inputs of all. C is a multiple of 16 where there is a snake.
extern "C" void convolution_step(const float* x, const float* tail, float* y, float* tail_after, const float* snake,
                                 const void* panels, const float* bias, long B, long n, long left, long kept, long windows, long C,
                                 long N, long taps, long stride, long dilation, long halves, int threads) {
  static thread_local Scratch scratch;
  const long rows = left + n;
  float* inputs = scratch.get<float>(B * rows * C);
  joined_rows(x, tail, snake, snake ? snake + C : nullptr, B, n, left, C, inputs);
  last_rows(inputs, B, rows, kept, C, tail_after);
  convolve({C, N, taps, stride, dilation}, inputs, B, rows, windows, panels, halves, bias, nullptr, y, threads);
}

// A residual unit: y (B, windows, C) of x (B, n, C) behind the snaked inputs tail (B, left, C), plus `skip`, which is like y;
// `vectors` as for `Unit`.
extern "C" void unit_step(const float* x, const float* tail, const float* skip, float* y, float* tail_after, const float* vectors,
                          const void* panels1, const void* panels2, long B, long n, long left, long kept, long windows, long C,
                          long taps, long dilation, long halves1, long halves2, int threads) {
  static thread_local Scratch scratch1, scratch2;
  const Unit unit(vectors, C, dilation, left);
  const long rows = left + n;
  float* inputs = scratch1.get<float>(B * rows * C);
  float* hidden = scratch2.get<float>(B * windows * C);
  joined_rows(x, tail, unit.turns1, unit.reciprocal1, B, n, left, C, inputs);
  last_rows(inputs, B, rows, kept, C, tail_after);
  convolve({C, C, taps, 1, dilation}, inputs, B, rows, windows, panels1, halves1, unit.bias1, nullptr, hidden, threads);
  snake_rows(hidden, hidden, unit.turns2, unit.reciprocal2, B * windows, C);
  convolve({C, C, 1, 1, 1}, hidden, B, windows, windows, panels2, halves2, unit.bias2, skip, y, threads);
}

// Codes (T, K) of T rows by the search of `CodebookSearch`: latents (T, all K * d) are the projected rows, biases (all K * d),
// mixed (all K * d, all K * d) what an entry chosen takes from the latents behind it, directions (all K, d, N) and entries
// (all K, N, d) the codebooks. `all` codebooks are there, and the first K are searched.
extern "C" void search_step(const float* latents, const float* biases, const float* mixed, const float* directions,
                            const float* entries, int64_t* codes, long T, long K, long all, long d, long N, int threads) {
  const long D = all * d;
  in_turns(T, T < 64 ? 1 : threads, [&](long t) {
    static thread_local Scratch scratch1, scratch2;
    float* rest = scratch1.get<float>(D);
    float* scores = scratch2.get<float>(N);
    for (long i = 0; i < D; i++) rest[i] = latents[t * D + i] + biases[i];
    for (long k = 0; k < K; k++) {
      const float *point = rest + k * d, *of = directions + k * d * N;
      for (long n = 0; n < N; n++) scores[n] = point[0] * of[n];
      for (long j = 1; j < d; j++)
        for (long n = 0; n < N; n++) scores[n] += point[j] * of[j * N + n];
      float highest = scores[0];
      for (long n = 1; n < N; n++) highest = scores[n] > highest ? scores[n] : highest;
      long best = 0;
      while (best < N - 1 && scores[best] < highest) best++;  // ends beside NaN, too
      codes[t * K + k] = best;
      const float* entry = entries + (k * N + best) * d;
      for (long j = 0; j < d; j++)
        for (long i = (k + 1) * d; i < K * d; i++) rest[i] -= entry[j] * mixed[(k * d + j) * D + i];
    }
  });
}
