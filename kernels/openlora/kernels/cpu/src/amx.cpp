// AMX: the products of linear layers and of attention on the matrix unit, all else as with AVX-512.
//
// A weight tile's sixteen pair rows by sixteen columns are a matrix register as they lie, and so are a page's keys; its
// values are half of one. The unit adds the even and the odd products of a register apart and then both to the sum, for
// each row alone: few rows give what many give.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "avx512_bf16.h"

namespace openlora::amx {
namespace {

constexpr int kRows = 8;
constexpr int kVectors = 3;

inline F dot2(F sum, U w, U x) { return native_dot2(sum, w, x); }
inline U16 to_bf16(F x) { return native_to_bf16(x); }
inline void store_pair(bf16* at, F x, F y) { native_store_pair(at, x, y); }
inline I dot4(I sum, U w, U x) { return native_dot4(sum, w, x); }

#include "vectors.inc"

#define tile vector_tile
#define expand vector_expand
#define shrink vector_shrink
#define attention vector_attention
#define tile_int8 vector_tile_int8
#include "pairs.inc"

#include "kernels.inc"
#include "quantised.inc"
#undef tile
#undef expand
#undef shrink
#undef attention
#undef tile_int8

constexpr int kDepth = 16;  // pairs in a register

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

// As kLinear, but for 3 and 6, which have few rows.
struct Shrinking {
  Configuration of[kDepth + 1];

  constexpr Shrinking() {
    for (int rows = 1; rows <= kDepth; ++rows) of[rows].rows[3] = of[rows].rows[6] = rows;
  }
};
constexpr Shrinking kShrinking;

void enter() { _tile_loadconfig(&kLinear); }

void leave() { _tile_release(); }

void enter_attention() { _tile_loadconfig(&kAttention); }

#include "weights_amx.inc"

// Registers 0–2: the sums of rows 0–15; 3–5: of rows 16–31; 6: inputs; 7: weights.
template <bool kTall, class Weights>
inline void products(Inputs inputs, Weights&& weights, int pairs, float* out) {
  constexpr int kWeightBytes = kTileRow * sizeof(bf16), kAtOnce = kTall ? 1 : 2;
  const int input_bytes = static_cast<int>(inputs.stride);
  const bf16* x = static_cast<const bf16*>(inputs.row(0));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  if constexpr (kTall) {
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }
  const bf16* below = static_cast<const bf16*>(inputs.row(16));
  for (int p = 0; p < pairs; p += kDepth) {
    const bf16* columns = weights.next();
    _tile_loadd(7, columns, kWeightBytes);
    _tile_loadd(6, x + 2 * p, input_bytes);
    _tile_dpbf16ps(0, 6, 7);
    weights.prepare(kAtOnce);
    if constexpr (kTall) {
      _tile_loadd(6, below + 2 * p, input_bytes);
      _tile_dpbf16ps(3, 6, 7);
      weights.prepare(kAtOnce);
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(4, 6, 7);
      weights.prepare(kAtOnce);
      _tile_loadd(6, x + 2 * p, input_bytes);
      _tile_dpbf16ps(1, 6, 7);
      weights.prepare(kAtOnce);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
      weights.prepare(kAtOnce);
      _tile_loadd(6, below + 2 * p, input_bytes);
      _tile_dpbf16ps(5, 6, 7);
      weights.prepare(kAtOnce);
    } else {
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(1, 6, 7);
      weights.prepare(kAtOnce);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
      weights.prepare(kAtOnce);
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
    products<true>(x, Dense(w, pairs, meanwhile), pairs, out);
  else
    products<false>(x, Dense(w, pairs, meanwhile), pairs, out);
}

void tile_packed(Inputs x, int rows, const Packed& w, int pairs, float* out, const Meanwhile& meanwhile) {
  alignas(64) Restored::Blocks blocks;
  finish(meanwhile.finish, 0, meanwhile.finish.rows);
  if (rows > 16)
    products<true>(x, Restored(w, pairs, meanwhile.ahead, blocks), pairs, out);
  else
    products<false>(x, Restored(w, pairs, meanwhile.ahead, blocks), pairs, out);
}

// Both planes of up to 32 rows by sixteen columns. Registers 0–3: the sums of the high and the low plane of rows 0–15, then
// of rows 16–31; 4–6: inputs; 7: codes.
template <bool kTall>
inline void int8_products(const Planes& x, const std::int8_t* codes, int quads, std::int32_t (*sums)[kLanes],
                          const char* ahead) {
  constexpr int kQuadRow = 4 * kTile, kBytes = 4 * kLanes;
  const std::ptrdiff_t below = std::ptrdiff_t{16} * x.stride;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTall) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int q = 0; q < quads; q += kDepth) {
    _tile_loadd(7, codes + std::ptrdiff_t{q} * kQuadRow, kQuadRow);
    _tile_loadd(4, x.high + 4 * q, x.stride);
    _tile_dpbusd(0, 4, 7);
    _tile_loadd(5, x.low + 4 * q, x.stride);
    _tile_dpbusd(1, 5, 7);
    if (ahead) fetch(ahead + std::ptrdiff_t{q} * kBytes, kDepth * kBytes);
    if constexpr (kTall) {
      _tile_loadd(6, x.high + below + 4 * q, x.stride);
      _tile_dpbusd(2, 6, 7);
      _tile_loadd(4, x.low + below + 4 * q, x.stride);
      _tile_dpbusd(3, 4, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 16, 64);
  if constexpr (kTall) {
    _tile_stored(2, sums + 32, 64);
    _tile_stored(3, sums + 48, 64);
  }
}

void tile_int8(const Planes& x, int rows, const Int8Tile& w, int quads, float* out, const void* ahead) {
  alignas(64) std::int32_t sums[64][kLanes];
  const char* next = static_cast<const char*>(ahead);
  if (ahead) fetch(next, sizeof(Int8Tile));
  for (int column = 0; column < kTile; column += kLanes) {
    const std::int8_t* codes = w.codes + 4 * column;
    const char* after = ahead ? next + sizeof(Int8Tile) + std::ptrdiff_t{4} * column * quads : nullptr;
    if (rows > 16)
      int8_products<true>(x, codes, quads, sums, after);
    else
      int8_products<false>(x, codes, quads, sums, after);
    for (int i = 0; i < rows; ++i) {
      const std::int32_t(*high)[kLanes] = sums + i / 16 * 32 + i % 16;
      store(out + i * kTile + column, int8_result(load<I>(high), load<I>(high + 16), w, column, x.scale[i]));
    }
  }
}

// ---- adapters -------------------------------------------------------------------------------------------------------

constexpr int kHeight = 16;

// While it lives, vectors round as the matrix unit does: to the nearest, with zeros for what is subnormal.
class AsTheUnit {
 public:
  AsTheUnit() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~AsTheUnit() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
};

inline F fused(F x, F y, F sum) { return (F)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sum); }

// An addend of few rows in vectors, with the unit's numbers and order: the zeros of other rows are not worth reading.
template <int R>
inline void add_rows(float* out, const Addend& one, const bf16* b) {
  for (int p = 0; p < one.pairs; p += kDepth) {
    F even[R][kVectors] = {}, odd[R][kVectors] = {};
    const int end = one.pairs - p < kDepth ? one.pairs - p : kDepth;
    for (int i = 0; i < end; ++i, b += kTileRow) {
      U columns[kVectors];
      for (int v = 0; v < kVectors; ++v) columns[v] = load<U>(b + 2 * kLanes * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const U pair = pair_of(one.h + rank_at(2 * p) + one.rows[r] * kRanks + 2 * i);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          even[r][v] = fused(half_of(pair, 0), half_of(columns[v], 0), even[r][v]);
          odd[r][v] = fused(half_of(pair, 1), half_of(columns[v], 1), odd[r][v]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) {
        float* at = out + one.rows[r] * kTile + v * kLanes;
        store(at, load<F>(at) + (even[r][v] + odd[r][v]));
      }
  }
}

// Registers 0–2: the sums; 6: shrunk inputs, zero in other adapters' rows; 7: b, which may run on into what follows it.
inline void add_square(float* out, const Addend& one, const bf16* b) {
  constexpr int kWeightBytes = kTileRow * sizeof(bf16), kOutBytes = kTile * sizeof(float);
  _tile_loadd(0, out, kOutBytes);
  _tile_loadd(1, out + 16, kOutBytes);
  _tile_loadd(2, out + 32, kOutBytes);
  for (int p = 0; p < one.pairs; p += kDepth, b += kDepth * kTileRow) {
    _tile_loadd(6, one.h + rank_at(2 * p), 64);
    _tile_loadd(7, b, kWeightBytes);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, b + 32, kWeightBytes);
    _tile_dpbf16ps(1, 6, 7);
    _tile_loadd(7, b + 64, kWeightBytes);
    _tile_dpbf16ps(2, 6, 7);
  }
  _tile_stored(0, out, kOutBytes);
  _tile_stored(1, out + 16, kOutBytes);
  _tile_stored(2, out + 32, kOutBytes);
}

void expand(float* out, const Addend* addends, int count, int tile, const Addend* next, int next_tile) {
  const AsTheUnit rounding;
  for (int i = 0; i < count; ++i) {
    const Addend& one = addends[i];
    const bf16* b = one.b + std::ptrdiff_t{tile} * one.pairs * kTileRow;
    if (next)
      fetch(next[i].b + std::ptrdiff_t{next_tile} * next[i].pairs * kTileRow, next[i].pairs * kTileRow * sizeof(bf16));
    if (one.count == 1)
      add_rows<1>(out, one, b);
    else if (one.count == 2)
      add_rows<2>(out, one, b);
    else if (one.count)
      add_square(out, one, b);
  }
}

// Sixteen pairs of up to sixteen rows, turned: to[pair][row].
inline void turn(const void* const* x, int k, int count, std::uint32_t (*to)[kHeight]) {
  const auto at = [&](int i) { return static_cast<const bf16*>(x[i]) + k; };
  if (count <= 4) {
    for (int i = 0; i < count; ++i)
      for (int p = 0; p < kDepth; ++p) __builtin_memcpy(&to[p][i], at(i) + 2 * p, sizeof(std::uint32_t));
    return;
  }
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(at(i < count ? i : 0));
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // a[4g + i], lane block l: rows 4g…4g + 3 of pair 4l + i
    const __m512i low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), high = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    _mm512_storeu_si512(to[i], _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_storeu_si512(to[4 + i], _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_storeu_si512(to[8 + i], _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_storeu_si512(to[12 + i], _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

inline __mmask16 lanes_below(int n) { return n <= 0 ? 0 : n < 16 ? (1u << n) - 1 : 0xffff; }

// Ranks are the rows of the sums in registers 0–3, and rows the columns, since a lies as it is wanted then. 4 and, for the
// last ranks, 6: a; 5: the inputs, a pair of each row in a line. A lone row needs no turning: lines that begin a pair
// apart have its pairs in their first column, and what the others have is not looked at.
void shrink(bf16* const* h, const void* const* x, const float* weight, int count, const Stack& stack, int first,
            int ranks, int inputs, Ahead ahead) {
  constexpr int kAhead = 8;   // registers turned before the first is read, by when their stores are through
  constexpr int kAtOnce = 64;  // ranks
  alignas(64) std::uint32_t turned[kAhead][kDepth][kHeight];
  alignas(64) float sums[kAtOnce][kHeight];
  const int a_bytes = inputs * static_cast<int>(sizeof(bf16)), steps = inputs / (2 * kDepth);
  const std::ptrdiff_t below = std::ptrdiff_t{16} * inputs;
  const char* next = static_cast<const char*>(ahead.at);
  const std::size_t each = ahead.bytes / steps / ((ranks + kAtOnce - 1) / kAtOnce) / 64 * 64;
  for (int begin = first; begin < first + ranks; begin += kAtOnce) {
    const int now = first + ranks - begin < kAtOnce ? first + ranks - begin : kAtOnce;
    const int whole = (now - 1) / 16, rest = now - 16 * whole;  // whole registers, and the last one's ranks
    const bf16* a = stack.a + std::ptrdiff_t{begin} * inputs;
    if (rest < 16) _tile_loadconfig(&kShrinking.of[rest]);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; ++step, a += 2 * kDepth, next += each) {
      if (count == 1) {
        _tile_loadd(5, static_cast<const bf16*>(x[0]) + step * 2 * kDepth, sizeof(std::uint32_t));
      } else {
        if (step % kAhead == 0)
          for (int i = 0; i < kAhead && step + i < steps; ++i) turn(x, (step + i) * 2 * kDepth, count, turned[i]);
        _tile_loadd(5, turned[step % kAhead], 64);
      }
      if (whole > 0) {
        _tile_loadd(4, a, a_bytes);
        _tile_dpbf16ps(0, 4, 5);
      }
      if (whole > 1) {
        _tile_loadd(4, a + below, a_bytes);
        _tile_dpbf16ps(1, 4, 5);
      }
      if (whole > 2) {
        _tile_loadd(4, a + 2 * below, a_bytes);
        _tile_dpbf16ps(2, 4, 5);
      }
      _tile_loadd(6, a + whole * below, a_bytes);
      _tile_dpbf16ps(3, 6, 5);
      fetch(next, each);
    }
    if (whole > 0) _tile_stored(0, sums[0], 64);
    if (whole > 1) _tile_stored(1, sums[16], 64);
    if (whole > 2) _tile_stored(2, sums[32], 64);
    _tile_stored(3, sums[16 * whole], 64);
    if (rest < 16) _tile_loadconfig(&kLinear);
    const __m512i rows = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm512_set1_epi32(kHeight));
    for_matrices(stack, begin, now, [&](int matrix, int from, int until, int start, int offset) {
      const int end = until < stack.ranks[matrix] ? until : round_up(until, kRanks);  // zeros included
      for (int rank = from / 16 * 16; rank < end; rank += 16) {
        const __mmask16 before = lanes_below(from - rank), written = lanes_below(end - rank) & ~before;
        const __mmask16 known = lanes_below(until - rank) & ~before;
        const float* at = sums[0] + std::ptrdiff_t{start + rank - begin} * kHeight;
        for (int i = 0; i < count; ++i) {
          const F sum = (F)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), known, rows, at + i, sizeof(float));
          const U16 rounded = to_bf16(sum * fill(stack.scale[matrix] * weight[i]));
          _mm256_mask_storeu_epi16(h[i] + offset + rank_at(rank), written, (__m256i)rounded);
        }
      }
    });
  }
}

#include "attention_amx.inc"

const Kernels kTable = {"amx", sizeof(Input), kTall, enter, leave, enter_attention, tile, quantise, tile_int8, unpack, expand, shrink, attention,
                        rms_norm, rms_norm_, soft_cap_, rope, round, finish, largest, philox, tile_packed, restore};

bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTiles | kInt8;
  constexpr unsigned kVbmi2 = 1u << 6;  // of c
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll && (c & kVbmi2);
}

// Linux gives a process the registers when it asks.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace openlora::amx

const openlora::Kernels* openlora::amx_kernels() {
  return has_avx512_bf16() && amx::has_amx() && amx::may_use_tiles() ? &amx::kTable : nullptr;
}
