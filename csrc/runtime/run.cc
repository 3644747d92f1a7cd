// A step: its arguments are checked, its pages get memory, and the device runs it.
#include <algorithm>

#include "runtime/backend.h"
#include "runtime/check_sampling.h"
#include "runtime/error.h"
#include "runtime/model.h"

namespace moela {
namespace {

void check_segments(const moela_model& model, const Program& program, const StepArguments& a) {
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

void check_samplings(const Program& program, const StepArguments& a) {
  for (int32_t i = 0; i < a.step->n_sampling; i++) {
    const moela_sampling& sampling = a.sampling[i];
    check_sampling(sampling, a.step->n_aux, program.vocab_out, a.aux);
    const int64_t top = sampling.top_logprobs;
    require(top >= -1 && top <= program.vocab_out &&
                4 + 2 * std::max<int64_t>(top, 0) <= a.step->entry_words,
            "entries are too short for the log-probabilities");
  }
}

void check(const moela_model& model, const Program& program, const StepArguments& a) {
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
    require(!a.targets ||
                (a.targets[i] >= -1 && a.targets[i] < std::max<int64_t>(program.vocab_out, 1)),
            "a target is out of range");
  }
  require(!a.targets || a.logprobs, "targets without room for their log-probabilities");
  require(step.n_sampling == 0 || step.n_sampling == step.n_logits,
          "every logits row is sampled, or none");
  require(
      step.n_sampling == 0 || (a.sampling && a.entries && step.entry_words >= 4 && program.samples),
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

// The pages that the step writes get memory before anything runs, and those that it reads have it.
void mark_pages(moela_model& model, const Program& program, const StepArguments& a) {
  if (program.kv_lora_rank == 0) return;
  for (int32_t i = 0; i < a.step->n_segments; i++) {
    const moela_segment& segment = a.segments[i];
    Pool& pool = model.pools[segment.pool];
    const int32_t end = segment.position + segment.rows + a.step->steps - 1;
    for (int64_t p = 0; p * MOELA_PAGE_TOKENS < end; p++) {
      pool.mark(a.pages[segment.page + p]);
    }
  }
}

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
    const StepArguments arguments{step,     tokens, segments, pages,    logit_rows, targets,
                                  sampling, aux,    logits,   logprobs, entries,    control};
    check(*model, program, arguments);
    model->backend->check_alive();
    mark_pages(*model, program, arguments);
    model->backend->run(program, arguments, done);
  });
}
