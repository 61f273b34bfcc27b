// The instructions of AVX-512 BF16 and VNNI, for the units that have it.
#pragma once
#include <immintrin.h>

#include "unit.h"

namespace openlora {

typedef float F __attribute__((vector_size(64)));
typedef std::uint32_t U __attribute__((vector_size(64)));
typedef std::int32_t I __attribute__((vector_size(64)));
typedef std::uint16_t U16 __attribute__((vector_size(32)));

inline __attribute__((always_inline)) F native_dot2(F sum, U w, U x) {
  return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
}
inline __attribute__((always_inline)) U16 native_to_bf16(F x) { return (U16)_mm512_cvtneps_pbh((__m512)x); }

inline __attribute__((always_inline)) void native_store_pair(bf16* at, F x, F y) {
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
  __builtin_memcpy(at, &both, sizeof both);
}
inline __attribute__((always_inline)) I native_dot4(I sum, U w, U x) {
  return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}

}  // namespace openlora
