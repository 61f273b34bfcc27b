// Bfloat16 in three quarters of its bytes, with not a bit lost.
//
// Of its sixteen bits a trained matrix's lower eight are noise, but the upper eight, the sign and most of the exponent,
// take few values: sixteen of them make up all but some ten thousandths of a tile. So a number stands as its lower byte
// and, in four bits, the place of its upper byte in a table; whatever the table lacks is listed besides.
#pragma once
#include "layout.h"

namespace openlora {

// 128 numbers, as vectors want them. The lower bytes of numbers i and 32 + i lie side by side, then those of 64 + i and
// 96 + i; the places' bytes lie the other way round, 32 + i before i, those of the numbers from 64 on in the upper bits.
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

// What comes before the groups of a stretch of numbers, and after them its patches: ascending, and one more beyond all
// numbers.
struct alignas(64) Packed {
  std::uint8_t upper[16];

  PackedGroup* groups() { return reinterpret_cast<PackedGroup*>(this + 1); }
  const PackedGroup* groups() const { return reinterpret_cast<const PackedGroup*>(this + 1); }
  Patch* patches(int numbers) { return reinterpret_cast<Patch*>(groups() + numbers / kPackedNumbers); }
  const Patch* patches(int numbers) const {
    return reinterpret_cast<const Patch*>(groups() + numbers / kPackedNumbers);
  }
};

// Packs `count` numbers, a multiple of 128, and returns the bytes that they take, a multiple of 64. It is 0 where the table
// lacks more than one number in kMostPatched: they had better stay as they are. From 1,536 numbers on, it never needs more
// room than they do.
constexpr int kMostPatched = 64;
std::size_t pack(const bf16* numbers, int count, Packed* to);

// How far the restoring of `count` numbers has come.
struct Restoring {
  Restoring() = default;
  Restoring(const Packed* from, int count, bf16* to)
      : packed(from), patch(from->patches(count)), to(to), left(count / kPackedNumbers) {}

  const Packed* packed = nullptr;
  const Patch* patch = nullptr;  // the next one
  bf16* to = nullptr;
  int done = 0, left = 0;  // groups
};

}  // namespace openlora
