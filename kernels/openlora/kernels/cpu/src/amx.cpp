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

#include "vectors.inc"

#define tile vector_tile
#define expand vector_expand
#define shrink vector_shrink
#define attention vector_attention
#include "pairs.inc"

#include "kernels.inc"
#undef tile
#undef expand
#undef shrink
#undef attention

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

void enter() { _tile_loadconfig(&kLinear); }

void leave() { _tile_release(); }

// Registers 0–2: the sums of rows 0–15; 3–5: of rows 16–31; 6: inputs; 7: weights.
template <bool kTall>
inline void products(Inputs inputs, const bf16* w, int pairs, float* out, const void* ahead) {
  constexpr int kWeightBytes = kTileRow * sizeof(bf16);
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

void tile(Inputs x, int rows, const bf16* w, int pairs, float* out, const void* ahead) {
  if (rows > 16)
    products<true>(x, w, pairs, out, ahead);
  else
    products<false>(x, w, pairs, out, ahead);
}

// ---- adapters: sixteen rows at a time ----------------------------------------------------------------------------------

constexpr int kHeight = 16;

// Registers 0–2: the sums; 6: shrunk inputs, zero beyond their ranks; 7: b, which may run on into what follows it.
void expand(float* out, const int* rows, const bf16* const* h, int count, const bf16* b, int pairs) {
  alignas(64) bf16 inputs[kHeight][2 * kDepth];
  alignas(64) float sums[kHeight][kTile];
  constexpr int kWeightBytes = kTileRow * sizeof(bf16), kOutBytes = kTile * sizeof(float);
  for (int first = 0; first < count; first += kHeight) {
    const int now = count - first < kHeight ? count - first : kHeight;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int p = 0; p < pairs; p += kDepth) {
      const __mmask16 inside = pairs - p < kDepth ? (1u << (pairs - p)) - 1 : 0xffff;
      for (int i = 0; i < now; ++i)
        _mm512_store_si512(inputs[i], _mm512_maskz_loadu_epi32(inside, h[first + i] + 2 * p));
      const bf16* columns = b + std::ptrdiff_t{p} * kTileRow;
      _tile_loadd(6, inputs, 64);
      _tile_loadd(7, columns, kWeightBytes);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, columns + 32, kWeightBytes);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, columns + 64, kWeightBytes);
      _tile_dpbf16ps(2, 6, 7);
    }
    _tile_stored(0, sums[0], kOutBytes);
    _tile_stored(1, sums[0] + 16, kOutBytes);
    _tile_stored(2, sums[0] + 32, kOutBytes);
    for (int i = 0; i < now; ++i)
      for (int column = 0; column < kTile; column += kLanes) {
        float* at = out + rows[first + i] * kTile + column;
        store(at, load<F>(at) + load<F>(sums[i] + column));
      }
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

// The other way round, since a lies as it is wanted then: ranks are the rows of the sums in registers 0–3, inputs turned
// are the columns. 4: a, which may run on into what follows it; 5: the inputs.
void shrink(bf16* const* h, const void* const* x, const float* scale, int count, const bf16* a, int ranks, int inputs) {
  constexpr int kAhead = 8;  // registers turned before the first is read, by when their stores are through
  alignas(64) std::uint32_t turned[kAhead][kDepth][kHeight] = {};
  alignas(64) float sums[4 * 16][kHeight];
  const int a_bytes = inputs * static_cast<int>(sizeof(bf16));
  for (int first = 0; first < count; first += kHeight) {
    const int now = count - first < kHeight ? count - first : kHeight;
    F factor = {};
    for (int i = 0; i < now; ++i) factor[i] = scale[first + i];
    for (int rank = 0; rank < ranks; rank += 64) {
      const int blocks = ranks - rank < 64 ? (ranks - rank + 15) / 16 : 4;
      const bf16* from = a + std::ptrdiff_t{rank} * inputs;
      const std::ptrdiff_t next = std::ptrdiff_t{16} * inputs;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < inputs; k += 2 * kDepth) {
        const int turn_of = k / (2 * kDepth) % kAhead;
        if (!turn_of)
          for (int i = 0; i < kAhead && k + i * 2 * kDepth < inputs; ++i)
            turn(x + first, k + i * 2 * kDepth, now, turned[i]);
        _tile_loadd(5, turned[turn_of], 64);
        _tile_loadd(4, from + k, a_bytes);
        _tile_dpbf16ps(0, 4, 5);
        if (blocks > 1) {
          _tile_loadd(4, from + next + k, a_bytes);
          _tile_dpbf16ps(1, 4, 5);
        }
        if (blocks > 2) {
          _tile_loadd(4, from + 2 * next + k, a_bytes);
          _tile_dpbf16ps(2, 4, 5);
        }
        if (blocks > 3) {
          _tile_loadd(4, from + 3 * next + k, a_bytes);
          _tile_dpbf16ps(3, 4, 5);
        }
      }
      _tile_stored(0, sums[0], 64);
      if (blocks > 1) _tile_stored(1, sums[16], 64);
      if (blocks > 2) _tile_stored(2, sums[32], 64);
      if (blocks > 3) _tile_stored(3, sums[48], 64);
      for (int r = 0; r < 64 && rank + r < ranks; ++r) {
        bf16 rounded[kHeight];
        store(rounded, to_bf16(load<F>(sums[r]) * factor));
        for (int i = 0; i < now; ++i) h[first + i][rank + r] = rounded[i];
      }
    }
  }
}

// ---- attention: sixteen query vectors at a time ------------------------------------------------------------------------

// scores[i][j] = q[i] · k[j]: four pages' sums in registers 0–3, queries in 4, keys in 5.
inline void scores_of_pages(const bf16* q, const bf16* const* pages, int page_count, int head_size, float* scores,
                            int width) {
  const int q_bytes = head_size * static_cast<int>(sizeof(bf16)), out_bytes = width * static_cast<int>(sizeof(float));
  for (int page = 0; page < page_count; page += 4) {
    const int count = page_count - page < 4 ? page_count - page : 4;
    for (int next = page + 4; next < page_count && next < page + 8; ++next)
      fetch(pages[next], sizeof(bf16) * kPageTokens * head_size);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int d = 0; d < head_size; d += 2 * kDepth) {
      const int at = d * kPageTokens;
      _tile_loadd(4, q + d, q_bytes);
      _tile_loadd(5, pages[page] + at, 64);
      _tile_dpbf16ps(0, 4, 5);
      if (count > 1) {
        _tile_loadd(5, pages[page + 1] + at, 64);
        _tile_dpbf16ps(1, 4, 5);
      }
      if (count > 2) {
        _tile_loadd(5, pages[page + 2] + at, 64);
        _tile_dpbf16ps(2, 4, 5);
      }
      if (count > 3) {
        _tile_loadd(5, pages[page + 3] + at, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    float* out = scores + page * kPageTokens;
    _tile_stored(0, out, out_bytes);
    if (count > 1) _tile_stored(1, out + kPageTokens, out_bytes);
    if (count > 2) _tile_stored(2, out + 2 * kPageTokens, out_bytes);
    if (count > 3) _tile_stored(3, out + 3 * kPageTokens, out_bytes);
  }
}

// out[i][0:32] = Σ_j weights[i][j] · v[j, column:column + 32], or [0:16] alone, for sums in registers 0–3.
inline void values_of_pages(const bf16* weights, int width, const bf16* const* pages, int page_count, int head_size,
                            float* out) {
  const int weight_bytes = width * static_cast<int>(sizeof(bf16)), out_bytes = head_size * static_cast<int>(sizeof(float));
  const int value_bytes = 2 * head_size * static_cast<int>(sizeof(bf16));
  for (int column = 0; column < head_size; column += 64) {
    const bool whole = head_size - column >= 64;  // else 32: head sizes are multiples of it
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int page = 0; page < page_count; ++page) {
      const bf16* values = pages[page] + kPageTokens * head_size + 2 * column;
      if (page + 2 < page_count && !column)
        fetch(pages[page + 2] + kPageTokens * head_size, sizeof(bf16) * kPageTokens * head_size);
      _tile_loadd(6, weights + page * kPageTokens, weight_bytes);
      _tile_loadd(7, values, value_bytes);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, values + 32, value_bytes);
      _tile_dpbf16ps(1, 6, 7);
      if (whole) {
        _tile_loadd(7, values + 64, value_bytes);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, values + 96, value_bytes);
        _tile_dpbf16ps(3, 6, 7);
      }
    }
    _tile_stored(0, out + column, out_bytes);
    _tile_stored(1, out + column + 16, out_bytes);
    if (whole) {
      _tile_stored(2, out + column + 32, out_bytes);
      _tile_stored(3, out + column + 48, out_bytes);
    }
  }
}

void attention(const float* const* q, void* const* out, const Span* seen, int queries, const bf16* const* pages,
               int head_size, float scale, void* scratch) {
  const int page_count = (seen[queries - 1].end + kPageTokens - 1) / kPageTokens, width = page_count * kPageTokens;
  float* scores = static_cast<float*>(scratch);
  float* sums = scores + std::ptrdiff_t{kHeight} * width;
  bf16* weights = reinterpret_cast<bf16*>(scores);
  bf16* inputs = reinterpret_cast<bf16*>(sums + kHeight * head_size);
  _tile_loadconfig(&kAttention);
  for (int first = 0; first < queries; first += kHeight) {
    const int count = queries - first < kHeight ? queries - first : kHeight;
    for (int i = 0; i < count; ++i) round(q[first + i], head_size, inputs + i * head_size);
    scores_of_pages(inputs, pages, page_count, head_size, scores, width);
    float total[kHeight];
    for (int i = 0; i < count; ++i)
      total[i] = softmax(scores + std::ptrdiff_t{i} * width, seen[first + i], width, scale * kLog2e);
    values_of_pages(weights, 2 * width, pages, page_count, head_size, sums);
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < head_size; d += kLanes)
        keep(static_cast<bf16*>(out[first + i]) + d, load<F>(sums + i * head_size + d) * (1.0f / total[i]));
  }
  _tile_loadconfig(&kLinear);
}

const Kernels kTable = {"amx", sizeof(Input), enter, leave, tile, expand, shrink, attention, rms_norm,
                        norm_head, rope, round, silu_mul, gelu_tanh_mul, add, largest, philox};

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
