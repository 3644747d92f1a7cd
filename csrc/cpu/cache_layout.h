// Where the elements of a token's entry lie in a row of the cache types with scales, and what they
// are: moela_pool_desc in code, which the CPU and CUDA share.
#pragma once

#include <cmath>

#include "cpu/formats.h"

namespace moela {

// Bytes of a token's elements in a layer. r: kv_lora_rank, dr: qk_rope_head_dim.
MOELA_SHARED int64_t cache_row_bytes(int32_t dtype, int64_t r, int64_t dr) {
  const int64_t width = r + dr;
  return dtype == MOELA_F32    ? 4 * width
         : dtype == MOELA_BF16 ? 2 * width
         : dtype == MOELA_INT6 ? width / 4 * 3
                               : width;
}

// The byte at which the key [dr], int8, begins in types with scales.
MOELA_SHARED int64_t cache_key_at(int32_t dtype, int64_t r, int64_t dr) {
  return cache_row_bytes(dtype, r, dr) - dr;
}

// The largest magnitude of a latent, in scales; a key's is CACHE_KEY_MOST.
MOELA_SHARED int cache_most(int32_t dtype) {
  return dtype == MOELA_FP8 ? 448 : dtype == MOELA_INT8 ? 127 : 31;
}
constexpr int CACHE_KEY_MOST = 127;

// The scale of a code: 0, or (8 + code % 8) * 2^(code / 8 - 27), by its bits.
MOELA_SHARED float cache_scale(uint32_t code) {
  return code == 0 ? 0.f : float_of_bits(((code >> 3) + 103) << 23 | (code & 7) << 20);
}

// The code of the smallest scale with largest <= scale * most, 255 when there is none. The product
// is exact: eleven bits of mantissa at most.
MOELA_SHARED uint8_t cache_code(float largest, int most) {
  if (!(largest > 0)) return 0;
  const float q = static_cast<float>(most);
  // About right by exponent and mantissa, then exactly.
  int code = static_cast<int>(bits_of_float(largest / q) >> 20) - (127 - 24) * 8;
  code = code < 1 ? 1 : code > 255 ? 255 : code;
  while (code < 255 && largest > cache_scale(static_cast<uint32_t>(code)) * q) code++;
  while (code > 1 && largest <= cache_scale(static_cast<uint32_t>(code - 1)) * q) code--;
  return static_cast<uint8_t>(code);
}

// x / scale within [-most, most]. What is no number is 0.
MOELA_SHARED float cache_steps(float x, float scale, int most) {
  const float steps = scale > 0 ? x / scale : 0, limit = static_cast<float>(most);
  return !(steps == steps) ? 0 : steps > limit ? limit : steps < -limit ? -limit : steps;
}

// Round to nearest, ties to even.
MOELA_SHARED uint8_t cache_fp8(float steps) { return f32_to_fp8(steps); }
MOELA_SHARED uint8_t cache_int8(float steps) {
  return static_cast<uint8_t>(static_cast<int8_t>(rintf(steps)));
}

// ---- INT6 ------------------------------------------------------------------------------------

// Latents before this one have six bits, the 2 dr from it on five: their last bit is left out.
MOELA_SHARED int int6_short_at(int64_t r, int64_t dr) { return static_cast<int>(r - 2 * dr); }

// A latent's code, q + 32.
MOELA_SHARED uint32_t int6_code(float steps, bool is_short) {
  if (!is_short) return static_cast<uint32_t>(static_cast<int>(rintf(steps)) + 32);
  const int half = static_cast<int>(rintf(steps * 0.5f));
  return static_cast<uint32_t>((half > 15 ? 15 : half) * 2 + 32);
}

// Where a latent's code is: four bits at `low`, shifted, and one or two above them at `high`. A
// short code is halved.
struct Int6Place {
  int low, high, low_shift, high_shift;
  bool is_short;
};
MOELA_SHARED Int6Place int6_place(int i, int short_at) {
  const int j = i - short_at;
  if (j < 0) {
    const int group = i / 16 * 12;
    return {group + i % 8, group + 8 + i % 4, i % 16 / 8 * 4, i % 16 / 4 * 2, false};
  }
  const int group = short_at / 16 * 12 + j / 32 * 20;
  return {group + j % 16, group + 16 + j % 4, j % 32 / 16 * 4, j % 32 / 4, true};
}

// Into a row of bytes that were zero.
MOELA_SHARED void int6_put(uint8_t* row, const Int6Place& place, uint32_t code) {
  const uint32_t bits = place.is_short ? code / 2 : code;
  row[place.low] = static_cast<uint8_t>(row[place.low] | (bits & 15) << place.low_shift);
  row[place.high] = static_cast<uint8_t>(row[place.high] | (bits >> 4) << place.high_shift);
}

// The groups of a row: of 16 latents, then of 32 short ones. No byte is of two.
MOELA_SHARED int int6_groups(int64_t r, int64_t dr) { return static_cast<int>(r - dr) / 16; }
MOELA_SHARED void int6_put_group(uint8_t* row, int group, int short_at, const float* latents,
                                 float scale) {
  const int whole = short_at / 16;
  const bool is_short = group >= whole;
  const int first = is_short ? short_at + (group - whole) * 32 : group * 16;
  uint8_t* begin = row + int6_place(first, short_at).low;
  for (int i = 0; i < (is_short ? 20 : 12); i++) begin[i] = 0;
  for (int i = first; i < first + (is_short ? 32 : 16); i++) {
    const float steps = cache_steps(latents[i], scale, cache_most(MOELA_INT6));
    int6_put(row, int6_place(i, short_at), int6_code(steps, is_short));
  }
}

// q of a latent.
MOELA_SHARED int int6_get(const uint8_t* row, const Int6Place& place) {
  const int above = row[place.high] >> place.high_shift & (place.is_short ? 1 : 3);
  const int bits = (row[place.low] >> place.low_shift & 15) | above << 4;
  return (place.is_short ? 2 * bits : bits) - 32;
}

// Eight latents from i on, a multiple of 8, as CUDA reads them: the words that hold them, then
// their codes, one a byte.
struct Int6Eight {
  uint32_t words[3];
};
MOELA_SHARED Int6Eight int6_load(const uint32_t* row, int i, int short_at, bool is_short) {
  const int j = i - short_at;
  if (!is_short) {
    const uint32_t* group = row + i / 16 * 3;
    return {{group[0], group[1], group[2]}};
  }
  const uint32_t* group = row + short_at / 16 * 3 + j / 32 * 5;
  const int nibbles = j / 8 % 2 * 2;
  return {{group[nibbles], group[nibbles + 1], group[4]}};
}
MOELA_SHARED void int6_codes(const Int6Eight& eight, int i, int short_at, bool is_short,
                             uint32_t& first, uint32_t& second) {
  if (!is_short) {
    const int shift = i / 8 % 2 * 4;
    const uint32_t up = eight.words[2] >> shift;
    first = (eight.words[0] >> shift & 0x0f0f0f0f) | (up & 0x03030303) << 4;
    second = (eight.words[1] >> shift & 0x0f0f0f0f) | (up & 0x0c0c0c0c) << 2;
    return;
  }
  const int j = i - short_at, shift = j / 16 % 2 * 4;
  const uint32_t up = eight.words[2] >> (j / 4 % 8);
  first = (eight.words[0] >> shift & 0x0f0f0f0f) << 1 | (up & 0x01010101) << 5;
  second = (eight.words[1] >> shift & 0x0f0f0f0f) << 1 | (up & 0x02020202) << 4;
}

}  // namespace moela
