// Entries of a cache in FP8, INT8 and INT6, to and from f32.
#include "cpu/cache_format.h"

#include <algorithm>

namespace moela {
namespace {

uint8_t code_for(int64_t n, const float* x, int most) {
  float largest = 0;
  for (int64_t i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  return cache_code(largest, most);
}

}  // namespace

void encode_entry(int32_t dtype, int64_t r, int64_t dr, const float* entry, uint8_t* row,
                  uint8_t* codes) {
  const int most = cache_most(dtype);
  codes[0] = code_for(r, entry, most);
  codes[1] = code_for(dr, entry + r, CACHE_KEY_MOST);
  const float scale = cache_scale(codes[0]), key_scale = cache_scale(codes[1]);
  uint8_t* key = row + cache_key_at(dtype, r, dr);
  if (dtype == MOELA_INT6) {
    const int short_at = int6_short_at(r, dr);
    for (int group = 0; group < int6_groups(r, dr); group++) {
      int6_put_group(row, group, short_at, entry, scale);
    }
  } else {
    for (int64_t i = 0; i < r; i++) {
      const float steps = cache_steps(entry[i], scale, most);
      row[i] = dtype == MOELA_FP8 ? cache_fp8(steps) : cache_int8(steps);
    }
  }
  for (int64_t i = 0; i < dr; i++) {
    key[i] = cache_int8(cache_steps(entry[r + i], key_scale, CACHE_KEY_MOST));
  }
}

void decode_entry(int32_t dtype, int64_t r, int64_t dr, const uint8_t* row, float scale,
                  float key_scale, float* out) {
  const int short_at = int6_short_at(r, dr);
  for (int i = 0; i < r; i++) {
    const float value = dtype == MOELA_FP8 ? fp8_to_f32(row[i])
                        : dtype == MOELA_INT8
                            ? static_cast<float>(static_cast<int8_t>(row[i]))
                            : static_cast<float>(int6_get(row, int6_place(i, short_at)));
    out[i] = value * scale;
  }
  const uint8_t* key = row + cache_key_at(dtype, r, dr);
  for (int64_t i = 0; i < dr; i++) {
    out[r + i] = static_cast<float>(static_cast<int8_t>(key[i])) * key_scale;
  }
}

void decode_entries(const Kernels& kernels, const PagePool& pool, int32_t page, int32_t layer,
                    int64_t n, float* entries) {
  const int64_t r = pool.kv_lora_rank, dr = pool.qk_rope_head_dim;
  if (!has_scales(pool.dtype)) {
    kernels.load(pool.dtype, n * (r + dr), pool.at(page, layer), entries);
    return;
  }
  auto* decode = decode_entry;
#if defined(__x86_64__)
  if (kernels.id != MOELA_KERNELS_REFERENCE && r % 16 == 0 && dr % 16 == 0) {
    decode = decode_entry_avx2;
  }
#endif
  const uint8_t* rows = reinterpret_cast<const uint8_t*>(pool.at(page, layer));
  const uint8_t* codes = pool.scales_at(page, layer);
  for (int64_t i = 0; i < n; i++) {
    decode(pool.dtype, r, dr, rows + i * pool.row_bytes(), cache_scale(codes[2 * i]),
           cache_scale(codes[2 * i + 1]), entries + i * (r + dr));
  }
}

}  // namespace moela
