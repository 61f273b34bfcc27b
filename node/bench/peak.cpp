// What all cores multiply with every operand in registers, by the fastest instructions for weights in bfloat16: their
// own, or those of float32, to which any processor can widen them. Prints the instructions' name, and GFLOP/s.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;
constexpr double SECONDS = 0.5;

template <class Body>
double gflop_s(double flops_a_call, Body body) {
  const auto started = Clock::now();
  double calls = 0, seconds = 0;
  do {
    for (int i = 0; i < 1'000; i++) body();
    calls += 1'000;
    seconds = std::chrono::duration<double>(Clock::now() - started).count();
  } while (seconds < SECONDS);
  return calls * flops_a_call / seconds / 1e9;
}

// Twelve sums: no more than the registers hold, and as many as are being added to at any time.
template <class Sum, class Factor, class Add>
double twelve_sums(double flops_each, Factor x, Add add) {
  Sum s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};
  return gflop_s(12 * flops_each, [&] {
    asm volatile("" : "+v"(x));
    for (Sum* sum : {&s0, &s1, &s2, &s3, &s4, &s5, &s6, &s7, &s8, &s9, &s10, &s11}) *sum = add(*sum, x);
    asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5));
    asm volatile("" : "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11));
  });
}

#if defined(__AMX_BF16__)
struct alignas(64) TileShapes {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

double amx_tiles() {
  const TileShapes shapes;
  _tile_loadconfig(&shapes);  // the tiles are zero after it
  const double result = gflop_s(4 * 2.0 * 16 * 16 * 32, [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  });
  _tile_release();
  return result;
}
bool has_amx_tiles() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }
#endif

#if defined(__AVX512BF16__)
double dot_products() {
  return twelve_sums<__m512>(2.0 * 32, (__m512bh)_mm512_set1_epi32(0x3f803f80),
                             [](__m512 sum, __m512bh x) { return _mm512_dpbf16_ps(sum, x, x); });
}
#endif

#if defined(__AVX512F__)
double fma_512() {
  return twelve_sums<__m512>(2.0 * 16, _mm512_set1_ps(1),
                             [](__m512 sum, __m512 x) { return _mm512_fmadd_ps(x, x, sum); });
}
#elif defined(__FMA__)
double fma_256() {
  return twelve_sums<__m256>(2.0 * 8, _mm256_set1_ps(1),
                             [](__m256 sum, __m256 x) { return _mm256_fmadd_ps(x, x, sum); });
}
#endif

double on_all_cores(double (*one_core)()) {
  std::vector<double> each(std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (double& mine : each) threads.emplace_back([&mine, one_core] { mine = one_core(); });
  double sum = 0;
  for (size_t i = 0; i < threads.size(); i++) {
    threads[i].join();
    sum += each[i];
  }
  return sum;
}

int main() {
  const char* best = "none";
  double most = 0;
  [[maybe_unused]] const auto measure = [&](const char* name, double (*one_core)()) {
    const double speed = on_all_cores(one_core);
    if (speed > most) best = name, most = speed;
  };
#if defined(__AMX_BF16__)
  if (has_amx_tiles()) measure("AMX tiles", amx_tiles);
#endif
#if defined(__AVX512BF16__)
  measure("AVX-512 dot products", dot_products);
#endif
#if defined(__AVX512F__)
  measure("float32 AVX-512 FMA", fma_512);
#elif defined(__FMA__)
  measure("float32 AVX2 FMA", fma_256);
#endif
  std::printf("%s\n%.0f\n", best, most);
}
