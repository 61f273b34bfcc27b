// How quantised weights and integer activations lie in memory, known to every unit.
#pragma once
#include "layout.h"

namespace openlora {

enum class Format : std::int32_t {
  kDense = 0,   // bfloat16
  kInt8 = 1,    // int8 codes under one scale a column: multiplied as integers
  kCodes8 = 2,  // int8 codes …
  kCodes4 =
      3,  // … or 4-bit ones, under a scale (and minimum) a column and group: unpacked to bfloat16, then multiplied
};

struct Coding {
  Format format = Format::kDense;
  int group = 0;        // inputs that share a scale, a multiple of 16
  bool half = false;    // scales and minima are float16, else float32
  bool minima = false;  // each group has a minimum too
};

// ---- integers -------------------------------------------------------------------------------------------------------

// An input x is q · scale for an integer |q| ≤ 8191. Where there is an int8 dot product it stands as q + 8192 = 128 ·
// high
// + low in two planes of numbers below 128. Elsewhere as a word of sixteen bits: of every quad the inputs 0 and 2 in
// the first plane, 1 and 3 in the second.
constexpr int kInputMost = 8191;
constexpr int kInputOffset = 8192;
constexpr int kPlane = 128;
constexpr int kExactQuads = 512;  // of words, the sum of whose products with int8 32 bits hold

// Quads in a tile of a layer with `n` inputs, in whole blocks of sixteen; the codes of the padding are zero.
constexpr int tile_quads(int n) { return round_up(n, 64) / 4; }

// Bytes between two rows of a plane, off powers of two as row_stride is.
constexpr int plane_stride(int n) { return round_up(n, 64) + 64; }

struct Planes {
  const std::uint8_t *high, *low;  // rows are `stride` apart
  int stride;
  int groups;          // of a row that have their own scales
  const float* scale;  // [rows][groups]
  const float* sum;    // as scale, of a group's inputs; where it is wanted

  Planes from(int row) const {
    const std::ptrdiff_t at = std::ptrdiff_t{row} * stride, group = std::ptrdiff_t{row} * groups;
    return {high + at, low + at, stride, groups, scale + group, sum + group};
  }
};

// A tile of 48 columns; codes lie as bfloat16 pairs do, but in quads.
struct Int8Tile {
  float scale[kTile];
  std::int32_t sum[kTile];  // of the column's codes
  std::int8_t codes[];      // [quads][48][4]
};

// ---- codes under group scales ---------------------------------------------------------------------------------------

// A tile lies group after group: scales [48], minima [48] if there are any, then the codes of its pair rows. Four rows
// of 8-bit codes, or eight of 4-bit ones, share a row of words [48][2], the first in the lowest bits: a vector of words
// is shifted, not taken apart. Without minima a 4-bit code stands as code + 8.
constexpr int kSignedOffset = 8;

inline int rows_a_word(const Coding& coding) { return coding.format == Format::kCodes4 ? 8 : 4; }

inline std::size_t group_bytes(const Coding& coding, int rows) {
  const std::size_t scales = kTile * (coding.half ? 2 : 4) * (coding.minima ? 2 : 1);
  return scales + std::size_t{4} * rows / rows_a_word(coding) * kTileRow;
}

inline std::size_t coded_tile_bytes(const Coding& coding, int pairs) {
  const int rows = coding.group / 2, rest = pairs % rows;
  return pairs / rows * group_bytes(coding, rows) + (rest ? group_bytes(coding, rest) : 0);
}

// All units but AMX's, which unpacks them, multiply these codes as integers too, group by group: each group of inputs
// has a scale of its own then, and in planes of bytes q = 128 · high + low for −64 ≤ high < 64. The codes have no sign
// and stand in quads, [quads][48][4]: 8-bit ones as code + 128; of 4-bit ones, with or without minima as above, two
// quads share their bytes, the first in the lower halves.
constexpr int kUnsignedOffset = 128;
constexpr int kMostGroup = 512;  // inputs, whose products' sum 32 bits hold

inline int groups_of(const Coding& coding, int n) { return (round_up(n, 32) + coding.group - 1) / coding.group; }

}  // namespace openlora
