// Linear layers and what adapters add to them, packed.
#pragma once
#include <vector>

#include "api.h"
#include "kernels.h"
#include "memory.h"
#include "quantised.h"

namespace openlora {

struct Matrix {
  Values weight;      // [out, in]
  const float* bias;  // [out], or null
  int out;
};

// One or several matrices of one input, as tiles; every tile belongs to one of them.
struct Linear {
  struct Tile {
    int part;                       // which matrix
    int index;                      // which of the matrix's tiles
    const char* weights = nullptr;  // dense: bf16 [pairs][48][2], packed or not; else see quantised.h
    std::size_t bytes = 0;
    bool packed = false;
  };

  int inputs = 0;
  int matrices = 0;
  Coding coding;
  bool grouped = false;     // codes under group scales that are multiplied as integers
  int unit = 1;             // tiles that must be computed by one thread, one after the other
  std::vector<Tile> tiles;  // all first of each matrix, …; or with unit = matrices: one of each in turn
  std::vector<float> bias;  // [tiles][48], or empty

  bool integers() const { return coding.format == Format::kInt8 || grouped; }
  bool coded() const { return coding.format == Format::kCodes8 || coding.format == Format::kCodes4; }
  bool unpacked() const { return coded() && !grouped; }
  int groups() const { return grouped ? groups_of(coding, inputs) : 1; }  // of its inputs as integers
  int pairs() const { return tile_pairs(inputs); }
  int quads() const { return tile_quads(inputs); }
  std::size_t dense_tile_bytes() const { return sizeof(bf16) * pairs() * kTileRow; }
  std::size_t tile_bytes() const {
    switch (coding.format) {
      case Format::kDense: return dense_tile_bytes();
      case Format::kInt8: return sizeof(Int8Tile) + std::size_t{4} * quads() * kTile;
      default: return (coded_tile_bytes(coding, pairs()) + 63) / 64 * 64;
    }
  }
  int units() const { return static_cast<int>(tiles.size()) / unit; }
};

inline int tiles_of(int out) { return (out + kTile - 1) / kTile; }

// Columns first:first + 48 of the matrix as one tile; what lies beyond it is zero already.
inline void pack_tile(const bf16* weight, int out, int inputs, int first, bf16* tile) {
  for (int column = 0; column < kTile && first + column < out; ++column) {
    const bf16* row = weight + std::ptrdiff_t{first + column} * inputs;
    for (int k = 0; k < inputs; ++k) tile[std::ptrdiff_t{k / 2} * kTileRow + 2 * column + k % 2] = row[k];
  }
}

Coding coding_of(const Values&);

// As pack_tile, for every format but the dense one; `multiplied`: codes under group scales as integers are multiplied.
void pack_quantised(const Values&, bool multiplied, int out, int inputs, int first, char* tile);

// One matrix of an adapter: B at its own rank, made even by a zero; A is in a Stack.
struct Lora {
  int ranks = 0;   // 0: the adapter leaves this matrix alone
  int offset = 0;  // of its shrunk inputs, among those of the matrices that share an input
  Numbers b;       // [tiles][pairs][48][2]
  int pairs = 0;   // half of the ranks; packed, more
};

}  // namespace openlora
