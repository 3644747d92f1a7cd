// Barriers in shared memory, and the copies that end at them.
#include "cuda/barrier.cuh"
#include "memory.h"

#if __CUDA_ARCH__ >= 900
namespace moela::cuda {
namespace {

// What an mbarrier's 8 bytes hold here.
struct Barrier {
  uint16_t missing, count;  // arrivals of this phase, of each
  int32_t bytes : 31;       // that the copy engine still has to bring
  uint32_t phase : 1;
};
static_assert(sizeof(Barrier) == 8, "");

Barrier& at(uint32_t address) { return *static_cast<Barrier*>(emulated::pointer_of(address)); }

void settle(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.missing = barrier.count;
  emulated::wake_all(&barrier);
}

void arrive(Barrier& barrier) {
  if (barrier.missing == 0) emulated::fail("too many arrivals at an mbarrier");
  barrier.missing--;
  settle(barrier);
}

}  // namespace

void barrier_init(uint32_t barrier, uint32_t count) {
  const auto n = static_cast<uint16_t>(count);
  at(barrier) = {n, n, 0, 0};
}
void barrier_arrive(uint32_t barrier) { arrive(at(barrier)); }
void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  at(barrier).bytes += static_cast<int32_t>(bytes);
  arrive(at(barrier));
}
void emulated_landed(uint32_t barrier, int bytes) {
  at(barrier).bytes -= bytes;
  settle(at(barrier));
}
void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (at(barrier).phase == parity) emulated::park_for(&at(barrier));
}

void barrier_arrive_copies(uint32_t barrier) {
  emulated::Fiber& me = emulated::self();
  Barrier& target = at(barrier);
  emulated::later([copies = std::move(me.copies), &target] {
    for (const emulated::Copy& copy : copies) emulated::perform(copy);
    arrive(target);
  });
  me.copies.clear();
  me.groups.clear();
}

void bulk_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  const auto misplaced = [](uintptr_t at) { return at % 16 != 0; };
  if (misplaced(to) || misplaced(reinterpret_cast<uintptr_t>(from)) || misplaced(bytes)) {
    emulated::fail("a bulk copy whose addresses or size are no multiples of 16");
  }
  void* target = emulated::pointer_of(to);
  memset(target, emulated::POISON, bytes);
  emulated::later([=] {
    memcpy(target, from, bytes);
    emulated_landed(barrier, bytes);
  });
}

void bulk_store(void* to, uint32_t from, int bytes) {
  const emulated::Copy store{to, emulated::pointer_of(from), bytes, bytes};
  if (emulated::chance(2)) return emulated::perform(store);
  emulated::self().stores.push_back(store);
}
void bulk_store_read() {
  for (const emulated::Copy& store : emulated::self().stores) emulated::perform(store);
  emulated::self().stores.clear();
}

}  // namespace moela::cuda
#endif
