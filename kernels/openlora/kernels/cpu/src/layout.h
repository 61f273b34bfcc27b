// How numbers lie in memory, known to every unit.
#pragma once
#include <cstddef>
#include <cstdint>

namespace openlora {

using bf16 = std::uint16_t;  // the upper half of a float32

// A linear layer's weights lie in tiles of 48 output columns. Within a tile, row p holds the input pair (2p, 2p + 1) of
// every column side by side, [pairs][48][2]: what one dot-product instruction takes. Three 16-lane vectors are a row.
constexpr int kLanes = 16;
constexpr int kTile = 48;
constexpr int kTileRow = 2 * kTile;  // numbers in one row of a tile

// Rows of activations are computed in blocks of 32, and stand in buffers whose height is a multiple of it.
constexpr int kBlock = 32;

// Shrunk inputs of sixteen rows stand in squares of 32 ranks, [16][32]; more ranks go on in the next square.
constexpr int kHalf = 16;
constexpr int kRanks = 32;
constexpr int rank_at(int rank) { return rank / kRanks * kHalf * kRanks + rank % kRanks; }

// A cache page holds 16 tokens of one layer and key-value head: keys [head size / 2][16 tokens][2], so that a vector
// holds one pair of every token, then values [8 token pairs][head size][2], so that a vector holds one pair of tokens
// for sixteen columns. Neither product needs a sum across lanes.
constexpr int kPageTokens = 16;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Numbers between two rows of an input of `n` columns: whole 64-byte lines, the last of them keeping strides off powers
// of two, where a cache would map all rows to the same few sets. Columns from n on are zero.
constexpr int row_stride(int n) { return round_up(n, 32) + 32; }

// Pairs in a tile of a layer with `n` inputs, in whole blocks of sixteen; the weights of the padding are zero.
constexpr int tile_pairs(int n) { return round_up(n, 32) / 2; }

inline float widen(bf16 x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}

}  // namespace openlora
