// Bfloat16 in three quarters of its bytes, with not a bit lost.
//
// Of its sixteen bits a trained matrix's lower eight are noise, but the upper eight, the sign and most of the exponent,
// take few values: sixteen of them make up all but some ten thousandths of a tile. So a number stands as its lower byte
// and, in four bits, the place of its upper byte in a table; whatever the table lacks is listed besides.
#pragma once
#include <algorithm>

#include "layout.h"

namespace openlora {

// 128 numbers, as vectors want them. The lower bytes of numbers i and 32 + i lie side by side, then those of 64 + i and
// 96 + i; the places' bytes lie the other way round, 32 + i before i, those of the numbers from 64 on in the upper
// bits.
struct PackedGroup {
  std::uint8_t places[64];
  std::uint8_t lower[2][64];
};
constexpr int kPackedNumbers = 128;

// A number whose upper byte is not in the table.
struct Patch {
  std::uint32_t at;
  bf16 value;
};

// What comes before the groups of a stretch of numbers: its table, and after this its patches, ascending, and one more
// beyond all numbers.
struct Packed {
  std::uint8_t upper[16];
  std::uint32_t patched;

  Patch* patches() { return reinterpret_cast<Patch*>(this + 1); }
  const Patch* patches() const { return reinterpret_cast<const Patch*>(this + 1); }
  // The first one from a number on.
  const Patch* patches_from(std::uint32_t at) const {
    return std::lower_bound(patches(), patches() + patched, at,
                            [](const Patch& one, std::uint32_t it) { return one.at < it; });
  }

  PackedGroup* groups() { return reinterpret_cast<PackedGroup*>(reinterpret_cast<char*>(this) + head_bytes(patched)); }
  const PackedGroup* groups() const { return const_cast<Packed*>(this)->groups(); }

  static constexpr std::size_t head_bytes(int patched) {
    return (sizeof(Packed) + (patched + 1) * sizeof(Patch) + 63) / 64 * 64;
  }
};

// Packs `count` numbers, a multiple of 128, to a 64-byte line, and returns the bytes that they take, whole lines. It is
// 0 where the table lacks more than one number in kMostPatched: they had better stay as they are.
constexpr int kMostPatched = 64;
std::size_t pack(const bf16* numbers, int count, Packed* to);

// At most so many bytes; from 1,536 numbers on they are fewer than the numbers have.
constexpr std::size_t packed_bytes(int count) {
  return Packed::head_bytes(count / kMostPatched) + count / kPackedNumbers * sizeof(PackedGroup);
}

// Factors B of more ranks stay as they are; their ranks are multiples of 32.
constexpr int kMostPackedRanks = 256;

// How far the restoring of `count` numbers has come.
struct Restoring {
  Restoring() = default;
  Restoring(const Packed* from, int count, bf16* to)
      : packed(from), patch(from->patches()), to(to), left(count / kPackedNumbers) {}

  const Packed* packed = nullptr;
  const Patch* patch = nullptr;  // the next one
  bf16* to = nullptr;
  int done = 0, left = 0;  // groups
};

}  // namespace openlora
