// What a device does its own way with a model: hold its weights, and run steps.
#pragma once

#include "moela.h"
#include "runtime/control.h"
#include "runtime/program.h"

namespace moela {

struct StoredWeight;
struct Pool;

// A step as the caller gave it, checked.
struct StepArguments {
  const moela_step* step;
  const int32_t* tokens;
  const moela_segment* segments;
  const int32_t* pages;
  const int32_t* logit_rows;
  const int32_t* targets;
  const moela_sampling* sampling;
  const int32_t* aux;
  float* logits;
  float* logprobs;
  int32_t* entries;
  int32_t* control;
};

struct Backend {
  virtual ~Backend() = default;
  // Throws when the device has failed and nothing can work any more.
  virtual void check_alive() {}
  // Whether the device makes this weight itself: generated numbers, without the host's help.
  virtual bool make_weight(const moela_weight_desc&, const moela_weight_part*, StoredWeight&,
                           int32_t* /*control*/) {
    return false;
  }
  // Takes a weight that the host has read, converted or been given.
  virtual void hold_weight(StoredWeight&, int32_t* /*control*/) {}
  virtual void pool_added(const Pool&) {}
  // Runs a step, or several: publishes entries and steps, and throws CANCELLED when asked to.
  virtual void run(const Program& program, const StepArguments& arguments, Control& control) = 0;
};

}  // namespace moela
