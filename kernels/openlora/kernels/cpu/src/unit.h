// What every instruction set's unit begins with.
#pragma once
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace openlora {

typedef float F __attribute__((vector_size(64)));
typedef std::uint32_t U __attribute__((vector_size(64)));
typedef std::int32_t I __attribute__((vector_size(64)));
typedef std::uint16_t U16 __attribute__((vector_size(32)));

// What only some processors have an instruction for.
inline __attribute__((always_inline)) U16 emulated_to_bf16(F x) {
  const U b = (U)x;
  const U rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const U quiet = (b >> 16) | 0x40u;  // rounding must not carry a NaN into infinity
  const U nan = (U)(I)(x != x);
  return __builtin_convertvector((rounded & ~nan) | (quiet & nan), U16);
}
inline __attribute__((always_inline)) void emulated_store_pair(bf16* at, F x, F y) {
  const U16 both[2] = {emulated_to_bf16(x), emulated_to_bf16(y)};
  __builtin_memcpy(at, both, sizeof both);
}

}  // namespace openlora
