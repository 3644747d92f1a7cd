// Copies in the background: each is done when it is asked for or when it is waited for, as the seed
// has it, and until then its target holds nothing.
#include "cuda/ptx.cuh"
#include "memory.h"

namespace moela::cuda {
namespace {

void copy(void* to, const void* from, int bytes, int size) {
  if (reinterpret_cast<uintptr_t>(to) % size != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(from) % size != 0)) {
    emulated::fail("a copy of %d bytes from or to an address that is no multiple", size);
  }
  const emulated::Copy what{to, from, bytes, size};
  if (emulated::chance(2)) return emulated::perform(what);
  memset(to, emulated::POISON, size);
  emulated::self().copies.push_back(what);
}

}  // namespace

void copy16(void* to, const void* from, int bytes) { copy(to, from, bytes, 16); }
void copy4(void* to, const void* from, int bytes) { copy(to, from, bytes, 4); }

void commit_copies() {
  emulated::Fiber& me = emulated::self();
  me.groups.push_back(me.copies.size());
}

void wait_copies_pending(int pending) {
  emulated::Fiber& me = emulated::self();
  if (me.groups.size() <= static_cast<size_t>(pending)) return;
  const size_t groups = me.groups.size() - pending, end = me.groups[groups - 1];
  for (size_t i = 0; i < end; i++) emulated::perform(me.copies[i]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + end);
  me.groups.erase(me.groups.begin(), me.groups.begin() + groups);
  for (size_t& group : me.groups) group -= end;
}

}  // namespace moela::cuda
