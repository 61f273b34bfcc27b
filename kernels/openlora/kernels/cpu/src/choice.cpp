// Which unit computes. This is compiled for any processor, and so are the questions what the one at hand has: a unit's
// own code would be in the very instructions that may be missing.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace openlora {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTiles | kInt8;
  constexpr unsigned kVbmi2 = 1u << 6;  // of c
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll && (c & kVbmi2);
}

// Linux gives a process the registers when it asks.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const Kernels* avx512() {
  if (!&kAvx512) return nullptr;
  static const Kernels kBest = [] {
    Kernels table = kAvx512;
    if (use_avx512_vnni && __builtin_cpu_supports("avx512vnni")) use_avx512_vnni(table);
    return table;
  }();
  return &kBest;
}
#endif

}  // namespace

const Kernels* choose_kernels(const char* instructions) {
  const Kernels* found[] = {
#if defined(__x86_64__)
      has_amx() && may_use_tiles() ? &kAmx : nullptr,
      // AMD's processors have twice as many bfloat16 products as float32 ones, Intel's half as many.
      __builtin_cpu_is("amd") && has_avx512_bf16() ? &kAvx512Bf16 : nullptr, has_avx512() ? avx512() : nullptr,
      has_avx512_bf16() ? &kAvx512Bf16 : nullptr, has_avx2() ? &kAvx2 : nullptr,
#endif
      &kPlain};
  for (const Kernels* one : found)
    if (one && (!*instructions || !std::strcmp(instructions, one->name))) return one;
  return nullptr;
}

}  // namespace openlora
