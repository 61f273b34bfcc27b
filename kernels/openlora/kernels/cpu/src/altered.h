// What adapters do to weights besides adding B · A to matrices: they stretch them (DoRA), or add a difference as large
// as the weight itself, to norms, biases and the embedding too.
#pragma once
#include <vector>

#include "decoder.h"

namespace openlora {

enum AlterationKind { kStretch, kDifference, kLowRank };
enum Norm { kAttentionNorm, kMlpNorm, kPostAttentionNorm, kPostMlpNorm, kQNorm, kKNorm, kNorms };

constexpr int kBiases = kParts + kNorms;  // the first part of an Alteration that is a bias

// One adapter's.
struct Alterations {
  struct Matrix {
    std::vector<float> stretch;  // [tiles · 48], or empty
    Memory difference;           // [tiles][pairs][48][2], or nothing
    std::vector<float> bias;     // what is added to it, [tiles · 48], or empty
  };
  struct Embedding {
    std::vector<float> stretch;  // [hidden], or empty
    Memory difference;           // [vocabulary][hidden], or nothing
    int ranks = 0;
    float scale = 0;
    Memory a, b;  // [vocabulary][ranks], [ranks][hidden]
  };
  std::vector<Matrix> matrices;           // [layers · kParts + 1], the head last
  std::vector<std::vector<float>> norms;  // [layers · kNorms + 1], the last norm last; empty ones stay as they are
  Embedding embedding;
};

// The rows of a step, or those whose logits are wanted, as far as they have such adapters.
class AlteredRows {
 public:
  // Row i belongs to sequence[i].
  AlteredRows(const Decoder&, const Step&, const std::vector<int>& sequence);

  bool any() const { return !uses_.empty(); }

  // Makes of a token's embedding in x the one that the row's adapters give it.
  void embed(int row, int token, float* x) const;

  // The row's weight for a norm, made in `own` if it is not the base's. The last norm is any of layer kHead.
  const float* norm(int row, int layer, Norm, const std::vector<float>& base, std::vector<float>& own) const;

  // Makes of a matrix's tile, without its bias, for the rows first:first + count what their adapters give; out [32][48]
  // holds the products with the base, and x the inputs.
  void alter(int layer, int part, int tile, int pairs, int first, int count, Inputs x, float* out) const;

 private:
  struct Use {
    const Alterations* what;
    float weight;
  };

  void stretch(std::size_t place, int tile, int row, float* out) const;

  const Decoder& d_;
  std::vector<int> starts_;  // of uses_, by row, one more for the end
  std::vector<Use> uses_;    // in the order of each row's list
};

}  // namespace openlora
