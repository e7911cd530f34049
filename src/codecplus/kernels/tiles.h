// Matrix products of bf16. On AMX, tiles 0 to 3 accumulate 32 rows by 32 columns, 4 and 5 hold inputs, 6 and 7 weights.
// Without AMX, AVX512-BF16 multiplies pairs of the same layout.
#pragma once
#include "vectors.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

#define FENCE asm volatile("" ::: "memory")  // gcc does not know that the tile instructions read and write memory

struct __attribute__((packed)) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

static void configure_tiles(long depth) {  // products over `depth` channels at a time
  static const bool granted = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */);
  (void)granted;
  TileShapes shapes;
  memset(&shapes, 0, sizeof shapes);
  shapes.palette = 1;
  for (int i = 0; i < 8; i++) {
    shapes.rows[i] = i < 6 ? 16 : depth / 2;
    shapes.row_bytes[i] = i == 4 || i == 5 ? depth * 2 : 64;
  }
  FENCE;
  _tile_loadconfig(&shapes);
}

// out (32, 32) fp32, or (32, 16) if not WIDE: the sum over taps of rows A + tap * step times the panel's weights
template <bool WIDE>
static inline void tile_product(const bf16* A, long step, long taps, const bf16* panel, long C, float* out) {
  const long depth = C < 32 ? C : 32, tile = depth * 16;
  FENCE;
  _tile_zero(0);
  _tile_zero(2);
  if (WIDE) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (long tap = 0; tap < taps; tap++)
    for (long c = 0; c < C; c += depth) {
      const bf16* a = A + tap * step * C + c;
      _tile_loadd(4, a, C * 2);
      _tile_loadd(5, a + 16 * C, C * 2);
      _tile_loadd(6, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if (WIDE) {
        _tile_loadd(7, panel + tile, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      panel += WIDE ? 2 * tile : tile;
    }
  const long width = WIDE ? 32 : 16;
  _tile_stored(0, out, width * 4);
  _tile_stored(2, out + 16 * width, width * 4);
  if (WIDE) {
    _tile_stored(1, out + 16, 128);
    _tile_stored(3, out + 16 * 32 + 16, 128);
  }
  FENCE;
}

static inline void release_tiles() { _tile_release(); }
#else
static inline void configure_tiles(long) {}
static inline void release_tiles() {}

// As above: a tile's row is 16 columns with two inputs each, which is one vector of pairs.
template <bool WIDE>
static inline void tile_product(const bf16* A, long step, long taps, const bf16* panel, long C, float* out) {
  constexpr int COUNT = WIDE ? 2 : 1, ROWS = 8;
  const long depth = C < 32 ? C : 32, tile = depth * 16;
  for (long row = 0; row < 32; row += ROWS) {
    const bf16* b = panel;
    __m512 sums[ROWS][COUNT] = {};
    for (long tap = 0; tap < taps; tap++)
      for (long c = 0; c < C; c += depth, b += COUNT * tile) {
        const bf16* a = A + (row + tap * step) * C + c;
        for (long k = 0; k < depth; k += 2) {
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            memcpy(&pair, a + r * C + k, 4);
            const __m512bh inputs = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
            for (int i = 0; i < COUNT; i++)
              sums[r][i] = _mm512_dpbf16_ps(sums[r][i], inputs, (__m512bh)_mm512_loadu_si512(b + i * tile + k * 16));
          }
        }
      }
    for (int r = 0; r < ROWS; r++)
      for (int i = 0; i < COUNT; i++) store(out + (row + r) * 16 * COUNT + 16 * i, sums[r][i]);
  }
}
#endif
