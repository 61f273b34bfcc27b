// Work that threads have divided, whose parts a thread that is done takes from the others.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "team.h"

namespace openlora {

// Rounds of such work. A member's share is taken from its front by the member itself and from its end by others, so
// that what lies together stays with one as long as nobody waits.
class Shares {
 public:
  explicit Shares(int members) : members_(members) {}

  // The member's next round. Every member begins every one of them, and none before all have ended the one before.
  void begin(int member) { ++members_[member].round; }

  // A part of `owner`'s share, which is the same whoever asks: the member's to work on, and nobody else's. -1: all are
  // taken.
  int take(int member, int owner, Team::Range share) {
    const std::uint64_t fresh = std::uint64_t{members_[member].round} << 32;
    std::atomic<std::uint64_t>& cell = members_[owner].taken;
    std::uint64_t seen = cell.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint64_t taken = seen >> 32 << 32 == fresh ? seen : fresh;
      const int front = taken >> 16 & 0xffff, end = taken & 0xffff;
      if (front + end >= share.end - share.begin) return -1;
      const std::uint64_t one = member == owner ? 1 << 16 : 1;
      if (cell.compare_exchange_weak(seen, taken + one, std::memory_order_relaxed))
        return member == owner ? share.begin + front : share.end - 1 - end;
    }
  }

 private:
  struct alignas(64) Member {
    std::atomic<std::uint64_t> taken{0};  // the round in 32 bits, how many from the front in 16, from the end in 16
    std::uint32_t round = 0;
  };
  std::vector<Member> members_;
};

}  // namespace openlora
