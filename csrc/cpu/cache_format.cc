// Entries of a cache in FP8, INT8 and INT6, to and from f32.
#include "cpu/cache_format.h"

#include <algorithm>
#include <cstring>

namespace moela {
namespace {

constexpr float FP8_MAX = 448;
constexpr int64_t INT6_GROUP = 16;
constexpr int64_t INT6_GROUP_BYTES = 12;

float largest_quantum(int32_t dtype) {
  return dtype == MOELA_FP8 ? FP8_MAX : dtype == MOELA_INT8 ? 127 : 31;
}

// x rounded to the nearest E4M3, ties to even; |x| <= 448.
uint8_t to_fp8(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude < 0x1p-6f) {
    // Subnormals are multiples of 2^-9; eight of them are the smallest normal number.
    return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  }
  int exponent;
  const float fraction = std::frexp(magnitude, &exponent);  // [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(fraction * 16)) - 8;
  return sign | static_cast<uint8_t>((exponent + 6) * 8 + mantissa);
}

float from_fp8(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

// Where element i of a row of INT6 is: four bits in `low`, two in `high`.
struct Int6Place {
  int64_t low, high;
  int low_shift, high_shift;
  explicit Int6Place(int64_t i) {
    const int64_t group = i / INT6_GROUP * INT6_GROUP_BYTES, j = i % INT6_GROUP;
    low = group + j % 8;
    low_shift = static_cast<int>(j / 8 * 4);
    high = group + 8 + j % 4;
    high_shift = static_cast<int>(j / 4 * 2);
  }
};

void encode_part(int32_t dtype, int64_t begin, int64_t end, const float* entry, uint8_t* row,
                 uint8_t* code) {
  float max = 0;
  for (int64_t i = begin; i < end; i++) max = std::max(max, std::fabs(entry[i]));
  const float limit = largest_quantum(dtype);
  *code = code_of_scale(max, limit);
  const float scale = scale_of_code(*code);
  for (int64_t i = begin; i < end; i++) {
    float x = scale > 0 ? entry[i] / scale : 0;
    // What is no number is stored as 0; an infinity, or more than the largest scale holds, as the
    // largest there is.
    x = std::isnan(x) ? 0 : std::min(std::max(x, -limit), limit);
    if (dtype == MOELA_FP8) {
      row[i] = to_fp8(x);
    } else if (dtype == MOELA_INT8) {
      row[i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x)));
    } else {
      const int q = static_cast<int>(std::nearbyint(x)) + 32;
      const Int6Place place(i);
      row[place.low] |= static_cast<uint8_t>((q & 15) << place.low_shift);
      row[place.high] |= static_cast<uint8_t>((q >> 4) << place.high_shift);
    }
  }
}

}  // namespace

uint8_t code_of_scale(float max, float q) {
  if (!(max > 0)) return 0;
  // The quotient may be rounded down: the product decides.
  const auto holds = [&](int code) {
    return static_cast<double>(scale_of_code(static_cast<uint8_t>(code))) * q >= max;
  };
  int low = 1, high = 255;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (holds(middle))
      high = middle;
    else
      low = middle + 1;
  }
  return static_cast<uint8_t>(low);
}

void encode_entry(int32_t dtype, int64_t r, int64_t dr, const float* entry, uint8_t* row,
                  uint8_t* codes) {
  if (dtype == MOELA_INT6) memset(row, 0, (r + dr) / 4 * 3);
  encode_part(dtype, 0, r, entry, row, codes);
  encode_part(dtype, r, r + dr, entry, row, codes + 1);
}

void decode_part(int32_t dtype, const uint8_t* row, int64_t begin, int64_t end, float scale,
                 float* out) {
  for (int64_t i = begin; i < end; i++) {
    if (dtype == MOELA_FP8) {
      out[i] = from_fp8(row[i]) * scale;
    } else if (dtype == MOELA_INT8) {
      out[i] = static_cast<float>(static_cast<int8_t>(row[i])) * scale;
    } else {
      const Int6Place place(i);
      const int q = ((row[place.low] >> place.low_shift) & 15) |
                    ((row[place.high] >> place.high_shift) & 3) << 4;
      out[i] = static_cast<float>(q - 32) * scale;
    }
  }
}

void decode_entries(const Kernels& kernels, const PagePool& pool, int32_t page, int32_t layer,
                    int64_t n, float* entries) {
  const int64_t r = pool.kv_lora_rank, width = pool.width();
  if (!has_scales(pool.dtype)) {
    kernels.load(pool.dtype, n * width, pool.at(page, layer), entries);
    return;
  }
  auto* decode = decode_part;
#if defined(__x86_64__)
  if (kernels.id != MOELA_KERNELS_REFERENCE && r % 16 == 0 && width % 16 == 0) {
    decode = decode_part_avx2;
  }
#endif
  const uint8_t* rows = reinterpret_cast<const uint8_t*>(pool.at(page, layer));
  const uint8_t* codes = pool.scales_at(page, layer);
  for (int64_t i = 0; i < n; i++) {
    const uint8_t* row = rows + i * pool.row_bytes();
    float* entry = entries + i * width;
    decode(pool.dtype, row, 0, r, scale_of_code(codes[2 * i]), entry);
    decode(pool.dtype, row, r, width, scale_of_code(codes[2 * i + 1]), entry);
  }
}

}  // namespace moela
