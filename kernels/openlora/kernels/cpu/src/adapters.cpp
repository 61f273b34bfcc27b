// Adapters packed, when they are loaded.
#include <cstring>

#include "decoder.h"

namespace openlora {
namespace {

// The matrices that share an input, and an adapter's factors for them, null where it has none.
struct Group {
  int layer, input, first, matrices;  // `first`: of an adapter's loras
  int inputs, outputs[3];
  const Factor* factors[3] = {};

  // What dense factors take.
  std::size_t bytes() const {
    std::size_t bytes = 0;
    for (int i = 0; i < matrices; ++i)
      if (factors[i]) {
        const std::size_t ranks = round_up(factors[i]->rank, 2 * kHalf);
        bytes += sizeof(bf16) * ranks * (round_up(inputs, 32) + std::size_t{kTile} * tiles_of(outputs[i])) + 2 * 64;
      }
    return bytes;
  }
};

// All of a decoder, the head's last.
std::vector<Group> groups_of(const Shape& s) {
  const int q = s.heads * s.head_size, kv = s.kv_heads * s.head_size;
  const int hidden = s.hidden_size, inner = s.intermediate_size;
  std::vector<Group> groups;
  for (int layer = 0; layer < s.layers; ++layer) {
    const int first = layer * kParts;
    groups.push_back({layer, kForQkv, first + kQ, 3, hidden, {q, kv, kv}});
    groups.push_back({layer, kForO, first + kO, 1, q, {hidden}});
    groups.push_back({layer, kForGateUp, first + kGate, 2, hidden, {inner, inner}});
    groups.push_back({layer, kForDown, first + kDown, 1, inner, {hidden}});
  }
  groups.push_back({s.layers, 0, s.layers * kParts, 1, hidden, {s.vocab_size}});
  return groups;
}

// Puts factors one after the other, in the order in which a step reads them: those A for one input, then those B.
class Placing {
 public:
  // Of `bytes` in all, and of at most `room` at once.
  Placing(const Kernels& kernels, std::size_t bytes, std::size_t room)
      : packs_(kernels.restore), memory_(bytes), room_(room), at_(memory_.as<char>()) {}

  void place(const Group& group, Stack& stack, Lora* loras) {
    stack.matrices = group.matrices;
    for (int i = 0, offset = 0; i < group.matrices; ++i) {
      const Factor* factor = group.factors[i];
      if (!factor) continue;
      stack.ranks[i] = loras[i].ranks = round_up(factor->rank, 2);
      stack.scale[i] = factor->scale;
      loras[i].offset = offset;
      offset += round_up(stack.ranks[i], kRanks) * kHalf;
    }
    stack.a = place_a(group, stack.height());
    for (int i = 0; i < group.matrices; ++i)
      if (group.factors[i]) place_b(*group.factors[i], group.outputs[i], loras[i]);
  }

  Memory take() { return std::move(memory_); }

 private:
  Numbers place_a(const Group& group, int height) {
    const int wide = round_up(group.inputs, 32);
    // Calls fn(row of the stack, row of a factor).
    const auto rows = [&](auto&& fn) {
      for (int i = 0, row = 0; i < group.matrices; ++i) {
        if (!group.factors[i]) continue;
        for (int rank = 0; rank < group.factors[i]->rank; ++rank)
          fn(row + rank, group.factors[i]->a + std::ptrdiff_t{rank} * group.inputs);
        row += round_up(group.factors[i]->rank, 2);
      }
    };
    const auto slices = [&](bf16* to) {
      rows([&](int row, const bf16* from) {
        const int first = row / kHalf * kHalf, ranks = std::min(kHalf, round_up(height - first, 4));
        bf16* at = to + std::ptrdiff_t{first} * wide + (row - first) * 2;
        for (int k = 0; k < group.inputs; k += 2, at += ranks * 2)
          std::memcpy(at, from + k, sizeof(bf16) * std::min(2, group.inputs - k));
      });
    };
    return place(packs_, round_up(height, 4) * wide, slices, round_up(height, 4) * wide, slices);
  }

  void place_b(const Factor& factor, int outputs, Lora& lora) {
    const bool many = factor.rank > kMostPackedRanks;
    const int each = tiles_of(outputs) * kTileRow, packed = round_up(lora.ranks / 2, 4);
    const int dense = many ? round_up(lora.ranks / 2, kHalf) : lora.ranks / 2;
    const auto tiles_of_pairs = [&](int pairs) {
      return [&factor, outputs, pairs](bf16* to) {
        for (int tile = 0; tile < tiles_of(outputs); ++tile)
          pack_tile(factor.b, outputs, factor.rank, tile * kTile, to + std::ptrdiff_t{tile} * pairs * kTileRow);
      };
    };
    lora.b = place(packs_ && !many, packed * each, tiles_of_pairs(packed), dense * each, tiles_of_pairs(dense));
    lora.pairs = lora.b.packed ? packed : dense;
  }

  // So many numbers, packed if that is sure to take less than dense; either is filled in where there are zeros.
  template <class Packs, class Fills>
  Numbers place(bool packs, int packed_count, Packs&& fill_packed, int dense_count, Fills&& fill_dense) {
    if (packs && packed_bytes(packed_count) < sizeof(bf16) * dense_count) {
      bf16* room = room_.as<bf16>();
      std::fill_n(room, packed_count, 0);
      fill_packed(room);
      Packed* packed = reinterpret_cast<Packed*>(at_);
      if (const std::size_t bytes = pack(room, packed_count, packed)) {
        at_ += bytes;
        return {nullptr, packed, packed->groups()};
      }
    }
    bf16* dense = reinterpret_cast<bf16*>(at_);
    fill_dense(dense);
    at_ += (sizeof(bf16) * dense_count + 63) / 64 * 64;
    return {dense};
  }

  const bool packs_;
  Memory memory_, room_;
  char* at_;
};

}  // namespace

void Decoder::load_adapter(int slot, const Factor* factors, int count) {
  std::vector<Group> groups = groups_of(shape);
  auto adapter = std::make_unique<Adapter>();
  adapter->loras.resize(shape.layers * kParts + 1);
  adapter->stacks.resize(shape.layers * kInputs + 1);
  for (int i = 0; i < count; ++i) {
    const int place = factors[i].layer < 0 ? shape.layers * kParts : factors[i].layer * kParts + factors[i].part;
    for (Group& group : groups)
      if (group.first <= place && place < group.first + group.matrices)
        group.factors[place - group.first] = &factors[i];
  }
  constexpr std::size_t kBeyond = 64;  // what is read beyond a factor's end, see Kernels
  std::vector<Placing> placings;
  for (int member = 0; member < team.size(); ++member) {
    const auto mine = team.share(static_cast<int>(groups.size()), member);
    std::size_t bytes = kBeyond, most = 0;
    for (int i = mine.begin; i < mine.end; ++i) {
      bytes += groups[i].bytes();
      most = std::max(most, groups[i].bytes());
    }
    placings.emplace_back(kernels, bytes, most);
  }
  team.run([&](int member) {
    const auto mine = team.share(static_cast<int>(groups.size()), member);
    for (int i = mine.begin; i < mine.end; ++i)
      placings[member].place(groups[i], adapter->stacks[groups[i].layer * kInputs + groups[i].input],
                             &adapter->loras[groups[i].first]);
  });
  for (Placing& placing : placings) adapter->memory.push_back(placing.take());
  for (const Lora& lora : adapter->loras)
    if (lora.ranks)
      adapter->h_numbers =
          std::max<std::size_t>(adapter->h_numbers, lora.offset + round_up(lora.ranks, kRanks) * kHalf);
  if (slot >= static_cast<int>(adapters.size())) adapters.resize(slot + 1);
  adapters[slot] = std::move(adapter);
}

}  // namespace openlora
