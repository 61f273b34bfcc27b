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
Linear lay_out(const Kernels& kernels, int inputs, std::initializer_list<Matrix> matrices, bool in_turn) {
  Linear linear;
  linear.inputs = inputs;
  linear.matrices = static_cast<int>(matrices.size());
  linear.coding = coding_of(matrices.begin()->weight);
  linear.grouped = linear.coded() && kernels.tile_groups && linear.coding.group <= kMostGroup;
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

// Puts the weights of a tile at `at`, bfloat16 packed where the unit takes that and it saves enough; returns their
// bytes. `room` is for one dense tile.
std::size_t place_tile(const Kernels& kernels, const Linear& linear, const Matrix& matrix, Linear::Tile& tile, char* at,
                       bf16* room) {
  const int first = tile.index * kTile, count = linear.pairs() * kTileRow;
  tile.weights = at;
  if (linear.coding.format != Format::kDense) {
    pack_quantised(matrix.weight, linear.grouped, matrix.out, linear.inputs, first, at);
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
    : shape(s),
      kernels(k),
      team(s.threads),
      shares(s.threads),
      embedding(w.embedding),
      norm(padded(w.norm, s.hidden_size)) {
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
      linear = lay_out(k, inputs, matrices, in_turn);
      jobs.push_back({&linear, matrices});
    };
    add(layer.qkv, hidden, {{from.q, from.q_bias, q}, {from.k, from.k_bias, kv}, {from.v, from.v_bias, kv}}, false);
    add(layer.o, q, {{from.o, from.o_bias, hidden}}, false);
    const int inner = s.intermediate_size;
    add(layer.gate_up, hidden, {{from.gate, from.gate_bias, inner}, {from.up, from.up_bias, inner}}, true);
    add(layer.down, inner, {{from.down, from.down_bias, hidden}}, false);
  }
  head = lay_out(k, hidden, {{w.head, nullptr, s.vocab_size}}, false);
  jobs.push_back({&head, {{w.head, nullptr, s.vocab_size}}});

  arenas.resize(s.threads);
  scratch.resize(s.threads);
  unpacked.resize(s.threads);
  std::size_t unpacked_bytes = 0;
  for (const Job& job : jobs) {
    if (job.linear->integers())
      most_groups = std::max(most_groups, job.linear->groups());
    else
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
  cache = Memory(sizeof(bf16) * page_numbers() * page_parts() * s.pages);
}

}  // namespace openlora
