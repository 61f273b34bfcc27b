// What every instruction set's unit begins with.
#pragma once
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace openlora {

// A vector longer than the machine's, of which the compiler would make memory.
template <class V>
struct Halves {
  V low, high;
};

template <class X>
constexpr bool kHalved = false;
template <class V>
constexpr bool kHalved<Halves<V>> = true;
template <class X>
concept Halved = kHalved<X>;

// `kCount` lanes of a machine whose vectors have `kBytes`: as many as float32 has in one, or halves of more.
template <class T, int kBytes, int kCount = kLanes, bool kFits = kCount * sizeof(float) <= kBytes>
struct LanesOf {
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
};
template <class T, int kBytes, int kCount>
struct LanesOf<T, kBytes, kCount, false> {
  using type = Halves<typename LanesOf<T, kBytes, kCount / 2>::type>;
};

// A half of x; what is no vector is the same for both.
template <class X>
inline auto low_of(X x) {
  if constexpr (Halved<X>)
    return x.low;
  else
    return x;
}
template <class X>
inline auto high_of(X x) {
  if constexpr (Halved<X>)
    return x.high;
  else
    return x;
}

#define OPENLORA_HALVED(op)                                          \
  template <class X, class Y>                                        \
    requires(Halved<X> || Halved<Y>)                                 \
  inline auto operator op(X x, Y y) {                                \
    return Halves{low_of(x) op low_of(y), high_of(x) op high_of(y)}; \
  }
OPENLORA_HALVED(+)
OPENLORA_HALVED(-)
OPENLORA_HALVED(*)
OPENLORA_HALVED(/)
OPENLORA_HALVED(&)
OPENLORA_HALVED(|)
OPENLORA_HALVED(<<)
OPENLORA_HALVED(>>)
OPENLORA_HALVED(<)
OPENLORA_HALVED(>)
OPENLORA_HALVED(==)
OPENLORA_HALVED(!=)
#undef OPENLORA_HALVED

template <Halved X>
inline X operator~(X x) {
  return {~x.low, ~x.high};
}
template <Halved X, class Y>
inline X& operator+=(X& x, Y y) {
  return x = x + y;
}

}  // namespace openlora
