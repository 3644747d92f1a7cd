// Checks mla_prefill (mla_prefill_check.cuh), then times gather, up-projection and attention apart.
// Arguments: one of generic, sm90, small (for the sanitizer), time; none: everything.
#include <cuda_bf16.h>

#include <cstdlib>
#include <functional>

#include "mla_prefill_check.cuh"

using namespace mla_prefill_bench;

namespace {

constexpr int PEAK = 784;  // TFLOP/s of bf16 that were measured on an H100

float median(const std::function<void(int)>& body, cudaStream_t stream, int times) {
  std::vector<float> all;
  cudaEvent_t begin, end;
  ok(cudaEventCreate(&begin));
  ok(cudaEventCreate(&end));
  for (int i = 0; i < times + 2; i++) {
    ok(cudaEventRecord(begin, stream));
    body(i);
    ok(cudaEventRecord(end, stream));
    ok(cudaEventSynchronize(end));
    float ms;
    ok(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) all.push_back(ms * 1000);
  }
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

__global__ void fill_random(uint32_t seed, int64_t n, uint16_t* out) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = uint32_t(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x85ebca6b, x ^= x >> 13, x *= 0xc2b2ae35, x ^= x >> 16;
    const float y = (float(x & 0xFFFF) + float(x >> 16) - 65535.f) / 26755.f;
    out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(y));
  }
}
__global__ void widen(int64_t n, const uint16_t* in, float factor, float* out) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    out[i] = __uint_as_float(uint32_t(in[i]) << 16) * factor;
  }
}

// `rows` rows at the end of `tokens` tokens of one sequence, bf16 weights.
void time_shape(int64_t heads, int rows, int tokens, int cache, bool fast) {
  const MlaPrefillShape shape = {heads, 128, 64, 128, 512};
  Pool pool(cache, 1, 512, 64);
  const int pages = (tokens + 63) / 64;
  Device<char> memory(pages * pool.pool.page_bytes);
  fill_random<<<1024, 256>>>(1, int64_t(memory.n / 2), reinterpret_cast<uint16_t*>(memory.data));
  if (cache >= MOELA_FP8) memory.fill(0x31);
  pool.pool.base = memory.data;
  Device<PagePool> pools(std::vector<PagePool>{pool.pool});
  std::vector<int> ids(pages);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), generator);
  Device<int> page_table(ids);
  Device<moela_segment> segments(std::vector<moela_segment>{{0, rows, tokens - rows, 0, 0, pages}});
  Device<Counts> counts(std::vector<Counts>{{rows, 0, 1, 0}});
  const int64_t n_weights = heads * 256 * 512;
  Device<uint16_t> weights(n_weights);
  fill_random<<<1024, 256>>>(2, n_weights, weights.data);
  {
    Device<float> wide(n_weights);
    widen<<<1024, 256>>>(n_weights, weights.data, 0.044f, wide.data);
    std::vector<float> host = wide.get();
    std::vector<uint16_t> narrow(host.size());
    for (size_t i = 0; i < host.size(); i++) narrow[i] = to_bf16(host[i]);
    weights.put(narrow);
  }
  const int64_t n_q = int64_t{rows} * heads * 192;
  const int sets =
      n_q > (int64_t{1} << 27) ? 2 : int(std::min<int64_t>(8, 1 + (int64_t{1} << 25) / n_q));
  std::vector<std::unique_ptr<Device<float>>> q, out;
  Device<uint16_t> narrow_q(n_q), narrow_out(int64_t{rows} * heads * 128);
  for (int i = 0; i < sets; i++) {
    q.push_back(std::make_unique<Device<float>>(n_q));
    out.push_back(std::make_unique<Device<float>>(int64_t{rows} * heads * 128));
    fill_random<<<1024, 256>>>(uint32_t(3 + i), n_q, narrow_q.data);
    widen<<<1024, 256>>>(n_q, narrow_q.data, 1.f, q.back()->data);
  }
  Launch at{};
  ok(cudaStreamCreate(&at.stream));
  at.context = tokens;
  at.projected_keys = (tokens + 127) / 128 * 128;
  const auto plan = mla_prefill_plan(shape, rows, at.projected_keys, fast, INT64_MAX);
  Device<char> scratch(plan.bytes);
  at.step.counts = counts.data;
  at.step.segments = segments.data;
  at.step.pages = page_table.data;
  at.step.pools = pools.data;
  at.bucket = rows;
  at.sms = multiprocessors();
  at.hopper = fast;
  at.overlap = true;
  at.scratch = scratch.data;
  at.scratch_bytes = int64_t(scratch.n);
  const Weight weight = {MOELA_BF16, 1, heads * 256, 512, reinterpret_cast<char*>(weights.data), 0,
                         nullptr,    0};
  const float scale = 1 / std::sqrt(192.f);
  MlaPrefillPass pass{};
  pass.shape = shape;
  pass.layer = LAYER;
  pass.scale = scale;
  pass.heads = int(plan.heads);
  pass.blocks = int(plan.window);
  pass.first = true;
  pass.tables = reinterpret_cast<MlaPrefillTables*>(at.scratch);
  pass.latents = at.scratch + plan.latents;
  pass.rotary = at.scratch + plan.rotary;
  pass.weights = at.scratch + plan.weights;
  pass.keys = at.scratch + plan.keys;
  pass.state = reinterpret_cast<float*>(at.scratch + plan.state);
  const int times = fast ? 15 : 3;
  const auto q_of = [&](int i) { return Tensor{q[i % sets]->data, MOELA_F32}; };
  const auto out_of = [&](int i) { return Tensor{out[i % sets]->data, MOELA_F32}; };
  const bool single = plan.heads == heads && !plan.carries();
  printf(
      "%s %lld heads, %d rows of %d tokens, cache %d: passes of %lld heads, %lld of %lld blocks, "
      "%.0f MB scratch\n",
      fast ? "sm90" : "generic", (long long)heads, rows, tokens, cache, (long long)plan.heads,
      (long long)plan.window, (long long)plan.blocks, double(plan.bytes) / 1e6);
  const double pairs = double(rows) * (tokens - rows) + double(rows) * (rows + 1) / 2;
  const double attend_flops = pairs * 2 * 320 * double(heads);
  const double project_flops = 2.0 * tokens * 512 * 256 * double(heads);
  const auto line = [&](const char* what, float us, double flops) {
    printf("  %-28s %9.1f us  %6.1f TFLOP/s  (limit %.1f us)\n", what, us, flops / us / 1e6,
           flops / PEAK / 1e6);
  };
  const auto all = [&](int i) {
    mla_prefill(at, LAYER, heads, 128, 64, 128, 512, scale, q_of(i), weight, out_of(i));
  };
  line("all", median(all, at.stream, times), attend_flops + project_flops);
  if (single) {
    mla_prefill_gather(at, pass, fast, weight);
    line("gather",
         median([&](int) { mla_prefill_gather(at, pass, fast, weight); }, at.stream, times), 0);
    line("project",
         median(
             [&](int) {
               fast ? mla_prefill_project_sm90(at, pass) : mla_prefill_project(at, pass, weight);
             },
             at.stream, times),
         project_flops);
    const auto attend = [&](Tensor in, Tensor to) {
      fast ? mla_prefill_attend_sm90(at, pass, in, to) : mla_prefill_attend(at, pass, in, to);
    };
    line("attend", median([&](int i) { attend(q_of(i), out_of(i)); }, at.stream, times),
         attend_flops);
    line("attend, q and out in bf16",
         median([&](int) { attend({narrow_q.data, MOELA_BF16}, {narrow_out.data, MOELA_BF16}); },
                at.stream, times),
         attend_flops);
  }
  ok(cudaStreamDestroy(at.stream));
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto wanted = [&](const char* what) { return argc < 2 || !strcmp(argv[1], what); };
  const MlaPrefillShape lite = {3, 128, 64, 128, 512}, nano = {4, 32, 16, 32, 64};
  const std::vector<int> lengths = {300, 1, 128, 129, 700, 64, 517};
  const std::vector<int> caches = {MOELA_FP8, MOELA_INT8, MOELA_INT6, MOELA_F32, MOELA_BF16};
  if (wanted("generic")) {
    check_all({"generic f32/f32, nano", false, nano, MOELA_F32, {MOELA_F32}, lengths});
    check_all({"generic f32/bf16, 17 heads",
               false,
               {17, 32, 16, 32, 64},
               MOELA_F32,
               {MOELA_BF16},
               lengths});
    check_all({"generic f32/all, 3 heads", false, {3, 24, 16, 40, 96}, MOELA_F32, caches, lengths});
    check_all({"generic bf16/all", false, lite, MOELA_BF16, caches, {300, 129}});
    check_all({"generic int8/int8, odd",
               false,
               {3, 23, 10, 33, 130},
               MOELA_INT8,
               {MOELA_INT8},
               {200, 67}});
  }
  if (wanted("sm90")) {
    check_all({"sm90 bf16/bf16", true, lite, MOELA_BF16, {MOELA_BF16}, lengths});
    check_all({"sm90 bf16/bf16, 29 heads",
               true,
               {29, 128, 64, 128, 128},
               MOELA_BF16,
               {MOELA_BF16},
               {700, 517, 300}});
    check_all({"sm90 bf16/all", true, lite, MOELA_BF16, caches, lengths});
    check_all({"sm90 int8/fp8",
               true,
               {5, 128, 64, 128, 448},
               MOELA_INT8,
               {MOELA_FP8, MOELA_BF16},
               {1300, 37}});
  }
  if (wanted("small")) {
    check_all({"generic f32/int6", false, nano, MOELA_F32, {MOELA_INT6}, {130, 67}});
    check_all({"sm90 bf16/fp8, bf16", true, lite, MOELA_BF16, {MOELA_FP8, MOELA_BF16}, {300, 129}});
  }
  if (wanted("time")) {
    time_shape(16, 4096, 4096, MOELA_BF16, true);
    time_shape(16, 512, 512, MOELA_BF16, true);
    time_shape(16, 2048, 2048, MOELA_BF16, true);
    time_shape(16, 16384, 16384, MOELA_BF16, true);
    time_shape(16, 2048, 32768, MOELA_BF16, true);
    time_shape(16, 4096, 4096, MOELA_FP8, true);
    for (int rows : {512, 2048, 4096, 16384}) {
      time_shape(128, rows, rows, MOELA_BF16, true);
    }
    time_shape(16, 512, 512, MOELA_BF16, false);
    time_shape(16, 4096, 4096, MOELA_BF16, false);
  }
  printf(failures ? "%d CHECKS FAILED\n" : "checks passed\n", failures);
  return failures != 0;
}
