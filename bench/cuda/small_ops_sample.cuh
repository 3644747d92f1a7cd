// The part of small_ops that checks draws and log-probabilities, and the times of all.
#pragma once

#include "small_ops.cuh"

namespace bench {
namespace {

// Logits like a model's, flat ones, ones full of ties, and ones with what is no number.
std::vector<float> make_logits(Host& h, int kind, int64_t rows, int64_t vocab) {
  std::vector<float> x = h.floats(rows * vocab, kind == 0 ? 2 : kind == 4 ? 0.2f : 3);
  for (int64_t row = 0; row < rows; row++) {
    float* r = x.data() + row * vocab;
    if (kind == 0) {
      for (int i = 0; i < 12; i++) r[h.random() % vocab] = 12 + i * 0.37f;
    }
    for (int64_t t = 0; t < vocab; t++) {
      if (kind == 2) r[t] = std::round(r[t] * 4) / 4;
      if (kind == 3 && h.random() % 3 == 0) r[t] = -INFINITY;
      if (kind == 3 && h.random() % 9 == 0) r[t] = NAN;
    }
    if (kind == 3 && row % 5 == 4) std::fill(r, r + vocab, row % 2 ? NAN : -INFINITY);
  }
  return x;
}

template <class T>
T pick(Host& h, std::initializer_list<T> from) {
  return from.begin()[h.random() % from.size()];
}

struct Request {
  std::vector<moela_sampling> samplings;
  std::vector<int32_t> aux{0}, drawn;
  int n_drawn = 0, stride = 8, words = 4 + 2 * 64;
};

Request make_request(Host& h, int64_t vocab, int n, bool plain) {
  Request q;
  q.n_drawn = h.random() % 2 ? 3 : 0;
  for (int i = 0; i < n * q.stride; i++)
    q.drawn.push_back(h.random() % std::min<int64_t>(vocab, 40));
  for (int i = 0; i < n; i++) {
    moela_sampling s{};
    const auto here = [&] { return static_cast<int32_t>(q.aux.size()); };
    s.temperature = pick(h, {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 1.7f, 1e-6f});
    s.top_p = pick(h, {1.0f, 1.0f, 0.9f, 0.5f, 0.99f, 1e-5f});
    s.min_p = pick(h, {0.0f, 0.0f, 0.05f, 1.0f});
    s.typical_p = pick(h, {1.0f, 1.0f, 0.9f, 0.2f});
    s.top_k = pick(h, {0, 0, 1, 5, 50, 1500, static_cast<int>(vocab / 2)});
    s.repetition_penalty = s.presence_penalty = s.frequency_penalty = 0;
    s.repetition_penalty = pick(h, {1.0f, 1.0f, 1.2f});
    s.presence_penalty = pick(h, {0.0f, 0.0f, 0.5f});
    s.frequency_penalty = pick(h, {0.0f, 0.0f, 0.3f});
    if (plain) {
      s.top_p = s.typical_p = 1;
      s.top_k = 0;
    }
    s.seed = static_cast<uint64_t>(h.random()) << 32 | h.random();
    s.index = h.random() % 100000;
    s.history = here();
    s.n_prompt = h.random() % 60;
    s.n_output = h.random() % 300;
    for (int j = 0; j < s.n_prompt + s.n_output; j++) {
      q.aux.push_back(h.random() % (j % 2 ? vocab : std::min<int64_t>(vocab, 90)));
    }
    s.bias = here();
    if (h.random() % 3 == 0) {
      s.n_bias = 20;
      for (int j = 0; j < s.n_bias; j++) {
        q.aux.push_back(h.random() % vocab);
        q.aux.push_back(as_bits(j % 5 == 0 ? -INFINITY : h.floats(1, 3)[0]));
      }
    }
    s.mask = -1;
    if (h.random() % 3 == 0) {
      s.mask = here();
      const int sparse = h.random() % 3;
      for (int64_t j = 0; j < (vocab + 31) / 32; j++) {
        q.aux.push_back(sparse == 0            ? h.random()
                        : sparse == 1          ? h.random() & h.random() & h.random()
                        : h.random() % 64 == 0 ? 1
                                               : 0);
      }
    }
    s.stop = here();
    s.n_stop = pick(h, {0, 3, 20});
    for (int j = 0; j < s.n_stop; j++) q.aux.push_back(h.random() % vocab);
    s.min_index = h.random() % 2 ? s.index + 2 : 0;
    s.top_logprobs = pick(h, {-1, 0, 1, 5, 20, 64});
    s.top_logprobs = std::min<int64_t>(s.top_logprobs, vocab);
    q.samplings.push_back(s);
  }
  return q;
}

std::string describe(const moela_sampling& s) {
  return format(
      "T %g top_p %g min_p %g typical %g top_k %d penalties %g %g %g bias %d mask %d "
      "stop %d top %d",
      s.temperature, s.top_p, s.min_p, s.typical_p, s.top_k, s.repetition_penalty,
      s.presence_penalty, s.frequency_penalty, s.n_bias, s.mask, s.n_stop, s.top_logprobs);
}

struct Drawn {
  std::vector<int32_t> entries;
};

// Entries as the device writes them; `times` launches.
std::vector<int32_t> draw(Host& h, const Request& q, int64_t vocab, const float* logits) {
  Device<moela_sampling> samplings(q.samplings);
  Device<int32_t> aux(q.aux), drawn(q.drawn), n_drawn(std::vector<int32_t>{q.n_drawn});
  std::vector<int32_t> poison(q.samplings.size() * q.words, -7);
  Device<int32_t> entries(poison);
  cuda::Outputs out{};
  out.samplings = samplings.data;
  out.aux = aux.data;
  out.drawn = drawn.data;
  out.drawn_stride = q.stride;
  out.n_drawn = n_drawn.data;
  out.first_sampling = 100;
  out.entries = entries.data;
  out.entry_words = q.words;
  cuda::sample(h.launch(), out, vocab, logits);
  return entries.read();
}

bool close(int32_t a, int32_t b) {
  if (a == b) return true;
  const float x = as_float(a), y = as_float(b);
  if (std::isnan(x) && std::isnan(y)) return true;
  return std::fabs(x - y) <= 1e-6f * std::fabs(y) + 2e-6f;
}

}  // namespace

void check_sampling_ops() {
  int64_t draws = 0;
  for (const int64_t vocab : {102400, 163840, 5003, 1000, 130}) {
    for (int kind = 0; kind < 5; kind++) {
      const int n = vocab > 10000 ? 16 : 48;
      Host h(n, n, cuda::sample_scratch(vocab, n + 3));
      h.random.seed(vocab + kind);
      const std::vector<float> logits = make_logits(h, kind, n, vocab);
      Device<float> d_logits(logits);
      for (const bool plain : {true, false}) {
        const Request q = make_request(h, vocab, n, plain);
        std::vector<int32_t> want(q.samplings.size() * q.words, -7);
        h.view.samplings = q.samplings.data();
        h.view.aux = q.aux.data();
        h.view.drawn = q.drawn.data();
        h.view.drawn_stride = q.stride;
        h.view.n_drawn = q.n_drawn;
        h.view.first_sampling = 100;
        h.view.entries_out = want.data();
        h.view.entry_words = q.words;
        moela::sample(h.context, vocab, logits.data());
        const std::vector<int32_t> got = draw(h, q, vocab, d_logits.data);
        const std::vector<int32_t> again = draw(h, q, vocab, d_logits.data);
        if (memcmp(got.data(), again.data(), got.size() * 4)) {
          failures++;
          printf("FAILED: sample: not the same bits again, vocab %ld kind %d\n", long(vocab), kind);
        }
        for (int row = 0; row < n; row++, draws++) {
          const int32_t* a = &got[row * q.words];
          const int32_t* b = &want[row * q.words];
          bool good = a[0] == b[0] && a[1] == b[1] && a[3] == b[3] && close(a[2], b[2]);
          for (int i = 4; i < q.words; i++)
            good = good && (i % 2 ? close(a[i], b[i]) : a[i] == b[i]);
          if (good) continue;
          if (failures++ < 40) {
            printf(
                "FAILED: sample, vocab %ld kind %d row %d: token %d want %d, stop %d %d, logprob "
                "%g "
                "%g; %s\n",
                long(vocab), kind, row, a[1], b[1], a[3], b[3], as_float(a[2]), as_float(b[2]),
                describe(q.samplings[row]).c_str());
          }
        }
      }
      h.view.samplings = nullptr;
      std::vector<int32_t> targets(n);
      for (int32_t& t : targets) t = h.random() % 5 ? static_cast<int32_t>(h.random() % vocab) : -1;
      Device<int32_t> d_targets(targets);
      std::vector<float> want(n, 7);
      Device<float> d_out(want);
      h.view.targets = targets.data();
      h.view.logprobs_out = want.data();
      moela::logprob(h.context, vocab, logits.data());
      cuda::Outputs out{};
      out.targets = d_targets.data;
      out.logprobs = d_out.data;
      cuda::logprob(h.launch(), out, vocab, d_logits.data);
      const std::vector<float> got = d_out.read();
      double wrong = 0;
      for (int i = 0; i < n; i++) wrong += !close(as_bits(got[i]), as_bits(want[i]));
      report("logprob", "vocab " + std::to_string(vocab), wrong, 0);
    }
  }
  printf("sampling: %ld rows drawn on both\n", long(draws));
}

namespace {

// Microseconds of a launch among `count` of them in one graph, replayed; the fastest of five.
template <class Body>
double time_of(const Body& body) {
  constexpr int COUNT = 20;
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < COUNT; i++) body(stream);
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  float best = 1e9f;
  OK(cudaGraphLaunch(exec, stream));
  for (int i = 0; i < 5; i++) {
    OK(cudaEventRecord(begin, stream));
    for (int j = 0; j < 5; j++) OK(cudaGraphLaunch(exec, stream));
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    float ms;
    OK(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaStreamDestroy(stream));
  return best * 1000 / (5 * COUNT);
}

}  // namespace

void time_ops() {
  constexpr int64_t D = 2048, VOCAB = 102400, E = 64, K = 6;
  printf("%-28s", "us a launch; rows:");
  const std::vector<int> batches{1, 8, 64, 256, 4096};
  for (const int n : batches) printf("%9d", n);
  printf("\n");
  std::vector<std::pair<std::string, std::vector<double>>> lines;
  const auto add = [&](const std::string& name, double us) {
    for (auto& line : lines) {
      if (line.first == name) return line.second.push_back(us);
    }
    lines.push_back({name, {us}});
  };
  for (const int n : batches) {
    Host h(n, n, cuda::sample_scratch(VOCAB, n > 256 ? 1 : n + 3));
    h.bucket = n;
    Matrix table = h.matrix(MOELA_BF16, 300, D), norm = h.matrix(MOELA_F32, 1, D);
    Device<float> x(n * K * D), y(n * K * D), w(h.floats(n * K, 1)), rope(h.floats(n * 64, 1));
    Device<float> router_logits(h.floats(n * E, 2));
    Device<int32_t> chosen(n * K), plan(E + 1 + n * K);
    Device<double> frequencies(std::vector<double>(32, 0.37));
    cuda::Weight f{};
    f.data = reinterpret_cast<const char*>(frequencies.data);
    OK(cudaMemset(x.data, 0x3c, n * K * D * 4));
    const auto time = [&](const char* name, auto body) {
      add(name, time_of([&](cudaStream_t stream) { body(h.launch(stream)); }));
    };
    using cuda::Launch;
    time("embed bf16", [&](const Launch& at) { cuda::embed(at, 0, D, table.gpu, y.data); });
    time("rms_norm 2048", [&](const Launch& at) {
      cuda::rms_norm(at, 0, D, D, x.data, norm.gpu, 1e-6f, {y.data, MOELA_BF16});
    });
    time("rope_table", [&](const Launch& at) { cuda::rope_table(at, 0, 64, f, 1, rope.data); });
    time("rotary 16 heads",
         [&](const Launch& at) { cuda::rotary(at, 0, 16, 192, 128, 64, rope.data, y.data); });
    for (const int dtype : {MOELA_BF16, MOELA_FP8, MOELA_INT6}) {
      Pool pool(dtype, 512, 64, h.n_pages);
      h.set_pool(pool);
      time(dtype == MOELA_BF16  ? "cache_write bf16"
           : dtype == MOELA_FP8 ? "cache_write fp8"
                                : "cache_write int6",
           [&](const Launch& at) {
             cuda::cache_write(at, 0, 1, 512, 64, x.data, rope.data, norm.gpu, 1e-6f);
           });
    }
    time("router 64/6", [&](const Launch& at) {
      cuda::router(at, 0, {E, K, 1, 1, 0, 0, false, 1}, router_logits.data, nullptr, chosen.data,
                   w.data);
    });
    time("moe_plan",
         [&](const Launch& at) { cuda::moe_plan(at, 0, E, K, chosen.data, plan.data); });
    time("combine", [&](const Launch& at) {
      cuda::combine(at, 0, D, K, {x.data, MOELA_F32}, w.data, nullptr, nullptr, y.data);
    });
    time("gather", [&](const Launch& at) { cuda::gather(at, D, x.data, y.data); });
    if (n > 256) continue;
    for (const int kind : {0, 1}) {
      Device<float> logits(n * VOCAB);
      const std::vector<float> one = make_logits(h, kind, 1, VOCAB);
      for (int i = 0; i < n; i++) {
        OK(cudaMemcpy(logits.data + i * VOCAB, one.data(), VOCAB * 4, cudaMemcpyHostToDevice));
      }
      struct Setting {
        const char* name;
        float temperature, top_p, typical_p, min_p, presence;
        int top_k, top_logprobs;
      };
      const Setting settings[] = {{"greedy", 0, 1, 1, 0, 0, 0, -1},
                                  {"temperature 1", 1, 1, 1, 0, 0, 0, -1},
                                  {"min-p 0.05", 1, 1, 1, 0.05f, 0, 0, -1},
                                  {"presence", 1, 1, 1, 0, 1, 0, -1},
                                  {"top-k 50", 1, 1, 1, 0, 0, 50, -1},
                                  {"top-k 50, top-p 0.95", 1, 0.95f, 1, 0, 0, 50, -1},
                                  {"top-p 0.95", 1, 0.95f, 1, 0, 0, 0, -1},
                                  {"typical-p 0.9", 1, 1, 0.9f, 0, 0, 0, -1},
                                  {"greedy, log-prob.", 0, 1, 1, 0, 0, 0, 0},
                                  {"greedy, 20 log-prob.", 0, 1, 1, 0, 0, 0, 20}};
      for (const Setting& setting : settings) {
        moela_sampling s{};
        s.temperature = setting.temperature;
        s.top_p = setting.top_p;
        s.typical_p = setting.typical_p;
        s.min_p = setting.min_p;
        s.presence_penalty = setting.presence;
        s.repetition_penalty = 1;
        s.top_k = setting.top_k;
        s.top_logprobs = setting.top_logprobs;
        s.mask = -1;
        s.n_prompt = 1000;
        s.n_output = 1000;
        std::vector<moela_sampling> all(n, s);
        for (int i = 0; i < n; i++) all[i].seed = i;
        Device<moela_sampling> samplings(all);
        Device<int32_t> aux(std::vector<int32_t>(2000, 5)), entries(n * 64);
        cuda::Outputs out{};
        out.samplings = samplings.data;
        out.aux = aux.data;
        out.entries = entries.data;
        out.entry_words = 64;
        time((std::string(kind ? "flat: " : "peaked: ") + setting.name).c_str(),
             [&](const Launch& at) { cuda::sample(at, out, VOCAB, logits.data); });
      }
      std::vector<int32_t> zeros(n, 9);
      Device<int32_t> targets(zeros);
      Device<float> logprobs(n);
      cuda::Outputs out{};
      out.targets = targets.data;
      out.logprobs = logprobs.data;
      if (kind)
        time("logprob", [&](const Launch& at) { cuda::logprob(at, out, VOCAB, logits.data); });
    }
  }
  for (const auto& line : lines) {
    printf("%-28s", line.first.c_str());
    for (const double us : line.second) printf("%9.2f", us);
    printf("\n");
  }
}

}  // namespace bench
