// Checks the stream family of products on random data: all types, odd shapes. Integer types to the
// bit against the host's replica of the group arithmetic, the others against float64.
#include "cuda/fused.h"
#include "cuda/stream.h"
#include "support.cuh"

namespace bench {
namespace {

int failures = 0;

void report(const char* what, int dtype, int64_t n, int64_t k, double worst, bool good) {
  if (!good) failures++;
  printf("%s %-28s %-5s n %6lld k %6lld worst %.2e\n", good ? "ok  " : "FAIL", what,
         type_name(dtype), static_cast<long long>(n), static_cast<long long>(k), worst);
}

// The error of y against the reference over all rows (or some of many).
double worst_error(int dtype, uint64_t seed, int64_t n, int64_t k, const float* x, const float* y,
                   const float* residual) {
  double worst = 0;
  const int64_t stride = n * k > 2000000 ? 37 : 1;
  for (int64_t row = 0; row < n; row += stride) {
    const Reference r = reference(dtype, seed, k, row, x);
    const float add = residual ? residual[row] : 0;
    if (dtype == MOELA_INT8 || dtype == MOELA_INT4) {
      const float want = residual ? r.exact + add : r.exact;
      if (as_bits(want) != as_bits(y[row]) && !(want == 0 && y[row] == 0)) {
        worst = std::fmax(worst, 1e-3 + std::fabs(want - y[row]));
      }
    } else {
      const double error = std::fabs(r.value + add - y[row]) / (r.size + std::fabs(add) + 1e-20);
      worst = std::isnan(error) ? 1e9 : std::fmax(worst, error);
    }
  }
  return worst;
}

Launch at{};

void check_linear(int dtype, int64_t n1, int64_t n2, int64_t k, bool residual) {
  const uint64_t seed = n1 * 7 + k * 13 + dtype;
  const Weight w1 = make_weight(dtype, 1, n1, k, seed), w2 = make_weight(dtype, 1, n2, k, seed + 5);
  float* x = make_floats(k, seed + 1);
  float* add = make_floats(n1, seed + 2);
  float *y1 = make_floats(n1, 0, NAN), *y2 = make_floats(n2, 0, NAN);
  const DecodeLinear p[2] = {{w1, residual ? add : nullptr, y1}, {w2, nullptr, y2}};
  if (!decode_linear_fits(at, p, 2)) return;
  decode_linear(at, MOELA_ROWS_ALL, {{x, MOELA_F32}, nullptr, 0}, p, 2);
  const auto hx = read(x, k), h1 = read(y1, n1), h2 = read(y2, n2), ha = read(add, n1);
  const double worst = std::fmax(
      worst_error(dtype, seed, n1, k, hx.data(), h1.data(), residual ? ha.data() : nullptr),
      worst_error(dtype, seed + 5, n2, k, hx.data(), h2.data(), nullptr));
  report("decode_linear", dtype, n1, k, worst, worst < 2e-6);
  for (const void* f : {(const void*)w1.data, (const void*)w2.data, (const void*)x,
                        (const void*)add, (const void*)y1, (const void*)y2}) {
    OK(cudaFree(const_cast<void*>(f)));
  }
}

// gate_up and down of experts against the host, from the device's own intermediate values.
void check_experts(int dtype, int experts, int top_k, int64_t d, int64_t moe, int64_t shared) {
  const uint64_t seed = 100000 + d + moe + dtype;
  DecodeExperts e{};
  e.shape = {experts, top_k, 1, 1, MOELA_SCORE_SOFTMAX, MOELA_GROUP_NONE, false, 1.5f};
  e.logits = make_floats(experts, seed, 2);
  if (top_k) {
    e.gate = make_weight(dtype, experts, moe, d, seed + 1000);
    e.up = make_weight(dtype, experts, moe, d, seed + 2000);
    e.down = make_weight(dtype, experts, d, moe, seed + 3000);
  }
  if (shared) {
    e.shared_gate = make_weight(dtype, 1, shared, d, seed + 4000);
    e.shared_up = make_weight(dtype, 1, shared, d, seed + 5000);
    e.shared_down = make_weight(dtype, 1, d, shared, seed + 6000);
  }
  float *x = make_floats(d, seed + 3), *add = make_floats(d, seed + 4);
  float *routed = make_floats(top_k * moe + 1, 0, NAN), *out = make_floats(d, 0, NAN);
  e.routed = routed;
  e.shared = make_floats(shared + 1, 0, NAN);
  e.weights = make_floats(32, 0, NAN);
  OK(cudaMalloc(&e.chosen, 256));
  if (!decode_experts_fits(at, e)) {
    printf("     experts do not fit: %s d %lld\n", type_name(dtype), (long long)d);
    return;
  }
  decode_gate_up(at, {{x, MOELA_F32}, nullptr, 0}, e);
  decode_down(at, e, add, out);
  const auto hx = read(x, d), ha = read(add, d), hl = read(e.logits, experts);
  const auto hr = read(routed, top_k * moe), hs = read(e.shared, shared), hout = read(out, d);
  const auto hw = read(e.weights, top_k);
  const auto hc = read(e.chosen, top_k);
  double sum = 0, worst = 0;
  for (float l : hl) sum += std::exp(static_cast<double>(l));
  std::vector<bool> taken(experts);
  for (int r = 0; r < top_k; r++) {
    int best = -1;
    for (int i = 0; i < experts; i++) {
      if (!taken[i] && (best < 0 || hl[i] > hl[best])) best = i;
    }
    taken[best] = true;
    const double want = std::exp(static_cast<double>(hl[best])) / sum * 1.5;
    worst = std::fmax(worst, best != hc[r] ? 9 : std::fabs(want - hw[r]) / want);
  }
  report("route", dtype, experts, top_k, worst, worst < 1e-5);
  const auto silu = [](double gate, double up) { return gate / (1 + std::exp(-gate)) * up; };
  worst = 0;
  const int64_t stride = d > 1000 ? 29 : 1;
  for (int64_t i = 0; i < shared; i += stride) {
    const Reference g = reference(dtype, seed + 4000, d, i, hx.data());
    const Reference u = reference(dtype, seed + 5000, d, i, hx.data());
    worst = std::fmax(worst, std::fabs(silu(g.value, u.value) - hs[i]) / (g.size * u.size + 1e-9));
    if (std::isnan(hs[i])) worst = 1e9;
  }
  for (int r = 0; r < top_k; r++) {
    for (int64_t i = r; i < moe; i += stride) {
      const Reference g = reference(dtype, seed + 1000 + hc[r], d, i, hx.data());
      const Reference u = reference(dtype, seed + 2000 + hc[r], d, i, hx.data());
      const float y = hr[r * moe + i];
      worst = std::fmax(worst, std::fabs(silu(g.value, u.value) - y) / (g.size * u.size + 1e-9));
      if (std::isnan(y)) worst = 1e9;
    }
  }
  report("decode_gate_up", dtype, moe, d, worst, worst < 1e-6);
  worst = 0;
  for (int64_t i = 0; i < d; i += stride) {
    double want = ha[i], size = std::fabs(ha[i]);
    for (int r = 0; r < top_k; r++) {
      const Reference y = reference(dtype, seed + 3000 + hc[r], moe, i, hr.data() + r * moe);
      want += hw[r] * y.value;
      size += hw[r] * y.size;
    }
    if (shared) {
      const Reference y = reference(dtype, seed + 6000, shared, i, hs.data());
      want += y.value;
      size += y.size;
    }
    worst = std::fmax(worst, std::fabs(want - hout[i]) / size);
    if (std::isnan(hout[i])) worst = 1e9;
  }
  report("decode_down", dtype, d, moe, worst, worst < 1e-6);
}

// Products of many rows. Each row's bits must not depend on how many rows there are, where it
// stands or whether it comes by a plan; some are compared with the host's reference.
struct Rows {
  Counts* counts;

  void set(int rows) {
    const Counts host{rows, rows, 1, rows};
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(counts, &host, sizeof host, cudaMemcpyHostToDevice));
    at.bucket = at.absorbed = rows;
  }
};
Rows rows_of_step;

std::vector<uint32_t> product(const StreamProduct& p, int rows) {
  const int64_t slots = rows * (p.plan ? p.top_k : 1);
  rows_of_step.set(rows);
  fill_floats<<<64, 256>>>(1, NAN, static_cast<float*>(p.out.data), slots * p.n);
  stream_product(at, p);
  return read(static_cast<const uint32_t*>(p.out.data), slots * p.n);
}

__global__ void round_rows(const float* from, uint16_t* to, float* rounded, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint32_t bits = __float_as_uint(from[i]);
    const uint32_t up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = up;
    rounded[i] = __uint_as_float(up << 16);
  }
}

void check_product(int dtype, int64_t n, int64_t k, bool pair, bool residual) {
  constexpr int MOST = 256;
  const uint64_t seed = 500000 + n + 3 * k + dtype;
  StreamProduct p{};
  p.rows = MOELA_ROWS_ALL;
  p.n = n;
  p.k = k;
  p.top_k = p.in_slots = p.experts = 1;
  p.weight = make_weight(dtype, 1, n, k, seed);
  if (pair) p.up = make_weight(dtype, 1, n, k, seed + 50);
  float* x = make_floats(MOST * k, seed + 7);
  uint16_t* xb;
  float *xr, *shifted;
  OK(cudaMalloc(&xb, MOST * k * 2 + 256));
  OK(cudaMalloc(&xr, MOST * k * 4));
  OK(cudaMalloc(&shifted, MOST * k * 4));
  round_rows<<<1, 1024>>>(x, xb, xr, MOST * k);
  float* add = residual ? make_floats(MOST * n, seed + 9) : nullptr;
  p.residual = add;
  p.in = {x, MOELA_F32};
  p.out = {make_floats(MOST * n, 0, NAN), MOELA_F32};
  const auto all = product(p, MOST);
  const auto hx = read(x, MOST * k);
  const auto ha = residual ? read(add, MOST * n) : std::vector<float>(MOST * n);
  double worst = 0;
  for (int i = 0; i < 40; i++) {
    const int64_t row = i * 41 % MOST, column = i < 3 ? n - 1 - i % n : i * 7919 % n;
    const Reference r = reference(dtype, seed, k, column, hx.data() + row * k);
    double want = r.value, size = r.size;
    const bool integer = dtype == MOELA_INT8 || dtype == MOELA_INT4;
    if (pair) {
      const Reference u = reference(dtype, seed + 50, k, column, hx.data() + row * k);
      want = r.value / (1 + std::exp(-r.value)) * u.value;
      size = r.size * u.size;
    }
    const float got = as_float(all[row * n + column]);
    double error = std::fabs(want + ha[row * n + column] - got) / (size + 1e-9);
    if (integer && !pair) {
      volatile float exact = r.exact;
      if (residual) exact = exact + ha[row * n + column];
      error = as_bits(exact) == as_bits(got) || (exact == 0 && got == 0) ? 0 : 1 + error;
    }
    worst = std::isnan(error) ? 1e9 : std::fmax(worst, error);
  }
  report(pair ? "product, gate and up" : "product", dtype, n, k, worst, worst < 2e-6);
  int wrong = 0;
  for (int rows : {1, 2, 7, 8, 9, 31, 33, 64, 65, 129, 200}) {
    const auto some = product(p, rows);
    for (int64_t i = 0; i < rows * n; i++) wrong += some[i] != all[i];
    if (wrong) printf("  with %d rows: %d differ\n", rows, wrong);
    if (wrong) break;
  }
  // Rows 100 and on as rows 0 and on.
  OK(cudaMemcpy(shifted, x + 100 * k, 100 * k * 4, cudaMemcpyDeviceToDevice));
  p.residual = nullptr;
  const auto plain = product(p, MOST);
  p.in.data = shifted;
  const auto moved = product(p, 40);
  for (int64_t i = 0; i < 40 * n; i++) wrong += moved[i] != plain[100 * n + i];
  report("rows anywhere", dtype, n, k, wrong, wrong == 0);
  // One row by the fused kernel.
  p.in.data = x;
  const DecodeLinear one{p.weight, nullptr, static_cast<float*>(p.out.data)};
  rows_of_step.set(1);
  if (!pair && decode_linear_fits(at, &one, 1)) {
    decode_linear(at, MOELA_ROWS_ALL, {p.in, nullptr, 0}, &one, 1);
    const auto fused = read(reinterpret_cast<const uint32_t*>(one.out), n);
    wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong += fused[i] != plain[i];
    report("fused", dtype, n, k, wrong, wrong == 0);
  }
  // Inputs in bf16, where many rows may take another kernel.
  p.in.data = xr;
  const auto rounded = product(p, MOST);
  p.in = {xb, MOELA_BF16};
  wrong = 0;
  for (int rows : {1, 8, 9, 16, 17, 33, 64, 70, 128, 129, 200, MOST}) {
    const auto halves = product(p, rows);
    for (int64_t i = 0; i < rows * n; i++) wrong += rounded[i] != halves[i];
  }
  report("inputs in bf16", dtype, n, k, wrong, wrong == 0);
  for (const void* f :
       {(const void*)p.weight.data, (const void*)p.up.data, (const void*)x, (const void*)xb,
        (const void*)xr, (const void*)shifted, (const void*)add, (const void*)p.out.data}) {
    OK(cudaFree(const_cast<void*>(f)));
  }
}

// Grouped products: each slot as if its expert were alone with it.
void check_grouped(int dtype, int experts, int top_k, int rows, int64_t n, int64_t k, bool pair) {
  const uint64_t seed = 900000 + n + 3 * k + dtype;
  const int slots = rows * top_k;
  std::vector<int> chosen(slots), plan(experts + 1);
  std::mt19937 random(seed + rows);
  for (int row = 0; row < rows; row++) {
    for (int j = 0; j < top_k; j++) {
      bool again = true;
      while (again) {
        // Some experts are favoured, one gets none.
        const int e = random() % 3 ? random() % (experts - 1) : random() % 2;
        again = false;
        for (int i = 0; i < j; i++) again |= chosen[row * top_k + i] == e;
        chosen[row * top_k + j] = e;
      }
    }
  }
  for (int e = 0; e < experts; e++) {
    plan[e + 1] = plan[e];
    for (int s = 0; s < slots; s++) plan[e + 1] += chosen[s] == e;
  }
  for (int e = 0; e < experts; e++) {
    for (int s = 0; s < slots; s++) {
      if (chosen[s] == e) plan.push_back(s);
    }
  }
  int32_t* device_plan;
  OK(cudaMalloc(&device_plan, plan.size() * 4));
  OK(cudaMemcpy(device_plan, plan.data(), plan.size() * 4, cudaMemcpyHostToDevice));
  StreamProduct p{};
  p.rows = MOELA_ROWS_ALL;
  p.n = n;
  p.k = k;
  p.top_k = top_k;
  p.in_slots = pair ? top_k : 1;
  p.experts = experts;
  p.plan = device_plan;
  p.weight = make_weight(dtype, experts, n, k, seed);
  if (pair) p.up = make_weight(dtype, experts, n, k, seed + 500);
  p.in = {make_floats(slots * k, seed + 1), MOELA_F32};
  p.out = {make_floats(slots * n, 0, NAN), MOELA_F32};
  const auto grouped = product(p, rows);
  int64_t wrong = 0;
  StreamProduct one = p;
  one.plan = nullptr;
  one.top_k = one.in_slots = one.experts = 1;
  one.out = {make_floats(slots * n, 0, NAN), MOELA_F32};
  for (int e = 0; e < experts; e++) {
    one.weight.data = p.weight.data + e * p.weight.part_bytes;
    one.weight.scales = p.weight.scales + e * p.weight.scale_part_bytes;
    one.up.data = pair ? p.up.data + e * p.up.part_bytes : nullptr;
    one.up.scales = pair ? p.up.scales + e * p.up.scale_part_bytes : nullptr;
    const auto alone = product(one, pair ? rows : slots);
    for (int s = 0; s < slots; s++) {
      if (chosen[s] != e) continue;
      const int from = pair ? s / top_k : s;
      for (int64_t i = 0; i < n; i++) wrong += grouped[s * n + i] != alone[from * n + i];
    }
  }
  report(pair ? "grouped gate and up" : "grouped", dtype, n, k, wrong, wrong == 0);
  // Inputs in bf16, and gate and up in the other order.
  uint16_t* xb;
  float* xr;
  OK(cudaMalloc(&xb, slots * k * 2 + 256));
  OK(cudaMalloc(&xr, slots * k * 4));
  round_rows<<<1, 1024>>>(static_cast<const float*>(p.in.data), xb, xr, slots * k);
  wrong = 0;
  for (int swapped = 0; swapped < 2; swapped++) {
    StreamProduct q = p;
    if (swapped && pair) std::swap(q.weight, q.up);
    q.in = {xr, MOELA_F32};
    const auto rounded = product(q, rows);
    q.in = {xb, MOELA_BF16};
    const auto halves = product(q, rows);
    for (int64_t i = 0; i < slots * n; i++) wrong += rounded[i] != halves[i];
  }
  report("grouped, inputs in bf16", dtype, n, k, wrong, wrong == 0);
  OK(cudaFree(xb));
  OK(cudaFree(xr));
  for (const void* f :
       {(const void*)p.weight.data, (const void*)p.up.data, (const void*)p.in.data,
        (const void*)p.out.data, (const void*)one.out.data, (const void*)device_plan}) {
    OK(cudaFree(const_cast<void*>(f)));
  }
}

}  // namespace
}  // namespace bench

int main() {
  using namespace bench;
  OK(cudaStreamCreate(&at.stream));
  Counts counts{1, 1, 1, 1};
  Counts* device_counts;
  OK(cudaMalloc(&device_counts, sizeof counts));
  OK(cudaMemcpy(device_counts, &counts, sizeof counts, cudaMemcpyHostToDevice));
  at.step.counts = device_counts;
  rows_of_step.counts = device_counts;
  at.bucket = at.absorbed = 1;
  at.sms = 132;
  at.scratch_bytes = int64_t{256} << 20;  // quantized inputs
  OK(cudaMalloc(&at.scratch, at.scratch_bytes));
  at.hopper = true;
  for (int overlap = 0; overlap < 2; overlap++) {
    at.overlap = overlap;
    rows_of_step.set(1);
    for (int dtype : {MOELA_BF16, MOELA_FP8, MOELA_INT8, MOELA_INT4}) {
      check_linear(dtype, 3072, 576, 2048, false);
      check_linear(dtype, 2048, 7, 10944, true);
      check_linear(dtype, 1, 1, 16, true);
      check_linear(dtype, 259, 129, 96, true);
      check_linear(dtype, 20000, 33, 400, false);
      check_experts(dtype, 64, 6, 2048, 1408, 2816);
      check_experts(dtype, 16, 4, 256, 96, 192);
      check_experts(dtype, 8, 2, 48, 80, 0);
      check_experts(dtype, 8, 0, 256, 0, 720);
    }
  }
  for (int dtype : {MOELA_F32, MOELA_BF16, MOELA_FP8, MOELA_INT8, MOELA_INT4}) {
    check_product(dtype, 576, 2048, false, true);
    check_product(dtype, 1408, 2048, true, false);
    check_product(dtype, 100, 96, false, true);
    check_product(dtype, 17, 333, false, false);
    check_product(dtype, 30, 1408, true, false);
    check_product(dtype, 5, 8, false, false);
    for (int rows : {1, 3, 13, 40, 128}) {
      check_grouped(dtype, 9, 3, rows, 96, 256, true);
      check_grouped(dtype, 9, 3, rows, 256, 96, false);
    }
    check_grouped(dtype, 16, 6, 64, 1408, 2048, true);
    check_grouped(dtype, 16, 6, 64, 2048, 1408, false);
  }
  OK(cudaDeviceSynchronize());
  printf("%d failures\n", failures);
  return failures != 0;
}
