// Any processor: vectors as the compiler makes them of what the baseline has.
#include "unit.h"

namespace openlora::plain {
namespace {

constexpr int kRows = 2;
constexpr int kVectors = 1;

inline U16 to_bf16(F x) { return emulated_to_bf16(x); }

#include "vectors.inc"

#include "floats.inc"

#include "kernels.inc"

const Kernels kTable = {"plain", sizeof(Input), nothing, nothing, tile, expand, shrink, attention, rms_norm,
                        norm_head, rope, round, silu_mul, gelu_tanh_mul, add, largest, philox};

}  // namespace
}  // namespace openlora::plain

const openlora::Kernels* openlora::plain_kernels() { return &plain::kTable; }
