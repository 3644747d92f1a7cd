// What the kernels of tiles of 16 heads share (mla_decode_cluster.cu and mla_decode_rows.cu): eight
// warps take 32 keys at a time,
//   S [16, 32] = q K^T: warp w sums dims [144 (w % 4), ...) of keys [16 (w / 4), ...); the four
//   sums are added in order where the running softmax reads them; O [16, 512] += P V: 64 columns a
//   warp.
// F32 caches take the same way with f32 arithmetic in the place of mma.sync, 16 keys at a time.
#pragma once

#include "cuda/cache_tile.cuh"
#include "cuda/mla_decode.cuh"

namespace moela::cuda {

namespace {

constexpr int WARPS = 8;  // that compute
constexpr int COMPUTING = 32 * WARPS;
constexpr int R = MLA_FAST_R, DR = MLA_FAST_DR, WIDTH = R + DR;
constexpr int HEADS = MLA_HEAD_TILE;
constexpr int TILE = MLA_SHARE_TILE, TILE_F32 = 16;  // keys
constexpr int ROW = 2 * WIDTH + 16;  // bytes of a bf16 row: 16 more, against bank conflicts
constexpr int ROW_F32 = 4 * WIDTH + 16;
constexpr int STAGE = TILE * ROW;
constexpr int S_STRIDE = 40, P_STRIDE = 40;  // against bank conflicts
static_assert(TILE_F32 * ROW_F32 <= STAGE && R == 64 * WARPS && WIDTH % (4 * 16) == 0, "");
static_assert(COMPUTING == 8 * TILE, "eight threads a row");

// What the warps of a tile say to each other.
struct TileRoom {
  float scores[4][HEADS][S_STRIDE];
  uint16_t weights[HEADS][P_STRIDE];
  float factors[HEADS];
};

#if __CUDA_ARCH__ >= 900
// Queries of 16 heads, of a warp's quarter of the dims: where that begins for head g, and whether
// there are heads g and g + 8.
struct Query {
  int64_t at;
  bool low, high;

  __device__ __forceinline__ void find(const MlaDecodeArgs& a, int row, int head, int warp,
                                       int lane) {
    head += lane / 4;
    at = (int64_t(row) * a.heads + head) * WIDTH + warp % 4 * 144;
    low = head < a.heads;
    high = head + 8 < a.heads;
  }
  // Fragments of A. All loads are on their way before the first is used.
  __device__ __forceinline__ void load(const Tensor& q, uint32_t (&fragments)[9][4]) const {
    const int64_t first = (low ? at : 0) + threadIdx.x % 4 * 2;
    const int64_t second = (high ? at + 8 * WIDTH : 0) + threadIdx.x % 4 * 2;
    const auto offset = [](int i) { return i / 4 * 16 + i % 4 / 2 * 8; };
    if (q.dtype == MOELA_F32) {
      const float* from[2] = {static_cast<const float*>(q.data) + first,
                              static_cast<const float*>(q.data) + second};
      float2 v[9][4];
#pragma unroll
      for (int i = 0; i < 36; i++) {
        v[i / 4][i % 4] = *reinterpret_cast<const float2*>(from[i % 2] + offset(i));
      }
#pragma unroll
      for (int i = 0; i < 36; i++) {
        fragments[i / 4][i % 4] =
            (i % 2 ? high : low) ? bf16_pair(v[i / 4][i % 4].x, v[i / 4][i % 4].y) : 0;
      }
    } else {
      const uint16_t* from[2] = {static_cast<const uint16_t*>(q.data) + first,
                                 static_cast<const uint16_t*>(q.data) + second};
#pragma unroll
      for (int i = 0; i < 36; i++) {
        fragments[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(from[i % 2] + offset(i));
      }
#pragma unroll
      for (int i = 0; i < 36; i++) {
        if (!(i % 2 ? high : low)) fragments[i / 4][i % 4] = 0;
      }
    }
  }
};

// A result of attention over some keys: the sum of weights relative to 2^max, and of weights times
// latents.
struct Result {
  float max, sum, o[4];

  __device__ __forceinline__ void add(float m, float l, const float4& v) {
    const float most = fmaxf(max, m);
    const float mine = power2(max - most), other = power2(m - most);
    max = most;
    add(mine, l, v, other);
  }
  // With factors that are known.
  __device__ __forceinline__ void add(float mine, float l, const float4& v, float other) {
    sum = fmaf(l, other, sum * mine);
    o[0] = fmaf(v.x, other, o[0] * mine);
    o[1] = fmaf(v.y, other, o[1] * mine);
    o[2] = fmaf(v.z, other, o[2] * mine);
    o[3] = fmaf(v.w, other, o[3] * mine);
  }
};

__device__ __forceinline__ float2 query_pair(const Tensor& q, int64_t at, bool valid) {
  if (!valid) return {0.f, 0.f};
  if (q.dtype == MOELA_F32)
    return *reinterpret_cast<const float2*>(static_cast<const float*>(q.data) + at);
  const uint32_t pair =
      *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(q.data) + at);
  return {bf16_value(pair & 0xffff), __uint_as_float(pair & 0xffff0000u)};
}
// The head whose softmax half a warp makes: those of a warp are two apart, against bank conflicts.
__device__ __forceinline__ int softmax_head(int warp, int lane) {
  return warp / 2 * 4 + warp % 2 + lane / 16 * 2;
}

// One tile: what comes to `o`, of heads g and g + 8 at columns 64 warp + 8 j + 2 t, and to
// `maximum` and the lane's part of the `sum`, of its softmax_head(). Says whether the stage was
// written. `fragment(k, x)` gives step k of the queries; `thread` of COMPUTING, which `sync` brings
// together.
template <class Fragment, class Sync>
__device__ __forceinline__ bool attend_tile(const Tensor& q, const Query& query,
                                            const Fragment& fragment, int dtype, char* stage,
                                            const uint8_t (*scales)[2], int valid, TileRoom& room,
                                            int thread, float (&o)[8][4], float& maximum,
                                            float& sum, const Sync& sync) {
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int quarter = warp % 4, half = warp / 4;
  const bool is_f32 = dtype == MOELA_F32;
  bool written = true;
  const auto convert = [&](auto type) {
    cache_tile_to_bf16<decltype(type)::value, COMPUTING, TILE, R, DR, ROW>(stage, scales, valid,
                                                                           sync);
  };
  switch (dtype) {
    case MOELA_FP8:
      convert(std::integral_constant<int, MOELA_FP8>{});
      break;
    case MOELA_INT8:
      convert(std::integral_constant<int, MOELA_INT8>{});
      break;
    case MOELA_INT6:
      convert(std::integral_constant<int, MOELA_INT6>{});
      break;
    case MOELA_BF16:
      // What lies beyond must not enter, not even with weight 0. A loop that began at `valid` has
      // its rounds worked out from minima, of which ptxas 13.0.88 lost a sign (VIMNMX3 of a
      // negated term).
      written = valid < TILE;
      if (!written) break;
#pragma unroll 1
      for (int j = thread; j < TILE * (ROW / 16); j += COMPUTING) {
        if (j >= valid * (ROW / 16)) reinterpret_cast<uint4*>(stage)[j] = {0, 0, 0, 0};
      }
      break;
    default:
      written = false;
  }
  if (written) sync();

  // Scores.
  float c[4][4] = {};  // even and odd steps of K apart
  if (!is_f32) {
    const uint32_t from = shared_address(stage) + (half * 16 + lane / 16 * 8 + lane % 8) * ROW +
                          lane / 8 % 2 * 16 + quarter * 288;
#pragma unroll
    for (int k = 0; k < 9; k++) {
      uint32_t b[4];
      load_matrices(b, from + 32 * k);
      uint32_t x[4];
      fragment(k, x);
      mma_bf16(c[k % 2 * 2], x[0], x[1], x[2], x[3], b[0], b[1]);
      mma_bf16(c[k % 2 * 2 + 1], x[0], x[1], x[2], x[3], b[2], b[3]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      c[0][j] += c[2][j];
      c[1][j] += c[3][j];
    }
  } else if (half == 0) {
    const char* from = stage + 2 * t * ROW_F32 + quarter * 144 * 4;
#pragma unroll 1
    for (int d = 0; d < 144; d += 2) {
      const float2 q0 = query_pair(q, query.at + d, query.low);
      const float2 q8 = query_pair(q, query.at + 8 * WIDTH + d, query.high);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int k = j / 2 * 8 + j % 2;
        if (2 * t + k >= valid) continue;
        const float2 x = *reinterpret_cast<const float2*>(from + k * ROW_F32 + d * 4);
        c[j / 2][j % 2] = fmaf(q0.y, x.y, fmaf(q0.x, x.x, c[j / 2][j % 2]));
        c[j / 2][j % 2 + 2] = fmaf(q8.y, x.y, fmaf(q8.x, x.x, c[j / 2][j % 2 + 2]));
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 2; j++) {
    float* to = &room.scores[quarter][g][half * 16 + j * 8 + 2 * t];
    *reinterpret_cast<float2*>(to) = {c[j][0], c[j][1]};
    *reinterpret_cast<float2*>(to + 8 * S_STRIDE) = {c[j][2], c[j][3]};
  }
  sync();

  // The running softmax: half a warp a head, two keys a lane.
  {
    const int head = softmax_head(warp, lane), key0 = lane % 16;
    float x[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float* from = &room.scores[0][head][key0 + 16 * j];
      x[j] = from[0];
#pragma unroll
      for (int k = 1; k < 4; k++) x[j] += from[k * HEADS * S_STRIDE];
      x[j] = key0 + 16 * j < valid ? x[j] * 1.44269504088896341f : -INFINITY;
    }
    float most = fmaxf(x[0], x[1]);
#pragma unroll
    for (int k = 8; k > 0; k /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, k));
    most = fmaxf(most, maximum);
    float p[2] = {power2(x[0] - most), power2(x[1] - most)};
    if (is_f32) {
      room.scores[0][head][key0] = p[0];
      room.scores[0][head][key0 + 16] = p[1];
    } else {
      const uint32_t bits = bf16_pair(p[0], p[1]);
      room.weights[head][key0] = static_cast<uint16_t>(bits);
      room.weights[head][key0 + 16] = static_cast<uint16_t>(bits >> 16);
      p[0] = bf16_value(bits & 0xffff);
      p[1] = __uint_as_float(bits & 0xffff0000u);
    }
    const float factor = power2(maximum - most);
    if (key0 == 0) room.factors[head] = factor;
    // The lane's share of the sum: shares are added at the end.
    sum = fmaf(sum, factor, p[0] + p[1]);
    maximum = most;
  }
  sync();

  // Weights times latents.
  const float factor0 = room.factors[g], factor8 = room.factors[g + 8];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    o[j][0] *= factor0;
    o[j][1] *= factor0;
    o[j][2] *= factor8;
    o[j][3] *= factor8;
  }
  if (!is_f32) {
    const uint32_t weights =
        shared_address(room.weights) + lane % 16 * (P_STRIDE * 2) + lane / 16 * 16;
    const uint32_t from = shared_address(stage) + lane % 16 * ROW + warp * 128 + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      uint32_t p[4];
      load_matrices(p, weights + 32 * k);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t b[4];
        load_transposed(b, from + k * 16 * ROW + 32 * j);
        mma_bf16(o[2 * j], p[0], p[1], p[2], p[3], b[0], b[1]);
        mma_bf16(o[2 * j + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
      }
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < valid; k++) {
      const float p0 = room.scores[0][g][k], p8 = room.scores[0][g + 8][k];
      const char* from = stage + k * ROW_F32 + (warp * 64 + 2 * t) * 4;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float2 v = *reinterpret_cast<const float2*>(from + j * 32);
        o[j][0] = fmaf(p0, v.x, o[j][0]);
        o[j][1] = fmaf(p0, v.y, o[j][1]);
        o[j][2] = fmaf(p8, v.x, o[j][2]);
        o[j][3] = fmaf(p8, v.y, o[j][3]);
      }
    }
    sync();  // scores are read no more
  }
  return written;
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace

}  // namespace moela::cuda
