// AVX-512: eight rows by 48 columns in 24 accumulators, in float32.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx512 {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 8;
constexpr int kVectors = 3;
constexpr int kWordRows = 6;
constexpr int kChains = 4;
constexpr int kEach = 4;

#include "vectors.inc"

inline U words_of(U codes, int odd) {
  const __m512i bytes = (__m512i)codes;
  return (U)_mm512_srai_epi16(odd ? bytes : _mm512_slli_epi16(bytes, 8), 8);
}
inline I dot_words(I sum, U w, U x) { return sum + (I)_mm512_madd_epi16((__m512i)w, (__m512i)x); }

#include "floats.inc"

#include "packed.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "words.inc"

#include "grouped.inc"

// A packed tile's columns.
class PackedColumns {
 public:
  explicit PackedColumns(const Packed& tile) : group_(tile.groups()), patch_(tile.patches()), upper_(table(tile)) {}

  static_assert(kAcross == kTile);
  static constexpr bool kWidens = true;
  static int parts(int pairs) { return pairs / 4; }

  // Restores as it widens: three groups are four pairs.
  const bf16* next(int pairs, float* wide, Fetching& fetching) {
    constexpr int kGroups = 3, kPairs = 4;
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    float* to = wide;
    for (int p = 0; p < pairs; p += kPairs, to += kPairs * kTileRow) {
      fetching.some(1);
#pragma GCC unroll 3
      for (int g = 0; g < kGroups; ++g, ++group_)
        restore(*group_, upper_, [&](int i, __m512i numbers) {
          float* at = to + (4 * g + i) / 3 * kTileRow + (4 * g + i) % 3 * kLanes;
          _mm512_store_si512(at, _mm512_slli_epi32(numbers, 16));
          _mm512_store_si512(at + kTile, _mm512_and_si512(numbers, odd));
        });
    }
    const std::uint32_t end = at_ + pairs * kTileRow;
    for (; patch_->at < end; ++patch_) {
      const int i = patch_->at - at_;
      wide[i / kTileRow * kTileRow + i % 2 * kTile + i % kTileRow / 2] = widen(patch_->value);
    }
    at_ = end;
    return nullptr;
  }

 private:
  const PackedGroup* group_;
  const Patch* patch_;
  const __m512i upper_;
  std::uint32_t at_ = 0;
};

void tile_packed(Inputs x, int rows, const Packed& w, int pairs, float* out, const Meanwhile& meanwhile) {
  tile(x, rows, PackedColumns(w), pairs, out, meanwhile);
}

#include "table.inc"

}  // namespace
}  // namespace openlora::avx512

constinit const openlora::Kernels openlora::kAvx512 = [] {
  Kernels table = avx512::with_groups(avx512::kernels("avx512", 16, 48 << 10));
  table.tile_packed = avx512::tile_packed;
  table.restore = avx512::restore;
  return table;
}();
