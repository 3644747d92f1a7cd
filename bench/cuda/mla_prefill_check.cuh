// Checks of mla_prefill: against a float64 reference over odd shapes, ragged segments, cache and
// weight types and small windows, and bitwise between chunks, windows and neighbours.
#pragma once

#include "mla_prefill_cache.cuh"

namespace mla_prefill_bench {

// K and V of a sequence, then attention, in float64.
__global__ void reference_project(const float* entries, const float* kv_b, int tokens, int r,
                                  int dr, int width, double* out) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= int64_t{tokens} * width) return;
  double sum = 0;
  for (int d = 0; d < r; d++) {
    sum += double(entries[i / width * (r + dr) + d]) * double(kv_b[i % width * r + d]);
  }
  out[i] = sum;
}
__global__ void reference_attend(const float* q, const float* entries, const double* kv, int tokens,
                                 int heads, int dn, int dr, int dv, int r, float scale,
                                 double* out) {
  const int head = blockIdx.x, position = blockIdx.y, lane = threadIdx.x;
  extern __shared__ double scores[];
  const float* query = q + (int64_t{position} * heads + head) * (dn + dr);
  double most = -1e300;
  for (int s = 0; s <= position; s++) {
    const double* k = kv + (int64_t{s} * heads + head) * (dn + dv);
    double dot = 0;
    for (int d = lane; d < dn; d += 32) dot += query[d] * k[d];
    for (int d = lane; d < dr; d += 32) {
      dot += double(query[dn + d]) * double(entries[int64_t{s} * (r + dr) + r + d]);
    }
    for (int d = 16; d > 0; d /= 2) dot += __shfl_xor_sync(~0u, dot, d);
    if (lane == 0) scores[s] = dot * scale;
    most = fmax(most, dot * scale);
  }
  __syncwarp();
  double sum = 0;
  for (int s = 0; s <= position; s++) sum += exp(scores[s] - most);
  for (int d = lane; d < dv; d += 32) {
    double o = 0;
    for (int s = 0; s <= position; s++) {
      o += exp(scores[s] - most) * kv[(int64_t{s} * heads + head) * (dn + dv) + dn + d];
    }
    out[(int64_t{position} * heads + head) * dv + d] = o / sum;
  }
}

struct Setup {
  const char* name;
  bool fast;
  MlaPrefillShape shape;
  int kv_b_dtype;
  std::vector<int> pools;    // cache types
  std::vector<int> lengths;  // tokens of each sequence
};

// Sequences with their caches, weights, and the expected outputs of all their rows.
struct World {
  Setup setup;
  std::vector<Pool> pools;
  std::vector<Sequence> sequences;
  std::vector<std::vector<double>> expected;
  std::vector<float> kv_b_values;
  std::vector<char> kv_b;
  std::vector<uint16_t> kv_b_scales;
  float scale;

  explicit World(const Setup& s) : setup(s) {
    const auto [heads, dn, dr, dv, r] = s.shape;
    scale = 1.5f / std::sqrt(float(dn + dr));
    for (int dtype : s.pools) pools.emplace_back(dtype, 80, int(r), int(dr));
    const int64_t rows = heads * (dn + dv), groups = (r + 127) / 128;
    const float deviation = 1 / std::sqrt(float(r));
    kv_b_values.resize(rows * r);
    const int bytes = s.kv_b_dtype == MOELA_F32 ? 4 : s.kv_b_dtype == MOELA_BF16 ? 2 : 1;
    kv_b.resize(rows * r * bytes);
    kv_b_scales.resize(rows * groups);
    for (auto& x : kv_b_scales) x = to_bf16(deviation / 64 * (1 + 0.5f * float(below(100)) / 100));
    for (int64_t i = 0; i < rows * r; i++) {
      float x = normal() * deviation;
      if (bytes == 4) memcpy(&kv_b[i * 4], &x, 4);
      if (bytes == 2) {
        const uint16_t y = to_bf16(x);
        memcpy(&kv_b[i * 2], &y, 2);
        x = from_bf16(y);
      }
      if (bytes == 1) {
        const int y = below(255) - 127;
        kv_b[i] = char(y);
        x = from_bf16(to_bf16(float(y) * from_bf16(kv_b_scales[i / r * groups + i % r / 128])));
      }
      kv_b_values[i] = x;
    }
    Device<float> weights(kv_b_values);
    for (size_t n = 0; n < s.lengths.size(); n++) {
      Sequence sequence{int(n % pools.size()), {}, {}, {}, s.lengths[n]};
      Pool& pool = pools[sequence.pool];
      const int width = int(r + dr);
      sequence.entries.resize(int64_t{sequence.tokens} * width);
      for (int t = 0; t < sequence.tokens; t++) {
        if (t % 64 == 0) sequence.pages.push_back(pool.order[pool.next++]);
        pool.write(sequence.pages.back(), t % 64, &sequence.entries[int64_t{t} * width]);
      }
      sequence.q.resize(sequence.tokens * heads * (dn + dr));
      // Exact in bf16, so that both types of q have the same values.
      for (float& x : sequence.q) x = from_bf16(to_bf16(normal()));
      Device<float> entries(sequence.entries), q(sequence.q);
      const int kv_width = int(heads * (dn + dv));
      Device<double> kv(int64_t{sequence.tokens} * kv_width), out(sequence.tokens * heads * dv);
      reference_project<<<unsigned((kv.n + 255) / 256), 256>>>(
          entries.data, weights.data, sequence.tokens, int(r), int(dr), kv_width, kv.data);
      reference_attend<<<dim3(unsigned(heads), unsigned(sequence.tokens)), 32,
                         sequence.tokens * 8>>>(q.data, entries.data, kv.data, sequence.tokens,
                                                int(heads), int(dn), int(dr), int(dv), int(r),
                                                scale, out.data);
      ok(cudaDeviceSynchronize());
      expected.push_back(out.get());
      sequences.push_back(std::move(sequence));
    }
  }

  struct Result {
    double error = 0;   // largest of a row and head, relative
    bool clean = true;  // other rows untouched
    std::vector<std::vector<float>> out;
  };

  // One step: `absorbed` rows of another path first, then the chunks. 0 scratch: what is advised.
  Result run(const std::vector<Chunk>& chunks, int absorbed, int64_t scratch_bytes, bool bf16_q,
             bool bf16_out, bool overlap) {
    const auto [heads, dn, dr, dv, r] = setup.shape;
    std::vector<moela_segment> segments;
    std::vector<int32_t> page_ids;
    int rows = 0;
    Launch at{};
    if (absorbed) {
      segments.push_back({0, absorbed, 3, 0, 0, 0});
      rows = absorbed;
    }
    for (const Chunk& c : chunks) {
      const Sequence& s = sequences[c.sequence];
      segments.push_back(
          {rows, c.rows, c.position, s.pool, int(page_ids.size()), int(s.pages.size())});
      page_ids.insert(page_ids.end(), s.pages.begin(), s.pages.end());
      rows += c.rows;
      at.context = std::max<int64_t>(at.context, c.position + c.rows);
      at.projected_keys += (c.position + c.rows + 127) / 128 * 128;
    }
    const int tail = 5;
    std::vector<float> q((rows + tail) * heads * (dn + dr), 1e30f);
    int row = absorbed;
    for (const Chunk& c : chunks) {
      const auto& from = sequences[c.sequence].q;
      const int64_t width = heads * (dn + dr);
      std::copy(from.begin() + c.position * width, from.begin() + (c.position + c.rows) * width,
                q.begin() + row * width);
      row += c.rows;
    }
    std::vector<uint16_t> narrow(q.size());
    for (size_t i = 0; i < q.size(); i++) narrow[i] = to_bf16(q[i]);
    Device<float> q_wide(q);
    Device<uint16_t> q_narrow(narrow);
    Device<char> out((rows + tail) * heads * dv * (bf16_out ? 2 : 4));
    out.fill(0xFF);
    Device<moela_segment> device_segments(segments);
    Device<int32_t> pages(page_ids);
    Device<Counts> counts(std::vector<Counts>{{rows, absorbed, int(segments.size()), 0}});
    std::vector<std::unique_ptr<Device<char>>> memories;
    std::vector<PagePool> device_pools;
    for (Pool& pool : pools) {
      memories.push_back(std::make_unique<Device<char>>(pool.memory));
      device_pools.push_back(pool.pool);
      device_pools.back().base = memories.back()->data;
    }
    Device<PagePool> pool_table(device_pools);
    Device<char> weights(kv_b);
    Device<uint16_t> scales(kv_b_scales);
    const int64_t most =
        mla_prefill_plan(setup.shape, rows - absorbed, at.projected_keys, setup.fast, INT64_MAX)
            .bytes;
    Device<char> scratch(scratch_bytes ? scratch_bytes : most);
    scratch.fill(0xFF);
    at.step.counts = counts.data;
    at.step.segments = device_segments.data;
    at.step.pages = pages.data;
    at.step.pools = pool_table.data;
    at.bucket = rows;
    at.absorbed = absorbed;
    at.sms = multiprocessors();
    at.hopper = setup.fast;
    at.overlap = overlap;
    at.scratch = scratch.data;
    at.scratch_bytes = int64_t(scratch.n);
    const Weight weight = {setup.kv_b_dtype,
                           1,
                           heads * (dn + dv),
                           r,
                           weights.data,
                           0,
                           reinterpret_cast<const char*>(scales.data),
                           0};
    mla_prefill(at, LAYER, heads, dn, dr, dv, r, scale,
                bf16_q ? Tensor{q_narrow.data, MOELA_BF16} : Tensor{q_wide.data, MOELA_F32}, weight,
                Tensor{out.data, bf16_out ? MOELA_BF16 : MOELA_F32});
    ok(cudaDeviceSynchronize());
    const auto bytes = out.get();
    std::vector<float> values((rows + tail) * heads * dv);
    for (size_t i = 0; i < values.size(); i++) {
      if (bf16_out) {
        uint16_t x;
        memcpy(&x, &bytes[i * 2], 2);
        values[i] = from_bf16(x);
      } else {
        memcpy(&values[i], &bytes[i * 4], 4);
      }
    }
    Result result;
    const int64_t width = heads * dv;
    for (int64_t i = 0; i < (rows + tail) * width; i++) {
      if (i >= absorbed * width && i < rows * width) continue;
      uint32_t bits;
      memcpy(&bits, &values[i], 4);
      if (bits != (bf16_out ? 0xFFFF0000 : 0xFFFFFFFF)) result.clean = false;
    }
    row = absorbed;
    for (const Chunk& c : chunks) {
      result.out.emplace_back(values.begin() + row * width,
                              values.begin() + (row + c.rows) * width);
      for (int64_t i = 0; i < c.rows * heads; i++) {
        double difference = 0, size = 0;
        for (int64_t d = 0; d < dv; d++) {
          const double x = expected[c.sequence][(c.position * heads + i) * dv + d];
          const double y = values[(row * heads + i) * dv + d];
          difference += (x - y) * (x - y);
          size += x * x;
        }
        const double error = std::sqrt(difference / size);
        result.error = std::max(result.error, std::isnan(error) ? INFINITY : error);
      }
      row += c.rows;
    }
    return result;
  }
};

inline int failures = 0;

inline void verdict(const char* name, const char* what, double error, double limit, bool good) {
  good = good && error <= limit;
  if (!good) failures++;
  printf("%-34s %-40s %9.2e (%.0e) %s\n", name, what, error, limit, good ? "ok" : "FAILED");
}

inline void check_all(const Setup& setup) {
  World world(setup);
  const int64_t heads = setup.shape.heads, dv = setup.shape.dv;
  // bf16: weights and keys are rounded to 2^-9 and scores of about 5 amplify it. f32: what the
  // whole model may differ by.
  const double limit = setup.fast ? 1.2e-2 : 1e-5;
  std::vector<Chunk> whole, tails;
  for (int i = 0; i < int(world.sequences.size()); i++) {
    const int n = world.sequences[i].tokens;
    whole.push_back({i, 0, n});
    tails.push_back({i, n - (n * 2 / 3 + i % 2), n * 2 / 3 + i % 2});
  }
  const auto base = world.run(whole, 0, 0, false, false, false);
  verdict(setup.name, "whole sequences", base.error, limit, base.clean);
  const auto same = [&](const World::Result& result, const std::vector<Chunk>& chunks) {
    for (size_t i = 0; i < chunks.size(); i++) {
      const int64_t width = heads * dv;
      if (memcmp(result.out[i].data(), &base.out[chunks[i].sequence][chunks[i].position * width],
                 chunks[i].rows * width * 4)) {
        return false;
      }
    }
    return true;
  };
  const auto test = [&](const char* what, const std::vector<Chunk>& chunks, int absorbed,
                        int64_t bytes, bool bf16_q, bool bf16_out, bool overlap) {
    const auto result = world.run(chunks, absorbed, bytes, bf16_q, bf16_out, overlap);
    const bool bits = bf16_out || same(result, chunks);
    if (!bits) printf("  bits differ:\n");
    if (!result.clean) printf("  other rows were written:\n");
    verdict(setup.name, what, result.error, bf16_out ? std::max(limit, 1.2e-2) : limit,
            bits && result.clean);
  };
  test("again, overlapped launches", whole, 0, 0, false, false, true);
  test("q in bf16", whole, 0, 0, true, false, true);
  test("out in bf16", whole, 7, 0, false, true, true);
  test("q and out in bf16", tails, 3, 0, true, true, true);
  test("previous context, absorbed rows", tails, 11, 0, false, false, true);
  // The smallest windows: of one head and one block, and of some.
  int64_t keys = 0, rows = 0;
  for (const Chunk& c : whole) keys += (c.rows + 127) / 128 * 128, rows += c.rows;
  for (int64_t window : {1, 3}) {
    for (int64_t some : {int64_t{1}, std::min<int64_t>(heads, 2)}) {
      const int64_t bytes =
          mla_prefill_layout(setup.shape, rows, keys / 128, setup.fast, some, window).bytes;
      const auto plan = mla_prefill_plan(setup.shape, rows, keys, setup.fast, bytes);
      char what[80];
      snprintf(what, sizeof what, "windows of %lld heads, %lld of %lld blocks",
               (long long)plan.heads, (long long)plan.window, (long long)plan.blocks);
      test(what, whole, 0, bytes, false, false, true);
    }
  }
  // Every sequence in chunks, the others' beside it.
  bool good = true;
  double error = 0;
  std::vector<int> done(world.sequences.size(), 0);
  for (int step = 0;; step++) {
    std::vector<Chunk> chunks;
    for (int i = 0; i < int(done.size()); i++) {
      const int left = world.sequences[i].tokens - done[i];
      if (left == 0 || (step + i) % 3 == 2) continue;
      const int n = std::min(left, 1 + below(270));
      chunks.push_back({i, done[i], n});
      done[i] += n;
    }
    if (chunks.empty()) {
      if (std::accumulate(done.begin(), done.end(), 0) == int(rows)) break;
      continue;
    }
    const auto result = world.run(chunks, below(3), 0, false, false, true);
    good = good && result.clean && same(result, chunks);
    error = std::max(error, result.error);
  }
  verdict(setup.name, "in chunks, bitwise", error, limit, good);
}

}  // namespace mla_prefill_bench
