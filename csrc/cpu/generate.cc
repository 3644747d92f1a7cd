// Random weights as a pure function of (seed, key, index): a file, host memory and a GPU get the
// same bits, whatever part each of them fills.
#include "cpu/generate.h"

#include <cstring>

#include "moela.h"
#include "runtime/error.h"

namespace moela {
namespace {

// A bijection of 64-bit words whose every output bit depends on every input bit: two rounds of
// xor-shift and odd multiplier, the constants of MurmurHash3's finalizer.
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

// The four 16-bit words have a sum of mean 2 * 65535 and variance 4 (65536^2 - 1) / 12.
constexpr float INVERSE_DEVIATION = 2.6428998e-5f;  // 1 / sqrt((65536^2 - 1) / 3)

inline float element(uint64_t stream, uint64_t index, float mean, float scale) {
  const uint64_t hash = mix(stream + index * 0x9e3779b97f4a7c15ull);
  const int32_t sum = static_cast<int32_t>((hash & 0xffff) + ((hash >> 16) & 0xffff) +
                                           ((hash >> 32) & 0xffff) + (hash >> 48));
  // Exact up to here; then one multiplication and one addition, each rounded.
  return static_cast<float>(sum - 2 * 65535) * scale + mean;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

void generate(uint64_t seed, uint64_t key, uint64_t begin, uint64_t count, float mean,
              float deviation, int32_t dtype, void* out) {
  const uint64_t stream = mix(mix(seed + 0x9e3779b97f4a7c15ull) ^ key);
  const float scale = deviation * INVERSE_DEVIATION;
  if (dtype == MOELA_F32) {
    float* to = static_cast<float*>(out);
    for (uint64_t i = 0; i < count; i++) to[i] = element(stream, begin + i, mean, scale);
  } else {
    uint16_t* to = static_cast<uint16_t*>(out);
    for (uint64_t i = 0; i < count; i++) to[i] = to_bf16(element(stream, begin + i, mean, scale));
  }
}

}  // namespace moela

int32_t moela_generate(uint64_t seed, uint64_t key, uint64_t begin, uint64_t count, float mean,
                       float deviation, int32_t dtype, void* out, char* err, size_t err_len) {
  using namespace moela;
  return guard(err, err_len, [&] {
    require(out || count == 0, "nothing to generate into");
    require(dtype == MOELA_F32 || dtype == MOELA_BF16, "generates f32 or bf16");
    generate(seed, key, begin, count, mean, deviation, dtype, out);
  });
}
