// Packing of bfloat16.
#include "packed.h"

#include <numeric>

namespace openlora {
namespace {

constexpr int kUppers = 256, kPlaces = 16;

// Gives the most frequent upper bytes their places, and all others kPlaces; returns how many numbers have these.
int choose_places(const bf16* numbers, int count, std::uint8_t (&upper)[kPlaces], std::uint8_t (&place)[kUppers]) {
  int uses[kUppers] = {}, by_use[kUppers];
  for (int i = 0; i < count; ++i) ++uses[numbers[i] >> 8];
  std::iota(by_use, by_use + kUppers, 0);
  std::partial_sort(by_use, by_use + kPlaces, by_use + kUppers, [&](int a, int b) { return uses[a] > uses[b]; });
  std::fill(place, place + kUppers, kPlaces);
  for (int i = 0; i < kPlaces; ++i) {
    upper[i] = static_cast<std::uint8_t>(by_use[i]);
    place[by_use[i]] = static_cast<std::uint8_t>(i);
    count -= uses[by_use[i]];
  }
  return count;
}

void pack_group(const bf16* numbers, const std::uint8_t* places, PackedGroup& to) {
  constexpr int kHalf = kPackedNumbers / 2, kQuarter = kPackedNumbers / 4;
  for (int i = 0; i < kQuarter; ++i) {
    for (int half = 0; half < 2; ++half) {
      to.lower[half][2 * i] = static_cast<std::uint8_t>(numbers[half * kHalf + i]);
      to.lower[half][2 * i + 1] = static_cast<std::uint8_t>(numbers[half * kHalf + kQuarter + i]);
    }
    to.places[2 * i] = static_cast<std::uint8_t>(places[kQuarter + i] | places[kHalf + kQuarter + i] << 4);
    to.places[2 * i + 1] = static_cast<std::uint8_t>(places[i] | places[kHalf + i] << 4);
  }
}

}  // namespace

std::size_t pack(const bf16* numbers, int count, Packed* to) {
  std::uint8_t upper[kPlaces], place[kUppers];
  const int patched = choose_places(numbers, count, upper, place);
  if (patched > count / kMostPatched) return 0;
  std::copy(upper, upper + kPlaces, to->upper);
  to->patched = patched;
  Patch* patch = to->patches();
  for (int at = 0; at < count; at += kPackedNumbers) {
    std::uint8_t places[kPackedNumbers];
    for (int i = 0; i < kPackedNumbers; ++i) {
      const bf16 value = numbers[at + i];
      places[i] = place[value >> 8] % kPlaces;
      if (place[value >> 8] == kPlaces) *patch++ = {static_cast<std::uint32_t>(at + i), value};
    }
    pack_group(numbers + at, places, to->groups()[at / kPackedNumbers]);
  }
  *patch = {static_cast<std::uint32_t>(count), 0};
  return Packed::head_bytes(patched) + count / kPackedNumbers * sizeof(PackedGroup);
}

}  // namespace openlora
