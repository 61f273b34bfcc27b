// A processor that says it had AMX and AVX512-BF16, which matrix_unit.h stands in for: included before all else in
// choice.cpp.
#pragma once
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#undef __get_cpuid_count
#define __builtin_cpu_supports(feature) true
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(c) = *(d) = ~0u, true)
#define syscall(...) 0
