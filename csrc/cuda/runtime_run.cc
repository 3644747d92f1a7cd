#include "cuda/runtime_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "cuda/fuse.h"
#include "cuda/fuse_mixed.h"
#include "cuda/launch.h"
#include "cuda/persistent_plan.h"
#include "runtime/error.h"

namespace moela::cuda {
namespace {

// Operations launched before the host waits for older ones: how soon a cancelled step ends. Two
// windows, some three layers, are under way at a time; a mark between them costs an overlap.
constexpr int32_t WINDOW = 24;
// Steps launched before the oldest has ended.
constexpr int32_t AHEAD = 3;

}  // namespace

Run::Run(CudaBackend& backend, const Program& program, const StepArguments& arguments,
         Control& control)
    : backend_(backend),
      program_(program),
      a_(arguments),
      control_(control),
      prepared_(backend.prepare(arguments.step->program)),
      inputs_(backend.inputs_for(program.desc.max_rows)) {
  const moela_step& step = *a_.step;
  absorbed_ = step.n_absorbed;
  for (int32_t i = 0; i < step.n_segments; i++) {
    const moela_segment& segment = a_.segments[i];
    if (segment.row < step.n_absorbed) continue;
    const int64_t keys = int64_t{segment.position} + segment.rows;
    context_ = std::max(context_, keys);
    projected_keys_ += (keys + 127) / 128 * 128;
  }
  const bool only_draws = step.n_sampling > 0 && !a_.targets && !a_.logits;
  recorded_ = prepared_.recordable;
  entry_words_ = step.entry_words;
  drawn_stride_ = std::max(step.steps, 1);
  tail_recorded_ = recorded_ && only_draws && !step.masks_follow && entry_words_ == 4 &&
                   step.steps <= DRAWN_STRIDE;
  if (tail_recorded_) drawn_stride_ = DRAWN_STRIDE;
  bucket_ = step.n_rows;
  logits_ = step.n_logits;
  if (recorded_) {
    for (bucket_ = 1; bucket_ < step.n_rows;) bucket_ *= 2;
    absorbed_ = bucket_;
    if (tail_recorded_) logits_ = bucket_;
    if (bucket_ == 1 && backend_.device.persistent) find_persistent();
  }
}

void Run::find_persistent() {
  if (!prepared_.planned) {
    try {
      prepared_.persistent = plan_persistent(backend_, program_, place());
    } catch (const Error& e) {
      // Without room for what blocks exchange, launches one by one need less.
      if (backend_.device.insists || e.status != MOELA_ERR_MEMORY) throw;
    }
    prepared_.planned = true;
  }
  const moela_segment& segment = a_.segments[0];
  const int64_t keys = int64_t{segment.position} + std::max(a_.step->steps, 1);
  const bool is_f32 = backend_.model.pools[segment.pool].view.dtype == MOELA_F32;
  if (!backend_.device.insists && (!prepared_.persistent || is_f32 || keys > PERSISTENT_KEYS)) {
    return;
  }
  // Whoever chose these kernels by name learns that they do not run, and why.
  require(prepared_.persistent != nullptr,
          "kernels 'sm90-persistent' do not run this model (docs/cuda.md says which); 'sm90' do");
  require(!is_f32, "kernels 'sm90-persistent' do not read an f32 cache; 'sm90' do");
  require(keys <= PERSISTENT_KEYS,
          "kernels 'sm90-persistent' attend to at most 262144 tokens; 'sm90' to more");
  persistent_ = prepared_.persistent.get();
}

bool Run::cancelled() const {
  return a_.control && __atomic_load_n(a_.control + MOELA_CONTROL_CANCEL, __ATOMIC_RELAXED) != 0;
}

void Run::throw_if_cancelled() const {
  if (cancelled()) throw Error(MOELA_ERR_CANCELLED, "the step was cancelled");
}

int32_t Run::blocks() const {
  return (logits_ + program_.desc.max_logits - 1) / program_.desc.max_logits;
}

void Run::fill_rows(char* host) {
  const moela_step& step = *a_.step;
  const auto at = [&](int64_t offset) { return reinterpret_cast<int32_t*>(host + offset); };
  *reinterpret_cast<StepState*>(host + inputs_.state) = {0, 0, backend_.host_entries.as<int32_t>()};
  *at(inputs_.n_drawn) = 0;
  auto* counts = reinterpret_cast<Counts*>(host + inputs_.counts);
  const int32_t block = program_.desc.max_logits;
  for (int32_t b = 0; b < std::max(blocks(), 1); b++) {
    counts[b] = {step.n_rows, step.n_absorbed, step.n_segments,
                 std::clamp(step.n_logits - b * block, 0, block)};
  }
  memcpy(host + inputs_.tokens, a_.tokens, step.n_rows * 4);
  memcpy(host + inputs_.segments, a_.segments, step.n_segments * sizeof(moela_segment));
  int32_t* positions = at(inputs_.positions);
  int32_t* row_segment = at(inputs_.row_segment);
  for (int32_t s = 0; s < step.n_segments; s++) {
    for (int32_t i = 0; i < a_.segments[s].rows; i++) {
      positions[a_.segments[s].row + i] = a_.segments[s].position + i;
      row_segment[a_.segments[s].row + i] = s;
    }
  }
  if (step.n_logits) memcpy(host + inputs_.logit_rows, a_.logit_rows, step.n_logits * 4);
  if (a_.targets) memcpy(host + inputs_.targets, a_.targets, step.n_logits * 4);
  for (int32_t i = 0; i < step.n_rows; i++) at(inputs_.original)[i] = i;
  if (step.n_sampling) {
    memcpy(host + inputs_.samplings, a_.sampling, step.n_sampling * sizeof(moela_sampling));
  }
}

void Run::send_inputs() {
  const moela_step& step = *a_.step;
  const int64_t drawing = int64_t{step.steps} * step.n_sampling;
  backend_.host_entries.need(drawing * entry_words_ * 4);
  backend_.entries.grow(int64_t{logits_} * std::max(entry_words_, 4) * 4);
  backend_.drawn.grow(int64_t{logits_} * drawn_stride_ * 4);
  backend_.pages.grow(int64_t{step.n_pages} * 4);
  backend_.aux.grow(int64_t{step.n_aux} * 4);
  if (a_.targets) backend_.logprobs.grow(int64_t{step.n_logits} * 4);
  const int64_t pages = inputs_.bytes, aux = pages + (int64_t{step.n_pages} * 4 + 255) / 256 * 256;
  backend_.staging.need(aux + int64_t{step.n_aux} * 4);
  char* host = backend_.staging.data();
  fill_rows(host);
  const auto send = [&](void* to, int64_t from, int64_t bytes) {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, host + from, bytes, cudaMemcpyHostToDevice, backend_.stream),
          "sending a step to the GPU");
  };
  send(inputs_.memory->data(), 0, inputs_.bytes);
  if (step.n_pages) memcpy(host + pages, a_.pages, int64_t{step.n_pages} * 4);
  send(backend_.pages.data(), pages, int64_t{step.n_pages} * 4);
  if (!step.masks_follow) send_aux();
}

void Run::send_aux() {
  const moela_step& step = *a_.step;
  if (step.n_aux == 0) return;
  const int64_t at = inputs_.bytes + (int64_t{step.n_pages} * 4 + 255) / 256 * 256;
  memcpy(backend_.staging.data() + at, a_.aux, int64_t{step.n_aux} * 4);
  check(cudaMemcpyAsync(backend_.aux.data(), backend_.staging.data() + at, int64_t{step.n_aux} * 4,
                        cudaMemcpyHostToDevice, backend_.stream),
        "sending a step to the GPU");
}

Place Run::place() const {
  Place place{};
  Launch& at = place.launch;
  at.stream = backend_.stream;
  at.step = {inputs_.at<Counts>(inputs_.counts),
             inputs_.at<int32_t>(inputs_.tokens),
             inputs_.at<int32_t>(inputs_.positions),
             inputs_.at<int32_t>(inputs_.row_segment),
             inputs_.at<moela_segment>(inputs_.segments),
             reinterpret_cast<const int32_t*>(backend_.pages.data()),
             reinterpret_cast<const PagePool*>(backend_.pools.data()),
             inputs_.at<int32_t>(inputs_.logit_rows)};
  at.absorbed = absorbed_;
  at.context = context_;
  at.projected_keys = projected_keys_;
  at.sms = backend_.device.sms;
  at.hopper = backend_.device.hopper;
  at.overlap = backend_.device.can_overlap;
  place.rows = bucket_;
  return place;
}

Place Run::tail_place(int32_t block) const {
  Place place = this->place();
  const int32_t first = block * program_.desc.max_logits;
  place.logits = std::min(program_.desc.max_logits, logits_ - first);
  place.launch.step.counts += block;
  place.launch.step.logit_rows += first;
  Outputs& out = place.outputs;
  if (a_.targets) {
    out.targets = inputs_.at<int32_t>(inputs_.targets) + first;
    out.logprobs = reinterpret_cast<float*>(backend_.logprobs.data()) + first;
  }
  if (a_.step->n_sampling) {
    out.samplings = inputs_.at<moela_sampling>(inputs_.samplings) + first;
    out.aux = reinterpret_cast<const int32_t*>(backend_.aux.data());
    out.drawn_stride = drawn_stride_;
    out.drawn =
        reinterpret_cast<const int32_t*>(backend_.drawn.data()) + int64_t{first} * drawn_stride_;
    out.n_drawn = inputs_.at<int32_t>(inputs_.n_drawn);
    out.first_sampling = first;
    out.entry_words = entry_words_;
    out.entries =
        reinterpret_cast<int32_t*>(backend_.entries.data()) + int64_t{first} * entry_words_;
  }
  if (a_.logits) place.host_logits = a_.logits + int64_t{first} * program_.vocab_out;
  return place;
}

void Run::operations(int32_t begin, int32_t end, const Place& place) {
  int32_t window = 0;
  for (int32_t i = begin; i < end;) {
    if (!recording_ && i - begin >= window * WINDOW) {
      throw_if_cancelled();
      cudaEvent_t event = backend_.windows[window % 4];
      if (window >= 2) {
        check(cudaEventSynchronize(backend_.windows[(window - 2) % 4]), "running a step");
      }
      check(cudaEventRecord(event, backend_.stream), "running a step");
      window++;
    }
    if (program_.has_projected) {
      i += execute_mixed(backend_, program_, prepared_, i, place);
    } else {
      execute(backend_, program_, prepared_, i++, place);
    }
  }
}

// Records the launches of a step, without doing them.
void Run::record(cudaGraphExec_t& graph, bool with_tail, bool advancing) {
  recording_ = true;
  cudaGraph_t captured = nullptr;
  check(cudaStreamBeginCapture(backend_.stream, cudaStreamCaptureModeThreadLocal),
        "recording launches");
  try {
    if (persistent_) {
      persistent_step(place().launch, persistent_->step, persistent_->scratch->data());
    } else if (bucket_ == 1) {
      execute_fused(backend_, program_, prepared_, place());
    } else {
      operations(0, program_.tail, place());
    }
    if (with_tail) {
      for (int32_t b = 0; b < blocks(); b++) {
        operations(program_.tail, static_cast<int32_t>(program_.ops.size()), tail_place(b));
      }
    }
    if (advancing) advance_step();
  } catch (...) {
    recording_ = false;
    cudaStreamEndCapture(backend_.stream, &captured);
    if (captured) cudaGraphDestroy(captured);
    cudaGetLastError();
    throw;
  }
  recording_ = false;
  check(cudaStreamEndCapture(backend_.stream, &captured), "recording launches");
  const cudaError_t error = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  check_memory(error, 0, "recorded launches");
}

Recorded& Run::recorded() { return prepared_.recorded[persistent_ ? PERSISTENT : bucket_]; }

void Run::replay(cudaGraphExec_t graph) {
  check(cudaGraphLaunch(graph, backend_.stream), "running a step");
}

void Run::layers() {
  if (!recorded_) return operations(0, program_.tail, place());
  cudaGraphExec_t& graph = recorded().layers;
  if (!graph) record(graph, false, false);
  replay(graph);
}

void Run::tail() {
  for (int32_t b = 0; b < blocks(); b++) {
    operations(program_.tail, static_cast<int32_t>(program_.ops.size()), tail_place(b));
  }
}

void Run::advance_step() {
  const Launch at = place().launch;
  const Advance parameters = {inputs_.at<Counts>(inputs_.counts),
                              blocks(),
                              program_.desc.max_logits,
                              inputs_.at<int32_t>(inputs_.tokens),
                              inputs_.at<int32_t>(inputs_.positions),
                              inputs_.at<moela_segment>(inputs_.segments),
                              inputs_.at<moela_sampling>(inputs_.samplings),
                              inputs_.at<int32_t>(inputs_.original),
                              reinterpret_cast<int32_t*>(backend_.drawn.data()),
                              drawn_stride_,
                              inputs_.at<int32_t>(inputs_.n_drawn),
                              reinterpret_cast<int32_t*>(backend_.entries.data()),
                              entry_words_,
                              inputs_.at<StepState>(inputs_.state),
                              backend_.report.as<int32_t>()};
  advance(at, parameters);
}

void Run::whole_step(bool advancing) {
  if (tail_recorded_) {
    cudaGraphExec_t& graph = advancing ? recorded().advancing : recorded().step;
    if (!graph) record(graph, true, advancing);
    return replay(graph);
  }
  layers();
  tail();
  if (advancing) advance_step();
}

void Run::receive_entries(int64_t count) {
  if (count == 0) return;
  check(cudaMemcpyAsync(backend_.host_entries.data(), backend_.entries.data(),
                        count * entry_words_ * 4, cudaMemcpyDeviceToHost, backend_.stream),
        "reading drawn tokens");
}

void Run::once() {
  const moela_step& step = *a_.step;
  if (step.masks_follow) {
    layers();
    if (!control_.wait_for_masks()) throw_if_cancelled();
    send_aux();
    tail();
  } else {
    whole_step(false);
  }
  receive_entries(step.n_sampling);
  std::vector<float> logprobs;
  if (a_.targets && step.n_logits > 0) {
    logprobs.resize(step.n_logits);
    check(cudaMemcpyAsync(logprobs.data(), backend_.logprobs.data(), step.n_logits * 4,
                          cudaMemcpyDeviceToHost, backend_.stream),
          "reading log-probabilities");
  }
  check(cudaStreamSynchronize(backend_.stream), "running a step");
  throw_if_cancelled();
  for (size_t i = 0; i < logprobs.size(); i++) {
    if (a_.targets[i] >= 0) a_.logprobs[i] = logprobs[i];
  }
  if (step.n_sampling) {
    memcpy(a_.entries, backend_.host_entries.data(), int64_t{step.n_sampling} * entry_words_ * 4);
  }
  control_.publish(step.n_sampling, 1);
}

void Run::wait_report(int32_t step, int32_t& entries, int32_t& rows) const {
  const int32_t* report = backend_.report.as<int32_t>() + step % REPORTS * REPORT_WORDS;
  for (int64_t spins = 0; __atomic_load_n(report + REPORT_STEP, __ATOMIC_ACQUIRE) != step + 1;
       spins++) {
    if (spins % 4096 == 4095) {
      // A kernel that failed never reports.
      const cudaError_t state = cudaStreamQuery(backend_.stream);
      if (state != cudaErrorNotReady) {
        check(state, "running a step");
        if (__atomic_load_n(report + REPORT_STEP, __ATOMIC_ACQUIRE) == step + 1) break;
        throw Error(MOELA_ERR_INTERNAL, "a step ended without a report");
      }
      std::this_thread::yield();
    }
  }
  entries = report[REPORT_ENTRIES];
  rows = report[REPORT_ROWS];
}

void Run::several() {
  const int32_t steps = a_.step->steps;
  require(a_.step->n_rows <= DECODE_CAPACITY, "a GPU runs several steps for at most 256 rows");
  memset(backend_.report.data(), 0, REPORTS * REPORT_WORDS * 4);
  int32_t launched = 0, done = 0, entries = 0, rows = a_.step->n_rows;
  while (rows > 0) {
    throw_if_cancelled();
    if (control_.yields()) break;
    while (launched < steps && launched - done < AHEAD) {
      whole_step(true);
      launched++;
    }
    if (done == launched) break;
    int32_t end = 0;
    wait_report(done, end, rows);
    memcpy(a_.entries + int64_t{entries} * entry_words_,
           backend_.host_entries.as<int32_t>() + int64_t{entries} * entry_words_,
           int64_t{end - entries} * entry_words_ * 4);
    entries = end;
    control_.publish(entries, ++done);
  }
  check(cudaStreamSynchronize(backend_.stream), "running a step");
}

void Run::run() {
  send_inputs();
  if (a_.step->steps == 1) {
    once();
  } else {
    several();
  }
}

}  // namespace moela::cuda
