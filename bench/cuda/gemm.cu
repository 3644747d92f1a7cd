// Checks and times the wgmma family of products (csrc/cuda/wgmma.h) on random data.
//
//   nvcc -std=c++17 -O3 -Icsrc -Icsrc/include -gencode=arch=compute_90a,code=sm_90a
//     bench/cuda/gemm.cu csrc/cuda/wgmma_*.cu -o gemm && ./gemm
//
// Every case is compared with sums in double on random elements (all of them when few), on poisoned
// outputs; rows of the absorbed path must stay untouched, and a row's bits must not depend on how
// many rows there are.
#include "cuda/wgmma.h"
#include "support.cuh"

#include <cuda_bf16.h>

using namespace bench;

namespace {

int failures = 0;

struct Shape {
  const char* name;
  int64_t n, k, experts, top_k;  // experts 0: no plan
  bool gated;
  bool residual = false;  // when timed
  int out = MOELA_F32;    // when timed
};

// A step of `rows` rows, the first `absorbed` on the absorbed path, and its plan.
struct Case {
  Counts* counts;
  int32_t* plan = nullptr;
  int64_t rows, absorbed, slots;
  int64_t experts_hit = 1;
  Launch at{};
};

enum Routing { UNIFORM, SKEWED, ONE };

Case make_case(const Shape& shape, int64_t rows, int64_t absorbed, Routing routing) {
  Case c;
  c.rows = rows;
  c.absorbed = absorbed;
  const Counts counts{static_cast<int32_t>(rows), static_cast<int32_t>(absorbed), 1, 0};
  OK(cudaMalloc(&c.counts, sizeof counts));
  OK(cudaMemcpy(c.counts, &counts, sizeof counts, cudaMemcpyHostToDevice));
  const int64_t k = shape.experts ? shape.top_k : 1;
  c.slots = rows * k;
  if (shape.experts) {
    // A row's experts depend on the row alone.
    std::vector<std::vector<int32_t>> of(shape.experts);
    for (int64_t row = 0; row < rows; row++) {
      std::mt19937 random(static_cast<uint32_t>(row * 7919 + 1));
      std::vector<bool> taken(shape.experts);
      for (int64_t rank = 0; rank < k; rank++) {
        int64_t e;
        do {
          const double u = random() / 4294967296.0;
          e = routing == ONE      ? (3 + rank) % shape.experts
              : routing == SKEWED ? static_cast<int64_t>(u * u * u * shape.experts)
                                  : static_cast<int64_t>(u * shape.experts);
        } while (taken[e]);
        taken[e] = true;
        of[e].push_back(static_cast<int32_t>(row * k + rank));
      }
    }
    std::vector<int32_t> plan(1, 0);
    for (auto& slots : of) plan.push_back(plan.back() + static_cast<int32_t>(slots.size()));
    c.experts_hit = 0;
    for (auto& slots : of) {
      c.experts_hit += !slots.empty();
      plan.insert(plan.end(), slots.begin(), slots.end());
    }
    OK(cudaMalloc(&c.plan, plan.size() * 4));
    OK(cudaMemcpy(c.plan, plan.data(), plan.size() * 4, cudaMemcpyHostToDevice));
  }
  c.at.step.counts = c.counts;
  c.at.bucket = static_cast<int32_t>(rows);
  c.at.absorbed = static_cast<int32_t>(absorbed);
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  c.at.sms = properties.multiProcessorCount;
  c.at.hopper = true;
  return c;
}

void release(Case& c) {
  OK(cudaFree(c.counts));
  if (c.plan) OK(cudaFree(c.plan));
}

__global__ void to_bf16(const float* in, __nv_bfloat16* out, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    out[i] = __float2bfloat16_rn(in[i]);
  }
}

__device__ float load(const void* data, int dtype, int64_t i) {
  return dtype == MOELA_F32 ? static_cast<const float*>(data)[i]
                            : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

struct Check {
  Weight weight, up;
  bool gated;
  const int32_t* plan;
  int experts, in_divisor;
  int64_t slots, first;  // slots before `first` must be untouched
  int64_t n, k;
  const __nv_bfloat16* in;
  const float* residual;
  const void* out;
  int out_dtype;
  int64_t samples;  // of a slot; n: all
};

// worst: [0] bits of the largest error over its tolerance, [1] elements that are wrong.
__global__ void check_kernel(Check c, uint32_t* worst) {
  const int lane = threadIdx.x % 32;
  const int64_t warp = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  for (int64_t i = warp; i < c.slots * c.samples; i += warps) {
    const int64_t index = i / c.samples;
    int64_t slot = index;
    int expert = 0;
    if (c.plan) {
      slot = c.plan[c.experts + 1 + index];
      while (c.plan[expert + 1] <= index) expert++;
    }
    const int64_t f = c.samples == c.n ? i % c.samples : hash(i * 31 + 7) % c.n;
    const float got = load(c.out, c.out_dtype, slot * c.n + f);
    if (slot < c.first) {
      if (lane == 0 && got == got) atomicAdd(&worst[1], 1);
      continue;
    }
    const __nv_bfloat16* x = c.in + slot / c.in_divisor * c.k;
    double sum[2] = {}, size[2] = {};
    for (int m = 0; m < (c.gated ? 2 : 1); m++) {
      const Weight& w = m ? c.up : c.weight;
      const __nv_bfloat16* row =
          reinterpret_cast<const __nv_bfloat16*>(w.data + expert * w.part_bytes) + f * c.k;
      for (int64_t j = lane; j < c.k; j += 32) {
        const double part = static_cast<double>(__bfloat162float(x[j])) * __bfloat162float(row[j]);
        sum[m] += part;
        size[m] += fabs(part);
      }
      for (int distance = 16; distance; distance /= 2) {
        sum[m] += __shfl_xor_sync(~0u, sum[m], distance);
        size[m] += __shfl_xor_sync(~0u, size[m], distance);
      }
    }
    double want = sum[0];
    double tolerance = 1e-5 * size[0];
    if (c.gated) {
      const double silu = sum[0] / (1 + exp(-sum[0]));
      want = silu * sum[1];
      tolerance = 1.2e-5 * size[0] * fabs(sum[1]) + 1e-5 * size[1] * fabs(silu) + 4e-6 * fabs(want);
    }
    if (c.residual) want += c.residual[slot * c.n + f];
    tolerance += (c.out_dtype == MOELA_BF16 ? 1.0 / 256 : 1.0 / (1 << 22)) * fabs(want) + 1e-9;
    const float ratio = static_cast<float>(fabs(got - want) / tolerance);
    if (lane == 0) {
      if (!(ratio <= 1)) atomicAdd(&worst[1], 1);
      if (ratio == ratio) atomicMax(&worst[0], __float_as_uint(ratio));
    }
  }
}

void run(const Case& c, const Shape& s, Tensor in, const Weight& weight, const Weight& up,
         const float* residual, Tensor out) {
  if (s.gated) {
    const WgmmaGated part{&weight, &up, out};
    gate_up_wgmma(c.at, s.k, s.top_k, s.experts, in, c.plan, &part, 1);
  } else if (c.plan) {
    const WgmmaDown part{&weight, in, out};
    expert_down_wgmma(c.at, s.top_k, s.experts, c.plan, &part, 1);
  } else {
    const WgmmaLinear part{&weight, residual, out, {}};
    linear_wgmma(c.at, s.k, in, &part, 1);
  }
}

struct Data {
  Weight weight, up;
  float* in;
  __nv_bfloat16* in16;
  float* residual;
  char* out;
  int64_t out_bytes;
};

int64_t in_rows(const Shape& s, int64_t rows) {
  return s.experts && !s.gated ? rows * s.top_k : rows;
}

Data make_data(const Shape& s, int64_t rows, bool swapped) {
  Data d;
  const int parts = static_cast<int>(s.experts ? s.experts : 1);
  d.weight = make_weight(MOELA_BF16, parts, s.n, s.k, 11);
  d.up = s.gated ? make_weight(MOELA_BF16, parts, s.n, s.k, 1011) : Weight{};
  if (s.gated && swapped != (d.up.data < d.weight.data)) std::swap(d.up, d.weight);
  const int64_t values = in_rows(s, rows) * s.k;
  d.in = make_floats(values, 5);
  OK(cudaMalloc(&d.in16, values * 2 + 256));
  to_bf16<<<528, 256>>>(d.in, d.in16, values);
  const int64_t outs = rows * (s.experts ? s.top_k : 1) * s.n;
  d.residual = s.gated || s.experts ? nullptr : make_floats(outs, 9);
  d.out_bytes = outs * 4;
  OK(cudaMalloc(&d.out, d.out_bytes + 256));
  return d;
}

void release(Data& d) {
  OK(cudaFree(const_cast<char*>(d.weight.data)));
  if (d.up.data) OK(cudaFree(const_cast<char*>(d.up.data)));
  OK(cudaFree(d.in));
  OK(cudaFree(d.in16));
  if (d.residual) OK(cudaFree(d.residual));
  OK(cudaFree(d.out));
}

float verify(const Case& c, const Shape& s, const Data& d, const float* residual, int out_dtype) {
  static uint32_t* worst = [] {
    uint32_t* pointer;
    OK(cudaMalloc(&pointer, 8));
    return pointer;
  }();
  OK(cudaMemset(worst, 0, 8));
  Check check{};
  check.weight = d.weight;
  check.up = d.up;
  check.gated = s.gated;
  check.plan = c.plan;
  check.experts = static_cast<int>(s.experts);
  check.in_divisor = static_cast<int>(s.gated && s.experts ? s.top_k : 1);
  check.slots = c.slots;
  check.first = c.absorbed * (s.experts ? s.top_k : 1);
  check.n = s.n;
  check.k = s.k;
  check.in = d.in16;
  check.residual = residual;
  check.out = d.out;
  check.out_dtype = out_dtype;
  check.samples = c.slots * s.n <= 400000 ? s.n : 8;
  check_kernel<<<1056, 256>>>(check, worst);
  OK(cudaGetLastError());
  const std::vector<uint32_t> result = read(worst, 2);
  if (result[1]) {
    printf("  WRONG: %s rows %lld absorbed %lld: %u elements, worst %g of its tolerance\n", s.name,
           static_cast<long long>(c.rows), static_cast<long long>(c.absorbed), result[1],
           as_float(result[0]));
    failures++;
  }
  return as_float(result[0]);
}

void check_shape(const Shape& s, int64_t rows, int64_t absorbed, Routing routing, bool f32_in) {
  Data d = make_data(s, rows, rows % 2);
  Case c = make_case(s, rows, absorbed, routing);
  if (!(s.gated ? wgmma_takes(c.at, d.weight, d.up) : wgmma_takes(c.at, d.weight))) {
    printf("  WRONG: %s is not taken\n", s.name);
    failures++;
  }
  float worst = 0;
  for (int dtype : {MOELA_F32, MOELA_BF16}) {
    for (bool residual : {false, true}) {
      if (residual && !d.residual) continue;
      OK(cudaMemset(d.out, 0xff, d.out_bytes));
      const Tensor in = f32_in ? Tensor{d.in, MOELA_F32} : Tensor{d.in16, MOELA_BF16};
      run(c, s, in, d.weight, d.up, residual ? d.residual : nullptr, {d.out, dtype});
      OK(cudaDeviceSynchronize());
      worst = std::max(worst, verify(c, s, d, residual ? d.residual : nullptr, dtype));
    }
  }
  // The same rows among fewer give the same bits.
  OK(cudaMemset(d.out, 0xff, d.out_bytes));
  run(c, s, {d.in16, MOELA_BF16}, d.weight, d.up, nullptr, {d.out, MOELA_F32});
  const std::vector<uint32_t> all = read(reinterpret_cast<uint32_t*>(d.out), d.out_bytes / 4);
  for (int64_t fewer : {rows / 2 + 1, absorbed + 1, rows - 1}) {
    if (fewer <= absorbed || fewer > rows) continue;
    Case part = make_case(s, fewer, absorbed, routing);
    OK(cudaMemset(d.out, 0xff, d.out_bytes));
    run(part, s, {d.in16, MOELA_BF16}, d.weight, d.up, nullptr, {d.out, MOELA_F32});
    const std::vector<uint32_t> some = read(reinterpret_cast<uint32_t*>(d.out), d.out_bytes / 4);
    const int64_t elements = part.slots * s.n;
    if (memcmp(all.data(), some.data(), elements * 4) != 0) {
      printf("  WRONG: %s: rows among %lld differ from those among %lld\n", s.name,
             static_cast<long long>(fewer), static_cast<long long>(rows));
      failures++;
    }
    release(part);
  }
  printf("%-24s rows %5lld absorbed %3lld routing %d %s: worst %.3f of its tolerance\n", s.name,
         static_cast<long long>(rows), static_cast<long long>(absorbed), routing,
         f32_in ? "f32" : "bf16", worst);
  fflush(stdout);
  release(c);
  release(d);
}

void time_shape(const Shape& s, int64_t rows) {
  Data d = make_data(s, rows, false);
  Case c = make_case(s, rows, 0, UNIFORM);
  OK(cudaStreamCreate(&c.at.stream));
  c.at.overlap = true;
  OK(cudaMemset(d.out, 0xff, d.out_bytes));
  const int launches = 10;
  const float* residual = s.residual ? d.residual : nullptr;
  const auto go = [&] {
    run(c, s, {d.in16, MOELA_BF16}, d.weight, d.up, residual, {d.out, s.out});
  };
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OK(cudaStreamBeginCapture(c.at.stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; i++) go();
  OK(cudaStreamEndCapture(c.at.stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 8; i++) {
    OK(cudaEventRecord(begin, c.at.stream));
    OK(cudaGraphLaunch(exec, c.at.stream));
    OK(cudaEventRecord(end, c.at.stream));
    OK(cudaStreamSynchronize(c.at.stream));
    float ms;
    OK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 1) times.push_back(ms * 1000 / launches);
  }
  std::sort(times.begin(), times.end());
  const double us = times[times.size() / 2];
  const double matrices = s.gated ? 2 : 1;
  const double flop = 2.0 * c.slots * s.n * s.k * matrices;
  const double bytes = 2.0 * c.experts_hit * s.n * s.k * matrices;
  const float worst = verify(c, s, d, residual, s.out);
  printf("%-14s %6lld rows %9.1f us %7.0f GB/s of weights %6.0f TFLOP/s (worst %.3f)\n", s.name,
         static_cast<long long>(rows), us, bytes / us / 1e3, flop / us / 1e6, worst);
  fflush(stdout);
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaStreamDestroy(c.at.stream));
  release(c);
  release(d);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check,time";
  if (what.find("check") != std::string::npos) {
    const Shape odd_linear{"linear 200x136", 200, 136, 0, 1, false};
    const Shape linear{"linear 576x2048", 576, 2048, 0, 1, false};
    const Shape long_k{"linear 72x10944", 72, 10944, 0, 1, false};
    const Shape dense{"gate_up 344x128 dense", 344, 128, 0, 1, true};
    const Shape wide_linear{"linear 2048x512", 2048, 512, 0, 1, false};
    const Shape wide_dense{"gate_up 2816x512 dense", 2816, 512, 0, 1, true};
    const Shape gate_up{"gate_up 184x320 9/3", 184, 320, 9, 3, true};
    const Shape down{"down 328x184 9/3", 328, 184, 9, 3, false};
    const Shape lite_gate_up{"gate_up 1408x2048 64/6", 1408, 2048, 64, 6, true};
    const Shape lite_down{"down 2048x1408 64/6", 2048, 1408, 64, 6, false};
    for (bool f32 : {false, true}) {
      check_shape(odd_linear, 1, 0, UNIFORM, f32);
      check_shape(odd_linear, 77, 5, UNIFORM, f32);
      check_shape(linear, 300, 17, UNIFORM, f32);
      check_shape(long_k, 129, 0, UNIFORM, f32);
      check_shape(dense, 250, 3, UNIFORM, f32);
      check_shape(gate_up, 130, 7, SKEWED, f32);
      check_shape(gate_up, 13, 0, UNIFORM, f32);
      check_shape(gate_up, 601, 1, ONE, f32);
      check_shape(down, 130, 7, SKEWED, f32);
      check_shape(down, 600, 2, ONE, f32);
      check_shape(lite_gate_up, 517, 5, UNIFORM, f32);
      check_shape(lite_down, 517, 5, UNIFORM, f32);
    }
    // Many rows take wider tiles than the fewer that they are compared with.
    check_shape(linear, 4096, 17, UNIFORM, false);
    check_shape(wide_linear, 4096, 17, UNIFORM, false);
    check_shape(wide_dense, 4096, 5, UNIFORM, false);
    check_shape(lite_gate_up, 4096, 4, SKEWED, false);
    check_shape(lite_down, 4096, 4, SKEWED, false);
    check_shape(lite_gate_up, 12000, 0, UNIFORM, false);
    check_shape(lite_down, 12000, 0, UNIFORM, false);
    printf(failures ? "%d FAILURES\n" : "all right\n", failures);
  }
  if (what.find("time") != std::string::npos) {
    const Shape shapes[] = {
        {"experts gate_up", 1408, 2048, 64, 6, true, false, MOELA_BF16},
        {"experts down", 2048, 1408, 64, 6, false},
        {"down to bf16", 2048, 1408, 64, 6, false, false, MOELA_BF16},
        {"shared gate_up", 2816, 2048, 0, 1, true, false, MOELA_BF16},
        {"shared down", 2048, 2816, 0, 1, false},
        {"q", 3072, 2048, 0, 1, false},
        {"kv_a", 576, 2048, 0, 1, false},
        {"o", 2048, 2048, 0, 1, false, true},
        {"dense gate_up", 10944, 2048, 0, 1, true, false, MOELA_BF16},
        {"dense down", 2048, 10944, 0, 1, false, true},
    };
    for (int64_t rows : {128, 512, 2048, 4096, 16384}) {
      for (const Shape& s : shapes) time_shape(s, rows);
    }
  }
  return failures ? 1 : 0;
}
