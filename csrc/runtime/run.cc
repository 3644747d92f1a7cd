// A step: its arguments are checked, then the program is replayed, once or several times.
#include <algorithm>
#include <cstring>

#include "runtime/check_sampling.h"
#include "runtime/control.h"
#include "runtime/error.h"
#include "runtime/model.h"

namespace moela {
namespace {

struct Arguments {
  const moela_step* step;
  const int32_t* tokens;
  const moela_segment* segments;
  const int32_t* pages;
  const int32_t* logit_rows;
  const int32_t* targets;
  const moela_sampling* sampling;
  const int32_t* aux;
  float* logits;
  float* logprobs;
  int32_t* entries;
  int32_t* control;
};

void check_segments(const moela_model& model, const Program& program, const Arguments& a) {
  const moela_step& step = *a.step;
  int32_t row = 0;
  for (int32_t i = 0; i < step.n_segments; i++) {
    const moela_segment& segment = a.segments[i];
    require(segment.row == row && segment.rows > 0 && segment.rows <= step.n_rows - row,
            "segments must cover the rows in order");
    require(segment.row >= step.n_absorbed || segment.row + segment.rows <= step.n_absorbed,
            "a segment lies on both paths");
    row += segment.rows;
    require(segment.position >= 0 && segment.position <= INT32_MAX - step.n_rows - step.steps,
            "a position is out of range");
    if (program.kv_lora_rank == 0) continue;
    require(segment.pool >= 0 && segment.pool < static_cast<int32_t>(model.pools.size()),
            "a segment's pool does not exist");
    const PagePool& pool = model.pool_views[segment.pool];
    require(pool.kv_lora_rank == program.kv_lora_rank &&
                pool.qk_rope_head_dim == program.qk_rope_head_dim && pool.layers >= program.layers,
            "a segment's pool has another shape than the program's cache");
    const int64_t end = int64_t{segment.position} + segment.rows + step.steps - 1;
    require(segment.n_pages >= 0 && int64_t{segment.n_pages} * MOELA_PAGE_TOKENS >= end,
            "a segment's pages do not cover its positions");
    require(segment.page >= 0 && segment.n_pages <= step.n_pages - segment.page,
            "a segment's page table is out of range");
    for (int32_t p = 0; p < segment.n_pages; p++) {
      const int32_t page = a.pages[segment.page + p];
      require(page >= 0 && page < pool.max_pages, "a page does not exist");
    }
  }
  require(row == step.n_rows, "segments must cover the rows in order");
}

void check_samplings(const Program& program, const Arguments& a) {
  for (int32_t i = 0; i < a.step->n_sampling; i++) {
    const moela_sampling& sampling = a.sampling[i];
    check_sampling(sampling, a.step->n_aux, program.vocab_out, a.aux);
    const int64_t top = sampling.top_logprobs;
    require(top >= -1 && top <= program.vocab_out &&
                4 + 2 * std::max<int64_t>(top, 0) <= a.step->entry_words,
            "entries are too short for the log-probabilities");
  }
}

void check(const moela_model& model, const Program& program, const Arguments& a) {
  const moela_step& step = *a.step;
  require(step.n_rows > 0 && step.n_rows <= program.desc.max_rows, "rows are out of range");
  require(step.n_absorbed >= 0 && step.n_absorbed <= step.n_rows, "n_absorbed is out of range");
  require(program.has_projected || program.kv_lora_rank == 0 || step.n_absorbed == step.n_rows,
          "the program has no up-projected path");
  require(step.steps >= 1 && step.steps <= MAX_STEPS, "steps are out of range");
  require(step.n_pages >= 0 && step.n_segments >= 0, "a step has a negative length");
  require(a.tokens && a.segments && (step.n_pages == 0 || a.pages), "a step lacks an argument");
  for (int32_t i = 0; i < step.n_rows; i++) {
    require(a.tokens[i] >= 0 && a.tokens[i] < program.vocab_in, "a token is out of range");
  }
  check_segments(model, program, a);
  require(step.n_logits >= 0 && step.n_logits <= step.n_rows, "n_logits is out of range");
  require(step.n_logits == 0 || a.logit_rows, "a step lacks its logits rows");
  for (int32_t i = 0; i < step.n_logits; i++) {
    const int32_t row = a.logit_rows[i];
    require(row >= 0 && row < step.n_rows && (i == 0 || row > a.logit_rows[i - 1]),
            "logits rows must ascend within the rows");
    require(!a.targets || (a.targets[i] >= -1 && a.targets[i] < std::max<int64_t>(program.vocab_out, 1)),
            "a target is out of range");
  }
  require(!a.targets || a.logprobs, "targets without room for their log-probabilities");
  require(step.n_sampling == 0 || step.n_sampling == step.n_logits,
          "every logits row is sampled, or none");
  require(step.n_sampling == 0 || (a.sampling && a.entries && step.entry_words >= 4 &&
                                   program.samples),
          "sampling lacks an argument");
  check_samplings(program, a);
  require(!step.masks_follow || (a.control && step.steps == 1), "masks that follow need control");
  if (step.steps > 1) {
    require(step.n_segments == step.n_rows && step.n_sampling == step.n_rows &&
                step.n_absorbed == step.n_rows && !a.logits && !a.targets,
            "several steps need one sampled row a segment");
    // What is drawn is embedded next.
    require(program.vocab_out <= program.vocab_in, "draws tokens that have no embedding");
  }
}


class Runner {
 public:
  Runner(moela_model& model, const Program& program, const Arguments& a)
      : model_(model), program_(program), a_(a), control_(a.control) {
    for (const StoredWeight& weight : model.weights) weights_.push_back(&weight.view);
  }

  void run() {
    const moela_step& step = *a_.step;
    segments_.assign(a_.segments, a_.segments + step.n_segments);
    tokens_.assign(a_.tokens, a_.tokens + step.n_rows);
    logit_rows_.assign(a_.logit_rows, a_.logit_rows + step.n_logits);
    if (step.n_sampling) sampling_.assign(a_.sampling, a_.sampling + step.n_sampling);
    mark_pages();
    if (step.steps == 1) {
      once(0, nullptr);
      control_.publish(step.n_sampling, 1);
    } else {
      several();
    }
  }

 private:
  void mark_pages() {
    if (program_.kv_lora_rank == 0) return;
    for (const moela_segment& segment : segments_) {
      Pool& pool = model_.pools[segment.pool];
      const int32_t end = segment.position + segment.rows + a_.step->steps - 1;
      for (int64_t p = segment.position / MOELA_PAGE_TOKENS; p * MOELA_PAGE_TOKENS < end; p++) {
        pool.mark(a_.pages[segment.page + p]);
      }
    }
  }

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
    if (!execute(program_, begin, end, weights_, model_.workspace.data(), context)) {
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
  const Arguments& a_;
  Control control_;
  std::vector<const Weight*> weights_;
  std::vector<int32_t> tokens_, positions_, row_segment_, logit_rows_;
  std::vector<moela_segment> segments_;
  std::vector<moela_sampling> sampling_;
  int32_t n_drawn_ = 0;
};

}  // namespace
}  // namespace moela

using namespace moela;

int32_t moela_model_run(moela_model* model, const moela_step* step, const int32_t* tokens,
                        const moela_segment* segments, const int32_t* pages,
                        const int32_t* logit_rows, const int32_t* targets,
                        const moela_sampling* sampling, const int32_t* aux, float* logits,
                        float* logprobs, int32_t* entries, int32_t* control, char* err,
                        size_t err_len) {
  Control done(control);  // whatever happens below, whoever waits is woken
  return guard(err, err_len, [&] {
    require(model && step && step->size == sizeof *step, "step of another layout");
    std::lock_guard lock(model->mutex);
    require(step->program >= 0 && step->program < static_cast<int32_t>(model->programs.size()),
            "no such program");
    const Program& program = model->programs[step->program];
    const Arguments arguments{step,     tokens, segments, pages,    logit_rows, targets,
                              sampling, aux,    logits,   logprobs, entries,    control};
    check(*model, program, arguments);
    std::lock_guard device_lock(model->device->mutex);
    Runner(*model, program, arguments).run();
  });
}
