// AVX2 and FMA: bfloat16 is widened by shifts.
#include "unit.h"

namespace openlora::avx2 {
namespace {

constexpr int kRows = 4;
constexpr int kVectors = 1;

inline F dot2(F sum, U w, U x) { return emulated_dot2(sum, w, x); }
inline U16 to_bf16(F x) { return emulated_to_bf16(x); }

#include "kernels.inc"

const Kernels kTable = {"avx2", nothing, nothing, tile,     expand, shrink, attention, rms_norm,
                        rope, round,   silu_mul, add, largest, philox};

}  // namespace
}  // namespace openlora::avx2

const openlora::Kernels* openlora::avx2_kernels() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kTable : nullptr;
}
