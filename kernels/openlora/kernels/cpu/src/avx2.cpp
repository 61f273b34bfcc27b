// AVX2 and FMA: five rows by 16 columns in ten accumulators.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx2 {
namespace {

constexpr int kBytes = 32;
constexpr int kRows = 5;
constexpr int kVectors = 1;
constexpr int kChains = 2;
constexpr int kEach = 1;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }
inline void store_pair(bf16* at, F x, F y) { emulated_store_pair(at, x, y); }

// Two products of an int8 and a number below 128 fit into sixteen bits.
inline I dot4(I sum, U w, U x) {
  __m256i codes[2], inputs[2], sums[2];
  __builtin_memcpy(codes, &w, sizeof codes);
  __builtin_memcpy(inputs, &x, sizeof inputs);
  __builtin_memcpy(sums, &sum, sizeof sums);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half)
    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(_mm256_maddubs_epi16(inputs[half], codes[half]), ones));
  __builtin_memcpy(&sum, sums, sizeof sum);
  return sum;
}

#include "vectors.inc"

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::avx2

constinit const openlora::Kernels openlora::kAvx2 = avx2::kernels("avx2", 16, 64 << 10);
