// Gumbel-max with counter-based noise, in float64 as the reference has it.
#include "sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace openlora {
namespace {

struct Candidate {
  double score;
  int token;
};

// By descending score, then ascending token.
bool before(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// The best of the candidates seen so far, each with its noise added.
class Race {
 public:
  explicit Race(const Sampling& sampling) : temperature_(sampling.temperature) {}

  // Two logarithms a token would cost more than everything else. −log u ≥ 1 − u bounds the noise by −log(1 − u), and
  // the leading ones of u's word bound that: whoever cannot win even so is passed over.
  void enter(double score, int token, std::uint32_t word) {
    const double most_noise = (std::countl_one(word) + 1) * 0.6931471805599454;
    if (best_.token >= 0 && score + temperature_ * most_noise < best_.score) return;
    const double noise = -std::log(-std::log((word + 0.5) * 0x1p-32));
    const Candidate one{score + temperature_ * noise, token};
    if (best_.token < 0 || before(one, best_)) best_ = one;
  }

  int winner() const { return best_.token; }

 private:
  const double temperature_;
  Candidate best_{0, -1};
};

// The top_k largest logits, and of these the shortest prefix whose mass reaches top_p.
std::vector<Candidate> survivors(const float* logits, int vocab_size, const Sampling& sampling) {
  std::vector<Candidate> all(vocab_size);
  for (int token = 0; token < vocab_size; ++token) all[token] = {logits[token], token};
  if (sampling.top_k > 0 && sampling.top_k < vocab_size) {
    std::nth_element(all.begin(), all.begin() + sampling.top_k, all.end(), before);
    all.resize(sampling.top_k);
  }
  if (sampling.top_p >= 1.0) return all;
  std::sort(all.begin(), all.end(), before);
  const double most = all.front().score / sampling.temperature;
  double total = 0;
  for (const Candidate& one : all) total += std::exp(one.score / sampling.temperature - most);
  std::size_t kept = 0;
  for (double mass = 0; kept < all.size() && mass < sampling.top_p; ++kept)
    mass += std::exp(all[kept].score / sampling.temperature - most) / total;
  all.resize(kept);
  return all;
}

}  // namespace

int sample(const Kernels& kernels, const float* logits, int vocab_size, const Sampling& sampling) {
  constexpr int kBatch = 1024;
  std::uint32_t words[kBatch];
  Race race(sampling);
  if ((sampling.top_k <= 0 || sampling.top_k >= vocab_size) && sampling.top_p >= 1.0) {
    for (int first = 0; first < vocab_size; first += kBatch) {
      const int count = std::min(kBatch, vocab_size - first);
      kernels.philox(sampling.position, sampling.seed, first, count, words);
      for (int i = 0; i < count; ++i) race.enter(logits[first + i], first + i, words[i]);
    }
  } else {
    for (const Candidate& one : survivors(logits, vocab_size, sampling)) {
      kernels.philox(sampling.position, sampling.seed, one.token, 1, words);
      race.enter(one.score, one.token, words[0]);
    }
  }
  return race.winner();
}

}  // namespace openlora
