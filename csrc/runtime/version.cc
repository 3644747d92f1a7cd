// What ffi/ checks before it trusts a library: version, build, struct layouts.
#include <cstddef>
#include <cstring>
#include <string>

#include "moela.h"

#ifndef MOELA_BUILD_ID
#define MOELA_BUILD_ID "unknown"
#endif

namespace {

class Layouts {
 public:
  void begin(const char* name, size_t size) {
    text_ += text_.empty() ? "{" : "}},";
    text_ += "\"" + std::string(name) + "\":{\"size\":" + std::to_string(size) + ",\"fields\":{";
    first_ = true;
  }
  void field(const char* name, size_t offset, size_t size) {
    if (!first_) text_ += ",";
    first_ = false;
    text_ += "\"" + std::string(name) + "\":[" + std::to_string(offset) + "," +
             std::to_string(size) + "]";
  }
  std::string end() const { return text_ + "}}}"; }

 private:
  std::string text_;
  bool first_ = true;
};

#define STRUCT(type)    \
  using Current = type; \
  layouts.begin(#type, sizeof(type));
#define FIELD(name) layouts.field(#name, offsetof(Current, name), sizeof(Current::name));

std::string describe() {
  Layouts layouts;
  {
    STRUCT(moela_device_options)
    FIELD(size)
    FIELD(index)
    FIELD(threads)
    FIELD(kernels)
  }
  {
    STRUCT(moela_device_info)
    FIELD(size)
    FIELD(kernels)
    FIELD(available)
    FIELD(threads)
    FIELD(memory_total)
    FIELD(memory_free)
    FIELD(name)
  }
  {
    STRUCT(moela_memory)
    FIELD(size)
    FIELD(reserved)
    FIELD(weights_private)
    FIELD(weights_mapped)
    FIELD(pools)
    FIELD(workspace)
  }
  {
    STRUCT(moela_weight_desc)
    FIELD(size)
    FIELD(stored)
    FIELD(dtype)
    FIELD(count)
    FIELD(rows)
    FIELD(cols)
    FIELD(seed)
    FIELD(mean)
    FIELD(deviation)
  }
  {
    STRUCT(moela_weight_part)
    FIELD(file)
    FIELD(scale_file)
    FIELD(offset)
    FIELD(scale_offset)
  }
  {
    STRUCT(moela_pool_desc)
    FIELD(size)
    FIELD(dtype)
    FIELD(layers)
    FIELD(kv_lora_rank)
    FIELD(qk_rope_head_dim)
    FIELD(max_pages)
  }
  {
    STRUCT(moela_op)
    FIELD(kind)
    FIELD(rows)
    FIELD(in)
    FIELD(out)
    FIELD(weight)
    FIELD(n)
    FIELD(f)
  }
  {
    STRUCT(moela_value)
    FIELD(dtype)
    FIELD(rows)
    FIELD(cols)
    FIELD(extra)
    FIELD(keep)
    FIELD(reserved)
  }
  {
    STRUCT(moela_program_desc)
    FIELD(size)
    FIELD(max_rows)
    FIELD(max_logits)
    FIELD(n_values)
    FIELD(n_ops)
    FIELD(reserved)
  }
  {
    STRUCT(moela_segment)
    FIELD(row)
    FIELD(rows)
    FIELD(position)
    FIELD(pool)
    FIELD(page)
    FIELD(n_pages)
  }
  {
    STRUCT(moela_sampling)
    FIELD(temperature)
    FIELD(top_p)
    FIELD(min_p)
    FIELD(typical_p)
    FIELD(repetition_penalty)
    FIELD(presence_penalty)
    FIELD(frequency_penalty)
    FIELD(top_k)
    FIELD(seed)
    FIELD(index)
    FIELD(history)
    FIELD(n_prompt)
    FIELD(n_output)
    FIELD(bias)
    FIELD(n_bias)
    FIELD(mask)
    FIELD(stop)
    FIELD(n_stop)
    FIELD(min_index)
    FIELD(top_logprobs)
    FIELD(segment)
  }
  {
    STRUCT(moela_step)
    FIELD(size)
    FIELD(program)
    FIELD(n_rows)
    FIELD(n_absorbed)
    FIELD(n_segments)
    FIELD(n_pages)
    FIELD(n_logits)
    FIELD(n_sampling)
    FIELD(n_aux)
    FIELD(entry_words)
    FIELD(steps)
    FIELD(masks_follow)
  }
  return layouts.end();
}

int64_t copy_out(const std::string& text, char* out, size_t out_len) {
  if (out && out_len > 0) {
    const size_t length = text.size() < out_len ? text.size() : out_len - 1;
    memcpy(out, text.data(), length);
    out[length] = 0;
  }
  return static_cast<int64_t>(text.size());
}

}  // namespace

uint32_t moela_abi_version(void) { return MOELA_ABI_VERSION; }

int32_t moela_build_id(char* out, size_t out_len) {
  return static_cast<int32_t>(copy_out(MOELA_BUILD_ID, out, out_len));
}

int64_t moela_layout(char* out, size_t out_len) {
  try {
    return copy_out(describe(), out, out_len);
  } catch (...) {
    return 0;
  }
}
