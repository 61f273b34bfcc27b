// Which rows of a step use which adapters, and what follows for a matrix: inputs to shrink, outputs to add to.
#pragma once
#include <vector>

#include "decoder.h"

namespace openlora {

// The rows of a step, or those whose logits are wanted, as far as they have adapters.
//
// Shrinking is divided by adapters, so that a factor A is read by one thread, however many rows use it; expanding by
// tiles, and so B is. In between lie the shrunk inputs, as Addend has them.
class AdaptedRows {
 public:
  // Row i belongs to sequence[i]. `head`: of the adapters, those with factors for the head. The shrunk inputs are kept
  // in `memory`.
  AdaptedRows(const Decoder&, const Step&, const std::vector<int>& sequence, bool head, Memory& memory);

  bool any() const { return !runs_.empty(); }

  // Computes the member's share of the shrunk inputs of the matrices whose common input is x.
  void shrink(int member, int layer, int input, Inputs x, int columns) const;

  // What adapters add to `parts` matrices of a layer, from the `part`th on: [parts][runs].
  std::vector<Addend> addends(int layer, int part, int parts) const;

  // Adds to one tile of the rows first:first + count, out [32][48]; `part` counts from the addends' first. Fetches what
  // will be added to the same rows in the tile `next`, unless that is null.
  void expand(const std::vector<Addend>& addends, int part, int tile, const Linear::Tile* next, int first, int count,
              float* out) const;

 private:
  struct Use {
    int half, place, slot, row;  // the rows' half block, the adapter's place in the row's list
    float weight;
    bf16* h;
  };
  struct Run {  // uses of one half block, place and slot
    int slot, begin, end;  // of places_
    bf16* h;
  };
  struct Chunk {  // up to sixteen uses of a slot
    int slot, begin, end;  // of uses_
  };
  struct Product {  // of a chunk with some ranks
    const Chunk* chunk;
    const Stack* stack;
    int first, ranks;
  };

  void find_uses(const std::vector<int>& sequence, bool head);
  void find_runs(int halves, Memory& memory);
  void find_chunks();
  std::vector<Product> products(int member, int layer, int input) const;
  void compute(const Product&, const Product* next, Inputs x, int columns) const;

  const Decoder& d_;
  const Step& step_;
  std::vector<Use> uses_;  // by slot
  std::vector<Run> runs_;
  std::vector<int> half_starts_;      // of runs_, one more for the end
  std::vector<std::uint8_t> places_;  // of the runs' rows in their half blocks
  std::vector<Chunk> chunks_;
};

}  // namespace openlora
