// The product of few rows in bfloat16 by AMX: 16 outputs and 32 inputs of the weights, as they lie in
// memory, are a tile. It adds the terms of a sum in an order of its own, which is the same for any
// number of rows.
#pragma once

#include "kernels/cpu/few_rows.h"

#if defined(__AVX512BW__) && defined(__linux__)
#include <immintrin.h>
#define CONSISTENTEE_TILES __attribute__((target("amx-tile,amx-bf16")))

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

constexpr int64_t kTile = kTileGroup;  // rows of a tile, and floats in one of them
constexpr int64_t kTileDepth = 32;     // bfloat16 in one of them

// Sums [outputs, rows] in tiles 0 to 3, weights in 4 and 5, rows in 6 and 7.
CONSISTENTEE_TILES inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } tiles;
  for (int tile = 0; tile < 8; ++tile) {
    tiles.row_bytes[tile] = 64;
    tiles.rows[tile] = kTile;
  }
  _tile_loadconfig(&tiles);
}

// sums [kOutputTile, kTile] of 16 rows, and where Two those of the next 16 behind them.
template <bool Two>
CONSISTENTEE_TILES void multiply_tiles(
    const BFloat16* x, const BFloat16* w, int64_t depth, float* sums) {
  constexpr int64_t kSums = kTile * kTile;
  const int64_t stride = depth * static_cast<int64_t>(sizeof(BFloat16));
  const BFloat16* const others = x + depth * kTile;
  _tile_zero(0);
  _tile_zero(1);
  if (Two) _tile_zero(2);
  if (Two) _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    _tile_loadd(4, w + k, stride);
    _tile_loadd(5, w + kTile * depth + k, stride);
    for (int64_t i = 0; i < kOutputTile; ++i) {
      __builtin_prefetch(w + (kOutputTile + i) * depth + k);
    }
    _tile_loadd(6, x + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (Two) {
      _tile_loadd(7, others + k * kTile, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  if (Two) _tile_stored(2, sums + 2 * kSums, 64);
  if (Two) _tile_stored(3, sums + 3 * kSums, 64);
}

// x [rows, depth] of a group of 16 rows to [depth / 2, 16, 2], with zeros for rows that it lacks.
inline void lay_out_tiles(
    const BFloat16* x, int64_t rows, int64_t depth, int64_t begin, int64_t end, BFloat16* out) {
  for (int64_t group = begin; group < end; ++group) {
    const int64_t count = std::min(kTile, rows - group * kTile);
    uint32_t* target = reinterpret_cast<uint32_t*>(out + group * kTile * depth);
    for (int64_t pair = 0; pair < depth / 2; ++pair, target += kTile) {
      const BFloat16* source = x + group * kTile * depth + 2 * pair;
      for (int64_t i = 0; i < count; ++i) memcpy(target + i, source + i * depth, 4);
      for (int64_t i = count; i < kTile; ++i) target[i] = 0;
    }
  }
}

CONSISTENTEE_TILES inline void multiply_few_rows_by_tiles(
    const RowsProduct<BFloat16>& product, const BFloat16* laid_out, int64_t begin, int64_t end) {
  const int64_t depth = product.inputs;
  alignas(64) float sums[kRowTile * kOutputTile];
  configure_tiles();
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kOutputTile;
    const BFloat16* w = product.weight + first * depth;
    const BFloat16* bias = product.bias ? product.bias + first : nullptr;
    for (int64_t row = 0; row < product.rows; row += kRowTile) {
      const int64_t rows = std::min(kRowTile, product.rows - row);
      const BFloat16* x = laid_out + row * depth;
      if (rows > kTile) {
        multiply_tiles<true>(x, w, depth, sums);
      } else {
        multiply_tiles<false>(x, w, depth, sums);
      }
      for (int64_t i = 0; i < rows; ++i) {
        finish_sums<kTile>(
            sums + i / kTile * kTile * kOutputTile + i % kTile,
            bias,
            kOutputTile,
            product.activation,
            product.out + (row + i) * product.outputs + first);
      }
    }
  }
  _tile_release();
}

constexpr TileKernels kTileKernels{lay_out_tiles, multiply_few_rows_by_tiles};

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
#else
namespace consistentee::CONSISTENTEE_SIMD {
namespace {
constexpr TileKernels kTileKernels{};
}
}  // namespace consistentee::CONSISTENTEE_SIMD
#endif
