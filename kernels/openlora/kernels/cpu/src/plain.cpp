// Any processor: vectors as the compiler makes them of what the baseline has.
#include "unit.h"

namespace openlora::plain {
namespace {

constexpr int kBytes = 16;
constexpr int kRows = 2;
constexpr int kVectors = 1;
constexpr int kWordRows = 2;
constexpr int kChains = 2;
constexpr int kEach = 1;

#include "vectors.inc"

inline U words_of(U codes, int odd) {
  const U from = odd ? codes : codes << 8;
  return bits<U>((bits<I>(from << 16) >> 24 & 0xffff) | (bits<I>(from) >> 24 << 16));
}
inline I low_word(U x) { return bits<I>(x << 16) >> 16; }
inline I high_word(U x) { return bits<I>(x) >> 16; }
inline I dot_words(I sum, U w, U x) { return sum + low_word(w) * low_word(x) + high_word(w) * high_word(x); }

#include "floats.inc"

#include "dense.inc"

#include "kernels.inc"

#include "quantised.inc"

#include "words.inc"

#include "grouped.inc"

#include "table.inc"

}  // namespace
}  // namespace openlora::plain

constinit const openlora::Kernels openlora::kPlain = plain::with_groups(plain::kernels("plain", 16, 64 << 10));
