// Attention as MQA over the latent: q_latent [R, H, r + dr] (scaled), rows of the absorbed path,
// out [R, H, r] = softmax over keys s <= position of (q . entry_s), times the latents entry_s[:r],
// entry_s [r + dr] being the cache row at s: one key and value for all heads.
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2; the running softmax: arXiv 2205.14135.
//
// Order of summation, the same whatever else the step holds: keys are split at multiples of
// SPLIT_TOKENS, within a split pages are taken ascending by a running softmax, and the splits'
// results are added ascending, scaled to the largest max. Rows and heads never meet in a sum.
#include <vector>

#include "cache_format.h"
#include "mla.h"

namespace moela {

// Enough work for a task (8 pages), and enough tasks for many threads at long contexts.
static constexpr int64_t SPLIT_TOKENS = 8 * MOELA_PAGE_TOKENS;
// Queries and results of this many heads and a page fit the second-level cache together.
static constexpr int64_t MAX_HEAD_BLOCK = 32;
// Fewer heads at a time would spend more on reading the page than on computing with it.
static constexpr int64_t MIN_HEAD_BLOCK = 4;
// Keys whose scores are taken before more of the next page is asked for: a page is too much to ask
// for at once.
static constexpr int64_t SCORED_KEYS = 8;
// Results of splits before they are merged: rows are taken in waves that keep below this.
static constexpr int64_t MAX_PARTIAL_FLOATS = 16 << 20;

namespace {

// A row of a wave.
struct Work {
  int64_t row;
  int64_t keys;
  int64_t splits;
  int64_t first_task;
  // States [H, splits], then results [H, splits, r]; NULL when one split writes to `out` itself.
  float* partial;

  RunningSoftmax* states(int64_t head) const {
    return reinterpret_cast<RunningSoftmax*>(partial) + head * splits;
  }
  float* results(int64_t heads, int64_t head, int64_t r) const {
    return partial + 2 * heads * splits + head * splits * r;
  }
};

struct Shape {
  int32_t layer;
  int64_t heads, r, dr, head_block;
};

// Heads [head, head + block) of a row over keys [begin, end) of one split: o (rows o_stride apart)
// and states (state_stride apart) of the split alone. entries [64, r + dr]: room for a page of a
// type with scales.
void attend_split(const Context& context, const Shape& shape, int64_t row, int64_t head,
                  int64_t block, int64_t begin, int64_t end, const float* q_latent, float* scores,
                  float* entries, RunningSoftmax* states, int64_t state_stride, float* o,
                  int64_t o_stride) {
  const StepView& step = context.step;
  const Kernels& kernels = context.kernels;
  const moela_segment& segment = step.segments[step.row_segment[row]];
  const PagePool& pool = step.pools[segment.pool];
  const int64_t width = shape.r + shape.dr;
  const float* q = q_latent + (row * shape.heads + head) * width;
  for (int64_t key = begin; key < end && !cancelled(context); key += MOELA_PAGE_TOKENS) {
    const int64_t n = std::min<int64_t>(MOELA_PAGE_TOKENS, end - key);
    const int32_t id = step.pages[segment.page + key / MOELA_PAGE_TOKENS];
    const void* page = pool.at(id, shape.layer);
    int32_t dtype = pool.dtype;
    if (has_scales(dtype)) {
      decode_entries(kernels, pool, id, shape.layer, n, entries);
      page = entries;
      dtype = MOELA_F32;
    }
    const bool first = key == begin;
    // Arithmetic hides the reading of the next page.
    const char* next =
        key + MOELA_PAGE_TOKENS < end
            ? static_cast<const char*>(
                  pool.at(step.pages[segment.page + key / MOELA_PAGE_TOKENS + 1], shape.layer))
            : nullptr;
    for (int64_t j = 0; j < n; j += SCORED_KEYS) {
      for (int64_t at = 0; next && at < SCORED_KEYS * pool.row_bytes(); at += 64) {
        __builtin_prefetch(next + j * pool.row_bytes() + at, 0, 2);
      }
      kernels.gemm_nt(dtype, block, std::min(SCORED_KEYS, n - j), width, q, width,
                      static_cast<const char*>(page) + j * width * dtype_bytes(dtype), width,
                      scores + j, MOELA_PAGE_TOKENS, false);
    }
    for (int64_t i = 0; i < block; i++) {
      softmax_step(kernels, first, n, scores + i * MOELA_PAGE_TOKENS, states[i * state_stride],
                   shape.r, o + i * o_stride);
    }
    kernels.gemm_nn(dtype, block, shape.r, n, scores, MOELA_PAGE_TOKENS, page, width, o, o_stride,
                    !first);
  }
}

// out [r] = sum over splits of exp(max_s - max) o_s, divided by the like sum of sums. The states
// become the factors. With one split this is o_0 / sum_0, as attend_task has it.
void merge(const Kernels& kernels, const Work& work, int64_t heads, int64_t head, int64_t r,
           float* factors, float* out) {
  const RunningSoftmax* states = work.states(head);
  float largest = states[0].max;
  for (int64_t s = 1; s < work.splits; s++) largest = std::max(largest, states[s].max);
  float sum = 0;
  for (int64_t s = 0; s < work.splits; s++) {
    factors[s] = std::exp(states[s].max - largest);
    sum += states[s].sum * factors[s];
  }
  kernels.gemm_nn(MOELA_F32, 1, r, work.splits, factors, work.splits, work.results(heads, head, r),
                  r, out, r, false);
  kernels.scale(r, 1 / sum, out);
}

}  // namespace

void mla_decode(Context& context, int32_t layer, int64_t heads, int64_t r, int64_t dr,
                const float* q_latent, float* out) {
  const StepView& step = context.step;
  Shape shape = {layer, heads, r, dr, std::min(heads, MAX_HEAD_BLOCK)};
  int64_t all_splits = 0, most_splits = 0;
  for (int64_t row = 0; row < step.n_absorbed; row++) {
    const int64_t splits = ceil_div(step.positions[row] + int64_t{1}, SPLIT_TOKENS);
    all_splits += splits;
    most_splits = std::max(most_splits, splits);
  }
  while (shape.head_block > MIN_HEAD_BLOCK &&
         all_splits * ceil_div(heads, shape.head_block) < context.threads.count()) {
    shape.head_block = ceil_div(shape.head_block, 2);
  }
  const int64_t head_blocks = ceil_div(heads, shape.head_block);

  // Of each thread: the scores of a page and the states of one split, or the factors of a merge;
  // then the entries of a page.
  const int64_t states =
      ceil_div(std::max(shape.head_block * (MOELA_PAGE_TOKENS + 2), most_splits), 16) * 16;
  const int64_t own = states + MOELA_PAGE_TOKENS * (r + dr);
  const int64_t per_split = heads * (r + 2);
  const int64_t partial_floats =
      most_splits < 2
          ? 0
          : std::min(all_splits * per_split, std::max(MAX_PARTIAL_FLOATS, most_splits * per_split));
  reserve_scratch(context, own);
  float* partials = context.scratch[0].get(own + partial_floats) + own;

  std::vector<Work> wave;
  for (int64_t row = 0; row < step.n_absorbed;) {
    wave.clear();
    int64_t tasks = 0, used = 0;
    for (; row < step.n_absorbed; row++) {
      const int64_t keys = step.positions[row] + int64_t{1};
      const int64_t splits = ceil_div(keys, SPLIT_TOKENS);
      const int64_t floats = splits < 2 ? 0 : splits * per_split;
      if (used + floats > partial_floats) break;
      wave.push_back({row, keys, splits, tasks, splits < 2 ? nullptr : partials + used});
      used += floats;
      tasks += splits * head_blocks;
    }

    context.threads.parallel_for(tasks, [&](int64_t task, int thread) {
      const Work& work =
          *(std::upper_bound(wave.begin(), wave.end(), task,
                             [](int64_t t, const Work& w) { return t < w.first_task; }) -
            1);
      const int64_t split = (task - work.first_task) / head_blocks;
      const int64_t head = (task - work.first_task) % head_blocks * shape.head_block;
      const int64_t block = std::min(shape.head_block, heads - head);
      const int64_t begin = split * SPLIT_TOKENS;
      const int64_t end = std::min(work.keys, begin + SPLIT_TOKENS);
      float* scores = context.scratch[thread].get(own);
      float* entries = scores + states;
      if (work.partial) {
        attend_split(context, shape, work.row, head, block, begin, end, q_latent, scores, entries,
                     work.states(head) + split, work.splits,
                     work.results(heads, head, r) + split * r, work.splits * r);
        return;
      }
      auto* running = reinterpret_cast<RunningSoftmax*>(scores + block * MOELA_PAGE_TOKENS);
      float* o = out + (work.row * heads + head) * r;
      attend_split(context, shape, work.row, head, block, begin, end, q_latent, scores, entries,
                   running, 1, o, r);
      for (int64_t i = 0; i < block; i++) context.kernels.scale(r, 1 / running[i].sum, o + i * r);
    });

    if (used == 0) continue;
    context.threads.parallel_for(
        static_cast<int64_t>(wave.size()) * heads, [&](int64_t task, int thread) {
          const Work& work = wave[task / heads];
          const int64_t head = task % heads;
          if (!work.partial) return;
          merge(context.kernels, work, heads, head, r, context.scratch[thread].get(own),
                out + (work.row * heads + head) * r);
        });
  }
}

}  // namespace moela
