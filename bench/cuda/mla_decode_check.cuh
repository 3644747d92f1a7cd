// The checks of mla_decode.cu.
#pragma once

#include "mla_decode_cache.cuh"

namespace bench {
namespace {

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
  // The kernel of many rows, with slots for all splits and for the blocks' own.
  if (!wide && hopper && r == 512) {
    for (int64_t splits : {int64_t{2048}, int64_t{sms}}) {
      const MlaDecodeArgs args = {t.step,
                                  layer,
                                  heads,
                                  r,
                                  dr,
                                  {q, MOELA_F32},
                                  {out, MOELA_F32},
                                  MLA_CLUSTER_SPLITS,
                                  mla_slots(mla_slots_bytes(splits, heads, 16, r), heads, 16, r),
                                  scratch_memory};
      OK(cudaMemset(out, 255, outputs * 4));
      OK(cudaMemset(scratch_memory, 0, args.slots.slots_offset));
      OK(cudaDeviceSynchronize());
      const bool done = mla_decode_rows(at, args);
      const auto bits = read(out, outputs);
      if (!done || memcmp(bits.data(), got.data(), outputs * 4)) {
        failures++;
        printf("FAILED: other bits from the kernel of many rows: %s\n", line);
      }
      for (char c : read(scratch_memory, args.slots.rows_offset)) {
        if (c) {
          failures++;
          printf("FAILED: a counter was left by the kernel of many rows: %s\n", line);
          break;
        }
      }
    }
    OK(cudaMemset(scratch_memory, 0, scratch_size));
    OK(cudaDeviceSynchronize());
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
  OK(cudaDeviceSynchronize());  // that stream does not wait for others
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
  std::vector<Sequence> rows;
  for (int i = 0; i < 300; i++) {
    rows.push_back({i % 5, i % 40 == 39 ? 2000 + i : 1 + (i * 37) % 400, 1});
  }
  for (int heads : {16, 20}) {
    check_decode(heads, 512, 64, {MOELA_BF16, MOELA_FP8, MOELA_F32, MOELA_INT6, MOELA_INT8}, rows,
                 true, "many rows");
  }
}

}  // namespace
}  // namespace bench
