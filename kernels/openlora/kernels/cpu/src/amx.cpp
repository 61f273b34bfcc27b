// AMX: the products of linear layers and of attention on the matrix unit, all else as with AVX-512.
//
// A weight tile's sixteen pair rows by sixteen columns are a matrix register as they lie, and so are a page's keys; its
// values are half of one. The unit adds the even and the odd products of a register apart and then both to the sum, for
// each row alone: few rows give what many give.
#include "avx512_bf16.h"

namespace openlora::amx {
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

#define tile vector_tile
#define expand vector_expand
#define shrink vector_shrink
#define attention vector_attention
#define tile_int8 vector_tile_int8
#include "pairs.inc"

#include "packed.inc"

#include "kernels.inc"
#include "quantised.inc"

#include "planes.inc"
#undef tile
#undef expand
#undef shrink
#undef attention
#undef tile_int8

constexpr int kDepth = 16;   // pairs in a register
constexpr int kHeight = 16;  // rows

struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Static: gcc takes the instruction to read eight bytes, and drops the stores to the others.
constexpr Configuration kLinear;
constexpr Configuration kAttention = {
    .row_bytes = {64, 64, 64, 64, 64, 64, 32, 64},  // 6: sixteen rows of weights for a page's eight pairs of tokens
    .rows = {16, 16, 16, 16, 16, 16, 16, 8},        // 7: their values
};

void enter() { _tile_loadconfig(&kLinear); }

void leave() { _tile_release(); }

void enter_attention() { _tile_loadconfig(&kAttention); }

#include "weights_amx.inc"

// Registers 0–2: the sums of rows 0–15; 3–5: of rows 16–31; 6: inputs; 7: weights.
template <bool kTall, class Weights>
inline void products(Inputs inputs, Weights&& weights, int pairs, float* out, const Finish& before) {
  constexpr int kWeightBytes = kTileRow * sizeof(bf16);
  const std::ptrdiff_t input_bytes = inputs.stride;
  const char* x = inputs.at;
  const char* below = x + 16 * input_bytes;
  Finishing finishing(before, pairs / kDepth);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  if constexpr (kTall) {
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }
  for (int p = 0; p < pairs; p += kDepth, x += 64, below += 64) {
    const bf16* columns = weights.next();
    const char* coming = x + 64;  // of the next block, into the first-level cache
    const auto fetch_inputs = [&](int rows) {
      for (int i = 0; i < rows; ++i, coming += input_bytes) __builtin_prefetch(coming, 0, 3);
    };
    _tile_loadd(7, columns, kWeightBytes);
    _tile_loadd(6, x, input_bytes);
    _tile_dpbf16ps(0, 6, 7);
    finishing.some();
    if constexpr (kTall) {
      weights.template prepare<0, 1>();
      fetch_inputs(6);
      _tile_loadd(6, below, input_bytes);
      _tile_dpbf16ps(3, 6, 7);
      weights.template prepare<1, 1>();
      fetch_inputs(6);
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(4, 6, 7);
      weights.template prepare<2, 1>();
      fetch_inputs(5);
      _tile_loadd(6, x, input_bytes);
      _tile_dpbf16ps(1, 6, 7);
      weights.template prepare<3, 1>();
      fetch_inputs(5);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
      weights.template prepare<4, 1>();
      fetch_inputs(5);
      _tile_loadd(6, below, input_bytes);
      _tile_dpbf16ps(5, 6, 7);
      weights.template prepare<5, 1>();
      fetch_inputs(5);
    } else {
      weights.template prepare<0, 2>();
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(1, 6, 7);
      weights.template prepare<2, 2>();
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
      weights.template prepare<4, 2>();
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

void tile(Inputs x, int rows, const bf16* w, int pairs, float* out, const Meanwhile& meanwhile) {
  if (rows > 16)
    products<true>(x, Dense(w, pairs, meanwhile), pairs, out, meanwhile.finish);
  else
    products<false>(x, Dense(w, pairs, meanwhile), pairs, out, meanwhile.finish);
}

void tile_packed(Inputs x, int rows, const Packed& w, int pairs, float* out, const Meanwhile& meanwhile) {
  alignas(64) Restored::Blocks blocks;
  if (rows > 16)
    products<true>(x, Restored(w, pairs, meanwhile, blocks), pairs, out, meanwhile.finish);
  else
    products<false>(x, Restored(w, pairs, meanwhile, blocks), pairs, out, meanwhile.finish);
}

// Both planes of sixteen rows by kColumns times sixteen columns. Registers 0–2: the sums of the high plane; 3–5: of the
// low one; 6: inputs; 7: codes.
template <int kColumns>
inline __attribute__((always_inline)) void int8_products(const Planes& x, int first, const std::int8_t* codes,
                                                         int quads, std::int32_t (*sums)[kHeight][kLanes],
                                                         Fetching& fetching, Finishing& finishing) {
  constexpr int kQuadRow = 4 * kTile, kQuadLanes = 4 * kLanes;
  const std::ptrdiff_t begin = std::ptrdiff_t{first} * x.stride;
  const std::uint8_t *high = x.high + begin, *low = x.low + begin;
  const auto fetch_inputs = [&](const std::uint8_t* plane) {  // of the next block
    for (int i = 0; i < kHeight; ++i) __builtin_prefetch(plane + 64 + i * x.stride, 0, 3);
  };
  _tile_zero(0);
  _tile_zero(3);
  if constexpr (kColumns == 3) {
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(4);
    _tile_zero(5);
  }
  for (int q = 0; q < quads; q += kDepth, codes += kDepth * kQuadRow, high += 64, low += 64) {
    _tile_loadd(7, codes, kQuadRow);
    _tile_loadd(6, high, x.stride);
    _tile_dpbusd(0, 6, 7);
    fetching.some(1);
    _tile_loadd(6, low, x.stride);
    _tile_dpbusd(3, 6, 7);
    finishing.some();
    if constexpr (kColumns == 3) {
      _tile_loadd(7, codes + kQuadLanes, kQuadRow);
      _tile_dpbusd(4, 6, 7);
      fetching.some(1);
      fetch_inputs(high);
      _tile_loadd(6, high, x.stride);
      _tile_dpbusd(1, 6, 7);
      _tile_loadd(7, codes + 2 * kQuadLanes, kQuadRow);
      _tile_dpbusd(2, 6, 7);
      fetching.some(1);
      fetch_inputs(low);
      _tile_loadd(6, low, x.stride);
      _tile_dpbusd(5, 6, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(3, sums[kColumns], 64);
  if constexpr (kColumns == 3) {
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(4, sums[4], 64);
    _tile_stored(5, sums[5], 64);
  }
}

// Many or long rows come from the second-level cache, and go by once for all columns; others stay in the first, and one
// pass's sums are on their way out while the next one computes.
template <int kColumns>
inline void tile_int8(const Planes& x, int rows, const Int8Tile& w, int quads, float* out, const Meanwhile& meanwhile) {
  alignas(64) std::int32_t sums[2 * kColumns][kHeight][kLanes];
  const int halves = (rows + kHeight - 1) / kHeight, blocks = quads / kDepth * halves * (kVectors / kColumns);
  Fetching fetching(meanwhile, blocks * kColumns);
  Finishing finishing(meanwhile.finish, blocks);
  for (int first = 0; first < rows; first += kHeight)
    for (int column = 0; column < kTile; column += kColumns * kLanes) {
      int8_products<kColumns>(x, first, w.codes + 4 * column, quads, sums, fetching, finishing);
      for (int i = 0; i < kHeight && first + i < rows; ++i)
        for (int v = 0; v < kColumns; ++v) {
          const int at = column + v * kLanes;
          store(out + (first + i) * kTile + at,
                int8_result(load<I>(sums[v][i]), load<I>(sums[kColumns + v][i]), w, at, x.scale[first + i]));
        }
    }
}

void tile_int8(const Planes& x, int rows, const Int8Tile& w, int quads, float* out, const Meanwhile& meanwhile) {
  constexpr int kLong = 256;  // quads
  if (rows > kHeight || quads >= kLong)
    tile_int8<3>(x, rows, w, quads, out, meanwhile);
  else
    tile_int8<1>(x, rows, w, quads, out, meanwhile);
}

#include "adapters_amx.inc"

#include "attention_amx.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::amx

constinit const openlora::Kernels openlora::kAmx = [] {
  using namespace amx;
  Kernels table = kernels("amx", kTall, 24 << 10);
  table.memory_bound = true;
  table.enter = enter;
  table.leave = leave;
  table.enter_attention = enter_attention;
  table.tile_packed = tile_packed;
  table.restore = restore;
  return table;
}();
