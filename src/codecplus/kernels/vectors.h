// What all kernels share: vectors of floats, bf16 in memory and fp32 in registers, the snake, scratch memory, threads.
//
// A source is compiled once for each instruction set, whose vectors have LANES floats. C channels are a multiple of 16.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "threads.h"

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__ARM_NEON)
constexpr int LANES = 4, REGISTERS = 32;
#else
#error "expected AVX-512, AVX2 or NEON"
#endif

// gcc and clang give vectors the operators of arithmetic, also with a float on one side.
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const float* p) { return *(const vec_in_memory*)p; }
static inline void store(float* p, vec v) { *(vec_in_memory*)p = v; }

static inline vec rounded(vec v) {  // to the nearest integer; adding a large number and taking it off is optimised away
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(v, 0);
#elif defined(__AVX2__)
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return vrndnq_f32(v);
#endif
}

#ifdef __AVX512BF16__
using bf16 = uint16_t;
static inline vec widened(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
static inline __m256i narrowed(vec v) { return (__m256i)_mm512_cvtneps_pbh(v); }
static inline vec load(const bf16* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }
static inline void store(bf16* p, vec v) { _mm256_storeu_si256((__m256i*)p, narrowed(v)); }
#endif

// sin²(πt) has period 1, and is t² times a polynomial in t² to 2e-7 on [-1/2, 1/2]: see `snake_in_turns` in layers_dac.py.
static inline vec snake(vec x, vec turns, vec reciprocal) {
  vec t = x * turns;
  t = t - rounded(t);
  const vec u = t * t;
  vec q = u * -3.2729451f + 12.9907297f;
  q = q * u - 30.0859530f;
  q = q * u + 42.7253848f;
  q = q * u - 32.4695811f;
  q = q * u + 9.8696029f;
  return x + u * q * reciprocal;
}

// The slope of a snake, 1 + sin(2αx), where `turns` is α / π: sin(πt) is odd in t, and changes its sign with each turn.
static inline vec snake_slope(vec x, vec turns) {
  vec t = (x + x) * turns;
  const vec whole = rounded(t);
  t = t - whole;
  const vec odd = whole - 2.0f * rounded(whole * 0.5f);  // 0, 1 or -1
  const vec u = t * t;
  vec q = u * -0.0073704309f + 0.0821458866f;
  q = q * u - 0.5992645293f;
  q = q * u + 2.5501640399f;
  q = q * u - 5.1677127800f;
  q = q * u + 3.1415926536f;
  return 1.0f + t * q * (1.0f - 2.0f * odd * odd);
}

// Memory of one thread for one use; it grows, is never given back, and holds no more than a block needs.
struct Scratch {
  void* start = nullptr;
  size_t size = 0;
  template <class T>
  T* get(size_t elements) {
    const size_t bytes = (elements * sizeof(T) + 127) / 64 * 64;
    if (bytes > size) {
      free(start);
      start = aligned_alloc(64, size = bytes + bytes / 4 / 64 * 64);
      if (!start) abort();
    }
    return (T*)start;
  }
};

// What a residual unit knows: C channels, dilation, padding on the left; snakes, biases (C) each; weights as packed
// by acceleration/inference.py.
struct Unit {
  long channels, dilation, left;
  const float *turns1, *reciprocal1, *bias1, *turns2, *reciprocal2, *bias2;
  Unit(const float* vectors, long C, long d, long l)
      : channels(C), dilation(d), left(l), turns1(vectors), reciprocal1(vectors + C), bias1(vectors + 2 * C),
        turns2(vectors + 3 * C), reciprocal2(vectors + 4 * C), bias2(vectors + 5 * C) {}
};

// Rows `first` to `first + n` of the snaked input of a unit's first convolution. Before row 0 lie the `left` rows of
// `tail`, snaked already, or zeros; from row `length` on, zeros.
template <class T>
static void snaked_rows(const Unit& unit, const T* x, const T* tail, long length, long first, long n, T* out) {
  const long C = unit.channels;
  for (long i = 0; i < n; i++, out += C) {
    const long row = first + i;
    if (row >= length || (row < 0 && !tail)) {
      memset(out, 0, C * sizeof(T));
    } else if (row < 0) {
      memcpy(out, tail + (row + unit.left) * C, C * sizeof(T));
    } else {
      const T* in = x + row * C;
      for (long c = 0; c < C; c += LANES)
        store(out + c, snake(load(in + c), load(unit.turns1 + c), load(unit.reciprocal1 + c)));
    }
  }
}

// Runs block(item, first row, rows) for all blocks of `rows` rows of B items of T rows.
template <class F>
static void in_blocks(long B, long T, long rows, int threads, F block) {
  const long per_item = (T + rows - 1) / rows;
  in_turns(B * per_item, threads, [&](long i) {
    const long first = i % per_item * rows;
    block(i / per_item, first, T - first < rows ? T - first : rows);
  });
}

// What the convolution of the next call will need as `tail` (left, C).
template <class T>
static void next_tail(const Unit& unit, const T* x, const T* tail, long rows, T* out) {
  snaked_rows(unit, x, tail, rows, rows - unit.left, unit.left, out);
}
