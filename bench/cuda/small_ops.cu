// Checks the small operations and the sampler on CUDA against the CPU's, then times them at
// DeepSeek-V2-Lite's shapes. Usage: small_ops [check | time]. Links csrc/cpu and csrc/runtime's
// threads.cc and check_sampling.cc.
#include "small_ops.cuh"
#include "small_ops_sample.cuh"

namespace bench {

int failures = 0;

void report(const char* what, const std::string& which, double error, double most) {
  const bool good = error <= most;
  if (!good) failures++;
  if (!good || getenv("VERBOSE")) {
    printf("%s %s %s: %g, at most %g\n", good ? "ok" : "FAILED:", what, which.c_str(), error, most);
  }
}

namespace {

const int32_t ROWS[] = {MOELA_ROWS_ALL, MOELA_ROWS_ABSORBED, MOELA_ROWS_PROJECTED};

// Largest |got - want| / (|want| + unit); infinite where one of them is no number, or where a value
// outside the rows [begin, end) of `width` was touched.
double difference(const std::vector<float>& got, const std::vector<float>& want, double unit) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); i++) {
    if (as_bits(got[i]) == as_bits(want[i])) continue;
    const double error = std::fabs(double(got[i]) - want[i]) / (std::fabs(want[i]) + unit);
    worst = error <= worst ? worst : error;
    if (!(error < INFINITY)) return INFINITY;
  }
  return worst;
}
const float POISON = as_float(0xcdcdcdcd);

void check_rows_ops() {
  for (const int n_rows : {1, 5, 37}) {
    for (const int rows : ROWS) {
      Host h(n_rows, n_rows / 2 + 1);
      const std::string tag = "rows " + std::to_string(n_rows) + " kind " + std::to_string(rows);
      for (const int64_t d : {2048, 130, 7}) {
        for (const int dtype : {MOELA_F32, MOELA_BF16}) {
          const Matrix table = h.matrix(dtype, 300, d);
          std::vector<float> want(h.bucket * d, POISON);
          Device<float> out(want);
          moela::embed(h.context, rows, d, table.cpu, want.data());
          cuda::embed(h.launch(), rows, d, table.gpu, out.data);
          report("embed", tag, difference(out.read(), want, 0), 0);
          for (const int extra : {0, 64, 3}) {
            const std::vector<float> in = h.floats(h.bucket * (d + extra), 3);
            Device<float> input(in);
            const Matrix weight = h.matrix(dtype, 1, d);
            std::vector<float> y(h.bucket * d, POISON);
            Device<float> f32(y);
            std::vector<uint16_t> poison(h.bucket * d, 0xcdcd);
            Device<uint16_t> bf16(poison);
            moela::rms_norm(h.context, rows, d, d + extra, in.data(), weight.cpu, 1e-6f, y.data());
            cuda::rms_norm(h.launch(), rows, d, d + extra, input.data, weight.gpu, 1e-6f,
                           {f32.data, MOELA_F32});
            cuda::rms_norm(h.launch(), rows, d, d + extra, input.data, weight.gpu, 1e-6f,
                           {bf16.data, MOELA_BF16});
            const std::vector<float> got = f32.read();
            report("rms_norm", tag, difference(got, y, 1e-6), 2e-6);
            const std::vector<uint16_t> halves = bf16.read();
            double wrong = 0;
            for (size_t i = 0; i < halves.size(); i++) {
              const bool in_rows = as_bits(got[i]) != as_bits(POISON);
              wrong += halves[i] != (in_rows ? as_bits(round_bf16(got[i])) >> 16 : 0xcdcd);
            }
            report("rms_norm bf16", tag, wrong, 0);
          }
        }
        const int64_t k = 6;
        const std::vector<float> in = h.floats(h.bucket * k * d, 1), w = h.floats(h.bucket * k, 1),
                                 shared = h.floats(h.bucket * d, 1),
                                 residual = h.floats(h.bucket * d, 1);
        Device<float> d_in(in), d_w(w), d_shared(shared), d_residual(residual);
        // The sums of the magnitudes: the two devices differ in whether products are rounded.
        const auto magnitudes = [](std::vector<float> x) {
          for (float& v : x) v = std::fabs(v);
          return x;
        };
        std::vector<float> size(h.bucket * d, 0);
        moela::combine(h.context, rows, d, k, magnitudes(in).data(), magnitudes(w).data(), nullptr,
                       nullptr, size.data());
        for (int which = 0; which < 4; which++) {
          std::vector<float> want(which == 3 ? residual : std::vector<float>(h.bucket * d, POISON));
          Device<float> out(want);
          float* r = which & 2 ? (which == 3 ? want.data() : const_cast<float*>(residual.data()))
                               : nullptr;
          moela::combine(h.context, rows, d, k, in.data(), w.data(),
                         which & 1 ? shared.data() : nullptr, r, want.data());
          cuda::combine(h.launch(), rows, d, k, {d_in.data, MOELA_F32}, d_w.data,
                        which & 1 ? d_shared.data : nullptr,
                        which & 2 ? (which == 3 ? out.data : d_residual.data) : nullptr, out.data);
          const std::vector<float> got = out.read();
          double worst = 0;
          for (size_t i = 0; i < want.size(); i++) {
            if (as_bits(got[i]) == as_bits(want[i])) continue;
            const double error = std::fabs(double(got[i]) - want[i]);
            worst = std::fmax(worst, size[i] > 0 ? error / (size[i] + 8) : INFINITY);
          }
          // 8 products and sums, half a unit each.
          report("combine", tag, worst, 8 * 0x1p-24);
        }
        if (rows == MOELA_ROWS_ALL) {
          const std::vector<float> x = h.floats(h.bucket * d, 1);
          Device<float> from(x);
          std::vector<float> want(h.bucket * d, POISON);
          Device<float> out(want);
          moela::gather(h.context, d, x.data(), want.data());
          cuda::gather(h.launch(), d, from.data, out.data);
          report("gather", tag, difference(out.read(), want, 0), 0);
        }
      }
      for (const int64_t dr : {64, 16, 6}) {
        std::vector<double> frequencies(dr / 2);
        for (int64_t i = 0; i < dr / 2; i++) frequencies[i] = std::pow(1e4, -2.0 * i / dr);
        Device<double> d_frequencies(frequencies);
        moela::Weight cpu{MOELA_F64, 1, dr / 2, {frequencies.data()}, {}};
        cuda::Weight gpu{};
        gpu.data = reinterpret_cast<const char*>(d_frequencies.data);
        std::vector<float> want(h.bucket * dr, POISON);
        Device<float> out(want);
        moela::rope_table(h.context, rows, dr, cpu, 1.25f, want.data());
        cuda::rope_table(h.launch(), rows, dr, gpu, 1.25f, out.data);
        report("rope_table", tag, difference(out.read(), want, 1e-3), 1.3e-7);
        Device<float> table(want);
        const int64_t heads = 5, dim = dr + 9;
        std::vector<float> x = h.floats(h.bucket * heads * dim, 2);
        Device<float> y(x);
        moela::rotary(h.context, rows, heads, dim, 7, dr, want.data(), x.data());
        cuda::rotary(h.launch(), rows, heads, dim, 7, dr, table.data, y.data);
        report("rotary", tag, difference(y.read(), x, 0), 0);
      }
    }
  }
}

// The byte of the E4M3 nearest to y: of all 127 magnitudes, the even code of equals.
uint8_t nearest_fp8(double y) {
  int best = 0;
  for (int b = 1; b < 127; b++) {
    const double now = std::fabs(fp8_value(b) - std::fabs(y));
    const double before = std::fabs(fp8_value(best) - std::fabs(y));
    if (now < before || (now == before && b % 2 == 0)) best = b;
  }
  return best | (std::signbit(y) ? 128 : 0);
}

// Bytes of a token's row and its two codes, from the exact values.
void quantize(int dtype, int r, int width, const float* x, uint8_t* out, uint8_t* codes) {
  const int dr = width - r, whole = r - 2 * dr;
  const int row_bytes = dtype == MOELA_INT6 ? width / 4 * 3 : width;
  if (dtype == MOELA_INT6) memset(out, 0, row_bytes);
  for (int part = 0; part < 2; part++) {
    const int begin = part ? r : 0, end = part ? width : r;
    const double most = part || dtype == MOELA_INT8 ? 127 : dtype == MOELA_FP8 ? 448 : 31;
    double largest = 0;
    for (int i = begin; i < end; i++) largest = std::fmax(largest, std::fabs(double(x[i])));
    int code = 0;
    const auto scale_of = [](int c) { return c ? std::ldexp(8 + c % 8, c / 8 - 27) : 0.0; };
    while (code < 255 && largest > scale_of(code) * most) code++;
    codes[part] = code;
    const float scale = scale_of(code);
    for (int i = begin; i < end; i++) {
      const float exact = scale == 0 ? 0 : x[i] / scale;
      const double y = std::max(-most, std::min(most, double(exact)));
      if (part) {
        out[row_bytes - dr + (i - r)] = std::nearbyint(y);
      } else if (dtype == MOELA_INT8) {
        out[i] = std::nearbyint(y);
      } else if (dtype == MOELA_FP8) {
        out[i] = nearest_fp8(y);
      } else if (i < whole) {
        const int c = std::nearbyint(y) + 32, j = i % 16;
        uint8_t* group = out + i / 16 * 12;
        group[j % 8] |= (c & 15) << (j / 8 * 4);
        group[8 + j % 4] |= c >> 4 << (j / 4 * 2);
      } else {
        const int c = std::min(std::nearbyint(y / 2), 15.0) + 16, j = (i - whole) % 32;
        uint8_t* group = out + whole / 16 * 12 + (i - whole) / 32 * 20;
        group[j % 16] |= (c & 15) << (j / 16 * 4);
        group[16 + j % 4] |= c >> 4 << (j / 4);
      }
    }
  }
}

void check_cache_write() {
  for (const auto& [r, dr] : {std::pair<int, int>{512, 64}, {32, 16}, {48, 16}, {512, 32}}) {
    for (const float size : {1.0f, 1e-9f, 3e4f}) {
      Host h(70, 33);
      const int width = r + dr;
      std::vector<float> kv_a = h.floats(h.bucket * width, 2), table = h.floats(h.bucket * dr, 1);
      for (int i = 0; i < width; i++) kv_a[width + i] = 0;
      Matrix norm = h.matrix(MOELA_F32, 1, r, size);
      for (int64_t i = 0; i < h.bucket; i++) {
        for (int j = r; j < width; j++) kv_a[i * width + j] *= size;
      }
      Device<float> d_kv(kv_a), d_table(table);
      std::vector<std::vector<char>> got;
      for (const int dtype : {MOELA_F32, MOELA_BF16, MOELA_FP8, MOELA_INT8, MOELA_INT6}) {
        const std::string tag = "type " + std::to_string(dtype) + " r " + std::to_string(r) +
                                " size " + std::to_string(size);
        Pool pool(dtype, r, dr, h.n_pages);
        h.set_pool(pool);
        for (const int rows : ROWS) {
          if (rows == MOELA_ROWS_ALL) continue;
          cuda::cache_write(h.launch(), rows, 1, r, dr, d_kv.data, d_table.data, norm.gpu, 1e-6f);
        }
        const std::vector<char> bytes = pool.memory.read();
        got.push_back(bytes);
        std::vector<char> want(bytes.size(), char(0xcd));
        double worst = 0;
        if (dtype <= MOELA_BF16) {
          h.set_cpu_pool(dtype, r, dr, want.data());
          moela::cache_write(h.context, MOELA_ROWS_ALL, 1, r, dr, kv_a.data(), table.data(),
                             norm.cpu, 1e-6f);
          for (size_t i = 0; i < bytes.size(); i += dtype == MOELA_F32 ? 4 : 2) {
            uint32_t a = 0, b = 0;
            memcpy(&a, &bytes[i], dtype == MOELA_F32 ? 4 : 2);
            memcpy(&b, &want[i], dtype == MOELA_F32 ? 4 : 2);
            if (a == b) continue;
            const float x = as_float(dtype == MOELA_F32 ? a : a << 16);
            const float y = as_float(dtype == MOELA_F32 ? b : b << 16);
            worst = std::fmax(worst, std::fabs(x - y) / (std::fabs(y) + 1e-12));
          }
          report("cache_write", tag, worst, dtype == MOELA_F32 ? 1e-6 : 0.008);
          continue;
        }
        // From the very values that the f32 cache got.
        const Pool exact(MOELA_F32, r, dr, h.n_pages);
        for (int row = 0; row < h.n_rows; row++) {
          const int page = h.pages[h.positions[row] / 64 + h.segments[h.row_segment[row]].page];
          const int slot = h.positions[row] % 64;
          float x[1024];
          memcpy(x, &got[0][exact.view.at(page, 1) - exact.view.base + slot * exact.view.row_bytes],
                 width * 4);
          quantize(dtype, r, width, x,
                   reinterpret_cast<uint8_t*>(
                       &want[pool.view.at(page, 1) - pool.view.base + slot * pool.view.row_bytes]),
                   reinterpret_cast<uint8_t*>(
                       &want[reinterpret_cast<char*>(pool.view.scales_at(page, 1)) -
                             pool.view.base + slot * 2]));
        }
        for (size_t i = 0; i < bytes.size(); i++) worst += bytes[i] != want[i];
        report("cache_write", tag, worst, 0);
      }
    }
  }
}

void check_router() {
  struct Kind {
    cuda::RouterShape shape;
    bool bias;
  };
  const Kind kinds[] = {
      {{64, 6, 1, 1, MOELA_SCORE_SOFTMAX, MOELA_GROUP_NONE, false, 1}, false},
      {{160, 6, 8, 3, MOELA_SCORE_SOFTMAX, MOELA_GROUP_MAX, false, 16}, false},
      {{256, 8, 8, 4, MOELA_SCORE_SIGMOID, MOELA_GROUP_TOP2_SUM, true, 2.5f}, true},
      {{384, 8, 1, 1, MOELA_SCORE_SIGMOID, MOELA_GROUP_NONE, true, 2.827f}, true},
      {{8, 8, 8, 1, MOELA_SCORE_SOFTMAX, MOELA_GROUP_MAX, true, 1}, false},
      {{6, 2, 3, 2, MOELA_SCORE_SIGMOID, MOELA_GROUP_TOP2_SUM, true, 1}, true},
      {{512, 40, 16, 5, MOELA_SCORE_SOFTMAX, MOELA_GROUP_MAX, true, 1}, false}};
  for (const Kind& kind : kinds) {
    for (const int n_rows : {1, 37, 300}) {
      for (const int rows : ROWS) {
        Host h(n_rows, n_rows / 2 + 1);
        const cuda::RouterShape& s = kind.shape;
        std::vector<float> logits = h.floats(h.bucket * s.experts, 3);
        for (size_t i = 0; i < logits.size(); i++) {
          if (h.random() % 4 == 0)
            logits[i] = logits[i / s.experts * s.experts + h.random() % s.experts];
        }
        Matrix bias = h.matrix(MOELA_F32, 1, s.experts, 0.05f);
        std::vector<int32_t> experts(h.bucket * s.top_k, -77);
        std::vector<float> weights(h.bucket * s.top_k, POISON);
        Device<float> d_logits(logits), d_weights(weights);
        Device<int32_t> d_experts(experts);
        const moela::RouterShape cpu{s.experts, s.top_k,       s.n_group,   s.topk_group,
                                     s.scoring, s.group_score, s.normalise, s.factor};
        moela::router(h.context, rows, cpu, logits.data(), kind.bias ? &bias.cpu : nullptr,
                      experts.data(), weights.data());
        cuda::router(h.launch(), rows, s, d_logits.data, kind.bias ? &bias.gpu : nullptr,
                     d_experts.data, d_weights.data);
        const std::string tag =
            "E " + std::to_string(s.experts) + " rows " + std::to_string(n_rows);
        const std::vector<int32_t> got = d_experts.read();
        double wrong = 0;
        for (size_t i = 0; i < got.size(); i++) wrong += got[i] != experts[i];
        report("router choices", tag, wrong, 0);
        report("router weights", tag, difference(d_weights.read(), weights, 1e-6), 2e-6);
        // Plans of these choices, some of them out of range.
        for (int32_t& e : experts) {
          if (h.random() % 50 == 0) e = h.random() % 2 ? -1 : s.experts;
        }
        Device<int32_t> chosen(experts);
        std::vector<int32_t> plan(s.experts + 1 + h.bucket * s.top_k, -77);
        Device<int32_t> d_plan(plan);
        moela::moe_plan(h.context, rows, s.experts, s.top_k, experts.data(), plan.data());
        cuda::moe_plan(h.launch(), rows, s.experts, s.top_k, chosen.data, d_plan.data);
        const std::vector<int32_t> got_plan = d_plan.read();
        wrong = 0;
        for (size_t i = 0; i < plan.size(); i++) wrong += got_plan[i] != plan[i];
        report("moe_plan", tag, wrong, 0);
      }
    }
  }
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
  const std::string what = argc > 1 ? argv[1] : "all";
  if (what != "time") {
    check_rows_ops();
    check_cache_write();
    check_router();
    printf("small operations: %d failures\n", failures);
    check_sampling_ops();
    printf("%s: %d failures\n", failures ? "FAILED" : "all equal to the CPU", failures);
  }
  if (what != "check") time_ops();
  return failures != 0;
}
