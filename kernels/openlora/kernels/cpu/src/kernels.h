// The inner loops, one table of them for every instruction set.
//
// Every number depends on its own row alone and on a fixed order of operations: whatever else a call computes, however
// many rows it has, each result is the same, bit for bit, within one table. Products accumulate in float32.
#pragma once
#include "layout.h"
#include "packed.h"
#include "quantised.h"

namespace openlora {

// A linear layer's inputs, row by row, as its unit multiplies them: bfloat16 with its dot-product instruction, float32
// without. Kernels take single rows of them as void.
struct Inputs {
  char* at = nullptr;
  std::ptrdiff_t stride = 0;  // bytes

  void* row(int i) const { return at + i * stride; }
  Inputs from(int row) const { return {at + row * stride, stride}; }
};

// Positions from `begin` until `end`, of which a query vector sees one at least.
struct Span {
  int begin, end;
};

// What will be read soon: bytes to fetch into the second-level cache.
struct Ahead {
  const void* at = nullptr;
  std::size_t bytes = 0;
};

// An adapter's factor, dense or packed.
struct Numbers {
  const bf16* dense = nullptr;
  const Packed* packed = nullptr;
  const PackedGroup* groups = nullptr;  // its own

  // Where `count` of them lie, from one on; packed they are whole groups.
  Ahead from(std::ptrdiff_t first, std::ptrdiff_t count) const {
    if (!packed) return {dense + first, sizeof(bf16) * count};
    const PackedGroup* end = groups + (first + count) / kPackedNumbers;
    const void* at = first ? static_cast<const void*>(groups + first / kPackedNumbers) : packed;
    return {at, static_cast<std::size_t>(reinterpret_cast<const char*>(end) - static_cast<const char*>(at))};
  }

  // The first `count` of them, without what comes before packed groups.
  Ahead first(std::ptrdiff_t count) const {
    if (packed) return {groups, count / kPackedNumbers * sizeof(PackedGroup)};
    return {dense, sizeof(bf16) * count};
  }
};

// The tile of one number in each of several factors, whose tiles follow one another.
struct TileOfEach {
  const Ahead* first = nullptr;  // the first tile of each
  int count = 0, tile = 0;
  std::size_t bytes = 0;  // of all

  Ahead operator[](int i) const {
    return {static_cast<const char*>(first[i].at) + tile * first[i].bytes, first[i].bytes};
  }
};

// What becomes of a block's products, row by row of 48.
struct Finish {
  enum Kind {
    kNothing,
    kPut,      // to = x
    kAdd,      // to += x
    kSiluMul,  // to = silu(x) · y as inputs
    kGeluMul,  // as kSiluMul, with x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))) for silu(x)
  };

  Kind kind = kNothing;
  const float* x = nullptr;  // [32][48], then y
  int rows = 0;
  Inputs to;  // of the first two kinds float32
};

// What a tile's products leave time for: the block before it is finished, memory fetched, a coming tile restored by so
// many groups. All of it is done when they are.
struct Meanwhile {
  Finish finish;
  Ahead ahead;
  TileOfEach added;  // wanted when they are, and so fetched first
  Restoring* restoring = nullptr;
  int groups = 0;
};

// What one adapter adds to a matrix's tiles, for some of sixteen rows: out[i, 0:48] += Σ_r h[i, r] · b[tile][r, 0:48]
// over 2 · pairs ranks. h, as layout.h has it, is zero for the other rows, and beyond the ranks.
struct Addend {
  const void* h;             // [ranks / 32, rounded up][16][32], as inputs
  Numbers b;                 // [tiles][pairs][48][2]; packed, pairs are a multiple of 4
  int pairs;                 // 0: it adds nothing
  const std::uint8_t* rows;  // its own
  int count;
};

// An adapter's factors A for the matrices that share an input, one below the other.
struct Stack {
  // In slices of sixteen of the ranks of all, the last one filled up with zeros to a multiple of 4: [inputs /
  // 2][ranks][2], inputs being a multiple of 32.
  Numbers a;
  int matrices = 0;
  int ranks[3] = {};  // 0: the adapter leaves the matrix alone
  float scale[3] = {};

  int height() const { return ranks[0] + ranks[1] + ranks[2]; }

  // Where some ranks lie, from a sixteenth on.
  Ahead from(int first, int count, int inputs) const {
    return a.from(std::ptrdiff_t{first} * inputs, std::ptrdiff_t{a.packed ? round_up(count, 4) : count} * inputs);
  }
};

// Some of sixteen rows, to be shrunk for one adapter.
struct Shrinking {
  Inputs x;  // all sixteen
  const std::uint8_t* rows;
  const float* weights;  // of the adapter in each
  int count;
  void* h;  // as layout.h has it, as inputs: of the first matrix; the others' squares follow
};
constexpr int kMostShrinking = 4;  // that are shrunk at once

struct Kernels {
  const char* name;
  int input_bytes;    // of one input: 2 or 4
  int queries;        // that attention takes well at once
  int ahead;          // bytes that fetches of weights had better run ahead
  bool memory_bound;  // its products wait for memory, which had better be fetched while adapters are added, too

  // Brackets every thread's work of a step. A thread enters attention before a row of calls of it, and the step again
  // after.
  void (*enter)();
  void (*leave)();
  void (*enter_attention)();

  // out[m, 0:48] = Σ_k x[m, k] · tile[k, 0:48] for m < rows ≤ 32, out [32][48]. x has 32 rows to read; out's rows from
  // `rows` on are unspecified afterwards.
  void (*tile)(Inputs x, int rows, const bf16* tile, int pairs, float* out, const Meanwhile&);

  // A row as integers, see quantised.h, for n a multiple of 16; the scale is infinite or NaN if any of x is.
  void (*quantise)(const void* x, int n, std::uint8_t* high, std::uint8_t* low, float* scale);

  // As tile, of integers: out[m, 0:48] = Σ_k q[m, k] · code[k] · (scale of row m · scale of the column). Of planes of
  // bytes the sum over each plane is exact, of words that over kExactQuads; each is rounded to float32 once.
  void (*tile_int8)(const Planes& x, int rows, const Int8Tile& tile, int quads, float* out, const Meanwhile&);

  // A dense tile from a coded one: scale · code + minimum, rounded to bfloat16. It fetches as many bytes as the coded
  // tile has from `ahead`, unless that is null.
  void (*unpack)(const char* coded, const Coding& coding, int pairs, bf16* tile, const void* ahead);

  // Adds `count` addends to the tile of sixteen rows, out [16][48], one after the other. Meanwhile fetches `ahead`.
  void (*expand)(float* out, const Addend* addends, int count, int tile, Ahead ahead);

  // Shrinks `count` ≤ kMostShrinking runs of rows to the stack's ranks first:first + ranks, `first` being a multiple of
  // sixteen: h[row][r] = weight of the row · scale · Σ_k x[row][k] · a[r, k], rounded to bfloat16. A matrix's last rank
  // is followed by zeros to the end of its square. Meanwhile fetches `ahead`. Of a, 64 bytes are read beyond its end.
  void (*shrink)(const Shrinking* runs, int count, const Stack& stack, int first, int ranks, int inputs, Ahead ahead);

  // One key-value head's attention for `queries` ≤ 64 query vectors of one sequence: out[i] = softmax_j(scale · q[i] ·
  // k[j]) · v[j] over the positions of seen[i], as inputs; their ends do not fall. With a soft cap, scale · q[i] · k[j]
  // is capped first; 0: none. pages[j / 16] holds the keys and values of position j, and `scratch` is
  // attention_scratch(queries, positions in pages) bytes. The pages are followed by the first `ahead` of those that are
  // read next; what is read kPagesAhead pages later is fetched meanwhile.
  void (*attention)(const float* const* q, void* const* out, const Span* seen, int queries, const bf16* const* pages,
                    int ahead, int head_size, float scale, float soft_cap, void* scratch);

  // y = x / sqrt(mean(x²) + eps) · weight over n columns; x and weight are zero from n to the next multiple of 48.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, void* y);

  // As rms_norm, in place, in float32.
  void (*rms_norm_)(float* x, const float* weight, int n, float eps);

  // x = cap · tanh(x / cap) in place; n is a multiple of 16.
  void (*soft_cap_)(float* x, int n, float cap);

  // Rotates one head in place: (a, b) → (a·cos − b·sin, b·cos + a·sin) for its halves; cos_sin holds the cosines, then
  // the sines.
  void (*rope)(float* x, const float* cos_sin, int head_size);

  // y = x, rounded to bfloat16; n is a multiple of 16.
  void (*round)(const float* x, int n, bf16* y);

  // Does it for its rows first:end.
  void (*finish)(const Finish&, int first, int end);

  // If the largest of n values exceeds *value, puts it there, and in *index where it stands first. False if any value
  // is infinite or NaN. n is a multiple of 16.
  bool (*largest)(const float* x, int n, float* value, int* index);

  // words[i] is the first word of Philox4x32-10 with key `seed` and counter (position, first + i, 0, 0).
  void (*philox)(std::uint32_t position, std::uint64_t seed, std::uint32_t first, int count, std::uint32_t* words);

  // As tile, of weights that pack() made of a tile. Null: the unit takes none.
  void (*tile_packed)(Inputs x, int rows, const Packed& tile, int pairs, float* out, const Meanwhile&) = nullptr;

  // The next `groups` of a tile that pack() was given, as far as there are so many. Null: the unit takes none.
  void (*restore)(Restoring&, int groups) = nullptr;

  // As quantise, each group of the row under a scale of its own; `sum` is that of what a group's integers stand for.
  // Null: the unit unpacks codes under group scales.
  void (*quantise_groups)(const void* x, int n, int group, std::uint8_t* high, std::uint8_t* low, float* scale,
                          float* sum) = nullptr;

  // As tile, of such integers: out[m, 0:48] = Σ_groups scale · scale of row m · Σ_k q[m, k] · code[k] + minimum · sum
  // of row m, where the sums over a group are exact.
  void (*tile_groups)(const Planes& x, int rows, const char* tile, const Coding& coding, int inputs, float* out,
                      const Meanwhile&) = nullptr;
};

constexpr int kMaxQueries = 64;  // query vectors that attention takes at once
constexpr int kPagesAhead = 8;

inline std::size_t attention_scratch(int queries, int context, int head_size) {
  const std::size_t rows = round_up(queries, 16), width = round_up(context, kPageTokens) + head_size;
  return rows * width * (sizeof(float) + sizeof(bf16));
}

// The tables of the units. What makes them constant keeps a unit's instructions from running before they are chosen.
// A unit that the build leaves out has no table: its address is null.
extern const Kernels kPlain;
[[gnu::weak]] extern const Kernels kAmx, kAvx512Bf16, kAvx512, kAvx2;

// The one of that name; the best that the processor and the system have, if it is empty; or null.
const Kernels* choose_kernels(const char* instructions);

// Puts the products of integers into a table whose inputs are float32; for AVX-512 with its int8 dot product.
[[gnu::weak]] void use_avx512_vnni(Kernels& table);

}  // namespace openlora
