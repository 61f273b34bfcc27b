// AVX2 and FMA: five rows by 16 columns in ten accumulators.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx2 {
namespace {

constexpr int kBytes = 32;
constexpr int kRows = 5;
constexpr int kVectors = 1;
constexpr int kWordRows = 4;
constexpr int kChains = 2;
constexpr int kEach = 4;

#include "vectors.inc"

inline __m256i words_of(__m256i codes, int odd) {
  return _mm256_srai_epi16(odd ? codes : _mm256_slli_epi16(codes, 8), 8);
}
inline U words_of(U codes, int odd) {
  return bits<U>(Halves{words_of((__m256i)codes.low, odd), words_of((__m256i)codes.high, odd)});
}
inline I dot_words(I sum, U w, U x) {
  return sum + bits<I>(Halves{_mm256_madd_epi16((__m256i)w.low, (__m256i)x.low),
                              _mm256_madd_epi16((__m256i)w.high, (__m256i)x.high)});
}

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "words.inc"

#include "grouped.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::avx2

constinit const openlora::Kernels openlora::kAvx2 = avx2::with_groups(avx2::kernels("avx2", 16, 64 << 10));
