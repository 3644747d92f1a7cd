// Input rows as products with INT8 and INT4 take them.
//
// A row x is quantized by group of 128 columns, the last filled with zeros: q = round(x * (127 /
// max|x|)), to nearest even, and its scale max|x| / 127. A group's integer sum is exact, and
// y = fma(float(sum), scale_x * scale_w, y) over the groups in ascending order, y from 0: so the
// result has the same bits however the integers are added.
#pragma once

#include <cstdint>
#include <type_traits>

#include "formats.h"

namespace moela {
namespace {

// Where the parts of a packed row lie, in bytes: q, int8 (or int16 where `wide`) [128 G]; scales,
// f32 [G]; eights, int16 [4 G]: 8 times the sum of 32 columns of q, which products of INT4's q + 8
// and INT8's q + 128 have too much.
struct IntegerRow {
  int64_t groups;
  int64_t q_bytes;

  IntegerRow(int64_t cols, bool wide)
      : groups(groups_of(cols)), q_bytes(groups * GROUP * (wide ? 2 : 1)) {}
  int64_t stride() const { return (q_bytes + groups * 12 + 63) / 64 * 64; }
  template <class Byte>  // char or const char
  auto scales(Byte* row) const {
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const float, float>*>(
        row + q_bytes);
  }
  template <class Byte>
  auto eights(Byte* row) const {
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const int16_t, int16_t>*>(
        row + q_bytes + groups * 4);
  }
};

// The factor and the scale of a group whose max|x| has these bits. Groups so small that the factor
// would be infinite become zeros; in one that is not finite the scale is NaN and q is 0.
struct GroupScale {
  float factor;
  float scale;
  bool zero;
};
inline GroupScale group_scale(uint32_t magnitude_bits) {
  if (magnitude_bits >= 0x7f800000) return {0, __builtin_nanf(""), true};
  const float magnitude = float_of_bits(magnitude_bits);
  if (magnitude < 0x1p-110f) return {0, 0, true};
  return {127 / magnitude, magnitude / 127, false};
}

}  // namespace
}  // namespace moela
