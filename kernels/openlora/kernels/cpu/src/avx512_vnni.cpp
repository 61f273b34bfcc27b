// AVX-512 with the int8 dot product: the products of integers, for avx512.cpp, which does all else.
#include <immintrin.h>

#include "unit.h"

namespace openlora::avx512_vnni {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 8;
constexpr int kVectors = 3;
constexpr int kChains = 4;
constexpr int kEach = 4;

#include "vectors.inc"

inline I dot4(I sum, U w, U x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "planes.inc"

#include "grouped.inc"

}  // namespace
}  // namespace openlora::avx512_vnni

void openlora::use_avx512_vnni(Kernels& table) {
  table.quantise = avx512_vnni::quantise;
  table.tile_int8 = avx512_vnni::tile_int8;
  table = avx512_vnni::with_groups(table);
}
