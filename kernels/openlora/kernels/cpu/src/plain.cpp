// Any processor: vectors as the compiler makes them of what the baseline has.
#include "unit.h"

namespace openlora::plain {
namespace {

constexpr int kBytes = 16;
constexpr int kRows = 2;
constexpr int kVectors = 1;
constexpr int kChains = 2;
constexpr int kEach = 1;

#include "vectors.inc"

inline I dot4(I sum, U w, U x) {
  for (int shift = 0; shift < 32; shift += 8) sum += (bits<I>(w << (24 - shift)) >> 24) * bits<I>(x >> shift & 0xffu);
  return sum;
}

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::plain

constinit const openlora::Kernels openlora::kPlain = plain::kernels("plain", 16, 64 << 10);
