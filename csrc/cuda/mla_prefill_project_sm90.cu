// Up-projection of a window: [k | v] [128 keys, 128 + 128] = latents [128 keys, r] W [256, r]^T,
// for each key block and head, bf16 into f32, out as bf16. Inputs and outputs lie in global memory
// as shared memory holds them (mla_prefill_gather.cu), so that all copies are bulk copies of whole
// tiles: keys [block][head][4][128 keys][64], the tiles k, k, v, v.
//
// A persistent block an SM: one warp copies (3 stages of 64 columns of r), two warpgroups of 64
// keys multiply. A key's sums run over r in one order, whatever else is in the window.
#include "cuda/barrier.cuh"
#include "cuda/mla_prefill.cuh"
#include "cuda/stream_types.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

namespace {

constexpr int STAGES = 3;
constexpr int LATENTS = 128 * 128, WEIGHTS = 256 * 128, STAGE = LATENTS + WEIGHTS;
constexpr int OUT = 4 * 128 * 128;  // bytes of a key block's k and v of a head
constexpr int BARRIERS = STAGES * STAGE + OUT;
constexpr int SHARED = BARRIERS + 2 * STAGES * 8 + 1024;
constexpr int THREADS = 384;

__global__ void __launch_bounds__(THREADS, 1) project(const __grid_constant__ MlaPrefillPass pass) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  MOELA_DYNAMIC_SHARED(char, memory);
  const uint32_t base = (shared_address(memory) + 1023) / 1024 * 1024;
  const uint32_t full = base + BARRIERS, empty = full + STAGES * 8;
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + i * 8, 1);
      barrier_init(empty + i * 8, 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous();
  allow_next();
  const int steps = int(pass.shape.r) / 64;
  const int n = min(pass.blocks, pass.tables->n_blocks - pass.block) * pass.heads;
  if (group == 0) {
    registers_dec<40>();
    if (threadIdx.x == 0) {
      int copy = 0;
      for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const char* latents = pass.latents + int64_t{i / pass.heads} * steps * LATENTS;
        const char* weights = pass.weights + int64_t{i % pass.heads} * steps * WEIGHTS;
        for (int k = 0; k < steps; k++, copy++) {
          const int stage = copy % STAGES;
          const uint32_t to = base + stage * STAGE, barrier = full + stage * 8;
          if (copy >= STAGES) barrier_wait(empty + stage * 8, (copy / STAGES + 1) & 1);
          barrier_arrive_expect(barrier, STAGE);
          bulk_load(to, latents + k * LATENTS, LATENTS, barrier);
          bulk_load(to + LATENTS, weights + k * WEIGHTS, WEIGHTS, barrier);
        }
      }
    }
  } else {
    registers_inc<232>();
    const int half = group - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const int row = half * 64 + thread / 32 * 16 + lane / 4;  // and row + 8
    const uint32_t out = base + STAGES * STAGE;
    const auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(empty + stage * 8);
    };
    float d[128];
    int copy = 0;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
#pragma unroll
      for (int j = 0; j < 128; j++) d[j] = 0;
      for (int k = 0; k < steps; k++, copy++) {
        const int stage = copy % STAGES;
        const uint32_t from = base + stage * STAGE;
        barrier_wait(full + stage * 8, copy / STAGES & 1);
        pin(d);
        wgmma_begin();
        const uint64_t a = operand_descriptor(from + half * 8192),
                       b = operand_descriptor(from + LATENTS);
#pragma unroll
        for (int j = 0; j < 4; j++) Wgmma<256>::run(d, a + 2 * j, b + 2 * j);
        wgmma_commit();
        // The product before this one has ended: its stage is free.
        wgmma_wait<1>();
        if (k > 0) release((copy - 1) % STAGES);
      }
      wgmma_wait<0>();
      pin(d);
      release((copy - 1) % STAGES);
      // This half's part of the staging memory is free again.
      if (thread == 0) bulk_store_read();
      named_sync<128>(1 + half);
#pragma unroll
      for (int c = 0; c < 32; c++) {
        // 8 columns of each of the two rows; row % 8 is the same for both.
        const uint32_t to =
            out + c / 8 * LATENTS + row * 128 + ((c % 8) ^ (row % 8)) * 16 + lane % 4 * 4;
        store_shared(to, bf16_pair(d[4 * c], d[4 * c + 1]));
        store_shared(to + 8 * 128, bf16_pair(d[4 * c + 2], d[4 * c + 3]));
      }
      fence_async_proxy();
      named_sync<128>(1 + half);
      if (thread == 0) {
        char* to = pass.keys + int64_t{i} * OUT;
        for (int c = 0; c < 4; c++) {
          bulk_store(to + c * LATENTS + half * 8192, out + c * LATENTS + half * 8192, 8192);
        }
        bulk_store_commit();
      }
    }
    if (thread == 0) bulk_store_wait();
  }
#endif
}

}  // namespace

void mla_prefill_project_sm90(const Launch& at, const MlaPrefillPass& pass) {
  check(cudaFuncSetAttribute(project, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED),
        "shared memory of mla_prefill");
  const int64_t grid = std::min<int64_t>(at.sms, int64_t{pass.blocks} * pass.heads);
  launch(at, &project, dim3(unsigned(grid)), dim3(THREADS), SHARED, pass);
}

}  // namespace moela::cuda
