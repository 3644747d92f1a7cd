// Checks and times mla_absorb, mla_decode and mla_expand.
//   mla_decode check   against float64 over odd shapes, and row invariance to the bit
//   mla_decode targets the shapes of the project's targets, cold caches, graph replays
//   mla_decode rows    many rows by the kernel of clusters and by that of rows, or, given both,
//                      one number of sequences and keys
//   mla_decode time    those, many others, and other splits
#include "mla_decode_check.cuh"

using namespace bench;

namespace {

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

using Kernel = std::function<void(const Launch&, const MlaDecodeArgs&)>;

// By the kernel that mla_decode chooses, or by another.
void time_decode(const Line& line, bool invariant = true, const Kernel& kernel = nullptr,
                 const MlaSplits& splits = MLA_CLUSTER_SPLITS) {
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
      if (!kernel) {
        mla_decode_split(at, i % layers, line.heads, 512, 64, {q, MOELA_BF16}, {out, MOELA_BF16},
                         invariant);
        return;
      }
      kernel(at, {t.step,
                  i % layers,
                  line.heads,
                  512,
                  64,
                  {q, MOELA_BF16},
                  {out, MOELA_BF16},
                  splits,
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

void time_rows(int only_sequences, int only_context) {
  const auto both = [](int sequences, int context, int dtype) {
    time_decode({16, sequences, context, dtype, 0}, true, mla_decode_cluster);
    time_decode({16, sequences, context, dtype, 0}, true, mla_decode_rows);
  };
  if (only_sequences > 0) return both(only_sequences, only_context, MOELA_BF16);
  for (int context : {100, 300, 1024, 1088, 4096}) {
    for (int sequences : {8, 16, 32, 64, 128, 256}) {
      if (sequences * context <= 128 * 4096) both(sequences, context, MOELA_BF16);
    }
  }
  for (int dtype : {MOELA_FP8, MOELA_INT8, MOELA_INT6, MOELA_F32}) {
    for (int sequences : {32, 256}) both(sequences, 1024, dtype);
  }
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
    } else if (what == "rows") {
      time_rows(argc > 3 ? atoi(argv[2]) : 0, argc > 3 ? atoi(argv[3]) : 0);
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
          time_decode({16, 1, context, MOELA_BF16, 0}, true, mla_decode_cluster, splits);
        }
        time_decode({16, 128, 4096, MOELA_BF16, 0}, true, mla_decode_cluster, splits);
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
