// AVX-512 and its bfloat16 dot product: eight rows by 48 columns in 24 accumulators.
#include "avx512_bf16.h"

namespace openlora::avx512_bf16 {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 8;
constexpr int kVectors = 3;
constexpr int kChains = 4;

#include "vectors.inc"

inline F dot2(F sum, U w, U x) { return native_dot2(sum, w, x); }
inline U16 to_bf16(F x) { return native_to_bf16(x); }
inline void store_pair(bf16* at, F x, F y) { native_store_pair(at, x, y); }
inline I dot4(I sum, U w, U x) { return native_dot4(sum, w, x); }

#include "pairs.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "planes.inc"

#include "grouped.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::avx512_bf16

constinit const openlora::Kernels openlora::kAvx512Bf16 =
    avx512_bf16::with_groups(avx512_bf16::kernels("avx512-bf16", 16, 24 << 10));
