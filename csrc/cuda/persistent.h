// All layers of a decode program in one launch, for a step of one row: see persistent.cu.
#pragma once

#include "cuda/ops.h"

namespace moela::cuda {

// A matrix of the weights' type, or of a layer's experts the first one.
struct PersistentMatrix {
  const char* data;
  const char* scales;
};
struct PersistentNorm {
  const char* weight;
  int32_t dtype;  // F32 or BF16
  float epsilon;
};
struct PersistentLayer {
  PersistentNorm input_norm, latent_norm, post_norm;
  PersistentMatrix q, kv_a, kv_b, o;
  PersistentMatrix shared_gate, shared_up, shared_down;  // or those of a dense layer
  PersistentMatrix gate, up, down;                       // of expert 0
  const float* router;                                   // [experts, d]; NULL: a dense layer
  const float* bias;                                     // [experts], or NULL
  int64_t shared;                                        // rows of shared_gate; 0: none
};

// What blocks hand to one another, in device memory: see persistent_exchange.cuh.
struct PersistentScratch {
  uint32_t* epochs;    // one number: of the launches so far
  uint64_t* hidden;    // [d], after a layer
  uint64_t* middle;    // [d], between attention and feed-forward
  uint64_t* q;         // [heads, 192]
  uint64_t* kv_a;      // [576]
  uint64_t* q_latent;  // [16, 576]
  uint64_t* parts;     // [PERSISTENT_PARTS, 16, 512]: attention over a part of the keys
  uint64_t* states;    // [PERSISTENT_PARTS, 16, 2]: its maximum and sum of weights
  uint64_t* merged;    // [16, 512]
  uint64_t* attended;  // [heads, 128]
  uint64_t* logits;    // [experts]
  uint64_t* inner;     // of shared experts, then of those chosen, by rank, or of a dense layer
};
// Keys that a step's attention can read: so many parts of at most 256.
constexpr int64_t PERSISTENT_PARTS = 1024;
constexpr int64_t PERSISTENT_KEYS = PERSISTENT_PARTS * 256;

struct PersistentStep {
  const PersistentLayer* layers;  // in device memory
  int32_t n_layers, n_routed;     // layers, and those of them with a router
  int32_t dtype;                  // of the weights
  int32_t kv_a_dtype;             // as KV_A_TYPE of persistent.cuh says
  int32_t kv_b_dtype;             // as KV_B_TYPE says
  int32_t d, heads;
  int32_t intermediate;   // of an expert
  int64_t shared, dense;  // rows of shared_gate at most, in layers with and without a router
  int64_t gate_part, gate_scale_part, down_part, down_scale_part;  // bytes from expert to expert
  RouterShape shape;                                               // top_k 0: no layer has one
  float scale;                                                     // of the scores
  const char* embedding;                                           // [vocab, d]
  int32_t embedding_dtype;
  const double* frequencies;  // [32]
  float rope_factor;
  float* out;  // [d]: after the last layer
};

// Whether the kernel can do it on this GPU.
bool persistent_fits(const Launch&, const PersistentStep&);
// Bytes of scratch memory, zero before its first use.
int64_t persistent_bytes(const PersistentStep&);
// The row's cache has one of the 16- and 8-bit types and INT6, and at most PERSISTENT_KEYS keys.
void persistent_step(const Launch&, const PersistentStep&, char* scratch);

}  // namespace moela::cuda
