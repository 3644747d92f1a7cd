// How kernels are launched and how they follow one another.
//
// With programmatic dependent launch a kernel may start before its predecessor has ended. So every
// kernel calls wait_for_previous() on all its threads before it reads or writes anything that
// another kernel touches; before that it may only read weights (prefetch them). It may call
// allow_next() as soon as its own blocks are all running; the next one waits for its end anyway.
#pragma once

#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "cuda/ops.h"
#include "runtime/error.h"
#ifdef __CUDACC__
#include "cuda/ptx.cuh"
#endif

namespace moela::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(MOELA_ERR_DEVICE, std::string(what) + ": " + cudaGetErrorString(error));
}

#ifdef __CUDACC__
// A kernel by itself, outside of a step.
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...),
        "launching a kernel");
}

// Allows a kernel all the dynamic shared memory that there is, once for each device. The limit is
// the process's: one as large as a single launch needs could be lowered by another model's thread
// just before that launch.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...)) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "asking for the device");
  std::lock_guard lock(mutex);
  const std::pair key{reinterpret_cast<const void*>(kernel), device};
  if (allowed.count(key)) return;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's shared memory");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for shared memory");
  most -= static_cast<int>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "allowing shared memory");
  allowed.insert(key);
}

// Launches `kernel` with its arguments. Dynamic shared memory above 48 KB must have been allowed
// with allow_shared() before, or one size for good. CLUSTER: what the kernel's __cluster_dims__
// says.
template <int CLUSTER = 1, class... Parameters, class... Arguments>
void launch(const Launch& at, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = at.stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = at.overlap ? 1 : 0;
  if (CLUSTER > 1) name_cluster(config, attributes[config.numAttrs], CLUSTER);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...),
        "launching a kernel");
}

// How many clusters of a kernel run at once, which need not fill every multiprocessor.
template <int CLUSTER, class... Parameters>
int most_clusters(const Launch& at, void (*kernel)(Parameters...), unsigned threads,
                  size_t shared) {
  cudaLaunchConfig_t config{};
  config.gridDim = at.sms / CLUSTER * CLUSTER;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {CLUSTER, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  int most = 0;
  check(cudaOccupancyMaxActiveClusters(&most, kernel, &config), "asking for clusters");
  const int room = at.sms / CLUSTER;
  return most > room ? room : most;
}

// As launch(), for a kernel whose blocks wait for one another: all of them run at once, or none.
template <class... Parameters, class... Arguments>
void launch_together(const Launch& at, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                     size_t shared, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = at.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...),
        "launching a kernel");
}
#endif

}  // namespace moela::cuda
