// AMX and AVX512-BF16 in other instructions, so that their units run, and are tested, on processors that have neither:
// included before all else in amx.cpp and avx512_bf16.cpp (`c++ -include`). Needs AVX-512 with VNNI and VBMI2.
//
// Sums are taken in the processor's order (Intel's Software Developer's Manual, TDPBF16PS, TDPBUSD, VDPBF16PS), but
// subnormals are not taken for zero. What the processor refuses ends the process.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace matrix_unit {

struct Tile {
  alignas(64) unsigned char at[16][64];
};

struct Unit {
  Tile tiles[8];
  std::uint16_t row_bytes[8];
  std::uint8_t rows[8];
};

inline thread_local Unit unit;

inline void configure(const void* from) {
  const unsigned char* bytes = static_cast<const unsigned char*>(from);
  if (bytes[0] != 1) __builtin_trap();
  std::memcpy(unit.row_bytes, bytes + 16, sizeof unit.row_bytes);
  std::memcpy(unit.rows, bytes + 48, sizeof unit.rows);
  std::memset(unit.tiles, 0, sizeof unit.tiles);
}

inline void release() { std::memset(&unit, 0, sizeof unit); }

inline void zero(int tile) {
  if (!unit.rows[tile]) __builtin_trap();
  std::memset(&unit.tiles[tile], 0, sizeof(Tile));
}

inline void load(int tile, const void* base, std::ptrdiff_t stride) {
  zero(tile);
  for (int row = 0; row < unit.rows[tile]; ++row)
    std::memcpy(unit.tiles[tile].at[row], static_cast<const char*>(base) + row * stride, unit.row_bytes[tile]);
}

inline void store(int tile, void* base, std::ptrdiff_t stride) {
  if (!unit.rows[tile]) __builtin_trap();
  for (int row = 0; row < unit.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(base) + row * stride, unit.tiles[tile].at[row], unit.row_bytes[tile]);
}

// As the processor asks: `left` is rows by depth, `right` depth by columns, `sums` rows by columns.
inline void check(int sums, int left, int right) {
  const Unit& u = unit;
  if (u.rows[sums] != u.rows[left] || u.row_bytes[sums] != u.row_bytes[right] || u.row_bytes[left] != 4 * u.rows[right])
    __builtin_trap();
}

inline void add_bf16(int sums, int left, int right) {
  check(sums, left, right);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int row = 0; row < unit.rows[sums]; ++row) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int pair = 0; pair < unit.rows[right]; ++pair) {
      std::uint32_t x;
      std::memcpy(&x, unit.tiles[left].at[row] + 4 * pair, 4);
      const __m512i w = _mm512_load_si512(unit.tiles[right].at[pair]);
      const __m512 x_even = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x << 16)));
      const __m512 x_odd = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x & 0xffff0000u)));
      even = _mm512_fmadd_ps(x_even, _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), even);
      odd = _mm512_fmadd_ps(x_odd, _mm512_castsi512_ps(_mm512_and_si512(w, high)), odd);
    }
    float* sum = reinterpret_cast<float*>(unit.tiles[sums].at[row]);
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(even, odd)));
  }
}

inline void add_bytes(int sums, int left, int right) {
  check(sums, left, right);
  for (int row = 0; row < unit.rows[sums]; ++row) {
    unsigned char* at = unit.tiles[sums].at[row];
    __m512i sum = _mm512_load_si512(at);
    for (int four = 0; four < unit.rows[right]; ++four) {
      int x;
      std::memcpy(&x, unit.tiles[left].at[row] + 4 * four, 4);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(x), _mm512_load_si512(unit.tiles[right].at[four]));
    }
    _mm512_store_si512(at, sum);
  }
}

inline __m512 dot2(__m512 sum, __m512i w, __m512i x) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto even = [](__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); };
  const auto odd = [high](__m512i v) { return _mm512_castsi512_ps(_mm512_and_si512(v, high)); };
  return _mm512_fmadd_ps(even(w), even(x), _mm512_fmadd_ps(odd(w), odd(x), sum));
}

inline std::uint16_t rounded(float x) {
  std::uint32_t b;
  std::memcpy(&b, &x, 4);
  if ((b & 0x7f800000u) == 0) return b >> 16 & 0x8000u;
  if ((b & 0x7fffffffu) > 0x7f800000u) return b >> 16 | 0x40u;
  return (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}

inline __m256i to_bf16(__m512 x) {
  alignas(64) float from[16];
  alignas(32) std::uint16_t to[16];
  _mm512_store_ps(from, x);
  for (int i = 0; i < 16; ++i) to[i] = rounded(from[i]);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(to));
}

inline __m512i both_to_bf16(__m512 high, __m512 low) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
}

}  // namespace matrix_unit

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig matrix_unit::configure
#define _tile_release matrix_unit::release
#define _tile_loadd matrix_unit::load
#define _tile_stored matrix_unit::store
#define _tile_zero matrix_unit::zero
#define _tile_dpbf16ps matrix_unit::add_bf16
#define _tile_dpbusd matrix_unit::add_bytes
#define _mm512_dpbf16_ps(sum, w, x) matrix_unit::dot2(sum, (__m512i)(w), (__m512i)(x))
#define _mm512_cvtneps_pbh matrix_unit::to_bf16
#define _mm512_cvtne2ps_pbh(high, low) (__m512bh) matrix_unit::both_to_bf16(high, low)
