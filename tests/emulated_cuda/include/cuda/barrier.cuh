// What csrc/cuda/barrier.cuh says, on the emulated GPU.
#pragma once

#include "cuda/ptx.cuh"

namespace moela::cuda {

#if __CUDA_ARCH__ >= 900
void barrier_init(uint32_t barrier, uint32_t count);
inline void barrier_init_fence() {}
void barrier_arrive(uint32_t barrier);
void barrier_arrive_expect(uint32_t barrier, uint32_t bytes);
void barrier_arrive_copies(uint32_t barrier);
inline void bulk_prefetch(const void*, int) {}
void barrier_wait(uint32_t barrier, uint32_t parity);

inline uint32_t cluster_rank() { return emulated::self().block->rank; }
inline void cluster_sync() { emulated::synchronise_cluster(); }
inline uint32_t remote(uint32_t address, int rank) {
  return (address & 0xffffff) | static_cast<uint32_t>(rank) << 24;
}
inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  barrier_arrive(remote(barrier, static_cast<int>(rank)));
}
inline void remote_arrive(uint32_t barrier) { barrier_arrive(barrier); }
inline void cluster_wait(uint32_t barrier, uint32_t parity) { barrier_wait(barrier, parity); }

inline void copy16(uint32_t to, const void* from, bool valid) {
  copy16(emulated::pointer_of(to), from, valid ? 16 : 0);
}
void bulk_load(uint32_t to, const void* from, int bytes, uint32_t barrier);
inline uint64_t once_policy() { return 0; }
inline void bulk_load_once(uint32_t to, const void* from, int bytes, uint32_t barrier, uint64_t) {
  bulk_load(to, from, bytes, barrier);
}
inline void bulk_send(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  bulk_load(to, from, bytes, barrier);
}
void bulk_store(void* to, uint32_t from, int bytes);
inline void bulk_store_commit() {}
void bulk_store_read();
inline void bulk_store_wait() { bulk_store_read(); }
inline void fence_async_proxy() {}

// `bytes` of a copy have landed.
void emulated_landed(uint32_t barrier, int bytes);
#endif

}  // namespace moela::cuda
