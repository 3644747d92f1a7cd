// A recorded program, checked and planned.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/ops.h"
#include "moela.h"

namespace moela {

struct PlannedValue {
  moela_value value;
  int64_t elements;
  int64_t offset;         // bytes from the workspace's start
  int32_t producer = -1;  // index of the operation that writes it; -1: the caller does
};

struct Program {
  moela_program_desc desc;
  std::vector<PlannedValue> values;
  std::vector<moela_op> ops;
  int32_t tail;  // first of the operations over logits rows; ops.size() when none
  int64_t workspace_bytes;
  // What a step must satisfy.
  int64_t vocab_in = INT64_MAX;  // token ids are below
  int64_t vocab_out = 0;         // width of the logits
  int32_t layers = 0;            // caches need at least these
  int64_t kv_lora_rank = 0;      // 0: no operation touches a cache
  int64_t qk_rope_head_dim = 0;
  bool samples = false;
  bool has_projected = false;
};

// Throws ARGUMENT with the operation's index and what is wrong with it.
Program plan_program(const moela_program_desc& desc, const moela_value* values, const moela_op* ops,
                     const std::vector<const Weight*>& weights);

}  // namespace moela
