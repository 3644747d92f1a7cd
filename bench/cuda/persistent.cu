// Times a decode step's layers in one launch, DeepSeek-V2-Lite's shapes on random weights, and says
// where a layer's time goes. Usage: persistent [types, comma-separated] [contexts].
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Icsrc/include -Ibench/cuda
//     bench/cuda/persistent.cu -o persistent
#define MOELA_MARKS
#include "../../csrc/cuda/persistent.cu"

#include "support.cuh"

namespace bench {
namespace {

using persistent::MOST_MARKS;

constexpr int LAYERS = 27, HIDDEN = 2048, HEADS = 16, RANK = 512, ROPE = 64;
constexpr int EXPERTS = 64, TOP_K = 6, MOE = 1408, SHARED = 2816, DENSE = 10944;
constexpr int BLOCKS = 132;

// Marks of a layer, in order: what ends there.
const char* names[] = {"q, kv_a: there", "input",
                       "product",        "finish",
                       "absorb",         "attention",
                       "expand",         "output: there",
                       "product",        "gate, up: there",
                       "input, router",  "product",
                       "finish",         "shared down, there",
                       "input",          "product",
                       "finish"};
constexpr int MARKS = sizeof names / sizeof *names;

struct Model {
  PersistentStep step{};
  double bytes = 0;
};

Model make_model(int dtype) {
  Model m;
  std::vector<PersistentLayer> layers;
  uint64_t seed = 1;
  double experts = 0;
  const auto weight = [&](int type, int count, int64_t n, int64_t k) {
    seed += 1000;
    const Weight w = make_weight(type, count, n, k, seed);
    (count > 1 ? experts : m.bytes) += double(weight_bytes(w)) * (count > 1 ? TOP_K : 1);
    return w;
  };
  const auto matrix = [&](int type, int64_t n, int64_t k) {
    const Weight w = weight(type, 1, n, k);
    return PersistentMatrix{w.data, w.scales};
  };
  const int kv_b = dtype == MOELA_BF16 || dtype == MOELA_FP8 ? MOELA_BF16 : MOELA_INT8;
  const int kv_a = persistent::kv_a_type(dtype);
  for (int i = 0; i < LAYERS; i++) {
    PersistentLayer l{};
    const auto norm = [&](int64_t n) {
      return PersistentNorm{weight(MOELA_F32, 1, 1, n).data, MOELA_F32, 1e-6f};
    };
    l.input_norm = norm(HIDDEN);
    l.latent_norm = norm(RANK);
    l.post_norm = norm(HIDDEN);
    l.q = matrix(dtype, HEADS * 192, HIDDEN);
    l.kv_a = matrix(kv_a, RANK + ROPE, HIDDEN);
    l.kv_b = matrix(kv_b, HEADS * 256, RANK);
    l.o = matrix(dtype, HIDDEN, HEADS * 128);
    l.shared = i == 0 ? DENSE : SHARED;
    l.shared_gate = matrix(dtype, l.shared, HIDDEN);
    l.shared_up = matrix(dtype, l.shared, HIDDEN);
    l.shared_down = matrix(dtype, HIDDEN, l.shared);
    if (i > 0) {
      l.router = reinterpret_cast<const float*>(matrix(MOELA_F32, EXPERTS, HIDDEN).data);
      const Weight gate = weight(dtype, EXPERTS, MOE, HIDDEN);
      const Weight up = weight(dtype, EXPERTS, MOE, HIDDEN);
      const Weight down = weight(dtype, EXPERTS, HIDDEN, MOE);
      l.gate = {gate.data, gate.scales};
      l.up = {up.data, up.scales};
      l.down = {down.data, down.scales};
      m.step.gate_part = gate.part_bytes;
      m.step.gate_scale_part = gate.scale_part_bytes;
      m.step.down_part = down.part_bytes;
      m.step.down_scale_part = down.scale_part_bytes;
    }
    layers.push_back(l);
  }
  m.bytes += experts;
  PersistentLayer* list;
  OK(cudaMalloc(&list, layers.size() * sizeof(PersistentLayer)));
  OK(cudaMemcpy(list, layers.data(), layers.size() * sizeof(PersistentLayer),
                cudaMemcpyHostToDevice));
  PersistentStep& s = m.step;
  s.layers = list;
  s.n_layers = LAYERS;
  s.n_routed = LAYERS - 1;
  s.dtype = dtype;
  s.kv_a_dtype = kv_a;
  s.kv_b_dtype = kv_b;
  s.d = HIDDEN;
  s.heads = HEADS;
  s.intermediate = MOE;
  s.shared = SHARED;
  s.dense = DENSE;
  s.shape = {EXPERTS, TOP_K, 1, 1, MOELA_SCORE_SOFTMAX, MOELA_GROUP_NONE, false, 1.0f};
  s.scale = 0.07f;
  s.embedding = make_weight(MOELA_BF16, 1, 64, HIDDEN, 5).data;
  s.embedding_dtype = MOELA_BF16;
  std::vector<double> frequencies(32);
  for (int i = 0; i < 32; i++) frequencies[i] = std::pow(10000.0, -i / 32.0);
  double* on_device;
  OK(cudaMalloc(&on_device, 32 * 8));
  OK(cudaMemcpy(on_device, frequencies.data(), 32 * 8, cudaMemcpyHostToDevice));
  s.frequencies = on_device;
  s.rope_factor = 1;
  s.out = make_floats(HIDDEN, 9);
  return m;
}

template <class T>
T* to_device(const std::vector<T>& v) {
  T* data;
  OK(cudaMalloc(&data, v.size() * sizeof(T) + 256));
  OK(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

void run(int dtype, const std::vector<int>& contexts) {
  const Model m = make_model(dtype);
  Launch at{};
  OK(cudaStreamCreate(&at.stream));
  at.bucket = 1;
  at.absorbed = 1;
  at.sms = BLOCKS;
  at.hopper = true;
  if (!persistent_fits(at, m.step)) {
    printf("does not fit\n");
    exit(1);
  }
  char* scratch;
  OK(cudaMalloc(&scratch, persistent_bytes(m.step)));
  OK(cudaMemset(scratch, 0, persistent_bytes(m.step)));
  for (int context : contexts) {
    const int pages = context / MOELA_PAGE_TOKENS + 1;
    const int64_t row = 2 * (RANK + ROPE), layer = MOELA_PAGE_TOKENS * row;
    char* cache;
    OK(cudaMalloc(&cache, pages * LAYERS * layer));
    OK(cudaMemset(cache, 0x3c, pages * LAYERS * layer));
    std::vector<int32_t> list(pages);
    for (int i = 0; i < pages; i++) list[i] = i;
    moela_segment segment{};
    segment.rows = 1;
    segment.position = context;
    const PagePool pool{MOELA_BF16, LAYERS, RANK, ROPE, row, layer, LAYERS * layer, cache};
    at.step = {to_device<Counts>({{1, 1, 1, 1}}),   to_device<int32_t>({3}),
               to_device<int32_t>({context}),       to_device<int32_t>({0}),
               to_device<moela_segment>({segment}), to_device(list),
               to_device<PagePool>({pool}),         nullptr};
    cudaEvent_t begin, end;
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    std::vector<float> times;
    std::vector<int> none(BLOCKS, 0);
    for (int i = 0; i < 30; i++) {
      OK(cudaMemcpyToSymbol(persistent::marked, none.data(), BLOCKS * 4));
      OK(cudaEventRecord(begin, at.stream));
      persistent_step(at, m.step, scratch);
      OK(cudaEventRecord(end, at.stream));
      OK(cudaEventSynchronize(end));
      float ms;
      OK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 5) times.push_back(ms * 1000);
    }
    std::sort(times.begin(), times.end());
    const double us = times[times.size() / 2];
    const double bytes = m.bytes + double(context + 1) * LAYERS * row;
    printf("%s, context %d: %.0f us for %.0f MB, %.0f GB/s; %.1f tokens/s of the layers alone\n",
           type_name(dtype), context, us, bytes / 1e6, bytes / us / 1e3, 1e6 / us);
    static long long marks[MOST_MARKS][BLOCKS];
    int marked;
    OK(cudaMemcpyFromSymbol(marks, persistent::marks, sizeof marks));
    OK(cudaMemcpyFromSymbol(&marked, persistent::marked, 4));
    const double clock = double(marks[marked - 1][0] - marks[0][0]) / us;
    printf("  clock %.0f MHz, %d marks\n", clock, marked);
    for (int j = 0; j < MARKS; j++) {
      double mean = 0, most = 0;
      for (int i = 1; i < LAYERS; i++) {
        const int at_mark = i * MARKS + j;
        double longest = 0, sum = 0;
        for (int b = 0; b < BLOCKS; b++) {
          const double t = double(marks[at_mark][b] - marks[at_mark - 1][b]) / clock;
          sum += t;
          longest = std::max(longest, t);
        }
        mean += sum / BLOCKS / (LAYERS - 1);
        most += longest / (LAYERS - 1);
      }
      printf("  %-18s mean %6.2f us, longest %6.2f\n", names[j], mean, most);
    }
    static long long others[64][12][BLOCKS];
    OK(cudaMemcpyFromSymbol(others, persistent::other_marks, sizeof others));
    const char* other_names[] = {"logits are there", "experts chosen", "known to who brings",
                                 "all asked for"};
    for (int k = 0; k < 4; k++) {
      double mean = 0, most = 0;
      for (int i = 1; i < LAYERS; i++) {
        double longest = 0, sum = 0;
        for (int b = 0; b < BLOCKS; b++) {
          const double t = double(others[i][k][b] - marks[i * MARKS + 10][b]) / clock;
          sum += t;
          longest = std::max(longest, t);
        }
        mean += sum / BLOCKS / (LAYERS - 1);
        most += longest / (LAYERS - 1);
      }
      printf("    %-20s mean %6.2f us after the router's product, latest %6.2f\n", other_names[k],
             mean, most);
    }
    const char* steps[] = {"entry", "query", "tiles", "expand: there", "merged"};
    for (int b : {0, 1, 3, 60}) {
      printf("    block %d, after absorbing:", b);
      for (int k = 4; k < 9; k++) {
        double mean = 0;
        for (int i = 1; i < LAYERS; i++) {
          mean += double(others[i][k][b] - marks[i * MARKS + 4][b]) / clock / (LAYERS - 1);
        }
        printf(" %s %.2f", steps[k - 4], mean);
      }
      printf(" us\n");
    }
    OK(cudaFree(cache));
  }
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  const std::string types = argc > 1 ? argv[1] : "bf16,int8,fp8,int4";
  std::vector<int> contexts;
  for (int i = 2; i < argc; i++) contexts.push_back(atoi(argv[i]));
  if (contexts.empty()) contexts = {100};
  for (int dtype : {MOELA_BF16, MOELA_INT8, MOELA_FP8, MOELA_INT4}) {
    if (types.find(bench::type_name(dtype)) == std::string::npos) continue;
    bench::run(dtype, contexts);
    OK(cudaDeviceReset());
  }
}
