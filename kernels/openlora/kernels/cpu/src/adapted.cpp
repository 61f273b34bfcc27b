#include "adapted.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

namespace openlora {
namespace {

constexpr int kRanksAtOnce = 64;  // what a thread shrinks to in one go; less where some threads would get nothing

}  // namespace

AdaptedRows::AdaptedRows(const Decoder& decoder, const Step& step, const std::vector<int>& sequence, bool head,
                         Memory& memory)
    : d_(decoder), step_(step) {
  find_runs(uses(sequence, head), (static_cast<int>(sequence.size()) + kHalf - 1) / kHalf);
  if (!any()) return;
  allot(memory);
  find_chunks();
}

std::vector<AdaptedRows::Use> AdaptedRows::uses(const std::vector<int>& sequence, bool head) const {
  std::vector<Use> uses;
  for (int row = 0; row < static_cast<int>(sequence.size()); ++row) {
    const int begin = step_.entry_starts[sequence[row]], end = step_.entry_starts[sequence[row] + 1];
    for (int e = begin; e < end; ++e)
      if (const int slot = step_.entry_slots[e];
          head ? d_.lora(slot, kHead, 0) != nullptr : d_.adapters[slot]->h_numbers)
        uses.push_back({row / kHalf, e - begin, slot, row, step_.entry_weights[e]});
  }
  return uses;
}

void AdaptedRows::find_runs(std::vector<Use> uses, int halves) {
  const auto key = [](const Use& use) { return std::tuple(use.half, use.place, use.slot); };
  std::stable_sort(uses.begin(), uses.end(), [&](const Use& a, const Use& b) { return key(a) < key(b); });
  for (int i = 0; i < static_cast<int>(uses.size()); ++i) {
    while (static_cast<int>(half_starts_.size()) <= uses[i].half) half_starts_.push_back(runs_.size());
    if (!i || key(uses[i - 1]) != key(uses[i])) runs_.push_back({uses[i].slot, uses[i].half, i, i, nullptr});
    runs_.back().end = i + 1;
    rows_.push_back(uses[i].row % kHalf);
    weights_.push_back(uses[i].weight);
  }
  half_starts_.resize(halves + 1, runs_.size());
}

void AdaptedRows::allot(Memory& memory) {
  std::size_t stride = 0;
  for (const Run& run : runs_) stride = std::max(stride, d_.adapters[run.slot]->h_numbers);
  stride *= d_.kernels.input_bytes;
  char* h = grown<char>(memory, runs_.size() * stride);
  std::memset(h, 0, runs_.size() * stride);
  for (Run& run : runs_) {
    run.h = h;
    h += stride;
  }
}

// The runs of few adapters are divided among the threads, each of which reads their factors.
void AdaptedRows::find_chunks() {
  std::set<int> slots;
  for (const Run& run : runs_) {
    by_slot_.push_back(&run);
    slots.insert(run.slot);
  }
  std::stable_sort(by_slot_.begin(), by_slot_.end(), [](const Run* a, const Run* b) { return a->slot < b->slot; });
  const int runs = static_cast<int>(runs_.size()), members = d_.team.size();
  const int each = static_cast<int>(slots.size()) < members ? (runs + members - 1) / members : kMostShrinking;
  const int most = std::min(each, kMostShrinking);
  for (int i = 0; i < runs; ++i) {
    if (!i || by_slot_[i - 1]->slot != by_slot_[i]->slot || i - chunks_.back().begin == most)
      chunks_.push_back({by_slot_[i]->slot, i, i});
    chunks_.back().end = i + 1;
  }
}

// The products are divided in their order, by what they cost: reading A, and computing for each run.
std::vector<AdaptedRows::Product> AdaptedRows::products(int member, int layer, int input) const {
  const int at_once = static_cast<int>(chunks_.size()) < d_.team.size() ? kHalf : kRanksAtOnce;
  std::vector<Product> all;
  for (const Chunk& chunk : chunks_) {
    const Stack& stack = d_.stack(chunk.slot, layer, input);
    for (int first = 0; first < stack.height(); first += at_once)
      all.push_back({&chunk, &stack, first, std::min(at_once, stack.height() - first)});
  }
  const auto cost = [](const Product& product) {
    return std::int64_t{round_up(product.ranks, 16)} * (2 + product.chunk->end - product.chunk->begin);
  };
  std::int64_t total = 0, before = 0;
  for (const Product& product : all) total += cost(product);
  const int members = d_.team.size();
  std::vector<Product> mine;
  for (const Product& product : all) {
    if ((2 * before + cost(product)) * members / (2 * total) == member) mine.push_back(product);
    before += cost(product);
  }
  return mine;
}

void AdaptedRows::shrink(int member, int layer, int input, Inputs x, int columns) const {
  const std::vector<Product> mine = products(member, layer, input);
  for (std::size_t i = 0; i < mine.size(); ++i)
    compute(mine[i], i + 1 < mine.size() ? &mine[i + 1] : nullptr, x, round_up(columns, 32));
}

void AdaptedRows::compute(const Product& product, const Product* next, Inputs x, int columns) const {
  Shrinking runs[kMostShrinking];
  int count = 0;
  for (int i = product.chunk->begin; i < product.chunk->end; ++i, ++count) {
    const Run& run = *by_slot_[i];
    runs[count] = {x.from(run.half * kHalf), &rows_[run.begin], &weights_[run.begin], run.end - run.begin, run.h};
  }
  const Ahead ahead = next ? next->stack->from(next->first, next->ranks, columns) : Ahead();
  d_.kernels.shrink(runs, count, *product.stack, product.first, product.ranks, columns, ahead);
}

AdaptedRows::Added AdaptedRows::added(int layer, int part, int parts) const {
  Added all;
  all.addends.reserve(parts * runs_.size());
  all.factors.reserve(parts * chunks_.size());
  for (int i = part; i < part + parts; ++i) {
    for (const Run& run : runs_) {
      const Lora* lora = d_.lora(run.slot, layer, i);
      if (lora)
        all.addends.push_back({run.h + lora->offset * d_.kernels.input_bytes, lora->b, lora->pairs, &rows_[run.begin],
                               run.end - run.begin});
      else
        all.addends.push_back({nullptr, {}, 0, nullptr, 0});
    }
    std::size_t bytes = 0;
    for (const Chunk& chunk : chunks_) {
      const Lora* lora = d_.lora(chunk.slot, layer, i);
      all.factors.push_back(lora ? lora->b.first(std::ptrdiff_t{lora->pairs} * kTileRow) : Ahead());
      bytes += all.factors.back().bytes;
      if (lora) __builtin_prefetch(lora->b.packed);  // what comes before the groups
    }
    all.bytes.push_back(bytes);
  }
  return all;
}

TileOfEach AdaptedRows::factors(const Added& added, int part, int tile) const {
  const int count = static_cast<int>(chunks_.size());
  return {added.factors.data() + part * count, count, tile, added.bytes[part]};
}

void AdaptedRows::expand(const Added& added, int part, int tile, int first, int count, Ahead ahead, float* out) const {
  const std::size_t bytes = ahead.bytes / 2;
  for (int half = first / kHalf; half * kHalf < first + count; ++half, out += kHalf * kTile) {
    const int begin = half_starts_[half], runs = half_starts_[half + 1] - begin;
    d_.kernels.expand(out, added.addends.data() + part * runs_.size() + begin, runs, tile, {ahead.at, bytes});
    ahead.at = static_cast<const char*>(ahead.at) + bytes;
  }
}

}  // namespace openlora
