// Times decode steps of DeepSeek-V2-Lite on random weights as CUDA graphs: at one row a whole step
// by the fused launches, at more rows its products; and each kind of kernel alone. Usage: decode
// [types, comma-separated] [batches].
#include "cuda/fused.h"
#include "cuda/stream.h"
#include "support.cuh"

namespace bench {
namespace {

constexpr int LAYERS = 27, HIDDEN = 2048, HEADS = 16, QK = 192, RANK = 512, ROPE = 64, V = 128;
constexpr int EXPERTS = 64, TOP_K = 6, MOE = 1408, SHARED = 2816, DENSE = 10944, VOCAB = 102400;

// Stands in for a small kernel.
__global__ void small_kernel(const float* in, float* out, int n) {
  wait_for_previous();
  allow_next();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    out[i] = in[i];
  }
}

struct Layer {
  Weight input_norm, q, kv_a, absorb, expand, o, post_norm, router;
  Weight gate, up, down, shared_gate, shared_up, shared_down;
};

struct Model {
  std::vector<Layer> layers;
  Weight norm, head;
  float *h, *q, *kv_a, *q2, *latent, *o_latent, *attended, *middle, *logits, *routed, *shared,
      *weights, *vocab;
  int32_t* chosen;
};

Model make_model(int dtype) {
  Model m;
  uint64_t seed = 1;
  const auto weight = [&](int type, int count, int64_t n, int64_t k) {
    seed += 1000;
    return make_weight(type, count, n, k, seed);
  };
  for (int i = 0; i < LAYERS; i++) {
    Layer l{};
    l.input_norm = weight(MOELA_F32, 1, 1, HIDDEN);
    l.q = weight(dtype, 1, HEADS * QK, HIDDEN);
    l.kv_a = weight(dtype, 1, RANK + ROPE, HIDDEN);
    l.absorb = weight(dtype, 1, HEADS * RANK, V);
    l.expand = weight(dtype, 1, HEADS * V, RANK);
    l.o = weight(dtype, 1, HIDDEN, HEADS * V);
    l.post_norm = weight(MOELA_F32, 1, 1, HIDDEN);
    if (i == 0) {
      l.shared_gate = weight(dtype, 1, DENSE, HIDDEN);
      l.shared_up = weight(dtype, 1, DENSE, HIDDEN);
      l.shared_down = weight(dtype, 1, HIDDEN, DENSE);
    } else {
      l.router = weight(MOELA_F32, 1, EXPERTS, HIDDEN);
      l.gate = weight(dtype, EXPERTS, MOE, HIDDEN);
      l.up = weight(dtype, EXPERTS, MOE, HIDDEN);
      l.down = weight(dtype, EXPERTS, HIDDEN, MOE);
      l.shared_gate = weight(dtype, 1, SHARED, HIDDEN);
      l.shared_up = weight(dtype, 1, SHARED, HIDDEN);
      l.shared_down = weight(dtype, 1, HIDDEN, SHARED);
    }
    m.layers.push_back(l);
  }
  m.norm = weight(MOELA_F32, 1, 1, HIDDEN);
  m.head = weight(dtype, 1, VOCAB, HIDDEN);
  m.h = make_floats(HIDDEN, 1);
  m.q = make_floats(HEADS * QK, 2);
  m.q2 = make_floats(HEADS * QK, 2);
  m.kv_a = make_floats(RANK + ROPE, 3);
  m.latent = make_floats(HEADS * RANK, 4);
  m.o_latent = make_floats(HEADS * RANK, 5);
  m.attended = make_floats(HEADS * V, 6);
  m.middle = make_floats(HIDDEN, 7);
  m.logits = make_floats(EXPERTS, 8);
  m.routed = make_floats(TOP_K * MOE, 9);
  m.shared = make_floats(DENSE, 10);
  m.weights = make_floats(TOP_K, 11);
  m.vocab = make_floats(VOCAB, 12);
  OK(cudaMalloc(&m.chosen, 256));
  OK(cudaMemset(m.chosen, 0, 256));
  return m;
}

enum Kind { QKV, SMALL, ABSORB, DECODE, EXPAND, OUTPUT, ROUTER, GATE_UP, DOWN, HEAD, KINDS };
const char* kind_names[] = {"norm + q, kv_a",    "rotary (stand-in)",  "absorb (as linear)",
                            "decode (stand-in)", "expand (as linear)", "o + residual",
                            "norm + router",     "gate, up",           "down + combine",
                            "norm + lm_head"};

// One step; `only`: launches of one kind, or all (KINDS).
void step(const Launch& at, const Model& m, int only) {
  const auto want = [&](int kind) { return only == KINDS || only == kind; };
  const auto product = [&](const Weight& w, const float* in, const Weight* norm,
                           const float* residual, float* out, int rows = MOELA_ROWS_ALL) {
    const DecodeLinear p{w, residual, out};
    decode_linear(at, rows, {{const_cast<float*>(in), MOELA_F32}, norm, 1e-6f}, &p, 1);
  };
  for (const Layer& l : m.layers) {
    if (want(QKV)) {
      const DecodeLinear p[2] = {{l.q, nullptr, m.q}, {l.kv_a, nullptr, m.kv_a}};
      decode_linear(at, MOELA_ROWS_ALL, {{m.h, MOELA_F32}, &l.input_norm, 1e-6f}, p, 2);
    }
    if (want(SMALL)) launch(at, small_kernel, dim3(16), dim3(192), 0, m.q, m.q2, HEADS * QK);
    if (want(ABSORB)) product(l.absorb, m.q2, nullptr, nullptr, m.latent);
    if (want(DECODE)) {
      launch(at, small_kernel, dim3(64), dim3(128), 0, m.latent, m.o_latent, HEADS * RANK);
    }
    if (want(EXPAND)) product(l.expand, m.o_latent, nullptr, nullptr, m.attended);
    if (want(OUTPUT)) product(l.o, m.attended, nullptr, m.h, m.middle);
    const DecodeInput normed{{m.middle, MOELA_F32}, &l.post_norm, 1e-6f};
    DecodeExperts e{};
    e.shape = {EXPERTS, TOP_K, 1, 1, MOELA_SCORE_SOFTMAX, MOELA_GROUP_NONE, false, 1.0f};
    e.logits = m.logits;
    e.gate = l.gate;
    e.up = l.up;
    e.down = l.down;
    e.shared_gate = l.shared_gate;
    e.shared_up = l.shared_up;
    e.shared_down = l.shared_down;
    e.routed = m.routed;
    e.shared = m.shared;
    e.chosen = m.chosen;
    e.weights = m.weights;
    if (!decode_experts_fits(at, e)) {
      printf("does not fit\n");
      exit(1);
    }
    if (l.router.data && want(ROUTER)) decode_router(at, normed, l.router, m.logits);
    if (want(GATE_UP)) decode_gate_up(at, normed, e);
    if (want(DOWN)) decode_down(at, e, m.middle, m.h);
  }
  if (want(HEAD)) product(m.head, m.h, &m.norm, nullptr, m.vocab, MOELA_ROWS_LOGITS);
}

// Products of a step of many rows: kinds of their own.
enum Product {
  P_Q,
  P_KV_A,
  P_OUTPUT,
  P_SHARED_UP,
  P_SHARED_DOWN,
  P_GATE_UP,
  P_DOWN,
  P_HEAD,
  PRODUCTS
};
const char* product_names[] = {"q",
                               "kv_a",
                               "o + residual",
                               "shared gate, up",
                               "shared down",
                               "experts gate, up",
                               "experts down",
                               "lm_head"};

struct Batch {
  float *wide, *h, *out;  // inputs of any product, of the residual; outputs
  uint16_t* half;         // inputs in bf16
  int32_t* plan;
  int experts_hit;
};

Batch make_batch(int rows, Counts* counts) {
  Batch b{};
  const int64_t most = static_cast<int64_t>(rows) * DENSE;
  b.wide = make_floats(most, 5);
  b.h = make_floats(static_cast<int64_t>(rows) * HIDDEN, 6);
  b.out = make_floats(static_cast<int64_t>(rows) * VOCAB, 7);
  std::vector<uint16_t> half(most);
  for (int64_t i = 0; i < most; i++) half[i] = 0x3f00 | (hash(i) & 0x80ff);
  OK(cudaMalloc(&b.half, most * 2));
  OK(cudaMemcpy(b.half, half.data(), most * 2, cudaMemcpyHostToDevice));
  std::mt19937 random(rows);
  std::vector<std::vector<int>> slots(EXPERTS);
  for (int row = 0; row < rows; row++) {
    std::vector<int> order(EXPERTS);
    for (int e = 0; e < EXPERTS; e++) order[e] = e;
    std::shuffle(order.begin(), order.end(), random);
    for (int k = 0; k < TOP_K; k++) slots[order[k]].push_back(row * TOP_K + k);
  }
  std::vector<int> plan(EXPERTS + 1);
  for (int e = 0; e < EXPERTS; e++) {
    plan[e + 1] = plan[e] + static_cast<int>(slots[e].size());
    b.experts_hit += !slots[e].empty();
  }
  for (const auto& list : slots) plan.insert(plan.end(), list.begin(), list.end());
  OK(cudaMalloc(&b.plan, plan.size() * 4));
  OK(cudaMemcpy(b.plan, plan.data(), plan.size() * 4, cudaMemcpyHostToDevice));
  const Counts host{rows, rows, rows, rows};
  OK(cudaMemcpy(counts, &host, sizeof host, cudaMemcpyHostToDevice));
  return b;
}

void batch_step(const Launch& at, const Model& m, const Batch& b, int only) {
  const bool halves = m.head.dtype == MOELA_BF16 || m.head.dtype == MOELA_FP8;
  const auto product = [&](int kind, const Weight& w, const Weight* up, const int32_t* plan,
                           const float* residual, bool half_out) {
    if (only != PRODUCTS && only != kind) return;
    StreamProduct p{};
    p.rows = kind == P_HEAD ? MOELA_ROWS_LOGITS : MOELA_ROWS_ALL;
    p.n = w.rows;
    p.k = w.cols;
    p.top_k = plan ? TOP_K : 1;
    p.in_slots = up && plan ? TOP_K : 1;
    p.experts = plan ? EXPERTS : 1;
    p.plan = plan;
    p.in = halves ? Tensor{b.half, MOELA_BF16} : Tensor{b.wide, MOELA_F32};
    p.weight = w;
    if (up) p.up = *up;
    p.residual = residual;
    p.out = {b.out, half_out && halves ? MOELA_BF16 : MOELA_F32};
    stream_product(at, p);
  };
  for (const Layer& l : m.layers) {
    product(P_Q, l.q, nullptr, nullptr, nullptr, false);
    product(P_KV_A, l.kv_a, nullptr, nullptr, nullptr, false);
    product(P_OUTPUT, l.o, nullptr, nullptr, b.h, false);
    if (l.gate.data) {
      product(P_GATE_UP, l.gate, &l.up, b.plan, nullptr, true);
      product(P_DOWN, l.down, nullptr, b.plan, nullptr, false);
    }
    product(P_SHARED_UP, l.shared_gate, &l.shared_up, nullptr, nullptr, true);
    product(P_SHARED_DOWN, l.shared_down, nullptr, nullptr, nullptr, false);
  }
  product(P_HEAD, m.head, nullptr, nullptr, nullptr, false);
}

double product_bytes(const Model& m, const Batch& b, int kind) {
  double bytes = 0;
  for (const Layer& l : m.layers) {
    const double hit = l.gate.data ? b.experts_hit : 0;
    switch (kind) {
      case P_Q:
        bytes += weight_bytes(l.q);
        break;
      case P_KV_A:
        bytes += weight_bytes(l.kv_a);
        break;
      case P_OUTPUT:
        bytes += weight_bytes(l.o);
        break;
      case P_SHARED_UP:
        bytes += 2.0 * weight_bytes(l.shared_gate);
        break;
      case P_SHARED_DOWN:
        bytes += weight_bytes(l.shared_down);
        break;
      case P_GATE_UP:
        bytes += hit > 0 ? 2 * hit * weight_bytes(l.gate) : 0;
        break;
      case P_DOWN:
        bytes += hit > 0 ? hit * weight_bytes(l.down) : 0;
        break;
    }
  }
  return kind == P_HEAD ? weight_bytes(m.head) : bytes;
}

double kind_bytes(const Model& m, int kind) {
  double bytes = 0;
  for (const Layer& l : m.layers) {
    switch (kind) {
      case QKV:
        bytes += weight_bytes(l.q) + weight_bytes(l.kv_a);
        break;
      case ABSORB:
        bytes += weight_bytes(l.absorb);
        break;
      case EXPAND:
        bytes += weight_bytes(l.expand);
        break;
      case OUTPUT:
        bytes += weight_bytes(l.o);
        break;
      case ROUTER:
        bytes += l.router.data ? weight_bytes(l.router) : 0;
        break;
      case GATE_UP:
        bytes += weight_bytes(l.shared_gate) * 2;
        if (l.gate.data) bytes += 2.0 * TOP_K * weight_bytes(l.gate);
        break;
      case DOWN:
        bytes += weight_bytes(l.shared_down);
        if (l.gate.data) bytes += 1.0 * TOP_K * weight_bytes(l.down);
        break;
    }
  }
  return kind == HEAD ? weight_bytes(m.head) : bytes;
}

template <class Record>
double time_graph(const Launch& at, const Record& record) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OK(cudaStreamBeginCapture(at.stream, cudaStreamCaptureModeThreadLocal));
  record();
  OK(cudaStreamEndCapture(at.stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  OK(cudaEventCreate(&a));
  OK(cudaEventCreate(&b));
  std::vector<float> times;
  for (int i = 0; i < 25; i++) {
    OK(cudaEventRecord(a, at.stream));
    OK(cudaGraphLaunch(exec, at.stream));
    OK(cudaEventRecord(b, at.stream));
    OK(cudaEventSynchronize(b));
    float ms;
    OK(cudaEventElapsedTime(&ms, a, b));
    if (i >= 5) times.push_back(ms * 1000);
  }
  std::sort(times.begin(), times.end());
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  return times[times.size() / 2];
}

void run(int dtype, bool batches) {
  size_t free_before, free_after, total;
  OK(cudaMemGetInfo(&free_before, &total));
  Model m = make_model(dtype);
  OK(cudaDeviceSynchronize());
  OK(cudaMemGetInfo(&free_after, &total));
  Launch at{};
  OK(cudaStreamCreate(&at.stream));
  Counts counts{1, 1, 1, 1};
  Counts* device_counts;
  OK(cudaMalloc(&device_counts, sizeof counts));
  OK(cudaMemcpy(device_counts, &counts, sizeof counts, cudaMemcpyHostToDevice));
  at.step.counts = device_counts;
  at.bucket = at.absorbed = 1;
  at.sms = 132;
  at.scratch_bytes = int64_t{256} << 20;  // quantized inputs
  OK(cudaMalloc(&at.scratch, at.scratch_bytes));
  at.hopper = true;
  double bytes = 0;
  for (int k = 0; k < KINDS; k++) bytes += kind_bytes(m, k);
  for (int overlap = 0; overlap < 2; overlap++) {
    at.overlap = overlap;
    const double us = time_graph(at, [&] { step(at, m, KINDS); });
    printf("%s batch 1 overlap %d: %.0f us, %.1f tokens/s, %.0f GB/s (limit %.0f us)\n",
           type_name(dtype), overlap, us, 1e6 / us, bytes / us / 1e3, bytes / 3e6);
  }
  const auto logits = read(m.vocab, 8);
  printf("  logits %g %g %g; weights of %.1f GB\n", logits[0], logits[1], logits[2],
         (free_before - free_after) / 1e9);
  for (int k = 0; k < KINDS; k++) {
    at.overlap = false;
    const double plain = time_graph(at, [&] { step(at, m, k); });
    at.overlap = true;
    const double overlapped = time_graph(at, [&] { step(at, m, k); });
    const int launches = k == HEAD ? 1 : k == ROUTER ? LAYERS - 1 : LAYERS;
    const double each = kind_bytes(m, k) / launches;
    printf("  %-20s %7.2f us alone, %7.2f overlapped; limit %6.2f; %5.0f / %5.0f GB/s\n",
           kind_names[k], plain / launches, overlapped / launches, each / 3e6,
           each * launches / plain / 1e3, each * launches / overlapped / 1e3);
  }
  for (int rows : {8, 64, 256}) {
    if (!batches) break;
    const Batch b = make_batch(rows, device_counts);
    at.bucket = at.absorbed = rows;
    at.overlap = true;
    double all = 0;
    for (int k = 0; k < PRODUCTS; k++) all += product_bytes(m, b, k);
    const double us = time_graph(at, [&] { batch_step(at, m, b, PRODUCTS); });
    printf("%s batch %d products: %.0f us, %.0f GB/s (limit %.0f us)\n", type_name(dtype), rows, us,
           all / us / 1e3, all / 3e6);
    for (int k = 0; k < PRODUCTS; k++) {
      const double each = time_graph(at, [&] { batch_step(at, m, b, k); });
      const int launches = k == P_HEAD ? 1 : k == P_GATE_UP || k == P_DOWN ? LAYERS - 1 : LAYERS;
      const double bytes_each = product_bytes(m, b, k) / launches;
      printf("  %-20s %7.2f us; limit %6.2f; %5.0f GB/s\n", product_names[k], each / launches,
             bytes_each / 3e6, bytes_each * launches / each / 1e3);
    }
    for (void* f : {(void*)b.wide, (void*)b.h, (void*)b.out, (void*)b.half, (void*)b.plan}) {
      OK(cudaFree(f));
    }
  }
  fflush(stdout);
  OK(cudaDeviceReset());
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  const std::string types = argc > 1 ? argv[1] : "bf16,fp8,int8,int4";
  for (int dtype : {MOELA_BF16, MOELA_FP8, MOELA_INT8, MOELA_INT4}) {
    if (types.find(bench::type_name(dtype)) != std::string::npos) bench::run(dtype, argc > 2);
  }
  return 0;
}
