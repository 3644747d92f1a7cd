// The device, its streams, events and recorded graphs. What a stream is given to do is done at once
// or when something waits for it, as the seed has it: a missing wait shows.
#include <cstdio>
#include <deque>

#include "cuda.h"
#include "cuda_runtime.h"
#include "device.h"

using Task = std::function<void()>;

struct EmulatedGraph {
  std::vector<Task> tasks;
};
struct EmulatedGraphExec {
  std::vector<Task> tasks;
};
struct EmulatedStream {
  std::deque<Task> tasks;
  int64_t given = 0, done = 0;
  EmulatedGraph* recording = nullptr;
};
struct EmulatedEvent {
  EmulatedStream* stream = nullptr;
  int64_t given = 0;  // to the stream, when it was recorded
};

namespace {

std::vector<EmulatedStream*> streams;
std::map<const void*, int> allowed_shared;
std::string failure;       // of a kernel, not yet told
std::string last_failure;  // the one told

void finish(EmulatedStream& stream, int64_t end) {
  while (stream.done < end) {
    Task task = std::move(stream.tasks.front());
    stream.tasks.pop_front();
    stream.done++;
    task();
  }
}

cudaError_t give(EmulatedStream* stream, Task task) {
  if (!stream) {
    task();
    return cudaSuccess;
  }
  if (stream->recording) {
    stream->recording->tasks.push_back(std::move(task));
    return cudaSuccess;
  }
  stream->tasks.push_back(std::move(task));
  stream->given++;
  if (emulated::chance(2)) finish(*stream, stream->given);
  return cudaSuccess;
}

cudaError_t told() {
  if (failure.empty()) return cudaSuccess;
  last_failure = failure;
  failure.clear();
  return cudaErrorLaunchFailure;
}

}  // namespace

namespace emulated {

std::recursive_mutex& mutex() {
  static std::recursive_mutex all;
  return all;
}

void report(const std::string& what) {
  fprintf(stderr, "emulated CUDA: %s\n", what.c_str());
  if (failure.empty()) failure = what;
}

void finish_all() {
  for (EmulatedStream* stream : streams) finish(*stream, stream->given);
}

}  // namespace emulated

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure:
      return last_failure.c_str();
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotReady:
      return "not ready";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "no error";
  }
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->major = __CUDA_ARCH__ / 100;
  properties->minor = __CUDA_ARCH__ / 10 % 10;
  properties->multiProcessorCount = emulated::MULTIPROCESSORS;
  snprintf(properties->name, sizeof properties->name, "emulated GPU of compute capability %d.%d",
           properties->major, properties->minor);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulated::MOST_SHARED;
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  emulated::Lock lock;
  memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  emulated::Lock lock;
  memcpy(to, from, bytes);
  return told();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  emulated::Lock lock;
  return give(stream, [=] { memcpy(to, from, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  emulated::Lock lock;
  streams.push_back(*stream = new EmulatedStream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emulated::Lock lock;
  finish(*stream, stream->given);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  emulated::Lock lock;
  if (stream) finish(*stream, stream->given);
  return told();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  emulated::Lock lock;
  if (stream->done < stream->given) {
    finish(*stream, stream->done + 1);
    return cudaErrorNotReady;
  }
  return told();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emulated::Lock lock;
  *event = {stream, stream->given};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  emulated::Lock lock;
  if (event->stream) finish(*event->stream, event->given);
  return told();
}
// There is no time here.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  emulated::Lock lock;
  stream->recording = new EmulatedGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  emulated::Lock lock;
  *graph = stream->recording;
  stream->recording = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new EmulatedGraphExec{graph->tasks};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  emulated::Lock lock;
  for (const Task& task : executable->tasks) give(stream, task);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t emulated_launch(const cudaLaunchConfig_t& config, const void* kernel, Task body) {
  emulated::Lock lock;
  const dim3 grid = config.gridDim, block = config.blockDim;
  int cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; i++) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      cluster = static_cast<int>(config.attrs[i].val.clusterDim.x);
    }
    // Blocks that wait for one another run together, as those of a cluster do.
    if (config.attrs[i].id == cudaLaunchAttributeCooperative) {
      cluster = static_cast<int>(grid.x * grid.y * grid.z);
    }
  }
  const int threads = static_cast<int>(block.x * block.y * block.z);
  const int most = allowed_shared.count(kernel) ? allowed_shared[kernel] : 48 << 10;
  const bool fits = threads > 0 && threads <= 1024 && grid.x > 0 && grid.y > 0 && grid.z > 0 &&
                    grid.y < 65536 && grid.z < 65536 && grid.x % cluster == 0 &&
                    static_cast<int>(config.dynamicSmemBytes) <= most;
  if (!fits) {
    fprintf(stderr, "emulated CUDA: a launch of (%u, %u, %u) x %d with %zu bytes of at most %d\n",
            grid.x, grid.y, grid.z, threads, config.dynamicSmemBytes, most);
    return cudaErrorInvalidValue;
  }
  const emulated::Kernel what = {
      kernel,  {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config.dynamicSmemBytes,
      cluster, std::move(body)};
  return give(config.stream, [what] {
    if (!failure.empty()) return;  // nothing runs after a kernel that failed
    const std::string error = emulated::run(what);
    if (!error.empty()) emulated::report(error);
  });
}

cudaError_t emulated_allow_shared(const void* kernel, int bytes) {
  emulated::Lock lock;
  if (bytes > emulated::MOST_SHARED) return cudaErrorInvalidValue;
  // The limit is the process's: another thread may be about to launch the kernel with more.
  if (allowed_shared.count(kernel) && bytes < allowed_shared[kernel]) {
    fprintf(stderr, "emulated CUDA: a kernel's shared memory is lowered from %d to %d bytes\n",
            allowed_shared[kernel], bytes);
    return cudaErrorInvalidValue;
  }
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}
cudaError_t emulated_clusters(int* most, const cudaLaunchConfig_t& config) {
  *most = emulated::MULTIPROCESSORS / static_cast<int>(config.attrs[0].val.clusterDim.x);
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const std::map<std::string, void*> functions = {
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(&cuMemGetAllocationGranularity)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(&cuMemAddressReserve)},
      {"cuMemAddressFree", reinterpret_cast<void*>(&cuMemAddressFree)},
      {"cuMemCreate", reinterpret_cast<void*>(&cuMemCreate)},
      {"cuMemRelease", reinterpret_cast<void*>(&cuMemRelease)},
      {"cuMemMap", reinterpret_cast<void*>(&cuMemMap)},
      {"cuMemUnmap", reinterpret_cast<void*>(&cuMemUnmap)},
      {"cuMemSetAccess", reinterpret_cast<void*>(&cuMemSetAccess)},
  };
  const auto at = functions.find(name);
  *function = at == functions.end() ? nullptr : at->second;
  *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
