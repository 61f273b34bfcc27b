// AVX2 and FMA: five rows by 16 columns in ten accumulators.
#include "unit.h"

namespace openlora::avx2 {
namespace {

constexpr int kRows = 5;
constexpr int kVectors = 1;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }

#include "vectors.inc"

#include "floats.inc"

#include "kernels.inc"

const Kernels kTable = {"avx2", sizeof(Input), nothing, nothing, tile, expand, shrink, attention, rms_norm,
                        norm_head, rope, round, silu_mul, gelu_tanh_mul, add, largest, philox};

}  // namespace
}  // namespace openlora::avx2

const openlora::Kernels* openlora::avx2_kernels() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kTable : nullptr;
}
