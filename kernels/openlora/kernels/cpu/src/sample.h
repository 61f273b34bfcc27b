// Sampling as reference.sample defines it.
#pragma once
#include "kernels.h"

namespace openlora {

struct Sampling {
  double temperature, top_p;
  std::int64_t top_k;
  std::uint64_t seed;
  std::uint32_t position;
};

// The next token for finite logits; `sampling.temperature` is positive.
int sample(const Kernels& kernels, const float* logits, int vocab_size, const Sampling& sampling);

}  // namespace openlora
