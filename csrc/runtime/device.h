// A CPU as a device: its threads and the kernels it runs.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/ops.h"
#include "moela.h"
#include "runtime/threads.h"

struct moela_device {
  explicit moela_device(const moela_device_options& options);

  const moela::Kernels* kernels;
  std::unique_ptr<moela::Threads> threads;
  std::vector<moela::Scratch> scratch;  // one a thread
  std::mutex mutex;                     // held by whoever uses threads and scratch
};
