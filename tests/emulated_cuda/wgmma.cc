// Warpgroup products: done when they are committed or when they are waited for, as the seed has it.
#include "cuda/wgmma_mma.cuh"
#include "swizzle.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace moela::cuda {
namespace {

float element(uint32_t block, uint64_t descriptor, int offset) {
  const uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const void* at = emulated::swizzled((address + offset) | block << 24);
  return bf16_half(*static_cast<const uint16_t*>(at), 0);
}
int leading(uint64_t descriptor) { return static_cast<int>(descriptor >> 16 & 0x3fff) << 4; }
int stride(uint64_t descriptor) { return static_cast<int>(descriptor >> 32 & 0x3fff) << 4; }

// Element (row, k) of rows of 64 of k, and (k, column) of rows of 64 columns.
int row_offset(uint64_t descriptor, int row, int k) {
  return row / 8 * stride(descriptor) + row % 8 * 128 + 2 * k;
}
int column_offset(uint64_t descriptor, int k, int column) {
  return column / 64 * leading(descriptor) + k / 8 * stride(descriptor) + k % 8 * 128 +
         column % 64 * 2;
}

struct Product {
  EmulatedWgmma what;
  float* d[32];
  uint32_t registers[32][4];
  uint32_t block;
  int warp;  // of the warpgroup

  void run() const {
    float a[16][16], b[256][16];
    for (int row = 0; row < 16; row++) {
      for (int k = 0; k < 16; k++) {
        if (what.registers) {
          const uint32_t word = registers[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
          a[row][k] = bf16_half(word, k % 2);
        } else {
          a[row][k] = element(block, what.a, row_offset(what.a, warp * 16 + row, k));
        }
      }
    }
    for (int column = 0; column < what.n; column++) {
      for (int k = 0; k < 16; k++) {
        b[column][k] = element(
            block, what.b,
            what.columns ? column_offset(what.b, k, column) : row_offset(what.b, column, k));
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < what.n / 2; i++) {
        const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
        double sum = what.adds ? double(d[lane][i]) : 0;
        for (int k = 0; k < 16; k++) sum += double(a[row][k]) * double(b[column][k]);
        d[lane][i] = static_cast<float>(sum);
      }
    }
  }
};

void issue(EmulatedWgmma* const* lanes) {
  const emulated::Fiber& me = emulated::self();
  Product product{*lanes[0], {}, {}, static_cast<uint32_t>(me.block->rank), 0};
  product.warp = static_cast<int>(me.warp - me.block->warps.data()) % 4;
  for (int lane = 0; lane < 32; lane++) {
    if (lanes[lane]->a != product.what.a || lanes[lane]->b != product.what.b) {
      emulated::fail("lanes of a warp multiply different matrices");
    }
    product.d[lane] = lanes[lane]->d;
    if (product.what.registers) memcpy(product.registers[lane], lanes[lane]->registers, 16);
  }
  me.warp->products.push_back([product] { product.run(); });
}

void finish(emulated::Warp& warp, size_t groups) {
  if (groups == 0) return;
  const size_t end = warp.groups[groups - 1];
  for (size_t i = 0; i < end; i++) warp.products[i]();
  warp.products.erase(warp.products.begin(), warp.products.begin() + end);
  warp.groups.erase(warp.groups.begin(), warp.groups.begin() + groups);
  for (size_t& group : warp.groups) group -= end;
}

void commit(int* const*) {
  emulated::Warp& warp = *emulated::self().warp;
  warp.groups.push_back(warp.products.size());
  if (emulated::chance(2)) finish(warp, warp.groups.size());
}
void wait(int* const* pending) {
  emulated::Warp& warp = *emulated::self().warp;
  const size_t most = **pending;
  if (warp.groups.size() > most) finish(warp, warp.groups.size() - most);
}

}  // namespace

void emulated_wgmma(EmulatedWgmma& mine) { emulated::meet<EmulatedWgmma, issue>(mine); }
void wgmma_commit() {
  int none = 0;
  emulated::meet<int, commit>(none);
}
void emulated_wgmma_wait(int pending) { emulated::meet<int, wait>(pending); }

}  // namespace moela::cuda
#endif
