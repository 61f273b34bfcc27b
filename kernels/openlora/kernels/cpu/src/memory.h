// Large blocks of zeroed memory in large pages.
#pragma once
#include <sys/mman.h>

#include <new>
#include <utility>

#include "layout.h"

namespace openlora {

class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    if (!bytes) return;
    at_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at_ == MAP_FAILED) {
      at_ = nullptr;
      throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    madvise(at_, bytes, MADV_HUGEPAGE);
#endif
  }
  Memory(Memory&& other) noexcept : at_(std::exchange(other.at_, nullptr)), bytes_(other.bytes_) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
    if (at_) munmap(at_, bytes_);
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(at_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* at_ = nullptr;
  std::size_t bytes_ = 0;
};

// Room for `count` numbers, whose values are lost where it has to grow.
template <class T>
T* grown(Memory& memory, std::size_t count) {
  if (memory.bytes() < count * sizeof(T)) memory = Memory(count * sizeof(T) * 5 / 4);
  return memory.as<T>();
}

}  // namespace openlora
