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

// logprob(): a pair of floats a slice.
inline int64_t logprob_scratch(int64_t vocab, int64_t rows) {
  return rows * vocab_slices(vocab) * 8;
}

// sample(): 32 bytes a slice, then the logits after bias, penalties and masks, f32 [rows, vocab].
inline int64_t sample_scratch(int64_t vocab, int64_t rows) {
  return rows * vocab_slices(vocab) * 32 + rows * vocab * 4;
}

}  // namespace moela::cuda
