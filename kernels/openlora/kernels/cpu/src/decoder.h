// A Llama-style decoder: weights, cache, adapters, and one call a step.
#pragma once
#include <memory>
#include <vector>

#include "api.h"
#include "kernels.h"
#include "linear.h"
#include "shares.h"

namespace openlora {

constexpr int kHead = -1, kEmbedding = -2;  // "layers" that adapters name

enum Part { kQ, kK, kV, kO, kGate, kUp, kDown, kParts };
enum Input { kForQkv, kForO, kForGateUp, kForDown, kInputs };

struct Layer {
  std::vector<float> attention_norm, mlp_norm;
  std::vector<float> q_norm, k_norm, post_attention_norm, post_mlp_norm;  // empty where there is none
  int window;                                                             // positions that a row sees
  Linear qkv, o, gate_up, down;
};

struct Adapter {
  std::vector<Memory> memory;
  std::vector<Lora> loras;    // [layers · kParts + 1], the head last
  std::vector<Stack> stacks;  // [layers · kInputs + 1]
  std::size_t h_numbers = 0;  // of a half block's shrunk inputs, for the matrices that share an input
};

struct Alterations;

struct Decoder {
  Decoder(const Shape&, const Weights&, const Kernels&);

  Shape shape;
  const Kernels& kernels;
  Team team;
  Shares shares;
  const bf16* embedding;
  std::vector<float> rope;
  std::vector<float> norm;
  std::vector<Layer> layers;
  Linear head;
  int most_groups = 0;         // of a layer's inputs as integers; 0: no layer multiplies integers
  std::vector<Memory> arenas;  // a thread each: its tiles in the order in which it reads them
  // [pages][layers][key-value heads][page]: what is touched for the first time lies together, and no pass waits for
  // more than a few large pages to be cleared.
  Memory cache;
  std::vector<std::unique_ptr<Adapter>> adapters;               // by slot
  std::vector<std::shared_ptr<const Alterations>> alterations;  // by slot; null: none

  // Buffers that grow to the largest step.
  Memory residual, added, normed, projected, attended, activated, shrunk, outputs, output_shrunk, logits;
  Memory planes, input_scales;   // see quantised.h; empty unless a layer multiplies integers
  std::vector<Memory> scratch;   // a thread each
  std::vector<Memory> unpacked;  // a thread each: the tiles of two units, where they have to be unpacked

  std::size_t page_numbers() const { return std::size_t{2} * kPageTokens * shape.head_size; }
  // An odd number, so that one layer's and head's part of all pages is not in the same few sets of a core's caches.
  std::size_t page_parts() const { return std::size_t{1} * shape.layers * shape.kv_heads | 1; }
  bf16* page(int layer, int page, int kv_head) const {
    const std::size_t part = std::size_t{1} * layer * shape.kv_heads + kv_head;
    return cache.as<bf16>() + (page * page_parts() + part) * page_numbers();
  }
  const Stack& stack(int slot, int layer, int input) const {
    const Adapter* adapter = adapters[slot].get();
    return layer < 0 ? adapter->stacks.back() : adapter->stacks[layer * kInputs + input];
  }
  const Lora* lora(int slot, int layer, int part) const {
    const Adapter* adapter = adapters[slot].get();
    const Lora& found = adapter->loras[layer < 0 ? adapter->loras.size() - 1 : layer * kParts + part];
    return found.ranks ? &found : nullptr;
  }

  void load_adapter(int slot, const Factor* factors, int count);
  void alter(int slot, const Alteration*, int count);
  void unload_adapter(int slot);
  void step(const Step&);
};

}  // namespace openlora
