// AMX: the products of a linear layer's tile on the matrix unit, all else as with AVX-512.
//
// A weight tile's sixteen pair rows by sixteen columns are a matrix register as they lie. The unit adds the even and the
// odd products of a register apart and then both to the sum, for each row alone: few rows give what many give.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "avx512.h"

namespace openlora::amx {
namespace {

constexpr int kRows = 8;
constexpr int kVectors = 3;

inline F dot2(F sum, U w, U x) { return native_dot2(sum, w, x); }
inline U16 to_bf16(F x) { return native_to_bf16(x); }

#define tile vector_tile
#include "kernels.inc"
#undef tile

constexpr int kDepth = 16;  // pairs in a register

struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Static: gcc takes the instruction to read eight bytes, and drops the stores to the others.
constexpr Configuration kConfiguration;

void enter() { _tile_loadconfig(&kConfiguration); }

void leave() { _tile_release(); }

// Registers 0–2: the sums of rows 0–15; 3–5: of rows 16–31; 6: inputs; 7: weights.
template <bool kTall>
inline void products(const bf16* x, int stride, const bf16* w, int pairs, float* out, const void* ahead) {
  constexpr int kWeightBytes = kTileRow * sizeof(bf16);
  const int input_bytes = stride * static_cast<int>(sizeof(bf16));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  if constexpr (kTall) {
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }
  const bf16* below = x + std::ptrdiff_t{16} * stride;
  for (int p = 0; p < pairs; p += kDepth) {
    const bf16* columns = w + std::ptrdiff_t{p} * kTileRow;
    const char* next = static_cast<const char*>(ahead) + std::ptrdiff_t{p} * kWeightBytes;
    _tile_loadd(7, columns, kWeightBytes);
    _tile_loadd(6, x + 2 * p, input_bytes);
    _tile_dpbf16ps(0, 6, 7);
    if (ahead) fetch(next, kDepth * kWeightBytes / 2);
    if constexpr (kTall) {
      _tile_loadd(6, below + 2 * p, input_bytes);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(6, x + 2 * p, input_bytes);
      _tile_dpbf16ps(1, 6, 7);
      if (ahead) fetch(next + kDepth * kWeightBytes / 2, kDepth * kWeightBytes / 2);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(6, below + 2 * p, input_bytes);
      _tile_dpbf16ps(5, 6, 7);
    } else {
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(1, 6, 7);
      if (ahead) fetch(next + kDepth * kWeightBytes / 2, kDepth * kWeightBytes / 2);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
    }
  }
  constexpr int kOutBytes = kTile * sizeof(float);
  _tile_stored(0, out, kOutBytes);
  _tile_stored(1, out + 16, kOutBytes);
  _tile_stored(2, out + 32, kOutBytes);
  if constexpr (kTall) {
    _tile_stored(3, out + 16 * kTile, kOutBytes);
    _tile_stored(4, out + 16 * kTile + 16, kOutBytes);
    _tile_stored(5, out + 16 * kTile + 32, kOutBytes);
  }
}

void tile(const bf16* x, int stride, int rows, const bf16* w, int pairs, float* out, const void* ahead) {
  if (rows > 16)
    products<true>(x, stride, w, pairs, out, ahead);
  else
    products<false>(x, stride, w, pairs, out, ahead);
}

const Kernels kTable = {"amx", enter, leave,    tile, expand, shrink, attention, rms_norm,
                        rope,  round, silu_mul, add,  largest, philox};

bool has_amx_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}

// Linux gives a process the registers when it asks.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace openlora::amx

const openlora::Kernels* openlora::amx_kernels() {
  return has_avx512_bf16() && amx::has_amx_bf16() && amx::may_use_tiles() ? &amx::kTable : nullptr;
}
