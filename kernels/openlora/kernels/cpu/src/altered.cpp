#include "altered.h"

#include <algorithm>
#include <cstring>

namespace openlora {
namespace {

struct Size {
  int in, out;
};

Size matrix_size(const Shape& s, int layer, int part) {
  const int q = s.heads * s.head_size, kv = s.kv_heads * s.head_size, hidden = s.hidden_size;
  if (layer == kHead) return {hidden, s.vocab_size};
  const Size sizes[] = {{hidden, q},
                        {hidden, kv},
                        {hidden, kv},
                        {q, hidden},
                        {hidden, s.intermediate_size},
                        {hidden, s.intermediate_size},
                        {s.intermediate_size, hidden}};
  return sizes[part];
}

std::size_t matrix_place(const Alterations& all, int layer, int part) {
  return layer == kHead ? all.matrices.size() - 1 : std::size_t{1} * layer * kParts + part;
}

std::size_t norm_place(const Alterations& all, int layer, int norm) {
  return layer == kHead ? all.norms.size() - 1 : std::size_t{1} * layer * kNorms + norm;
}

std::vector<float> floats(const void* values, int count, int padded) {
  std::vector<float> result(padded, 0.0f);
  std::memcpy(result.data(), values, sizeof(float) * count);
  return result;
}

Memory copied(const void* values, std::size_t numbers) {
  Memory memory(sizeof(bf16) * numbers);
  std::memcpy(memory.as<bf16>(), values, sizeof(bf16) * numbers);
  return memory;
}

void alter_embedding(const Shape& s, const Alteration& from, Alterations::Embedding& embedding) {
  const std::size_t numbers = std::size_t{1} * s.vocab_size * s.hidden_size;
  switch (from.kind) {
    case kStretch: embedding.stretch = floats(from.values, s.hidden_size, s.hidden_size); break;
    case kDifference: embedding.difference = copied(from.values, numbers); break;
    case kLowRank:
      embedding.ranks = from.rank;
      embedding.scale = from.scale;
      embedding.a = copied(from.a, std::size_t{1} * s.vocab_size * from.rank);
      embedding.b = copied(from.b, std::size_t{1} * s.hidden_size * from.rank);
  }
}

void alter_matrix(Size size, const Alteration& from, Alterations::Matrix& matrix) {
  const int tiles = tiles_of(size.out);
  if (from.kind == kStretch) {
    matrix.stretch = floats(from.values, size.out, tiles * kTile);
    return;
  }
  const std::ptrdiff_t tile = std::ptrdiff_t{tile_pairs(size.in)} * kTileRow;
  matrix.difference = Memory(sizeof(bf16) * tile * tiles);
  for (int t = 0; t < tiles; ++t)
    pack_tile(static_cast<const bf16*>(from.values), size.out, size.in, t * kTile,
              matrix.difference.as<bf16>() + t * tile);
}

}  // namespace

void Decoder::alter(int slot, const Alteration* list, int count) {
  auto all = std::make_shared<Alterations>();
  all->matrices.resize(shape.layers * kParts + 1);
  all->norms.resize(shape.layers * kNorms + 1);
  for (int i = 0; i < count; ++i) {
    const Alteration& one = list[i];
    if (one.layer == kEmbedding) {
      alter_embedding(shape, one, all->embedding);
    } else if (one.part >= kBiases) {
      const int part = one.part - kBiases, out = matrix_size(shape, one.layer, part).out;
      all->matrices[matrix_place(*all, one.layer, part)].bias = floats(one.values, out, tiles_of(out) * kTile);
    } else if (one.part >= kParts) {
      const bool of_heads = one.part - kParts >= kQNorm;
      const int size = of_heads ? shape.head_size : shape.hidden_size;
      all->norms[norm_place(*all, one.layer, one.part - kParts)] = floats(one.values, size, round_up(size, kTile));
    } else {
      Alterations::Matrix& matrix = all->matrices[matrix_place(*all, one.layer, one.part)];
      alter_matrix(matrix_size(shape, one.layer, one.part), one, matrix);
    }
  }
  if (slot >= static_cast<int>(alterations.size())) alterations.resize(slot + 1);
  alterations[slot] = std::move(all);
}

void Decoder::unload_adapter(int slot) {
  adapters[slot].reset();
  if (slot < static_cast<int>(alterations.size())) alterations[slot].reset();
}

AlteredRows::AlteredRows(const Decoder& decoder, const Step& step, const std::vector<int>& sequence)
    : d_(decoder), starts_{0} {
  for (const int s : sequence) {
    for (int e = step.entry_starts[s]; e < step.entry_starts[s + 1]; ++e) {
      const std::size_t slot = step.entry_slots[e];
      if (slot < d_.alterations.size() && d_.alterations[slot])
        uses_.push_back({d_.alterations[slot].get(), step.entry_weights[e]});
    }
    starts_.push_back(static_cast<int>(uses_.size()));
  }
}

void AlteredRows::embed(int row, int token, float* x) const {
  const int hidden = d_.shape.hidden_size;
  const bf16* base = d_.embedding + std::ptrdiff_t{token} * hidden;
  for (int u = starts_[row]; u < starts_[row + 1]; ++u) {
    const Alterations::Embedding& embedding = uses_[u].what->embedding;
    const float weight = uses_[u].weight * d_.shape.embedding_scale;
    if (!embedding.stretch.empty())
      for (int i = 0; i < hidden; ++i) x[i] += weight * embedding.stretch[i] * widen(base[i]);
    if (const bf16* all = embedding.difference.as<bf16>())
      for (int i = 0; i < hidden; ++i) x[i] += weight * widen(all[std::ptrdiff_t{token} * hidden + i]);
    const bf16* a = embedding.a.as<bf16>() + std::ptrdiff_t{token} * embedding.ranks;
    for (int r = 0; r < embedding.ranks; ++r) {
      const float h = weight * embedding.scale * widen(a[r]);
      const bf16* b = embedding.b.as<bf16>() + std::ptrdiff_t{r} * hidden;
      for (int i = 0; i < hidden; ++i) x[i] += h * widen(b[i]);
    }
  }
}

const float* AlteredRows::norm(int row, int layer, Norm norm, const std::vector<float>& base,
                               std::vector<float>& own) const {
  if (!any()) return base.data();
  bool altered = false;
  for (int u = starts_[row]; u < starts_[row + 1]; ++u) {
    const std::vector<float>& difference = uses_[u].what->norms[norm_place(*uses_[u].what, layer, norm)];
    if (difference.empty()) continue;
    if (!altered) own = base;
    altered = true;
    for (std::size_t i = 0; i < difference.size(); ++i) own[i] += uses_[u].weight * difference[i];
  }
  return altered ? own.data() : base.data();
}

void AlteredRows::stretch(std::size_t place, int tile, int row, float* out) const {
  float factor[kTile];
  bool any = false;
  for (int u = starts_[row]; u < starts_[row + 1]; ++u) {
    const std::vector<float>& stretch = uses_[u].what->matrices[place].stretch;
    if (stretch.empty()) continue;
    if (!any) std::fill(factor, factor + kTile, 1.0f);
    any = true;
    for (int i = 0; i < kTile; ++i) factor[i] += uses_[u].weight * stretch[tile * kTile + i];
  }
  if (!any) return;
  for (int i = 0; i < kTile; ++i) out[i] *= factor[i];
}

void AlteredRows::alter(int layer, int part, int tile, int pairs, int first, int count, Inputs x, float* out) const {
  struct alignas(64) Product {
    const bf16* difference;
    float out[kBlock * kTile];
  };
  std::vector<Product> products;  // of the whole block, each computed once
  for (int row = 0; row < count; ++row) {
    float* to = out + row * kTile;
    const int begin = starts_[first + row], end = starts_[first + row + 1];
    if (begin == end) continue;
    const std::size_t place = matrix_place(*uses_[begin].what, layer, part);
    stretch(place, tile, first + row, to);
    for (int u = begin; u < end; ++u) {
      const std::vector<float>& bias = uses_[u].what->matrices[place].bias;
      if (!bias.empty())
        for (int i = 0; i < kTile; ++i) to[i] += uses_[u].weight * bias[tile * kTile + i];
      const bf16* difference = uses_[u].what->matrices[place].difference.as<bf16>();
      if (!difference) continue;
      const auto is_its = [&](const Product& product) { return product.difference == difference; };
      auto found = std::find_if(products.begin(), products.end(), is_its);
      if (found == products.end()) {
        found = products.insert(products.end(), {difference, {}});
        const bf16* weights = difference + std::ptrdiff_t{tile} * pairs * kTileRow;
        d_.kernels.tile(x, count, weights, pairs, found->out, {});
      }
      for (int i = 0; i < kTile; ++i) to[i] += uses_[u].weight * found->out[row * kTile + i];
    }
  }
}

}  // namespace openlora
