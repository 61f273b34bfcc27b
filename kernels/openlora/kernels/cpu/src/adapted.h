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

  // What adapters add to some matrices.
  struct Added {
    std::vector<Addend> addends;     // [matrices][runs]
    std::vector<Ahead> factors;      // [matrices][chunks]: the first tile of each
    std::vector<std::size_t> bytes;  // a matrix: of one tile of all its factors
  };

  // To `parts` matrices of a layer, from the `part`th on.
  Added added(int layer, int part, int parts) const;

  // Where what is added to a tile of the `part`th of them lies, whatever the rows.
  TileOfEach factors(const Added& added, int part, int tile) const;

  // Adds to the tile's rows first:first + count, out [32][48]. Meanwhile fetches `ahead`.
  void expand(const Added&, int part, int tile, int first, int count, Ahead ahead, float* out) const;

 private:
  struct Use {
    int half, place, slot, row;  // the rows' half block, the adapter's place in the row's list
    float weight;
  };
  // Uses of one half block, place and slot.
  struct Run {
    int slot, half, begin, end;  // of rows_ and weights_
    char* h;
  };
  // Some runs of a slot, so many as are shrunk at once.
  struct Chunk {
    int slot, begin, end;  // of by_slot_
  };
  // Of a chunk with some ranks.
  struct Product {
    const Chunk* chunk;
    const Stack* stack;
    int first, ranks;
  };

  std::vector<Use> uses(const std::vector<int>& sequence, bool head) const;
  void find_runs(std::vector<Use> uses, int halves);
  void allot(Memory& memory);
  void find_chunks();
  std::vector<Product> products(int member, int layer, int input) const;
  void compute(const Product&, const Product* next, Inputs x, int columns) const;

  const Decoder& d_;
  const Step& step_;
  std::vector<Run> runs_;
  std::vector<int> half_starts_;    // of runs_, one more for the end
  std::vector<std::uint8_t> rows_;  // the runs' rows in their half blocks
  std::vector<float> weights_;      // and what the adapter weighs in them
  std::vector<const Run*> by_slot_;
  std::vector<Chunk> chunks_;
};

}  // namespace openlora
