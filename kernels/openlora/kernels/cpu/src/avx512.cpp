// AVX-512: eight rows by 48 columns in 24 accumulators, in float32.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx512 {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 8;
constexpr int kVectors = 3;
constexpr int kChains = 4;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }
inline void store_pair(bf16* at, F x, F y) { emulated_store_pair(at, x, y); }

// Two products of an int8 and a number below 128 fit into sixteen bits.
inline I dot4(I sum, U w, U x) {
  const __m512i products = _mm512_maddubs_epi16((__m512i)x, (__m512i)w);
  return sum + (I)_mm512_madd_epi16(products, _mm512_set1_epi16(1));
}

#include "vectors.inc"

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

const Kernels kTable = {"avx512", sizeof(Input), 16, 24 << 10, nothing, nothing, nothing, tile, quantise, tile_int8, unpack, expand, shrink, attention,
                        rms_norm, rms_norm_, soft_cap_, rope, round, finish, largest, philox};

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

}  // namespace
}  // namespace openlora::avx512

const openlora::Kernels* openlora::avx512_kernels() {
  static const Kernels best = [] {
    Kernels table = avx512::kTable;
    if (__builtin_cpu_supports("avx512vnni")) table.tile_int8 = avx512_vnni_tile_int8;
    return table;
  }();
  return avx512::has_avx512() ? &best : nullptr;
}
