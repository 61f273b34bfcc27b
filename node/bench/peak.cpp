// What all cores multiply in bfloat16 with every operand in registers: prints the instructions' name, and GFLOP/s.
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

#if defined(__AMX_BF16__)
const char* const NAME = "AMX tiles";

struct alignas(64) TileShapes {
    unsigned char palette = 1, start_row = 0, reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

double one_core() {
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
bool permitted() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }

#elif defined(__AVX512BF16__)
const char* const NAME = "AVX-512 dot products";

double one_core() {
    __m512 s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};
    __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    return gflop_s(12 * 2.0 * 32, [&] {
        asm volatile("" : "+v"(x));
        for (__m512* sum : {&s0, &s1, &s2, &s3, &s4, &s5, &s6, &s7, &s8, &s9, &s10, &s11})
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5));
        asm volatile("" : "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11));
    });
}
bool permitted() { return true; }

#else
const char* const NAME = "none";
double one_core() { return 0; }
bool permitted() { return false; }
#endif

int main() {
    if (!permitted()) return 1;
    std::vector<double> each(std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (double& mine : each) threads.emplace_back([&mine] { mine = one_core(); });
    double sum = 0;
    for (size_t i = 0; i < threads.size(); i++) {
        threads[i].join();
        sum += each[i];
    }
    std::printf("%s\n%.0f\n", NAME, sum);
}
