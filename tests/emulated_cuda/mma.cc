// Products of a warp: c [16, 8] += a [16, K] b [K, 8], as csrc/cuda/ptx.cuh has their fragments.
#include "cuda/ptx.cuh"

namespace moela::cuda {
namespace {

template <class Sum>
struct Mma {
  Sum* c;
  uint32_t a[4], b[2];
};

// A row of a and a column of b are 8 words of EACH elements; `element` takes one out of a word.
template <int EACH, class Exact, class Sum, class Element>
void multiply(Mma<Sum>* const* lanes, Element element) {
  Exact a[16][8 * EACH], b[8 * EACH][8];
  for (int lane = 0; lane < 32; lane++) {
    const Mma<Sum>& own = *lanes[lane];
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < EACH; e++) {
      for (int i = 0; i < 4; i++) {
        a[g + i % 2 * 8][(t + i / 2 * 4) * EACH + e] = element(own.a[i], e);
      }
      for (int i = 0; i < 2; i++) b[(t + i * 4) * EACH + e][g] = element(own.b[i], e);
    }
  }
  for (int row = 0; row < 16; row++) {
    Exact sums[8] = {};
    for (int k = 0; k < 8 * EACH; k++) {
      for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; column++) {
      Sum& c = lanes[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2];
      c = static_cast<Sum>(c + sums[column]);
    }
  }
}

// The sum is rounded once; a GPU's is about as exact.
void multiply_bf16(Mma<float>* const* lanes) {
  multiply<2, double>(lanes, [](uint32_t word, int i) { return double(bf16_half(word, i)); });
}
void multiply_s8(Mma<int>* const* lanes) {
  multiply<4, int>(lanes, [](uint32_t word, int i) { return int(int8_t(word >> (8 * i))); });
}

}  // namespace

void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
              uint32_t b1) {
  Mma<float> mine{c, {a0, a1, a2, a3}, {b0, b1}};
  emulated::meet<Mma<float>, multiply_bf16>(mine);
}
void mma_s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
            uint32_t b1) {
  Mma<int> mine{c, {a0, a1, a2, a3}, {b0, b1}};
  emulated::meet<Mma<int>, multiply_s8>(mine);
}

}  // namespace moela::cuda
