// Steps on the CPU: a program is replayed over the rows at hand, once or several times.
#include "runtime/cpu_run.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "runtime/error.h"

namespace moela {
namespace {

class Runner {
 public:
  Runner(moela_model& model, const Program& program, const StepArguments& a, Control& control)
      : model_(model), program_(program), a_(a), control_(control) {
    for (const StoredWeight& weight : model.weights) weights_.push_back(&weight.view);
  }

  void run() {
    const moela_step& step = *a_.step;
    segments_.assign(a_.segments, a_.segments + step.n_segments);
    tokens_.assign(a_.tokens, a_.tokens + step.n_rows);
    logit_rows_.assign(a_.logit_rows, a_.logit_rows + step.n_logits);
    if (step.n_sampling) sampling_.assign(a_.sampling, a_.sampling + step.n_sampling);
    if (step.steps == 1) {
      once(0, nullptr);
      control_.publish(step.n_sampling, 1);
    } else {
      several();
    }
  }

 private:
  // One replay over the rows at hand; the entries go to `entries_` from `first_entry` on.
  void once(int64_t first_entry, const int32_t* drawn) {
    const int32_t rows = static_cast<int32_t>(tokens_.size());
    positions_.clear();
    row_segment_.clear();
    for (size_t s = 0; s < segments_.size(); s++) {
      for (int32_t i = 0; i < segments_[s].rows; i++) {
        positions_.push_back(segments_[s].position + i);
        row_segment_.push_back(static_cast<int32_t>(s));
      }
    }
    StepView view{};
    view.n_rows = rows;
    view.n_absorbed = a_.step->steps == 1 ? a_.step->n_absorbed : rows;
    view.n_segments = static_cast<int32_t>(segments_.size());
    view.tokens = tokens_.data();
    view.positions = positions_.data();
    view.row_segment = row_segment_.data();
    view.segments = segments_.data();
    view.pages = a_.pages;
    view.pools = model_.pool_views.data();
    view.aux = a_.aux;
    view.drawn_stride = a_.step->steps;
    view.n_drawn = n_drawn_;
    view.entry_words = a_.step->entry_words;

    static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t), "polled in place");
    Context context{*model_.device->kernels, *model_.device->threads, model_.device->scratch, view,
                    reinterpret_cast<const std::atomic<int32_t>*>(a_.control)};
    const int32_t n_ops = static_cast<int32_t>(program_.ops.size());
    replay(0, program_.tail, context);
    if (a_.step->masks_follow && !control_.wait_for_masks()) {
      throw Error(MOELA_ERR_CANCELLED, "the step was cancelled");
    }
    const int32_t n_logits = static_cast<int32_t>(logit_rows_.size());
    const int64_t vocab = program_.vocab_out;
    for (int32_t begin = 0; begin < n_logits; begin += program_.desc.max_logits) {
      view.n_logits = std::min(program_.desc.max_logits, n_logits - begin);
      view.logit_rows = logit_rows_.data() + begin;
      view.targets = a_.targets ? a_.targets + begin : nullptr;
      view.logprobs_out = a_.logprobs ? a_.logprobs + begin : nullptr;
      view.logits_out = a_.logits ? a_.logits + begin * vocab : nullptr;
      view.samplings = sampling_.empty() ? nullptr : sampling_.data() + begin;
      view.first_sampling = begin;
      view.drawn = drawn ? drawn + static_cast<int64_t>(begin) * view.drawn_stride : nullptr;
      view.entries_out =
          a_.entries ? a_.entries + (first_entry + begin) * a_.step->entry_words : nullptr;
      replay(program_.tail, n_ops, context);
    }
  }

  void replay(int32_t begin, int32_t end, Context& context) {
    if (!execute(program_, begin, end, weights_, model_.workspace->data(), context)) {
      throw Error(MOELA_ERR_CANCELLED, "the step was cancelled");
    }
  }

  // Feeds each drawn token back; a sequence that drew a stop token leaves.
  void several() {
    const int32_t steps = a_.step->steps;
    std::vector<int32_t> original(tokens_.size());
    for (size_t i = 0; i < original.size(); i++) original[i] = static_cast<int32_t>(i);
    std::vector<int32_t> drawn(original.size() * steps);
    int64_t entries = 0;
    for (int32_t s = 0; s < steps && !original.empty() && !control_.yields(); s++) {
      n_drawn_ = s;
      once(entries, drawn.data());
      size_t kept = 0;
      for (size_t i = 0; i < original.size(); i++) {
        int32_t* entry = a_.entries + (entries + i) * a_.step->entry_words;
        entry[0] = original[i];
        if (entry[3]) continue;
        original[kept] = original[i];
        tokens_[kept] = entry[1];
        segments_[kept] = segments_[i];
        segments_[kept].row = static_cast<int32_t>(kept);
        segments_[kept].position++;
        sampling_[kept] = sampling_[i];
        std::copy_n(drawn.begin() + i * steps, s, drawn.begin() + kept * steps);
        drawn[kept * steps + s] = entry[1];
        kept++;
      }
      entries += original.size();
      original.resize(kept);
      tokens_.resize(kept);
      segments_.resize(kept);
      sampling_.resize(kept);
      logit_rows_.resize(kept);
      for (size_t i = 0; i < kept; i++) logit_rows_[i] = static_cast<int32_t>(i);
      control_.publish(static_cast<int32_t>(entries), s + 1);
    }
  }

  moela_model& model_;
  const Program& program_;
  const StepArguments& a_;
  Control& control_;
  std::vector<const Weight*> weights_;
  std::vector<int32_t> tokens_, positions_, row_segment_, logit_rows_;
  std::vector<moela_segment> segments_;
  std::vector<moela_sampling> sampling_;
  int32_t n_drawn_ = 0;
};

}  // namespace

void run_on_cpu(moela_model& model, const Program& program, const StepArguments& arguments,
                Control& control) {
  std::lock_guard lock(model.device->mutex);
  Runner(model, program, arguments, control).run();
}

}  // namespace moela
