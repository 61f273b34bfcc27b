// Any processor: vectors as the compiler makes them of what the baseline has.
#include "unit.h"

namespace openlora::plain {
namespace {

constexpr int kBytes = 16;
constexpr int kRows = 2;
constexpr int kVectors = 1;
constexpr int kChains = 2;
constexpr int kEach = 1;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }
inline void store_pair(bf16* at, F x, F y) { emulated_store_pair(at, x, y); }
inline I dot4(I sum, U w, U x) {
  for (int shift = 0; shift < 32; shift += 8) sum += ((I)(w << (24 - shift)) >> 24) * (I)(x >> shift & 0xffu);
  return sum;
}

#include "vectors.inc"

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::plain

constinit const openlora::Kernels openlora::kPlain = plain::kernels("plain", 16, 64 << 10);
