// Packing of quantised weights.
#include <algorithm>
#include <cstring>

#include "linear.h"

namespace openlora {
namespace {

struct Source {
  const std::int8_t* codes;  // [out, in]
  const Values& values;
  int out, inputs;

  int groups() const { return (inputs + values.group - 1) / values.group; }
  int code(int column, int k) const {
    return column < out && k < inputs ? codes[std::ptrdiff_t{column} * inputs + k] : 0;
  }
};

void pack_int8(const Source& from, int first, char* to) {
  Int8Tile& tile = *reinterpret_cast<Int8Tile*>(to);
  const float* scales = static_cast<const float*>(from.values.scales);
  for (int i = 0; i < kTile; ++i) {
    tile.scale[i] = first + i < from.out ? scales[first + i] : 0.0f;
    tile.sum[i] = 0;
    for (int k = 0; k < from.inputs; ++k) {
      const int code = from.code(first + i, k);
      tile.codes[std::ptrdiff_t{k / 4} * kTile * 4 + 4 * i + k % 4] = static_cast<std::int8_t>(code);
      tile.sum[i] += code;
    }
  }
}

// One number a column, of group `group`.
template <class T>
char* pack_column_numbers(const Source& from, const void* numbers, int first, int group, char* to) {
  T* row = reinterpret_cast<T*>(to);
  for (int i = 0; i < kTile && first + i < from.out; ++i)
    row[i] = static_cast<const T*>(numbers)[std::ptrdiff_t{first + i} * from.groups() + group];
  return to + kTile * sizeof(T);
}

// Codes of the pair rows from p on, as words that are shifted.
void pack_pairs(const Source& from, const Coding& coding, int first, int p, int rows, char* to) {
  const int shared = rows_a_word(coding), bits = 32 / shared;
  const int offset = coding.format == Format::kCodes4 && !coding.minima ? kSignedOffset : 0;
  std::uint32_t* words = reinterpret_cast<std::uint32_t*>(to);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < kTileRow; ++i) {
      const std::uint32_t code = from.code(first + i / 2, 2 * (p + row) + i % 2) + offset;
      words[row / shared * kTileRow + i] |= (code & ((1u << bits) - 1)) << row % shared * bits;
    }
}

// The same codes as they are multiplied.
void pack_quads(const Source& from, const Coding& coding, int first, int p, int rows, char* to) {
  const bool nibbles = coding.format == Format::kCodes4;
  const int offset = nibbles ? (coding.minima ? 0 : kSignedOffset) : kUnsignedOffset;
  for (int column = 0; column < kTile && first + column < from.out; ++column)
    for (int k = 0; k < 2 * rows && 2 * p + k < from.inputs; ++k) {
      const int quad = k / 4, code = from.code(first + column, 2 * p + k) + offset;
      to[((nibbles ? quad / 2 : quad) * kTile + column) * 4 + k % 4] |= code << (nibbles ? quad % 2 * 4 : 0);
    }
}

void pack_codes(const Source& from, const Coding& coding, bool multiplied, int first, int pairs, char* to) {
  for (int p = 0; p < pairs; p += coding.group / 2) {
    for (const void* numbers : {from.values.scales, from.values.minima}) {
      if (!numbers) continue;
      const int group = std::min(2 * p / coding.group, from.groups() - 1);
      to = coding.half ? pack_column_numbers<std::uint16_t>(from, numbers, first, group, to)
                       : pack_column_numbers<float>(from, numbers, first, group, to);
    }
    const int rows = std::min(coding.group / 2, pairs - p);
    (multiplied ? pack_quads : pack_pairs)(from, coding, first, p, rows, to);
    to += std::ptrdiff_t{4} * rows / rows_a_word(coding) * kTileRow;
  }
}

}  // namespace

Coding coding_of(const Values& values) {
  return {static_cast<Format>(values.format), values.group, values.half != 0, values.minima != nullptr};
}

void pack_quantised(const Values& values, bool multiplied, int out, int inputs, int first, char* tile) {
  const Source from{static_cast<const std::int8_t*>(values.numbers), values, out, inputs};
  const Coding coding = coding_of(values);
  if (coding.format == Format::kInt8)
    pack_int8(from, first, tile);
  else
    pack_codes(from, coding, multiplied, first, tile_pairs(inputs), tile);
}

}  // namespace openlora
