// CUDA C++ for a compiler of C++: what csrc/cuda uses of the language, then of the runtime.
#pragma once

// First, so that the words below do not meet those of the standard library's own headers.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __CUDACC__ 1
#ifndef __CUDA_ARCH__
#error "the emulated architecture is given by the build"
#endif

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// A block has its thread's: poison_static_shared() finds them together.
#define __shared__ static thread_local

#include "cuda_vectors.h"

#include "cuda_intrinsics.h"
#include "cuda_runtime_api.h"
