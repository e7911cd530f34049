// Training in bf16 on AMX: the way back through a residual unit, and through a snake. Rows are (B, T, C).
#ifdef __AMX_BF16__
#include "tiles.h"

// sin and cos of u, up to a sign that they share: u is reduced by a multiple of π.
static inline void sine_cosine(vec u, vec& sine, vec& cosine) {
  const vec k = _mm512_roundscale_ps(u * 0.318309886f, 0);
  vec r = u - k * 3.14159274f;
  r = r + k * 8.74227766e-8f;
  const vec q = r * r;
  vec p = q * 2.6e-6f - 1.98090e-4f;
  p = q * p + 8.3330255e-3f;
  p = q * p - 1.6666657e-1f;
  sine = q * p * r + r;
  p = q * -2.6051615e-7f + 2.4760495e-5f;
  p = q * p - 1.3888378e-3f;
  p = q * p + 4.1666638e-2f;
  p = q * p - 0.5f;
  cosine = q * p + 1.0f;
}

// One snake's values at 16 channels: from its input x and the gradient at its output, the gradient at its input, what
// it adds to the gradient of α, and its output.
struct SnakeBack {
  vec alpha, reciprocal;
  inline vec operator()(vec x, vec gradient, vec& at_alpha, vec& output) const {
    vec sine, cosine;
    sine_cosine(alpha * x, sine, cosine);
    const vec bend = sine * sine * reciprocal, slope = (sine + sine) * cosine;  // sin²(αx) / α and sin(2αx)
    at_alpha += gradient * reciprocal * (x * slope - bend);
    output = x + bend;
    return gradient + gradient * slope;
  }
};

static inline void add_to(float* sums, vec v) { store(sums, load(sums) + v); }

// Rows (32, C) turned around: out[channel][0..31], channels `step` apart.
static void turn_rows(const bf16* x, bf16* out, long step, long C) {
  for (long c = 0; c < C; c += 16) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) {  // pairs of rows, so that words of 32 bits move
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + 2 * i * C + c)));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + (2 * i + 1) * C + c)));
      r[i] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    }
    for (int i = 0; i < 8; i++) {
      t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
      r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // r[4 g + q]: lane l of 128 bits holds channel 4 l + q, pairs 4 g to 4 g + 3.
    for (int q = 0; q < 4; q++) {
      const __m512i low = _mm512_shuffle_i32x4(r[q], r[4 + q], 0x44), high = _mm512_shuffle_i32x4(r[q], r[4 + q], 0xEE);
      const __m512i low2 = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0x44);
      const __m512i high2 = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0xEE);
      _mm512_storeu_si512(out + (c + q) * step, _mm512_shuffle_i32x4(low, low2, 0x88));
      _mm512_storeu_si512(out + (c + 4 + q) * step, _mm512_shuffle_i32x4(low, low2, 0xDD));
      _mm512_storeu_si512(out + (c + 8 + q) * step, _mm512_shuffle_i32x4(high, high2, 0x88));
      _mm512_storeu_si512(out + (c + 12 + q) * step, _mm512_shuffle_i32x4(high, high2, 0xDD));
    }
  }
}

// Two rows side by side, channel by channel, as a tile of weights wants them.
static inline void store_pair(bf16* out, vec even, vec odd) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrowed(odd)), 16);
  _mm512_storeu_si512(out, _mm512_or_si512(_mm512_cvtepu16_epi32(narrowed(even)), high));
}

// out (C', C) += turned (C', steps), rows `step` apart, times pairs (steps / 2, C, 2); steps a multiple of 32
static void add_weight_gradient(const bf16* turned, long step, const bf16* pairs, long steps, float* out, long C) {
  alignas(64) float sums[4][256];
  const long tiles = C / 16, row_bytes = C * 4, both = tiles > 1;
  for (long m = 0; m < tiles; m += 2)
    for (long n = 0; n < tiles; n += 2) {
      const bf16 *a = turned + m * 16 * step, *b = pairs + n * 32;
      FENCE;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (long t = 0; t < steps; t += 32) {
        _tile_loadd(4, a + t, step * 2);
        _tile_loadd(6, b + t * C, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (both) {
          _tile_loadd(7, b + t * C + 32, row_bytes);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, a + 16 * step + t, step * 2);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, sums[0], 64);
      _tile_stored(1, sums[1], 64);
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
      FENCE;
      for (long i = 0; i < (both ? 4 : 1); i++)
        for (long r = 0; r < 16; r++) add_to(out + ((m + i / 2) * 16 + r) * C + (n + i % 2) * 16, load(sums[i] + r * 16));
    }
}

// One item of T rows: the gradient at its input, and sums of gradients: weight1 (7, C', C), weight2 (C', C), and
// (4, C) of alpha1, bias1, alpha2, bias2. `back1` and `back2` are the weights turned around, packed.
template <bool WIDE>
static void unit_back_item(const bf16* gradient, const bf16* x, const bf16* hidden, bf16* at_x, const bf16* back1,
                           const bf16* back2, const float* alphas, float* weight1, float* weight2, float* vectors,
                           long T, long C, long dilation, long left) {
  static thread_local Scratch scratch[4];
  alignas(64) float sums[32 * 32];
  const long padded = (T + 31) / 32 * 32, reach = 6 * dilation, right = reach - left, step = padded + reach + 96;
  const long width = WIDE ? 32 : 16, rest = T % 32;
  bf16* at_hidden = scratch[0].get<bf16>((padded + reach + 64) * C);  // with zeros around it
  bf16* last = scratch[1].get<bf16>(32 * C);                          // the rows of the last, partial block
  bf16* turned = scratch[2].get<bf16>(step * C);                      // the gradient at the one convolution, then the other
  bf16* pairs = scratch[3].get<bf16>(padded * C);                     // what that convolution saw
  memset(at_hidden, 0, right * C * 2);
  memset(at_hidden + (right + T) * C, 0, (padded + reach + 64 - right - T) * C * 2);
  memcpy(last, gradient + (T - rest) * C, rest * C * 2);
  memset(last + rest * C, 0, (32 - rest) * C * 2);
  const auto rows_of = [&](long t) { return t + 32 <= T ? gradient + t * C : last; };

  configure_tiles(C < 32 ? C : 32);
  for (long t = 0; t < T; t += 32) turn_rows(rows_of(t), turned + t, step, C);
  for (long n = 0; n < C; n += width)
    for (long t = 0; t < T; t += 32) {
      const long rows = T - t < 32 ? T - t : 32;
      const bf16* above = rows_of(t);
      tile_product<WIDE>(above, 0, 1, back2 + n * C, C, sums);
      for (long c = n; c < n + width; c += 16) {
        const vec alpha = load(alphas + C + c), zero = _mm512_setzero_ps();
        const SnakeBack back = {alpha, 1.f / (alpha + 1e-9f)};
        vec at_alpha = zero, at_bias1 = zero, at_bias2 = zero;
        for (long i = 0; i < 32; i += 2) {
          vec snaked[2] = {zero, zero};
          for (long r = i; r < i + 2 && r < rows; r++) {
            const vec h = load(hidden + (t + r) * C + c);
            const vec g = back(h, load(sums + r * width + c - n), at_alpha, snaked[r - i]);
            store(at_hidden + (right + t + r) * C + c, g);
            at_bias1 += g;
            at_bias2 += load(above + r * C + c);
          }
          store_pair(pairs + (t + i) * C + 2 * c, snaked[0], snaked[1]);
        }
        add_to(vectors + C + c, at_bias1);
        add_to(vectors + 2 * C + c, at_alpha);
        add_to(vectors + 3 * C + c, at_bias2);
      }
    }
  configure_tiles(32);
  add_weight_gradient(turned, step, pairs, padded, weight2, C);

  configure_tiles(C < 32 ? C : 32);
  for (long t = 0; t < padded + reach; t += 32) turn_rows(at_hidden + t * C, turned + t, step, C);
  for (long n = 0; n < C; n += width)
    for (long t = 0; t < T; t += 32) {
      const long rows = T - t < 32 ? T - t : 32;
      tile_product<WIDE>(at_hidden + t * C, dilation, 7, back1 + n * 7 * C, C, sums);
      for (long c = n; c < n + width; c += 16) {
        const vec alpha = load(alphas + c), zero = _mm512_setzero_ps();
        const SnakeBack back = {alpha, 1.f / (alpha + 1e-9f)};
        vec at_alpha = zero;
        for (long i = 0; i < 32; i += 2) {
          vec snaked[2] = {zero, zero};
          for (long r = i; r < i + 2 && r < rows; r++) {
            const long at = (t + r) * C + c;
            const vec g = back(load(x + at), load(sums + r * width + c - n), at_alpha, snaked[r - i]);
            store(at_x + at, g + load(gradient + at));
          }
          store_pair(pairs + (t + i) * C + 2 * c, snaked[0], snaked[1]);
        }
        add_to(vectors + c, at_alpha);
      }
    }
  configure_tiles(32);
  for (int tap = 0; tap < 7; tap++)
    add_weight_gradient(turned + (6 - tap) * dilation, step, pairs, padded, weight1 + tap * C * C, C);
  _tile_release();
}

// Of B items; the sums are over all of them, and start at zero here.
extern "C" void unit_back_bf16(const bf16* gradient, const bf16* x, const bf16* hidden, bf16* at_x, const bf16* back1,
                               const bf16* back2, const float* alphas, float* weight1, float* weight2, float* vectors,
                               long B, long T, long C, long dilation, long left, int threads) {
  static thread_local Scratch scratch;
  const long all = 8 * C * C + 4 * C, turns = threads < B ? threads : B;
  float* sums = scratch.get<float>(turns * all);  // of each turn, so that they do not wait for each other
  memset(sums, 0, turns * all * 4);
  memset(weight1, 0, 7 * C * C * 4);
  memset(weight2, 0, C * C * 4);
  memset(vectors, 0, 4 * C * 4);
  auto back = C == 16 ? unit_back_item<false> : unit_back_item<true>;
  in_turns(turns, threads, [&](long turn) {
    float *own1 = sums + turn * all, *own2 = own1 + 7 * C * C, *own3 = own2 + C * C;
    for (long b = turn; b < B; b += turns) {
      const long item = b * T * C;
      back(gradient + item, x + item, hidden + item, at_x + item, back1, back2, alphas, own1, own2, own3, T, C, dilation, left);
    }
  });
  for (long turn = 0; turn < turns; turn++) {
    const float *own1 = sums + turn * all, *own2 = own1 + 7 * C * C, *own3 = own2 + C * C;
    for (long i = 0; i < 7 * C * C; i += 16) add_to(weight1 + i, load(own1 + i));
    for (long i = 0; i < C * C; i += 16) add_to(weight2 + i, load(own2 + i));
    for (long i = 0; i < 4 * C; i += 16) add_to(vectors + i, load(own3 + i));
  }
}

// Rows (N, C): the gradient at the input of a snake, and at_alpha (C), summed.
extern "C" void snake_back_bf16(const bf16* gradient, const bf16* x, const float* alphas, bf16* at_x, float* at_alpha,
                                long N, long C, int threads) {
  static thread_local Scratch scratch;
  const long turns = N * C > 65536 ? threads : 1, share = (N + turns - 1) / turns;
  float* sums = scratch.get<float>(turns * C);
  memset(sums, 0, turns * C * 4);
  memset(at_alpha, 0, C * 4);
  in_turns(turns, threads, [&](long turn) {
    float* own = sums + turn * C;
    const long last = (turn + 1) * share < N ? (turn + 1) * share : N;
    for (long i = turn * share; i < last; i++)
      for (long c = 0; c < C; c += 16) {
        const vec alpha = load(alphas + c);
        const SnakeBack back = {alpha, 1.f / (alpha + 1e-9f)};
        vec sum = load(own + c), output;
        store(at_x + i * C + c, back(load(x + i * C + c), load(gradient + i * C + c), sum, output));
        store(own + c, sum);
      }
  });
  for (long turn = 0; turn < turns; turn++)
    for (long c = 0; c < C; c += 16) add_to(at_alpha + c, load(sums + turn * C + c));
}
#endif
