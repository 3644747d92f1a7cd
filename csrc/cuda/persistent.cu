// All layers of a decode program for one row, in one launch that stays on every multiprocessor.
//
// At one row a layer is bounded by reading its weights once. Launches, and the short operations
// between products, leave memory idle; here each block knows which weights it reads next, has them
// on their way while blocks wait for one another, and a wait costs what a message through the
// second-level cache takes (persistent_exchange.cuh). A layer is seven phases; blocks need one
// another's results in each:
//   q and kv_a           of the row, normed
//   absorb               queries into the latent space; rotation; the cache's new entry
//   attention            a part of the keys a block
//   (merge               of the parts, when there are many)
//   expand               results out of the latent space
//   output projection    and residual
//   gate and up          of the row, normed; first those of the shared experts, meanwhile some
//                        blocks find the router's logits, and a warp of each chooses the experts
//   down                 of shared experts, while the results of chosen ones come, then of these;
//                        their weighted sum, and residual
// Bits are those of the kernels for more rows.
#include "cuda/persistent.h"

#include <algorithm>

#include "cuda/persistent_expand.cuh"
#include "cuda/persistent_rows.cuh"

namespace moela::cuda {
namespace persistent {

#if __CUDA_ARCH__ >= 900
template <int DTYPE>
struct Kernel {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  Consumer own{};
  Ring ring;
  // Whether one warp makes the input of the shared experts' down projections while the others
  // multiply the chosen experts. With narrower weights they are done before it is.
  static constexpr bool EARLY = DTYPE == MOELA_BF16;

  // The description of a layer, by one warp.
  __device__ __forceinline__ void describe(int i) {
    const int lane = threadIdx.x % 32;
    if (i < a.model.n_layers) {
      const PersistentLayer& layer = a.model.layers[i];
      const uint32_t* from = reinterpret_cast<const uint32_t*>(&layer);
      uint32_t* to = reinterpret_cast<uint32_t*>(&s.layers[i % LAYERS]);
#pragma unroll 1
      for (int j = lane; j < static_cast<int>(sizeof(PersistentLayer) / 4); j += 32) {
        to[j] = __ldg(from + j);
      }
      if (lane < KINDS) s.parts[i % LAYERS][lane] = make_part(a, layer, lane);
    }
    __threadfence_block();
    __syncwarp();
    if (lane == 0) set_counter(&s.described, i + 1);
  }

  __device__ __forceinline__ void run() {
    if (threadIdx.x < DR / 2) {
      double sine, cosine;
      sincos(s.place.position * a.model.frequencies[threadIdx.x], &sine, &cosine);
      s.rope[threadIdx.x] = static_cast<float>(cosine * a.model.rope_factor);
      s.rope[DR / 2 + threadIdx.x] = static_cast<float>(sine * a.model.rope_factor);
    }
    using P = Products<DTYPE>;
#pragma unroll 1
    for (int i = 0; i < a.model.n_layers; i++) {
      wait_until(&s.described, i + 1);
      const Part(&parts)[KINDS] = s.parts[i % LAYERS];
      normed_input<DTYPE>(i, Q);
      mark();
      own = P::template consume<DTYPE>(i, Q, 0, parts[Q].units, 0, own);
      const int kv_sum = parts[Q].units * parts[Q].groups;
      own = P::template consume<P::KV_A>(i, KV, 0, parts[KV].units, kv_sum, own);
      sync();
      mark();
      finish_rows<DTYPE>(i, Q, 0);
      finish_rows<DTYPE>(i, KV, kv_sum);
      sync();
      if (threadIdx.x == 0) set_counter(&s.projected, i + 1);
      mark();

      absorb<DTYPE>(i);
      mark();
      ring = attend<DTYPE>(i, ring);
      if (threadIdx.x == 0) set_counter(&s.attended, i + 1);
      mark();
      if (s.place.splits >= MANY_SPLITS) merge_many<DTYPE>(i);
      expand<DTYPE>(i);
      mark();

      output_input<DTYPE>(i);
      mark();
      own = P::template consume<DTYPE>(i, OUTPUT, 0, parts[OUTPUT].units, 0, own);
      sync();
      mark();
      finish_rows<DTYPE>(i, OUTPUT, 0);
      sync();

      normed_input<DTYPE>(i, GATE_UP);
      mark();
      // Shared experts first: what they give is there when the chosen ones are still under way, and
      // their down projections are multiplied until those of all blocks are there, too.
      const Part &up = parts[GATE_UP], &down = parts[DOWN];
      own = P::template consume<DTYPE>(i, GATE_UP, 0, up.known, 0, own);
      sync();
      finish_gate_up<DTYPE>(i, 0, up.known);
      own = P::template consume<DTYPE>(i, GATE_UP, up.known, up.units, 0, own);
      sync();
      mark();
      finish_gate_up<DTYPE>(i, up.known, up.units);
      if (EARLY && s.layers[i % LAYERS].router) {
        wait_until(&s.shared, i + 1);
      } else {
        shared_down_input<DTYPE>(i, threadIdx.x / 32, WARPS);
      }
      sync();
      mark();
      own = P::template consume<DTYPE>(i, DOWN, 0, down.known, 0, own);
      if (s.layers[i % LAYERS].router) {
        routed_down_input<DTYPE>(i);
      } else {
        mark();
      }
      mark();
      own = P::template consume<DTYPE>(i, DOWN, down.known, down.units, 0, own);
      sync();
      mark();
      finish_down<DTYPE>(i);
      sync();
      mark();
    }
    if (threadIdx.x == 0 && blockIdx.x == 0) *a.to.epochs = s.epoch + a.model.n_layers;
  }

  // The warp that copies cache rows and chooses experts.
  __device__ __forceinline__ void assist() {
    const int lane = threadIdx.x % 32;
    describe(0);
    describe(1);
#pragma unroll 1
    for (int i = 0; i < a.model.n_layers; i++) {
      // Nobody here reads of layer i - 2 any more.
      wait_until(&s.projected, i);
      describe(i + 2);
      ring = copy_keys<DTYPE>(i, ring);
      const PersistentLayer& layer = s.layers[i % LAYERS];
      if (!layer.router) continue;
#pragma unroll 1
      for (int e = lane; e < a.model.shape.experts; e += 32) {
        float logit[1];
        receive(logit, s.epoch + i, [&](int) { return a.to.logits + e; });
        s.logits[e] = logit[0];
      }
      __syncwarp();
      mark_other(i, 0);
      route_row(a.model.shape, s.logits, layer.bias, s.chosen, s.chosen_weights);
      if (lane == 0) set_counter(&s.routed, i + 1);
      mark_other(i, 1);
      if constexpr (EARLY) {
        shared_down_input<DTYPE>(i, 0, 1);
        __syncwarp();
        if (lane == 0) set_counter(&s.shared, i + 1);
      }
    }
  }
};
#endif

template <int DTYPE>
__global__ void __launch_bounds__(THREADS + AUXILIARY, 1)
    persistent_kernel(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 900
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  if (a.step.counts->n_rows < 1) return;
  if (threadIdx.x == 0) {
    s.routed = s.described = s.projected = s.attended = s.shared = 0;
    s.epoch = *a.to.epochs + 1;
    for (int i = 0; i < SLOTS; i++) {
      barrier_init(shared_address(&s.arrived[i]), Shared<DTYPE>::SCALED ? 33 : 1);
      barrier_init(shared_address(&s.free[i]), WARPS);
    }
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&s.full[i]), 1);
      barrier_init(shared_address(&s.empty[i]), WARPS);
    }
    barrier_init_fence();
    s.place = place_of(a.step, a.splits);
    s.pool = a.step.pools[s.place.pool];
    s.makes_entry = makes_entry(s.place);
  }
  for (unsigned i = threadIdx.x; i < sizeof a / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(&s.a)[i] = reinterpret_cast<const uint32_t*>(&a)[i];
  }
  __syncthreads();
  Kernel<DTYPE> kernel;
  if (threadIdx.x < THREADS) {
    kernel.run();
  } else if (threadIdx.x < THREADS + 32 * SLOTS) {
    Products<DTYPE>::bring_all();
  } else {
    kernel.assist();
  }
#endif
}

// Offsets of PersistentScratch, from `base`; their end.
char* place(const PersistentStep& m, char* base, PersistentScratch& to) {
  const auto take = [&](int64_t words) {
    uint64_t* at = reinterpret_cast<uint64_t*>(base);
    base += (words * 8 + 255) / 256 * 256;
    return at;
  };
  to.epochs = reinterpret_cast<uint32_t*>(take(1));
  to.hidden = take(m.d);
  to.middle = take(m.d);
  to.q = take(int64_t{m.heads} * (DN + DR));
  to.kv_a = take(WIDTH);
  to.q_latent = take(int64_t{HEADS} * WIDTH);
  to.parts = take(PERSISTENT_PARTS * HEADS * R);
  to.states = take(PERSISTENT_PARTS * HEADS * 2);
  to.merged = take(int64_t{HEADS} * R);
  to.attended = take(int64_t{m.heads} * DV);
  to.logits = take(m.shape.experts);
  const int64_t groups = stream_groups(m.shared) + m.shape.top_k * stream_groups(m.intermediate);
  to.inner = take(STREAM_GROUP * std::max(groups, stream_groups(m.dense)));
  return base;
}

template <class Do>
void by_type(int32_t dtype, const Do& act) {
  switch (dtype) {
    case MOELA_BF16:
      return act(std::integral_constant<int, MOELA_BF16>{});
    case MOELA_FP8:
      return act(std::integral_constant<int, MOELA_FP8>{});
    case MOELA_INT8:
      return act(std::integral_constant<int, MOELA_INT8>{});
    case MOELA_INT4:
      return act(std::integral_constant<int, MOELA_INT4>{});
  }
}

int32_t kv_b_type(int32_t dtype) {
  int32_t type = -1;
  by_type(dtype, [&](auto of) { type = KV_B_TYPE<decltype(of)::value>; });
  return type;
}
int32_t kv_a_type(int32_t dtype) {
  int32_t type = -1;
  by_type(dtype, [&](auto of) { type = KV_A_TYPE<decltype(of)::value>; });
  return type;
}

}  // namespace persistent

int64_t persistent_bytes(const PersistentStep& model) {
  PersistentScratch none;
  return persistent::place(model, nullptr, none) - static_cast<char*>(nullptr);
}

bool persistent_fits(const Launch& at, const PersistentStep& m) {
  using namespace persistent;
  if (!at.hopper || at.bucket != 1 || m.n_layers < 1 || m.d > 4 * THREADS * MOST_FOURS)
    return false;
  const auto groups = [](int64_t k) { return stream_groups(k); };
  // Rows of 16 bytes, of every type.
  for (int64_t k : {int64_t{m.d}, m.shared, m.dense, int64_t{m.intermediate}}) {
    if (k % 16 != 0) return false;
  }
  const RouterShape& r = m.shape;
  if (m.heads < 1 || m.heads > HEADS || r.top_k > ROUTE_MOST_CHOSEN || r.experts > ROUTE_MOST ||
      r.n_group > ROUTE_MOST_GROUPS) {
    return false;
  }
  const int64_t attended = int64_t{m.heads} * DV;
  const int64_t inputs = groups(m.shared) + std::max(r.top_k * groups(m.intermediate), groups(m.d));
  for (int64_t n : {groups(m.d), groups(attended), inputs, groups(m.dense)}) {
    if (n > MOST_GROUPS) return false;
  }
  const int64_t blocks = at.sms;
  const auto units = [&](int64_t rows, int64_t unit) {  // of a block at most
    return ((rows + blocks - 1) / blocks + unit - 1) / unit;
  };
  // Of shared experts a block has an even number of rows.
  const auto gates = [&](int64_t rows) { return units((rows + 1) / 2 * 2 + blocks, GATE_UNIT); };
  const int64_t routed = r.top_k * ((m.intermediate + GATE_UNIT - 1) / GATE_UNIT);
  for (int64_t n : {units(int64_t{m.heads} * (DN + DR), STREAM_TILE) + units(WIDTH, STREAM_TILE),
                    gates(m.dense), gates(m.shared) + (routed + blocks - 1) / blocks}) {
    if (n * groups(m.d) > MOST_SUMS) return false;
  }
  if (units(m.d, 1) > STREAM_TILE || m.kv_a_dtype != kv_a_type(m.dtype) ||
      m.kv_b_dtype != kv_b_type(m.dtype)) {
    return false;
  }
  bool fits = false;
  by_type(m.dtype, [&](auto dtype) {
    fits = sizeof(Shared<decltype(dtype)::value>) <= stream_shared_limit();
  });
  return fits;
}

void persistent_step(const Launch& at, const PersistentStep& model, char* scratch) {
  using namespace persistent;
  Arguments a{at.step, model, {}, MLA_CLUSTER_SPLITS};
  place(model, scratch, a.to);
  by_type(model.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    check(
        cudaFuncSetAttribute(persistent_kernel<DTYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(Shared<DTYPE>))),
        "allowing shared memory");
    launch_together(at, persistent_kernel<DTYPE>, dim3(at.sms), dim3(THREADS + AUXILIARY),
                    sizeof(Shared<DTYPE>), a);
  });
}

}  // namespace moela::cuda
