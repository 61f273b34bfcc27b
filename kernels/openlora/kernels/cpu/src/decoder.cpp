// Packing: what happens once, when a model or an adapter is loaded.
#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

namespace openlora {
namespace {

constexpr std::size_t kPrefetchSlack = 1 << 20;  // beyond the last tile, for fetches that run ahead

std::vector<float> padded(const float* values, int n) {
  std::vector<float> result(round_up(n, kTile), 0.0f);
  std::memcpy(result.data(), values, sizeof(float) * n);
  return result;
}

// The tiles in their order, with weights still to be packed, and the biases.
Linear lay_out(int inputs, std::initializer_list<Matrix> matrices, bool in_turn) {
  Linear linear;
  linear.inputs = inputs;
  linear.matrices = static_cast<int>(matrices.size());
  linear.coding = coding_of(matrices.begin()->weight);
  linear.unit = in_turn ? static_cast<int>(matrices.size()) : 1;
  int part = 0;
  bool biased = false;
  for (const Matrix& matrix : matrices) {
    const int count = tiles_of(matrix.out);
    for (int i = 0; i < count; ++i) {
      const auto at = in_turn ? linear.tiles.begin() + i * (part + 1) + part : linear.tiles.end();
      linear.tiles.insert(at, {part, i});
    }
    biased |= matrix.bias != nullptr;
    ++part;
  }
  if (!biased) return linear;
  linear.bias.assign(linear.tiles.size() * kTile, 0.0f);
  for (std::size_t t = 0; t < linear.tiles.size(); ++t) {
    const Matrix& matrix = matrices.begin()[linear.tiles[t].part];
    const int first = linear.tiles[t].index * kTile;
    for (int i = 0; matrix.bias && i < kTile && first + i < matrix.out; ++i)
      linear.bias[t * kTile + i] = matrix.bias[first + i];
  }
  return linear;
}

// Puts the weights of a tile at `at`, bfloat16 packed where the unit takes that and it saves enough; returns their bytes.
// `room` is for one dense tile.
std::size_t place_tile(const Kernels& kernels, const Linear& linear, const Matrix& matrix, Linear::Tile& tile, char* at,
                       bf16* room) {
  const int first = tile.index * kTile, count = linear.pairs() * kTileRow;
  tile.weights = at;
  if (linear.coding.format != Format::kDense) {
    pack_quantised(matrix.weight, matrix.out, linear.inputs, first, at);
    return linear.tile_bytes();
  }
  const bf16* numbers = static_cast<const bf16*>(matrix.weight.numbers);
  if (kernels.tile_packed) {
    std::fill_n(room, count, 0);
    pack_tile(numbers, matrix.out, linear.inputs, first, room);
    const std::size_t bytes = pack(room, count, reinterpret_cast<Packed*>(at));
    tile.packed = bytes != 0;
    if (tile.packed) return bytes;
  }
  pack_tile(numbers, matrix.out, linear.inputs, first, reinterpret_cast<bf16*>(at));
  return linear.tile_bytes();
}

}  // namespace

Decoder::Decoder(const Shape& s, const Weights& w, const Kernels& k)
    : shape(s), kernels(k), team(s.threads), embedding(w.embedding), norm(padded(w.norm, s.hidden_size)) {
  rope.assign(w.rope, w.rope + std::size_t{1} * s.max_positions * s.head_size);
  const int q = s.heads * s.head_size, kv = s.kv_heads * s.head_size, hidden = s.hidden_size;

  struct Job {
    Linear* linear;
    std::vector<Matrix> matrices;
  };
  std::vector<Job> jobs;
  layers.resize(s.layers);
  for (int i = 0; i < s.layers; ++i) {
    const LayerWeights& from = w.layers[i];
    Layer& layer = layers[i];
    layer.attention_norm = padded(from.attention_norm, hidden);
    layer.mlp_norm = padded(from.mlp_norm, hidden);
    if (from.q_norm) layer.q_norm = padded(from.q_norm, s.head_size);
    if (from.k_norm) layer.k_norm = padded(from.k_norm, s.head_size);
    if (from.post_attention_norm) layer.post_attention_norm = padded(from.post_attention_norm, hidden);
    if (from.post_mlp_norm) layer.post_mlp_norm = padded(from.post_mlp_norm, hidden);
    layer.window = from.window ? from.window : s.max_positions;
    const auto add = [&](Linear& linear, int inputs, std::initializer_list<Matrix> matrices, bool in_turn) {
      linear = lay_out(inputs, matrices, in_turn);
      jobs.push_back({&linear, matrices});
    };
    add(layer.qkv, hidden, {{from.q, from.q_bias, q}, {from.k, from.k_bias, kv}, {from.v, from.v_bias, kv}}, false);
    add(layer.o, q, {{from.o, from.o_bias, hidden}}, false);
    const int inner = s.intermediate_size;
    add(layer.gate_up, hidden, {{from.gate, from.gate_bias, inner}, {from.up, from.up_bias, inner}}, true);
    add(layer.down, inner, {{from.down, from.down_bias, hidden}}, false);
  }
  head = lay_out(hidden, {{w.head, nullptr, s.vocab_size}}, false);
  jobs.push_back({&head, {{w.head, nullptr, s.vocab_size}}});

  arenas.resize(s.threads);
  scratch.resize(s.threads);
  unpacked.resize(s.threads);
  std::size_t unpacked_bytes = 0;
  for (const Job& job : jobs) {
    integers |= job.linear->integers();
    if (!job.linear->integers())
      unpacked_bytes = std::max(unpacked_bytes, job.linear->dense_tile_bytes() * job.linear->unit);
  }
  for (int member = 0; member < s.threads; ++member) {
    std::size_t bytes = 0;  // at most: what packing saves is never touched
    for (const Job& job : jobs) {
      const auto mine = team.share(job.linear->units(), member);
      bytes += job.linear->tile_bytes() * (mine.end - mine.begin) * job.linear->unit;
    }
    arenas[member] = Memory(bytes + kPrefetchSlack);
    unpacked[member] = Memory(2 * unpacked_bytes);
  }
  team.run([&](int member) {
    char* at = arenas[member].as<char>();
    for (const Job& job : jobs) {
      const auto mine = team.share(job.linear->units(), member);
      for (int t = mine.begin * job.linear->unit; t < mine.end * job.linear->unit; ++t) {
        Linear::Tile& tile = job.linear->tiles[t];
        tile.bytes = place_tile(kernels, *job.linear, job.matrices[tile.part], tile, at, unpacked[member].as<bf16>());
        at += tile.bytes;
      }
    }
  });
  cache = Memory(sizeof(bf16) * page_numbers() * s.pages * s.layers * s.kv_heads);
}

void Decoder::load_adapter(int slot, const Factor* factors, int count) {
  const int q = shape.heads * shape.head_size, kv = shape.kv_heads * shape.head_size;
  const int hidden = shape.hidden_size, inner = shape.intermediate_size;
  const int ins[] = {hidden, hidden, hidden, q, hidden, hidden, inner, hidden};
  const int outs[] = {q, kv, kv, hidden, inner, inner, hidden, shape.vocab_size};
  const auto lines = [](std::size_t numbers) { return (numbers + 31) / 32 * 32; };

  auto adapter = std::make_unique<Adapter>();
  adapter->loras.resize(shape.layers * kParts + 1);
  adapter->stacks.resize(shape.layers * kInputs + 1);
  std::vector<const Factor*> by_place(adapter->loras.size(), nullptr);
  std::size_t numbers = 0;
  for (int i = 0; i < count; ++i) {
    const Factor& factor = factors[i];
    const int part = factor.layer < 0 ? kParts : factor.part;
    by_place[factor.layer < 0 ? by_place.size() - 1 : factor.layer * kParts + part] = &factor;
    const std::size_t ranks = round_up(factor.rank, 2);
    numbers += lines(ranks * round_up(ins[part], 32)) + lines(ranks / 2 * tiles_of(outs[part]) * kTileRow);
  }
  const int widest = round_up(std::max({hidden, q, inner}), 32);
  adapter->memory = Memory(sizeof(bf16) * (numbers + 16 * std::max(widest, kTileRow)));  // see Kernels: reads run on
  bf16* at = adapter->memory.as<bf16>();
  // In the order in which a step reads them: the factors A for one input, then the factors B.
  const auto pack = [&](int first, int matrices, Stack& stack) {
    const int part = first % kParts;  // the head is alone, whatever part it counts as
    const bool head = first == shape.layers * kParts;
    const int in = head ? hidden : ins[part], wide = round_up(in, 32);
    stack.a = at;
    stack.matrices = matrices;
    for (int i = 0, offset = 0; i < matrices; ++i) {
      const Factor* factor = by_place[first + i];
      if (!factor) continue;
      const int ranks = round_up(factor->rank, 2);
      stack.ranks[i] = adapter->loras[first + i].ranks = ranks;
      stack.scale[i] = factor->scale;
      adapter->loras[first + i].offset = offset;
      offset += round_up(ranks, kRanks) * kHalf;
      adapter->h_numbers = std::max<std::size_t>(adapter->h_numbers, offset);
      for (int r = 0; r < factor->rank; ++r)
        std::memcpy(at + std::ptrdiff_t{r} * wide, factor->a + std::ptrdiff_t{r} * in, sizeof(bf16) * in);
      at += std::ptrdiff_t{ranks} * wide;
    }
    for (int i = 0; i < matrices; ++i) {
      const Factor* factor = by_place[first + i];
      if (!factor) continue;
      const int out = head ? shape.vocab_size : outs[part + i], pairs = round_up(factor->rank, 2) / 2;
      adapter->loras[first + i].b = at;
      for (int t = 0; t < tiles_of(out); ++t)
        pack_tile(factor->b, out, factor->rank, t * kTile, at + std::ptrdiff_t{t} * pairs * kTileRow);
      at += lines(std::size_t{1} * pairs * tiles_of(out) * kTileRow);
    }
  };
  for (int layer = 0; layer < shape.layers; ++layer) {
    Stack* stacks = &adapter->stacks[layer * kInputs];
    pack(layer * kParts + kQ, 3, stacks[kForQkv]);
    pack(layer * kParts + kO, 1, stacks[kForO]);
    pack(layer * kParts + kGate, 2, stacks[kForGateUp]);
    pack(layer * kParts + kDown, 1, stacks[kForDown]);
  }
  pack(shape.layers * kParts, 1, adapter->stacks.back());
  if (slot >= static_cast<int>(adapters.size())) adapters.resize(slot + 1);
  adapters[slot] = std::move(adapter);
}

const Kernels* choose_kernels(const char* instructions) {
  const Kernels* found[] = {
#if defined(__x86_64__)
      // AMD's processors have twice as many bfloat16 products as float32 ones, Intel's half as many.
      amx_kernels(), __builtin_cpu_is("amd") ? avx512_bf16_kernels() : nullptr, avx512_kernels(), avx512_bf16_kernels(),
      avx2_kernels(),
#endif
      plain_kernels()};
  for (const Kernels* one : found)
    if (one && (!*instructions || !std::strcmp(instructions, one->name))) return one;
  return nullptr;
}

}  // namespace openlora
