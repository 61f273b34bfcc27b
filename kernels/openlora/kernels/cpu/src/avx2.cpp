// AVX2 and FMA: five rows by 16 columns in ten accumulators.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx2 {
namespace {

constexpr int kBytes = 32;
constexpr int kRows = 5;
constexpr int kVectors = 1;
constexpr int kChains = 2;
constexpr int kEach = 4;

#include "vectors.inc"

// Two products of an int8 and a number below 128 fit into sixteen bits.
inline __m256i dot4(__m256i sum, __m256i w, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}
inline I dot4(I sum, U w, U x) {
  return bits<I>(Halves{dot4((__m256i)sum.low, (__m256i)w.low, (__m256i)x.low),
                        dot4((__m256i)sum.high, (__m256i)w.high, (__m256i)x.high)});
}

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::avx2

constinit const openlora::Kernels openlora::kAvx2 = avx2::kernels("avx2", 16, 64 << 10);
