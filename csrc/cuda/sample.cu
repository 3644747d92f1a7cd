// Draws the next token of each logits row: Gumbel-max over what the filters leave, with the noise
// of cpu/sample.cc and the same results. Three kernels, none of which waits for the host:
// 1. a block a slice of the vocabulary: bias, penalties, mask and stop tokens into a copy of the
//    logits where a row has any; the largest of the slice and of small groups in it; its part of
//    the log-softmax where wanted;
// 2. a block a slice: the slice's best draw, for rows that no filter but min-p applies to; for
//    others the tokens that top-k, top-p and top log-probabilities can be about, into lists. The
//    k-th largest of the groups' largest bounds the k-th largest logit from below;
// 3. a block a row: merges the slices, or applies the filters to the list (to the whole row where a
//    list is full or of no use) and draws; writes the entry.
// What a row has none of costs it nothing but the launch.
#include "cuda/sample.cuh"

namespace moela::cuda {
namespace {

// The largest of those that a mask allows, whatever its value.
__device__ __noinline__ int likeliest_allowed(const float* row, int vocab, const int32_t* mask,
                                              FilterRoom& room) {
  uint64_t key = 0;
  for (int t = threadIdx.x; t < vocab; t += FILTER_THREADS) {
    if (!(static_cast<uint32_t>(mask[t / 32]) >> t % 32 & 1)) continue;
    const float x = isnan(row[t]) ? NEVER : row[t];
    key = max(key, static_cast<uint64_t>(ordered(x)) << 32 | (0xffffffffu - t));
  }
  key = warp_largest(key);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.partial[threadIdx.x / 32] = key;
  __syncthreads();
  key = warp_largest(room.partial[threadIdx.x % 32]);
  return key == 0 ? 0 : key_token(key);
}

// The n largest logits as (token, log-softmax), descending, the lowest of equals first.
// They are among list[0, n_list), unless that is more than TOP_TOKENS.
__device__ __noinline__ void write_top(const float* row, int vocab, double normaliser, int n,
                                       const int32_t* list, int n_list, FilterRoom& room,
                                       int32_t* out) {
  Candidates c{};
  c.row = row;
  c.vocab = vocab;
  c.raw = true;
  c.at_least = NEVER;
  c.n_list = n_list <= TOP_TOKENS ? n_list : -1;
  c.list = list;
  const uint64_t cut = c.n_list >= 0 ? ALL_KEYS : largest_n(c, room, n);
  const auto key = [](int token, float v, float) { return Candidates::by_logit(token, v); };
  const int found = collect(c, room, key, [&](uint64_t k) { return k <= cut; });
  sort_keys(room, found);
  for (int i = threadIdx.x; i < min(n, found); i += FILTER_THREADS) {
    const int token = static_cast<int>(room.keys[i] & TOKEN_MASK);
    const float v = isnan(row[token]) ? NEVER : row[token];
    out[2 * i] = token;
    out[2 * i + 1] = __float_as_int(static_cast<float>(v - normaliser));
  }
}

__global__ void __launch_bounds__(FILTER_THREADS)
    rows_kernel(const __grid_constant__ SampleArguments a) {
  __shared__ FilterRoom room;
  wait_for_previous();
  allow_next();
  const int row = blockIdx.x, thread = threadIdx.x;
  if (row >= a.step.counts->n_logits) return;
  const moela_sampling& s = a.outputs.samplings[row];
  const int n_drawn = a.n_drawn();
  const float* logits = a.logits + static_cast<int64_t>(row) * a.vocab;
  const float* processed = processed_row(a, s, row, n_drawn);
  const SampleSlice* slices = a.slices + static_cast<int64_t>(row) * a.n_slices;
  const SampleRow state = a.states[row];
  const uint64_t largest = row_largest(slices, a.n_slices);
  int token;
  if (largest == 0) {
    token = 0;  // there is nothing to choose from
  } else if (s.temperature == 0) {
    token = key_token(largest);
  } else if (!filters(s)) {
    Draw best{0, -1};
    for (int i = thread % 32; i < a.n_slices; i += 32) best = better(best, slices[i].draw);
    token = max(warp_best(best).token, 0);
  } else {
    Candidates c = candidates_of(a, s, processed, largest);
    if ((counts(s, a.vocab) || s.top_p < 1) && state.n_likely <= LIKELY_TOKENS) {
      c.n_list = state.n_likely;
      c.list = a.likely + row * LIKELY_TOKENS;
    }
    token = filtered_draw(s, static_cast<uint32_t>(s.index + n_drawn), state.whole, c, room);
  }
  // A mask wins over whatever forbids all that it allows.
  if (s.mask >= 0 && !(processed[token] > NEVER)) {
    token = likeliest_allowed(logits, a.vocab, a.aux(s.mask), room);
  }
  int stops = 0;
  for (int i = thread; i < s.n_stop; i += FILTER_THREADS) stops |= a.aux(s.stop)[i] == token;
  stops = s.n_stop > 0 ? __syncthreads_or(stops) : 0;
  int32_t* entry = a.outputs.entries + static_cast<int64_t>(row) * a.outputs.entry_words;
  if (thread == 0) {
    entry[0] = a.outputs.first_sampling + row;
    entry[1] = token;
    entry[2] = 0x7fc00000;
    entry[3] = stops != 0;
  }
  if (s.top_logprobs < 0) return;
  const double normaliser = merge_slices(slices, a.n_slices, sizeof(SampleSlice));
  if (thread == 0) entry[2] = __float_as_int(static_cast<float>(logits[token] - normaliser));
  if (s.top_logprobs > 0) {
    write_top(logits, a.vocab, normaliser, s.top_logprobs, a.top + row * TOP_TOKENS, state.n_top,
              room, entry + 4);
  }
}

}  // namespace

void sample(const Launch& at, const Outputs& outputs, int64_t vocab, const float* logits) {
  if (!outputs.samplings || at.bucket == 0) return;
  if (vocab > MOST_VOCAB || outputs.entry_words > 4 + 2 * FILTER_BINS) {
    throw Error(MOELA_ERR_ARGUMENT,
                "sample: at most 262,144 tokens and 2,048 top log-probabilities on CUDA");
  }
  if (at.scratch_bytes < sample_scratch(vocab, at.bucket)) {
    throw Error(MOELA_ERR_INTERNAL, "sample: too little scratch memory");
  }
  SampleArguments a{};
  a.step = at.step;
  a.outputs = outputs;
  a.logits = logits;
  a.vocab = static_cast<int>(vocab);
  a.n_slices = static_cast<int>(vocab_slices(vocab));
  char* scratch = at.scratch;
  const auto take = [&](auto*& pointer, int64_t each) {
    pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(scratch);
    scratch += at.bucket * each * static_cast<int64_t>(sizeof *pointer);
  };
  take(a.states, 1);
  take(a.slices, a.n_slices);
  take(a.raw_groups, a.n_slices * GROUPS);
  take(a.groups, a.n_slices * GROUPS);
  take(a.likely, LIKELY_TOKENS);
  take(a.top, TOP_TOKENS);
  take(a.processed, vocab);
  sample_slices(at, a);
  sample_draws(at, a);
  launch(at, rows_kernel, dim3(at.bucket), dim3(FILTER_THREADS), 0, a);
}

}  // namespace moela::cuda
