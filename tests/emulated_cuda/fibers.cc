// The scheduler: see fibers.h.
#include "fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cuda_runtime.h"
#include "memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

constexpr size_t STACK = 128 << 10;
constexpr int MOST_THREADS = 1024 * 17;
constexpr size_t SHARED_ROOM = 256 << 10;
// Times that threads may give way while nothing else happens.
constexpr int64_t PATIENCE = 50'000'000;

std::vector<Fiber> fibers;
std::vector<Block> blocks;
std::vector<Fiber*> ready;
std::vector<Fiber*> at_cluster_barrier;
std::vector<std::function<void()>> engine;
std::map<const void*, std::vector<Fiber*>> waiting;
Fiber host;
Fiber* running = &host;
const Kernel* kernel;
std::string failure;
int live;
int64_t gave_way;
unsigned stray;  // one in so many choices is any thread's, the others the latest's

uint64_t seed() {
  const char* text = getenv("MOELA_EMULATED_SEED");
  return text ? strtoull(text, nullptr, 10) : 1;
}
size_t random_below(size_t n) { return (random_bits() & 0xffffffff) * n >> 32; }
uint64_t state = seed() * 0x9e3779b97f4a7c15ull + 1;

char* map(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) abort();
  return static_cast<char*>(at);
}
char* stack_of(size_t number) {
  static char* stacks = map(STACK * MOST_THREADS);
  return stacks + STACK * number;
}
char* shared_of(size_t rank) {
  static char* rooms = map(SHARED_ROOM * 32);
  return rooms + SHARED_ROOM * rank;
}

}  // namespace

// Saves what a function keeps, and goes on where another stack was left.
extern "C" void moela_emulated_switch(void** from, void* to);
asm(R"(
.text
.globl moela_emulated_switch
.hidden moela_emulated_switch
.type moela_emulated_switch, @function
moela_emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace {

void go_on(Fiber* next) {
  Fiber* me = running;
  if (next == me) return;
  running = next;
  if (next->block) {
    threadIdx = {next->index.x, next->index.y, next->index.z};
    blockIdx = {next->block->index.x, next->block->index.y, next->block->index.z};
  }
  moela_emulated_switch(&me->stack_pointer, next->stack_pointer);
}

Fiber* choose() {
  while (!engine.empty() && (ready.empty() || chance(8))) {
    std::swap(engine[random_below(engine.size())], engine.back());
    const auto task = std::move(engine.back());
    engine.pop_back();
    task();
  }
  if (ready.empty()) return &host;
  if (chance(stray)) std::swap(ready[random_below(ready.size())], ready.back());
  Fiber* next = ready.back();
  ready.pop_back();
  return next;
}

void complete(Barrier& barrier) {
  barrier.arrived = 0;
  barrier.result = barrier.votes;
  barrier.votes = 0;
  for (Fiber* fiber : barrier.waiting) wake(fiber);
  barrier.waiting.clear();
}

void cluster_barrier_complete() {
  for (Fiber* fiber : at_cluster_barrier) wake(fiber);
  at_cluster_barrier.clear();
}

void thread_main() {
  kernel->body();
  Fiber& me = *running;
  for (const Copy& store : me.stores) perform(store);
  me.done = true;
  live--;
  gave_way = 0;
  Barrier& barrier = me.block->barriers[0];
  if (--me.block->live == barrier.arrived && barrier.arrived > 0) complete(barrier);
  if (live > 0 && static_cast<int>(at_cluster_barrier.size()) == live) cluster_barrier_complete();
  go_on(choose());
  abort();
}

void prepare(Fiber& fiber, size_t number) {
  void** top = reinterpret_cast<void**>(stack_of(number) + STACK);
  *--top = nullptr;  // where a caller's address would lie
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}

// The blocks of cluster `first` of the grid, all threads ready.
void set_up(unsigned first, bool fresh) {
  const Index grid = kernel->grid, size = kernel->block;
  const int threads = static_cast<int>(size.x * size.y * size.z);
  blocks.resize(kernel->cluster);
  fibers.resize(static_cast<size_t>(threads) * kernel->cluster);
  live = static_cast<int>(fibers.size());
  ready.clear();
  at_cluster_barrier.clear();
  engine.clear();
  waiting.clear();
  for (int rank = 0; rank < kernel->cluster; rank++) {
    Block& block = blocks[rank];
    const unsigned number = first + rank;
    block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    block.rank = rank;
    block.live = threads;
    block.shared = shared_of(rank);
    memset(block.shared, POISON, kernel->shared);
    for (Barrier& barrier : block.barriers) {
      barrier.arrived = barrier.votes = 0;
      barrier.waiting.clear();
    }
    block.warps.assign((threads + 31) / 32, Warp{});
    for (Warp& warp : block.warps) warp.turn = random_bits();
    for (int i = 0; i < threads; i++) {
      Fiber& fiber = fibers[static_cast<size_t>(rank) * threads + i];
      fiber.block = &block;
      fiber.warp = &block.warps[i / 32];
      fiber.lane = i % 32;
      fiber.warp->fibers[i % 32] = &fiber;
      const unsigned n = i;
      fiber.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
      fiber.done = false;
      fiber.copies.clear();
      fiber.groups.clear();
      fiber.stores.clear();
      prepare(fiber, static_cast<size_t>(rank) * threads + i);
      ready.push_back(&fiber);
    }
  }
  // Once for each launch, and now and then: it is more than a kernel uses.
  if (fresh || chance(32)) poison_static_shared();
  for (size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[random_below(i)]);
  // Now and then a warp's threads begin one after another, so that it runs ahead of other warps.
  if (chance(2)) {
    std::stable_sort(ready.begin(), ready.end(),
                     [](const Fiber* a, const Fiber* b) { return a->warp->turn < b->warp->turn; });
  }
  const unsigned strays[] = {1, 8, 64};
  stray = strays[random_below(3)];
}

void describe_deadlock() {
  std::string where;
  for (size_t b = 0; b < blocks.size(); b++) {
    for (int i = 0; i < 16; i++) {
      const Barrier& barrier = blocks[b].barriers[i];
      if (barrier.arrived == 0) continue;
      where += " " + std::to_string(barrier.arrived) + " at barrier " + std::to_string(i) + ";";
    }
    for (const Warp& warp : blocks[b].warps) {
      if (warp.arrived == 0) continue;
      where += " " + std::to_string(warp.arrived) + " lanes of a warp at one instruction;";
    }
  }
  for (const auto& [what, fibers] : waiting) {
    if (!fibers.empty()) where += " " + std::to_string(fibers.size()) + " at an mbarrier;";
  }
  failure = "threads wait for one another:" + where;
}

}  // namespace

uint64_t random_bits() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state >> 11;
}
bool chance(unsigned one_in) { return (random_bits() & (one_in - 1)) == 0; }

Fiber& self() { return *running; }

void fail(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  failure = text;
  go_on(&host);
  abort();
}

void wake(Fiber* fiber) {
  gave_way = 0;
  ready.push_back(fiber);
}
void park() { go_on(choose()); }
void park_for(const void* what) {
  waiting[what].push_back(running);
  park();
}
void wake_all(const void* what) {
  const auto found = waiting.find(what);
  if (found == waiting.end()) return;
  for (Fiber* fiber : found->second) wake(fiber);
  found->second.clear();
}
void later(std::function<void()> task) { engine.push_back(std::move(task)); }
void perform(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
}
void give_way() {
  if (++gave_way > PATIENCE) fail("threads wait in loops for what does not happen");
  // Not the latest, or it would be chosen again.
  ready.push_back(running);
  std::swap(ready[random_below(ready.size())], ready.back());
  go_on(choose());
}

void meet(void* operand, void (*all)(void**)) {
  Fiber& me = *running;
  Warp& warp = *me.warp;
  if (warp.arrived == 0) warp.instruction = reinterpret_cast<const void*>(all);
  if (warp.instruction != reinterpret_cast<const void*>(all)) {
    fail("lanes of a warp are at different instructions that need them all");
  }
  warp.operands[me.lane] = operand;
  if (++warp.arrived < 32) return park();
  warp.arrived = 0;
  all(warp.operands);
  for (Fiber* fiber : warp.fibers) {
    if (fiber != &me) wake(fiber);
  }
}

int synchronise(int id, int threads, bool waits, int vote) {
  Fiber& me = *running;
  Barrier& barrier = me.block->barriers[id];
  const int expected = threads ? threads : me.block->live;
  if (barrier.arrived > 0 && threads && barrier.expected != expected) {
    fail("barrier %d is for %d threads and for %d", id, barrier.expected, expected);
  }
  barrier.expected = expected;
  barrier.votes += vote;
  const bool last = ++barrier.arrived == expected;
  if (last) complete(barrier);
  if (!last && waits) {
    barrier.waiting.push_back(&me);
    park();
  }
  return barrier.result;
}

Block& neighbour(int rank) {
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) fail("block %d of a cluster", rank);
  return blocks[rank];
}

void synchronise_cluster() {
  if (static_cast<int>(at_cluster_barrier.size()) + 1 == live) return cluster_barrier_complete();
  at_cluster_barrier.push_back(running);
  park();
}

uint32_t address_of(const void* pointer) {
  const char* at = static_cast<const char*>(pointer);
  for (const Block& block : blocks) {
    if (at >= block.shared && at < block.shared + SHARED_ROOM) {
      return static_cast<uint32_t>(at - block.shared) | static_cast<uint32_t>(block.rank) << 24;
    }
  }
  fail("an address of static shared memory in an instruction");
}

void* pointer_of(uint32_t address) {
  return neighbour(static_cast<int>(address >> 24)).shared + (address & 0xffffff);
}

std::string run(const Kernel& what) {
  kernel = &what;
  failure.clear();
  gridDim = dim3(what.grid.x, what.grid.y, what.grid.z);
  blockDim = dim3(what.block.x, what.block.y, what.block.z);
  const unsigned count = what.grid.x * what.grid.y * what.grid.z / what.cluster;
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; i++) order[i] = i;
  for (unsigned i = count; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
  for (unsigned cluster : order) {
    set_up(cluster * what.cluster, cluster == order[0]);
    gave_way = 0;
    go_on(choose());
    if (failure.empty() && live > 0) describe_deadlock();
    if (!failure.empty()) break;
  }
  return failure;
}

}  // namespace emulated
