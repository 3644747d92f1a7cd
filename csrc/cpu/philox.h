// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a block
// cipher used as a generator, so that a draw is a pure function of seed, place and token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace moela {

struct PhiloxBlock {
  uint32_t word[4];
};

inline PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = uint64_t{0xd2511f53} * counter.word[0];
    const uint64_t product1 = uint64_t{0xcd9e8d57} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return counter;
}

// The random word of a token in the draw of the output's `index`-th token.
inline uint32_t noise_word(uint64_t seed, uint32_t index, uint32_t token) {
  return philox4x32({{index, token, 0, 0}}, static_cast<uint32_t>(seed),
                    static_cast<uint32_t>(seed >> 32))
      .word[0];
}

// Standard Gumbel noise of a random word.
inline double gumbel(uint32_t word) {
  const double uniform = (word + 0.5) * 0x1p-32;
  return -std::log(-std::log(uniform));
}

// No gumbel() exceeds this: -ln(-ln(1 - 2^-33)).
constexpr double MAX_GUMBEL = 22.88;

// Every word below this has a gumbel() below `noise`, as 1 - u < -ln u: most are told apart without
// a logarithm.
inline uint32_t least_word(double noise) {
  return static_cast<uint32_t>(std::max(-std::expm1(-noise) * 0x1p32 - 2, 0.0));
}

}  // namespace moela
