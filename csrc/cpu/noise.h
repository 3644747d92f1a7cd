// The noise of a draw for many tokens at once, one function an instruction set, all with the bits
// of noise_word().
#pragma once

#include <cstdint>

#include "cpu/filters.h"

namespace moela {

// Tokens a call of noise_words() takes.
constexpr int64_t NOISE_BLOCK = 8;

// words[i] = noise_word(seed, index, kept[i].token), i < NOISE_BLOCK.
using NoiseWords = void (*)(uint64_t seed, uint32_t index, const Candidate* kept, uint32_t* words);

void noise_words_reference(uint64_t seed, uint32_t index, const Candidate* kept, uint32_t* words);
#if defined(__x86_64__)
void noise_words_avx2(uint64_t seed, uint32_t index, const Candidate* kept, uint32_t* words);
#endif

}  // namespace moela
