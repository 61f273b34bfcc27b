// AVX-512: eight rows by 48 columns in 24 accumulators, in float32.
#include "unit.h"

namespace openlora::avx512 {
namespace {

constexpr int kRows = 8;
constexpr int kVectors = 3;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }

#include "vectors.inc"

#include "floats.inc"

#include "kernels.inc"

const Kernels kTable = {"avx512", sizeof(Input), nothing, nothing, tile, expand, shrink, attention, rms_norm,
                        norm_head, rope, round, silu_mul, gelu_tanh_mul, add, largest, philox};

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

}  // namespace
}  // namespace openlora::avx512

const openlora::Kernels* openlora::avx512_kernels() { return avx512::has_avx512() ? &avx512::kTable : nullptr; }
