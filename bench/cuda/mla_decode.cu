// Checks and times mla_absorb, mla_decode and mla_expand.
//   mla_decode check   against float64 over odd shapes, and row invariance to the bit
//   mla_decode targets the shapes of the project's targets, cold caches, graph replays
//   mla_decode time    those, many others, and other splits
#include "cuda/mla_decode.cuh"

#include <cuda_bf16.h>

#include <functional>
#include <numeric>

#include "support.cuh"

using namespace bench;

namespace {

struct Pool {
  PagePool on_device;
  int dtype;
};

__global__ void fill_pool(PagePool p, uint64_t seed, int64_t bytes) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < bytes;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t h = hash(seed * 0x9e3779b97f4a7c15ULL + i);
    const float unit = float(h >> 8) / 8388608.0f - 1;
    if (p.dtype == MOELA_F32) {
      if (i % 4 == 0) *reinterpret_cast<float*>(p.base + i) = unit;
    } else if (p.dtype == MOELA_BF16) {
      if (i % 2 == 0) {
        uint32_t bits;
        memcpy(&bits, &unit, 4);
        *reinterpret_cast<uint16_t*>(p.base + i) = bits >> 16;
      }
    } else {
      const int64_t in_layer = i % p.layer_bytes;
      uint8_t byte = h & 255;
      if (in_layer >= MOELA_PAGE_TOKENS * p.row_bytes) {
        // Scales that give about one at the largest.
        const bool key = (in_layer - MOELA_PAGE_TOKENS * p.row_bytes) % 2 == 1;
        const int code = key                     ? 8 * 17
                         : p.dtype == MOELA_FP8  ? 8 * 15
                         : p.dtype == MOELA_INT8 ? 8 * 17
                                                 : 8 * 19;
        byte = code + byte % 8;
      } else if (in_layer % p.row_bytes >= p.row_bytes - p.qk_rope_head_dim) {
        if (byte == 128) byte = 0;
      } else if (p.dtype == MOELA_FP8 && (byte & 127) == 127) {
        byte = 0;
      } else if (p.dtype == MOELA_INT8 && byte == 128) {
        byte = 0;
      }
      p.base[i] = byte;
    }
  }
}
__global__ void poison(PagePool p, int page, int token) {
  for (int layer = 0; layer < p.layers; layer++) {
    char* row = p.at(page, layer) + token * p.row_bytes;
    const int64_t bytes = (MOELA_PAGE_TOKENS - token) * p.row_bytes;
    for (int64_t i = threadIdx.x; i < bytes; i += blockDim.x) row[i] = char(255);
  }
}

PagePool make_pool(int dtype, int layers, int r, int dr, int pages, uint64_t seed) {
  PagePool p{};
  p.dtype = dtype;
  p.layers = layers;
  p.kv_lora_rank = r;
  p.qk_rope_head_dim = dr;
  const int width = r + dr;
  p.row_bytes = dtype == MOELA_F32    ? 4 * width
                : dtype == MOELA_BF16 ? 2 * width
                : dtype == MOELA_INT6 ? width / 16 * 12
                                      : width;
  const bool scaled = dtype != MOELA_F32 && dtype != MOELA_BF16;
  p.layer_bytes = MOELA_PAGE_TOKENS * (p.row_bytes + (scaled ? 2 : 0));
  p.page_bytes = layers * p.layer_bytes;
  const int64_t bytes = p.page_bytes * pages;
  OK(cudaMalloc(&p.base, bytes + 256));
  fill_pool<<<1056, 256>>>(p, seed, bytes);
  OK(cudaGetLastError());
  return p;
}

// A step in device memory.
struct Sequence {
  int pool, context, rows;  // the last `rows` of `context` tokens are rows of the step
};
struct TestStep {
  Step step{};
  int rows = 0;
  std::vector<void*> owned;
  std::vector<moela_segment> segments;
  std::vector<int> pages, positions, row_segment;

  template <class T>
  const T* upload(const std::vector<T>& v) {
    void* p;
    OK(cudaMalloc(&p, v.size() * sizeof(T) + 256));
    OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    owned.push_back(p);
    return static_cast<const T*>(p);
  }
  ~TestStep() {
    for (void* p : owned) cudaFree(p);
  }
};

// Sequence i has the pages of `places[i]`.
void make_step(TestStep& t, const std::vector<Sequence>& sequences,
               const std::vector<std::vector<int>>& places, const std::vector<PagePool>& pools) {
  for (size_t i = 0; i < sequences.size(); i++) {
    const Sequence& s = sequences[i];
    moela_segment segment{
        t.rows, s.rows, s.context - s.rows, s.pool, int(t.pages.size()), int(places[i].size())};
    t.pages.insert(t.pages.end(), places[i].begin(), places[i].end());
    for (int j = 0; j < s.rows; j++) {
      t.positions.push_back(segment.position + j);
      t.row_segment.push_back(int(i));
    }
    t.rows += s.rows;
    t.segments.push_back(segment);
  }
  t.step.counts = t.upload(std::vector<Counts>{{t.rows, t.rows, int(sequences.size()), 0}});
  t.step.positions = t.upload(t.positions);
  t.step.row_segment = t.upload(t.row_segment);
  t.step.segments = t.upload(t.segments);
  t.step.pages = t.upload(t.pages);
  t.step.pools = t.upload(pools);
}
// Pages shuffled over each pool.
std::vector<std::vector<int>> shuffled(const std::vector<Sequence>& sequences, int n_pools,
                                       int max_pages, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<int>> free(n_pools), places;
  for (auto& f : free) {
    f.resize(max_pages);
    std::iota(f.begin(), f.end(), 0);
    std::shuffle(f.begin(), f.end(), random);
  }
  for (const Sequence& s : sequences) {
    std::vector<int> own;
    for (int i = 0; i < (s.context + 63) / 64; i++) {
      own.push_back(free[s.pool].back());
      free[s.pool].pop_back();
    }
    places.push_back(own);
  }
  return places;
}

char* scratch_memory;
int64_t scratch_size = int64_t{256} << 20;
int sms;
cudaStream_t stream;

Launch make_launch(const Step& step, int rows, bool hopper, bool overlap) {
  Launch at{};
  at.stream = stream;
  at.step = step;
  at.bucket = at.absorbed = rows;
  at.sms = sms;
  at.hopper = hopper;
  at.overlap = overlap;
  at.scratch = scratch_memory;
  at.scratch_bytes = scratch_size;
  return at;
}

// ---- float64 references ------------------------------------------------------------------------

__device__ double rounded(double x, bool bf16) {
  return bf16 ? double(__bfloat162float(__float2bfloat16_rn(float(x)))) : x;
}
__device__ double reference_element(const PagePool& p, int page, int layer, int token, int i) {
  const char* row = p.at(page, layer) + token * p.row_bytes;
  if (p.dtype == MOELA_F32) return reinterpret_cast<const float*>(row)[i];
  if (p.dtype == MOELA_BF16) {
    return __uint_as_float(uint32_t(reinterpret_cast<const uint16_t*>(row)[i]) << 16);
  }
  const int code = p.scales_at(page, layer)[2 * token + (i >= p.kv_lora_rank)];
  const double scale = code == 0 ? 0 : ldexp(8.0 + code % 8, code / 8 - 27);
  const int r = p.kv_lora_rank, dr = p.qk_rope_head_dim;
  if (i >= r) return static_cast<int8_t>(row[p.row_bytes - dr + (i - r)]) * scale;
  if (p.dtype == MOELA_INT8) return static_cast<int8_t>(row[i]) * scale;
  if (p.dtype == MOELA_FP8) {
    const int b = uint8_t(row[i]), e = b >> 3 & 15, m = b & 7;
    const double v = e ? ldexp(8.0 + m, e - 10) : ldexp(double(m), -9);
    return (b & 128 ? -v : v) * scale;
  }
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row);
  const int whole = r - 2 * dr;
  if (i < whole) {
    const uint8_t* group = bytes + i / 16 * 12;
    const int j = i % 16;
    const int low = j < 8 ? group[j] & 15 : group[j - 8] >> 4;
    const int up = group[8 + j % 4] >> (2 * (j / 4)) & 3;
    return (low + 16 * up - 32) * scale;
  }
  const int j = (i - whole) % 32;
  const uint8_t* group = bytes + whole / 16 * 12 + (i - whole) / 32 * 20;
  const int low = j < 16 ? group[j] & 15 : group[j - 16] >> 4;
  const int up = group[16 + j % 4] >> (j / 4) & 1;
  return (2 * (low + 16 * up) - 32) * scale;
}

// Grid: (heads, rows). `fast`: queries and elements are rounded to bf16 unless the cache is F32.
__global__ void reference_decode(Step step, int layer, int heads, int r, int dr, const float* q,
                                 bool fast, double* scores, int64_t scores_stride, double* out) {
  const int head = blockIdx.x, row = blockIdx.y;
  const moela_segment s = step.segments[step.row_segment[row]];
  const PagePool& pool = step.pools[s.pool];
  const int keys = step.positions[row] + 1;
  const bool bf16 = fast && pool.dtype != MOELA_F32;
  const int64_t at = int64_t(row) * heads + head;
  double* own = scores + at * scores_stride;
  for (int key = threadIdx.x; key < keys; key += blockDim.x) {
    const int page = step.pages[s.page + key / 64];
    double sum = 0;
    for (int i = 0; i < r + dr; i++) {
      sum += rounded(q[at * (r + dr) + i], bf16) *
             rounded(reference_element(pool, page, layer, key % 64, i), bf16);
    }
    own[key] = sum;
  }
  __syncthreads();
  double most = own[0], total = 0;
  for (int key = 1; key < keys; key++) most = fmax(most, own[key]);
  for (int key = 0; key < keys; key++) total += exp(own[key] - most);
  for (int i = threadIdx.x; i < r; i += blockDim.x) {
    double sum = 0;
    for (int key = 0; key < keys; key++) {
      sum +=
          exp(own[key] - most) *
          rounded(reference_element(pool, step.pages[s.page + key / 64], layer, key % 64, i), bf16);
    }
    out[at * r + i] = sum / total;
  }
}

int failures = 0;

template <class T>
double worst_error(const std::vector<T>& got, const std::vector<double>& want, int64_t width) {
  double worst = 0;
  for (size_t row = 0; row < want.size() / width; row++) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < width; i++) {
      const double e = double(got[row * width + i]) - want[row * width + i];
      error += e * e;
      size += want[row * width + i] * want[row * width + i];
    }
    const double relative = std::sqrt(error / (size + 1e-30));
    if (!(relative <= worst)) worst = relative;  // NaN too
  }
  return worst;
}

void report(const char* what, double error, double limit) {
  const bool good = error <= limit;
  if (!good) failures++;
  printf("%s %-66s %.2e (limit %.0e)\n", good ? "ok    " : "FAILED", what, error, limit);
}

const char* cache_name(int dtype) { return dtype == MOELA_INT6 ? "int6" : type_name(dtype); }

void check_decode(int heads, int r, int dr, const std::vector<int>& dtypes,
                  const std::vector<Sequence>& sequences, bool hopper, const char* what,
                  float spread = 0.15f, bool invariant = true) {
  const bool wide = heads >= 64 && r == 512 && hopper;
  const int max_pages = 700, layers = 2, layer = 1;
  std::vector<PagePool> pools;
  bool f32 = true;
  for (size_t i = 0; i < dtypes.size(); i++) {
    pools.push_back(make_pool(dtypes[i], layers, r, dr, max_pages, 11 + i));
    f32 = f32 && dtypes[i] == MOELA_F32;
  }
  const auto places = shuffled(sequences, int(dtypes.size()), max_pages, 5);
  for (size_t i = 0; i < sequences.size(); i++) {
    if (sequences[i].context % 64) {
      poison<<<1, 256>>>(pools[sequences[i].pool], places[i].back(), sequences[i].context % 64);
    }
  }
  OK(cudaMemset(scratch_memory, 0, scratch_size));
  TestStep t;
  make_step(t, sequences, places, pools);
  const int64_t outputs = int64_t(t.rows) * heads * r;
  float* q = make_floats(int64_t(t.rows) * heads * (r + dr), 99, spread);
  float* out;
  OK(cudaMalloc(&out, outputs * 4));
  OK(cudaMemset(out, 255, outputs * 4));
  int longest = 0;
  for (int p : t.positions) longest = std::max(longest, p + 1);
  double *scores, *want;
  OK(cudaMalloc(&scores, int64_t(t.rows) * heads * longest * 8));
  OK(cudaMalloc(&want, outputs * 8));
  reference_decode<<<dim3(heads, t.rows), 256>>>(t.step, layer, heads, r, dr, q, hopper && r == 512,
                                                 scores, longest, want);
  OK(cudaGetLastError());
  OK(cudaDeviceSynchronize());  // that stream does not wait for others
  Launch at = make_launch(t.step, t.rows, hopper, false);
  mla_decode_split(at, layer, heads, r, dr, {q, MOELA_F32}, {out, MOELA_F32}, invariant);
  OK(cudaGetLastError());
  const auto got = read(out, outputs);
  const auto expected = read(want, outputs);
  char line[200];
  snprintf(line, sizeof line, "decode %s, %d heads, %d + %d, %s", what, heads, r, dr,
           dtypes.size() > 1 ? "several pools" : cache_name(dtypes[0]));
  report(line, worst_error(got, expected, r), f32 || !hopper || r != 512 ? 1e-5 : 3e-3);

  if (!invariant) {
    for (auto& p : pools) cudaFree(p.base);
    for (void* p : {(void*)q, (void*)out, (void*)scores, (void*)want}) cudaFree(p);
    return;
  }
  // Again, with little scratch memory, and with bf16 results: the same bits.
  OK(cudaMemset(out, 255, outputs * 4));
  OK(cudaDeviceSynchronize());
  at.scratch_bytes = 0;
  mla_decode(at, layer, heads, r, dr, {q, MOELA_F32}, {out, MOELA_F32});
  const auto again = read(out, outputs);
  if (!wide && memcmp(again.data(), got.data(), outputs * 4)) {
    failures++;
    printf("FAILED: other bits without scratch memory: %s\n", line);
  }
  at.scratch_bytes = scratch_size;

  // Each row alone, its pages elsewhere.
  int64_t differing = 0, tried = 0;
  const auto other = shuffled(sequences, int(dtypes.size()), max_pages, 77);
  for (size_t i = 0; i < sequences.size(); i++) {
    const Sequence& s = sequences[i];
    const int row = t.segments[i].row;
    for (int j = 0; j < s.rows && j < 3; j++) {
      // Row j alone: a segment of one row.
      TestStep alone;
      make_step(alone, {{s.pool, s.context - s.rows + j + 1, 1}}, {places[i]}, pools);
      OK(cudaMemset(out, 255, int64_t(heads) * r * 4));
      OK(cudaDeviceSynchronize());
      Launch single = make_launch(alone.step, 1, hopper, false);
      mla_decode(single, layer, heads, r, dr, {q + int64_t(row + j) * heads * (r + dr), MOELA_F32},
                 {out, MOELA_F32});
      const auto bits = read(out, int64_t(heads) * r);
      differing +=
          memcmp(bits.data(), got.data() + int64_t(row + j) * heads * r, bits.size() * 4) != 0;
      tried++;
    }
  }
  if (differing) {
    failures++;
    printf("FAILED: %lld of %lld rows differ when alone: %s\n", (long long)differing,
           (long long)tried, line);
  }
  // Copies of the same pages elsewhere.
  {
    std::vector<PagePool> moved = pools;
    std::vector<char*> bases;
    for (size_t i = 0; i < pools.size(); i++) {
      OK(cudaMalloc(&moved[i].base, pools[i].page_bytes * max_pages + 256));
      OK(cudaMemset(moved[i].base, 255, pools[i].page_bytes * max_pages));
    }
    for (size_t i = 0; i < sequences.size(); i++) {
      const int p = sequences[i].pool;
      for (size_t j = 0; j < places[i].size(); j++) {
        OK(cudaMemcpy(moved[p].base + other[i][j] * pools[p].page_bytes,
                      pools[p].base + places[i][j] * pools[p].page_bytes, pools[p].page_bytes,
                      cudaMemcpyDeviceToDevice));
      }
    }
    TestStep there;
    make_step(there, sequences, other, moved);
    OK(cudaMemset(out, 255, outputs * 4));
    OK(cudaDeviceSynchronize());
    Launch elsewhere = make_launch(there.step, there.rows, hopper, true);
    mla_decode(elsewhere, layer, heads, r, dr, {q, MOELA_F32}, {out, MOELA_F32});
    const auto bits = read(out, outputs);
    if (memcmp(bits.data(), got.data(), outputs * 4)) {
      failures++;
      printf("FAILED: other bits on other pages: %s\n", line);
    }
    for (auto& m : moved) cudaFree(m.base);
  }
  // The counters must be zero again.
  if (!wide) {
    const auto counters = read(scratch_memory, mla_slots(scratch_size, heads, 16, r).rows_offset);
    for (char c : counters) {
      if (c) {
        failures++;
        printf("FAILED: a counter was left: %s\n", line);
        break;
      }
    }
  }
  for (auto& p : pools) cudaFree(p.base);
  cudaFree(q);
  cudaFree(out);
  cudaFree(scores);
  cudaFree(want);
}

// mla_absorb and mla_expand.
void check_products(int dtype, int heads, int dn, int dr, int dv, int r, int rows) {
  const uint64_t seed = 500 + dtype;
  const Weight w = make_weight(dtype, 1, int64_t(heads) * (dn + dv), r, seed);
  TestStep t;
  make_step(t, {{0, rows, rows}}, {std::vector<int>((rows + 63) / 64)}, {PagePool{}});
  const float scale = 0.1147f;
  const int64_t in = int64_t(rows) * heads * (dn + dr), out = int64_t(rows) * heads * (r + dr);
  float* q = make_floats(in, 3);
  float* o = make_floats(out, 4);
  float *absorbed, *expanded;
  OK(cudaMalloc(&absorbed, out * 4));
  OK(cudaMalloc(&expanded, int64_t(rows) * heads * dv * 4));
  OK(cudaMemset(absorbed, 255, out * 4));
  OK(cudaMemset(expanded, 255, int64_t(rows) * heads * dv * 4));
  Launch at = make_launch(t.step, rows, true, true);
  mla_absorb(at, heads, dn, dr, dv, r, scale, {q, MOELA_F32}, w, {absorbed, MOELA_F32});
  mla_expand(at, heads, dn, dr, dv, r, {o, MOELA_F32}, w, {expanded, MOELA_F32});
  const auto hq = read(q, in);
  const auto ho = read(o, out);
  const auto a = read(absorbed, out);
  const auto e = read(expanded, int64_t(rows) * heads * dv);
  std::vector<double> weights(int64_t(heads) * (dn + dv) * r);
  for (int64_t row = 0; row < heads * (dn + dv); row++) {
    for (int c = 0; c < r; c++) {
      double v = raw_value(dtype, seed, r, row, c);
      if (dtype == MOELA_INT8 || dtype == MOELA_FP8) {
        v = round_bf16(float(v) * group_scale(dtype, seed, r, row, c / 128));
      }
      weights[row * r + c] = v;
    }
  }
  const auto in_value = [&](float x) { return dtype == MOELA_F32 ? x : round_bf16(x); };
  std::vector<float> got_a, got_e;
  std::vector<double> want_a, want_e;
  for (int row = 0; row < rows; row += rows > 20 ? 13 : 1) {
    for (int h = 0; h < heads; h++) {
      const int64_t at_row = int64_t(row) * heads + h;
      for (int c = 0; c < r + dr; c++) {
        double sum = 0;
        if (c < r) {
          for (int k = 0; k < dn; k++) {
            sum += double(in_value(hq[at_row * (dn + dr) + k])) *
                   weights[(int64_t(h) * (dn + dv) + k) * r + c];
          }
        } else {
          sum = hq[at_row * (dn + dr) + dn + c - r];
        }
        want_a.push_back(sum * scale);
        got_a.push_back(a[at_row * (r + dr) + c]);
      }
      for (int j = 0; j < dv; j++) {
        double sum = 0;
        for (int k = 0; k < r; k++) {
          sum += double(in_value(ho[at_row * r + k])) *
                 weights[(int64_t(h) * (dn + dv) + dn + j) * r + k];
        }
        want_e.push_back(sum);
        got_e.push_back(e[at_row * dv + j]);
      }
    }
  }
  char line[200];
  snprintf(line, sizeof line, "absorb %s, %d rows, %d heads, %d+%d/%d, %d", type_name(dtype), rows,
           heads, dn, dr, dv, r);
  report(line, worst_error(got_a, want_a, r + dr), 2e-6);
  snprintf(line, sizeof line, "expand %s, %d rows, %d heads, %d+%d/%d, %d", type_name(dtype), rows,
           heads, dn, dr, dv, r);
  report(line, worst_error(got_e, want_e, dv), 2e-6);

  // The last row alone.
  TestStep one;
  make_step(one, {{0, 1, 1}}, {{0}}, {PagePool{}});
  Launch single = make_launch(one.step, 1, true, true);
  mla_absorb(single, heads, dn, dr, dv, r, scale,
             {q + int64_t(rows - 1) * heads * (dn + dr), MOELA_F32}, w, {absorbed, MOELA_F32});
  mla_expand(single, heads, dn, dr, dv, r, {o + int64_t(rows - 1) * heads * r, MOELA_F32}, w,
             {expanded, MOELA_F32});
  const auto a1 = read(absorbed, int64_t(heads) * (r + dr));
  const auto e1 = read(expanded, int64_t(heads) * dv);
  if (memcmp(a1.data(), a.data() + int64_t(rows - 1) * heads * (r + dr), a1.size() * 4) ||
      memcmp(e1.data(), e.data() + int64_t(rows - 1) * heads * dv, e1.size() * 4)) {
    failures++;
    printf("FAILED: the last row differs when alone: %s\n", line);
  }
  cudaFree(const_cast<char*>(w.data));
  cudaFree(q);
  cudaFree(o);
  cudaFree(absorbed);
  cudaFree(expanded);
}

void check() {
  for (int dtype : {MOELA_BF16, MOELA_INT8, MOELA_FP8, MOELA_F32}) {
    for (int rows : {1, 3, 8, 9, 100}) check_products(dtype, 16, 128, 64, 128, 512, rows);
    check_products(dtype, 3, 128, 64, 128, 512, 5);
    check_products(dtype, 8, 32, 16, 32, 64, 11);
  }
  std::vector<Sequence> odd, many;
  for (int context : {1,   2,   15,  16,  17,  31,  32,  33,  63,  64,   65,   100, 127,
                      128, 129, 200, 255, 256, 257, 300, 511, 513, 1000, 2047, 2049}) {
    odd.push_back({0, context, 1});
  }
  for (int dtype : {MOELA_BF16, MOELA_F32, MOELA_FP8, MOELA_INT8, MOELA_INT6}) {
    for (int heads : {16, 3}) check_decode(heads, 512, 64, {dtype}, odd, true, "odd contexts");
    check_decode(8, 64, 16, {dtype}, odd, true, "odd contexts");
    check_decode(16, 512, 64, {dtype}, {{0, 37, 37}, {0, 130, 70}, {0, 700, 5}, {0, 1, 1}}, true,
                 "segments");
    check_decode(16, 512, 64, {dtype}, {{0, 5000, 1}, {0, 40, 1}}, true, "two");
    check_decode(16, 512, 64, {dtype}, {{0, 20000, 1}}, true, "long");
  }
  check_decode(16, 512, 64, {MOELA_F32}, odd, false, "generic");
  check_decode(16, 512, 64, {MOELA_INT6}, odd, false, "generic");
  check_decode(20, 512, 64, {MOELA_BF16}, odd, true, "odd contexts");
  for (int heads : {64, 128, 100}) {
    check_decode(heads, 512, 64, {MOELA_BF16}, odd, true, "odd contexts");
    check_decode(heads, 512, 64, {MOELA_BF16}, {{0, 9000, 1}, {0, 65, 1}}, true, "long");
    check_decode(heads, 512, 64, {MOELA_BF16}, {{0, 9000, 1}, {0, 65, 1}, {0, 700, 3}}, true,
                 "evenly", 0.15f, false);
  }
  for (int i = 0; i < 40; i++)
    many.push_back({i % 5, 1 + (i * 37) % 700, 1 + (i % 7 == 3) * (i * 37 % 700 > 3) * 3});
  check_decode(16, 512, 64, {MOELA_BF16, MOELA_FP8, MOELA_F32, MOELA_INT6, MOELA_INT8}, many, true,
               "many");
  check_decode(128, 512, 64, {MOELA_BF16, MOELA_FP8, MOELA_F32, MOELA_INT6, MOELA_INT8}, many, true,
               "many");
  check_decode(16, 512, 64, {MOELA_BF16}, odd, true, "steep", 3.0f);
}

// ---- timing ------------------------------------------------------------------------------------

// Microseconds of one of `launches` calls, replayed as a graph.
double time_calls(int launches, const std::function<void(int)>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; i++) call(i);
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 12; i++) {
    OK(cudaEventRecord(begin, stream));
    OK(cudaGraphLaunch(executable, stream));
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    float ms;
    OK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 1) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  OK(cudaGraphExecDestroy(executable));
  OK(cudaGraphDestroy(graph));
  return times[times.size() / 2] * 1000 / launches;
}

struct Line {
  int heads, sequences, context, dtype;
  double target;  // microseconds; 0: none
};

void time_decode(const Line& line, bool invariant = true, const MlaSplits* splits = nullptr) {
  const int pages = (line.context + 63) / 64 * line.sequences;
  const int64_t layer_bytes = int64_t(pages) * 64 * 1152;
  const int layers =
      int(std::min<int64_t>(27, std::max<int64_t>(1, (int64_t{200} << 20) / layer_bytes + 1)));
  std::vector<PagePool> pools = {make_pool(line.dtype, layers, 512, 64, pages, 3)};
  std::vector<Sequence> sequences(line.sequences, Sequence{0, line.context, 1});
  TestStep t;
  make_step(t, sequences, shuffled(sequences, 1, pages, 9), pools);
  const Weight queries = make_weight(MOELA_BF16, 1, int64_t(line.sequences) * line.heads, 576, 4);
  void* q = const_cast<char*>(queries.data);
  float* out = make_floats(int64_t(line.sequences) * line.heads * 512, 4);
  const double bytes = double(line.sequences) * line.context * pools[0].row_bytes;
  const double flops = 2.0 * line.sequences * line.context * line.heads * 1088;
  const int launches = std::max(layers, 10);
  printf("%3d heads (%3d, %5d) %-5s", line.heads, line.sequences, line.context,
         cache_name(line.dtype));
  for (bool overlap : {true, false}) {
    const double us = time_calls(launches, [&](int i) {
      const Launch at = make_launch(t.step, line.sequences, true, overlap);
      if (!splits) {
        mla_decode_split(at, i % layers, line.heads, 512, 64, {q, MOELA_BF16}, {out, MOELA_BF16},
                         invariant);
        return;
      }
      mla_decode_cluster(at, {t.step,
                              i % layers,
                              line.heads,
                              512,
                              64,
                              {q, MOELA_BF16},
                              {out, MOELA_BF16},
                              *splits,
                              mla_slots(scratch_size, line.heads, 16, 512),
                              scratch_memory});
    });
    printf("  %s%8.2f us %6.0f GB/s %5.0f TFLOP/s", overlap ? "" : "| no overlap", us,
           bytes / us / 1e3, flops / us / 1e6);
  }
  if (line.target > 0) printf("  target %.0f us", line.target);
  printf("\n");
  fflush(stdout);
  cudaFree(pools[0].base);
  cudaFree(q);
  cudaFree(out);
}

void time_products(int dtype, int heads, int rows) {
  const int copies = 40;
  std::vector<Weight> weights;
  for (int i = 0; i < copies; i++)
    weights.push_back(make_weight(dtype, 1, heads * 256, 512, 5 + i));
  TestStep t;
  make_step(t, {{0, rows, rows}}, {std::vector<int>((rows + 63) / 64)}, {PagePool{}});
  float* q = make_floats(int64_t(rows) * heads * 576, 3);
  float* out = make_floats(int64_t(rows) * heads * 576, 3);
  const double bytes = weight_bytes(weights[0]) / 2;
  const Launch at = make_launch(t.step, rows, true, true);
  const double absorb = time_calls(copies, [&](int i) {
    mla_absorb(at, heads, 128, 64, 128, 512, 0.1f, {q, MOELA_F32}, weights[i], {out, MOELA_F32});
  });
  const double expand = time_calls(copies, [&](int i) {
    mla_expand(at, heads, 128, 64, 128, 512, {q, MOELA_F32}, weights[i], {out, MOELA_F32});
  });
  printf("%3d heads %3d rows %-5s absorb %7.2f us %5.0f GB/s   expand %7.2f us %5.0f GB/s\n", heads,
         rows, type_name(dtype), absorb, bytes / absorb / 1e3, expand, bytes / expand / 1e3);
  for (auto& w : weights) cudaFree(const_cast<char*>(w.data));
  cudaFree(q);
  cudaFree(out);
}

// The three in a row, as a layer of V2-Lite has them.
void time_layer(int context) {
  const int layers = 27, heads = 16, pages = (context + 63) / 64;
  std::vector<PagePool> pools = {make_pool(MOELA_BF16, layers, 512, 64, pages, 3)};
  std::vector<Weight> weights;
  for (int i = 0; i < layers; i++)
    weights.push_back(make_weight(MOELA_BF16, 1, heads * 256, 512, i));
  TestStep t;
  make_step(t, {{0, context, 1}}, shuffled({{0, context, 1}}, 1, pages, 9), pools);
  float* q = make_floats(heads * 192, 3);
  float* latent = make_floats(heads * 576, 3);
  float* result = make_floats(heads * 512, 3);
  float* out = make_floats(heads * 128, 3);
  const Launch at = make_launch(t.step, 1, true, true);
  const double us = time_calls(layers, [&](int i) {
    mla_absorb(at, heads, 128, 64, 128, 512, 0.1f, {q, MOELA_F32}, weights[i], {latent, MOELA_F32});
    mla_decode(at, i, heads, 512, 64, {latent, MOELA_F32}, {result, MOELA_F32});
    mla_expand(at, heads, 128, 64, 128, 512, {result, MOELA_F32}, weights[i], {out, MOELA_F32});
  });
  printf("V2-Lite, 1 row, context %5d: absorb + decode + expand %7.2f us a layer\n", context, us);
  for (auto& w : weights) cudaFree(const_cast<char*>(w.data));
  cudaFree(pools[0].base);
  for (float* p : {q, latent, result, out}) cudaFree(p);
}

void time_targets() {
  for (bool invariant : {false, true}) {
    printf("%s\n", invariant ? "row invariant" : "splits by the batch");
    time_decode({128, 1, 4096, MOELA_BF16, 19}, invariant);
    time_decode({128, 8, 8192, MOELA_BF16, 50}, invariant);
    time_decode({128, 32, 4096, MOELA_BF16, 80}, invariant);
    time_decode({128, 128, 1024, MOELA_BF16, 79}, invariant);
  }
  time_decode({16, 128, 4096, MOELA_BF16, 0});
  time_decode({16, 64, 1088, MOELA_BF16, 0});
  time_decode({16, 256, 1088, MOELA_BF16, 0});
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  sms = properties.multiProcessorCount;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  OK(cudaMalloc(&scratch_memory, scratch_size));
  OK(cudaMemset(scratch_memory, 0, scratch_size));
  OK(cudaDeviceSynchronize());
  const std::string what = argc > 1 ? argv[1] : "check";
  try {
    if (what == "check") {
      check();
      OK(cudaDeviceSynchronize());
      printf("%s: %d failures\n", failures ? "FAILED" : "all ok", failures);
    } else if (what == "targets") {
      time_targets();
    } else {
      for (int context : {1, 64, 200, 1024, 4096, 32768}) {
        time_decode({16, 1, context, MOELA_BF16, 0});
      }
      for (int context : {64, 200, 4096, 32768}) time_layer(context);
      for (int dtype : {MOELA_BF16, MOELA_FP8, MOELA_INT8, MOELA_INT6}) {
        time_decode({16, 128, 4096, dtype, 0});
      }
      for (MlaSplits splits : {MlaSplits{256, 2048, 8}, MlaSplits{512, 2048, 4},
                               MlaSplits{1024, 2048, 2}, MlaSplits{1024, 1024, 1}}) {
        printf("splits of %d to %d, %d parts\n", splits.least, splits.most, splits.parts);
        for (int context : {1024, 4096, 16384}) {
          time_decode({16, 1, context, MOELA_BF16, 0}, true, &splits);
        }
        time_decode({16, 128, 4096, MOELA_BF16, 0}, true, &splits);
      }
      time_decode({16, 64, 1024, MOELA_BF16, 0});
      time_decode({16, 256, 1024, MOELA_BF16, 0});
      for (int rows : {1, 8, 64, 256}) time_products(MOELA_BF16, 16, rows);
      time_products(MOELA_INT8, 16, 1);
      time_products(MOELA_BF16, 128, 1);
      time_products(MOELA_BF16, 128, 32);
      time_targets();
      time_decode({128, 32, 4096, MOELA_FP8, 80}, false);
      time_decode({64, 32, 4096, MOELA_BF16, 0}, false);
    }
  } catch (const Error& error) {
    printf("FAILED: %s\n", error.message.c_str());
    return 1;
  }
  return failures != 0;
}
