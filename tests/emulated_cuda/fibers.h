// Threads of a GPU as fibers of one thread of the host. A kernel's blocks run one after another (a
// cluster's together), a block's threads in an order drawn from a seed: a thread runs until it must
// wait for others, or gives way, and then any that can run follows; now and then whole warps begin
// one after another, so that one runs ahead. What is missing between two
// threads (a barrier, a wait for a copy) so shows as a wrong result with some seed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace emulated {

struct Index {
  unsigned x, y, z;
};

struct Block;
struct Warp;

// A copy to shared memory that need not have happened before it is waited for.
struct Copy {
  void* to;
  const void* from;
  int bytes, size;  // what lies past `bytes` becomes zero
};

struct Fiber {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Index index{};
  int lane = 0;
  bool done = false;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // how many of `copies` each committed group ends with
  std::vector<Copy> stores;    // from shared memory
};

struct Barrier {
  int arrived = 0, expected = 0;
  int votes = 0, result = 0;
  std::vector<Fiber*> waiting;
};

struct Warp {
  uint64_t turn = 0;  // where warps begin one after another
  int arrived = 0;
  const void* instruction = nullptr;
  void* operands[32];
  Fiber* fibers[32];
  // Products under way, and how many of them each committed group ends with.
  std::vector<std::function<void()>> products;
  std::vector<size_t> groups;
};

struct Block {
  Index index{};
  int rank = 0;  // in its cluster
  int live = 0;
  char* shared = nullptr;  // dynamic
  Barrier barriers[16];
  std::vector<Warp> warps;
};

struct Kernel {
  const void* function;
  Index grid, block;
  size_t shared;
  int cluster;
  std::function<void()> body;
};

// Runs all blocks. Returns what went wrong, empty if nothing did.
std::string run(const Kernel& kernel);

// Of the thread that runs.
Fiber& self();
// Ends the kernel: what the GPU would not have survived, or nobody can have meant.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Lets others run; parked threads wait until somebody wakes them.
void give_way();
void park();
void wake(Fiber* fiber);
uint64_t random_bits();
bool chance(unsigned one_in);  // a power of two

// Copies, and fills the target's rest with zeros.
void perform(const Copy& copy);

// All threads of a warp at one instruction: the last one's `all` sees the operands of every lane.
void meet(void* operand, void (*all)(void** operands));
template <class Operand, void (*ALL)(Operand* const*)>
void meet(Operand& mine) {
  meet(&mine, [](void** operands) { ALL(reinterpret_cast<Operand* const*>(operands)); });
}

// Arrives at a barrier of the block for `threads` of them (0: all that have not ended), and waits
// there. Returns the sum of the votes.
int synchronise(int id, int threads, bool waits, int vote = 0);

// What the copy engine does at some time from now on.
void later(std::function<void()> task);
// Waits until somebody wakes those that wait for `what`.
void park_for(const void* what);
void wake_all(const void* what);

// Blocks of the cluster that run, and a barrier of all their threads.
Block& neighbour(int rank);
void synchronise_cluster();

// Shared memory by the numbers that instructions use: see shared_address() of ptx.cuh.
uint32_t address_of(const void* pointer);
void* pointer_of(uint32_t address);

}  // namespace emulated
