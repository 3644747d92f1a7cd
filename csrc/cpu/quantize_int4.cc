// Conversion of weights to INT4: for each 128 columns a bf16 scale s, for each 32 of them a factor
// f in [0, 15], for each weight q in [-8, 7]; w = q f s.
//
// The step f s of 32 columns is the one of least squared error among some, as cutting off the few
// largest often costs less than coarser steps for all. The scale is negative where the group's
// largest magnitude is positive: q reaches further down than up.
#include <algorithm>
#include <cmath>

#include "quantize.h"

namespace moela {
namespace {

// The same code for newer processors where that can be had; contraction is off, so the bits are
// one.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define MOELA_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MOELA_CLONES
#endif

constexpr int SUBGROUPS = GROUP / SUBGROUP;
constexpr int MAX_FACTOR = 15;
constexpr float TO_INTEGER = 0x1.8p23f;
// The largest magnitude over these is a step to try.
constexpr float REACHES[] = {5.5f, 6, 6.5f, 7, 7.25f, 7.5f, 7.75f, 8, 8.5f};
// And the largest step over these a scale.
constexpr float FACTORS[] = {15, 14, 13, 12, 11, 10};

__attribute__((always_inline)) inline float nearest(float x) {
  x = (x + TO_INTEGER) - TO_INTEGER;
  x = x > -8 ? x : -8;
  return x < 7 ? x : 7;
}

// Squared error of 32 weights with a step; its sign counts.
__attribute__((always_inline)) inline float error_of(const float* w, float step) {
  const float inverse = 1 / step;
  float sums[8] = {};
  for (int i = 0; i < SUBGROUP; i += 8) {
    for (int lane = 0; lane < 8; lane++) {
      const float x = w[i + lane];
      const float error = x - nearest(x * inverse) * step;
      sums[lane] += error * error;
    }
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// The factors for a scale, and their squared error.
__attribute__((always_inline)) inline float factors_of(const float* w, const float* steps,
                                                       float scale, int* factors) {
  float total = 0;
  for (int b = 0; b < SUBGROUPS; b++) {
    const float* from = w + b * SUBGROUP;
    const float ratio = steps[b] / std::fabs(scale);
    const int low = std::min(std::max(static_cast<int>(ratio), 1), MAX_FACTOR);
    const int high = std::min(low + 1, MAX_FACTOR);
    const float error_low = error_of(from, static_cast<float>(low) * scale);
    const float error_high = error_of(from, static_cast<float>(high) * scale);
    factors[b] = error_high < error_low ? high : low;
    total += std::min(error_low, error_high);
  }
  return total;
}

// 128 weights: their q, unpacked, and the word of scale and factors.
MOELA_CLONES
uint32_t quantize_group(const float* w, int8_t* q) {
  float low = 0, high = 0;
  for (int i = 0; i < GROUP; i++) {
    low = w[i] < low ? w[i] : low;
    high = w[i] > high ? w[i] : high;
  }
  memset(q, 0, GROUP);
  const float largest = std::max(-low, high);
  // Nothing but zeros, or so small that its steps would not be normal numbers; or not finite.
  if (!(largest > 0x1p-100f && largest < 0x1p120f)) {
    return largest < 1 ? 0 : static_cast<uint32_t>(0x7fc0);
  }
  const float sign = high > -low ? -1.f : 1.f;

  float steps[SUBGROUPS], widest = 0;
  for (int b = 0; b < SUBGROUPS; b++) {
    const float* from = w + b * SUBGROUP;
    float magnitude = 0;
    for (int i = 0; i < SUBGROUP; i++) magnitude = std::max(magnitude, std::fabs(from[i]));
    steps[b] = 0;
    if (magnitude <= largest * 0x1p-20f) continue;
    float best = INFINITY;
    for (float reach : REACHES) {
      const float step = magnitude / reach;
      const float error = error_of(from, sign * step);
      if (error < best) {
        best = error;
        steps[b] = step;
      }
    }
    widest = std::max(widest, steps[b]);
  }

  float best = INFINITY, scale = 0;
  uint16_t half = 0;
  int factors[SUBGROUPS] = {};
  for (float factor : FACTORS) {
    const uint16_t candidate = f32_to_bf16(sign * widest / factor);
    int trial[SUBGROUPS];
    const float error = factors_of(w, steps, bf16_to_f32(candidate), trial);
    if (error < best) {
      best = error;
      half = candidate;
      scale = bf16_to_f32(candidate);
      for (int b = 0; b < SUBGROUPS; b++) factors[b] = trial[b];
    }
  }
  uint32_t word = half;
  for (int b = 0; b < SUBGROUPS; b++) {
    word |= static_cast<uint32_t>(factors[b]) << (16 + 4 * b);
    const float inverse = 1 / (static_cast<float>(factors[b]) * scale);
    for (int i = b * SUBGROUP; i < (b + 1) * SUBGROUP; i++) {
      q[i] = static_cast<int8_t>(nearest(w[i] * inverse));
    }
  }
  return word;
}

}  // namespace

void quantize_int4_row(int64_t cols, const float* w, void* q, void* scales) {
  uint8_t* out = static_cast<uint8_t*>(q);
  const int64_t row_bytes = weight_row_bytes(MOELA_INT4, cols);
  for (int64_t begin = 0; begin < cols; begin += GROUP) {
    float group[GROUP] = {};
    memcpy(group, w + begin, std::min(GROUP, cols - begin) * sizeof(float));
    int8_t values[GROUP];
    const uint32_t word = quantize_group(group, values);
    memcpy(static_cast<char*>(scales) + begin / GROUP * 4, &word, 4);
    for (int64_t half = 0; half < 2 && begin / 2 + half * 32 < row_bytes; half++) {
      const int8_t* from = values + half * 64;
      for (int64_t j = 0; j < 32; j++) {
        out[begin / 2 + half * 32 + j] =
            static_cast<uint8_t>((from[j] + 8) | (from[j + 32] + 8) << 4);
      }
    }
  }
}

}  // namespace moela
