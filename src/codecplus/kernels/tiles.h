// Matrix products of bf16 on AMX: tiles 0 to 3 accumulate 32 rows by 32 columns, 4 and 5 hold inputs, 6 and 7 weights.
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

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
