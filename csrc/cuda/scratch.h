// How much scratch memory (Launch::scratch) operations need: host arithmetic only. None of it needs
// to be zero.
#pragma once

#include <cstdint>

namespace moela::cuda {

// Logits of a row are reduced in slices of so many, whatever the number of rows.
constexpr int64_t VOCAB_SLICE = 4096;
// The largest vocabulary that can be sampled from: a token takes 18 bits of a key.
constexpr int64_t MOST_VOCAB = int64_t{1} << 18;

inline int64_t vocab_slices(int64_t vocab) { return (vocab + VOCAB_SLICE - 1) / VOCAB_SLICE; }

// Rows quantized for a product in INT8 or INT4: a byte an element, 128 of a group filled with
// zeros, and a scale a group.
inline int64_t quantized_groups(int64_t k) { return (k + 127) / 128; }
inline int64_t quantized_scratch(int64_t rows, int64_t k) {
  return rows * quantized_groups(k) * (128 + 4);
}

// logprob(): a pair of floats a slice.
inline int64_t logprob_scratch(int64_t vocab, int64_t rows) {
  return rows * vocab_slices(vocab) * 8;
}

// sample() of up to `rows` rows: for each, a state, the slices' results, lists of likely tokens,
// and the logits after bias, penalties and masks.
constexpr int64_t SLICE_BYTES = 32;       // of a slice's results
constexpr int64_t SLICE_GROUPS = 32;      // groups of a slice whose largest logits are kept, twice
constexpr int64_t LIKELY_TOKENS = 16384;  // that a list of candidates holds at most
constexpr int64_t TOP_TOKENS = 2048;      // that a list for top log-probabilities holds at most
constexpr int64_t ROW_STATE_BYTES = 32;

inline int64_t sample_scratch(int64_t vocab, int64_t rows) {
  const int64_t slices = vocab_slices(vocab) * (SLICE_BYTES + 2 * SLICE_GROUPS * 4);
  return rows * (ROW_STATE_BYTES + slices + (LIKELY_TOKENS + TOP_TOKENS) * 4 + vocab * 4);
}

}  // namespace moela::cuda
