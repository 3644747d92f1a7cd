// Attention as MHA over keys and values up-projected from the cache, rows of the projected path:
// q [R, H, dn + dr] (rotated), out [R, H, dv] = softmax over keys s <= position of
// scale * (q_nope . k_s + q_pe . kpe_s), times v_s, where [k_s | v_s] of a head = kv_b_proj c_s and
// [c_s | kpe_s] is the cache row at s. W_UK [dn, r] and W_UV [dv, r] are read in place.
// DeepSeek-V2, arXiv 2405.04434, eq. 37 to 47; the running softmax: arXiv 2205.14135.
//
// K and V exist for one page and head at a time. Every row takes the pages ascending from key 0, so
// its sums do not depend on where its chunk begins or ends.
#include <cstring>
#include <vector>

#include "cache_format.h"
#include "mla.h"

namespace moela {

// Rows whose scores are made at once.
static constexpr int64_t ROW_TILE = 64;
// Rows at the causal border whose common keys are taken together.
static constexpr int64_t BORDER_ROWS = 8;
// A task projects each page anew: with fewer rows that would cost far more than attention itself.
static constexpr int64_t MIN_ROW_BLOCK = 128;
// Rows of a task in tiles (TiledAttention): their queries and results fit the second-level cache.
static constexpr int64_t TILED_ROW_BLOCK = 512;

namespace {

// Rows [row, row + rows) of one segment: with a head, a task.
struct Block {
  const moela_segment* segment;
  int64_t row;
  int64_t rows;
};

struct Shape {
  int32_t layer;
  int64_t heads, dn, dr, dv, r;
  float scale;
};

bool is_tiled(const Kernels& kernels, const Weight& kv_b, const PagePool& pool) {
  return kernels.attention && kv_b.dtype != MOELA_F32 && pool.dtype != MOELA_F32;
}

// One thread's memory, in floats.
struct Tiles {
  float* entries;          // [64, r + dr]
  float* keys;             // [64, dn + dr]
  float* values;           // [64, dv]
  float* scores;           // [ROW_TILE, 64]
  RunningSoftmax* states;  // [rows of the block]

  static int64_t floats(const Shape& shape, int64_t rows) {
    return MOELA_PAGE_TOKENS * (shape.r + shape.dr + shape.dn + shape.dr + shape.dv + ROW_TILE) +
           2 * rows;
  }
  Tiles(const Shape& shape, float* memory)
      : entries(memory),
        keys(entries + MOELA_PAGE_TOKENS * (shape.r + shape.dr)),
        values(keys + MOELA_PAGE_TOKENS * (shape.dn + shape.dr)),
        scores(values + MOELA_PAGE_TOKENS * shape.dv),
        states(reinterpret_cast<RunningSoftmax*>(scores + ROW_TILE * MOELA_PAGE_TOKENS)) {}
};

// K [n, dn + dr] and V [n, dv] of a head from the first n entries of a page.
void project(const Kernels& kernels, const Shape& shape, const PagePool& pool, int32_t page,
             int64_t n, const Weight& kv_b, int64_t head, Tiles& tiles) {
  const int64_t width = shape.r + shape.dr, key_width = shape.dn + shape.dr;
  const float* entries = tiles.entries;
  if (pool.dtype == MOELA_F32) {
    entries = reinterpret_cast<const float*>(pool.at(page, shape.layer));
  } else {
    decode_entries(kernels, pool, page, shape.layer, n, tiles.entries);
  }
  product_nt(kernels, w_uk(kv_b, head, shape.dn, shape.dv), n, shape.dn, entries, width, tiles.keys,
             key_width, false);
  for (int64_t i = 0; i < n; i++) {
    memcpy(tiles.keys + i * key_width + shape.dn, entries + i * width + shape.r,
           shape.dr * sizeof(float));
  }
  product_nt(kernels, w_uv(kv_b, head, shape.dn, shape.dv), n, shape.dv, entries, width,
             tiles.values, shape.dv, false);
}

// Adds the keys [key, key + 64) to rows [0, rows) at positions [position, position + rows), which
// all see the first of them. q and o: rows q_stride and o_stride apart.
void attend(const Kernels& kernels, const Shape& shape, int64_t key, int64_t position, int64_t rows,
            const float* q, int64_t q_stride, const Tiles& tiles, RunningSoftmax* states, float* o,
            int64_t o_stride) {
  const int64_t key_width = shape.dn + shape.dr;
  const int64_t most = std::min<int64_t>(MOELA_PAGE_TOKENS, position + rows - key);
  kernels.gemm_nt(MOELA_F32, rows, most, key_width, q, q_stride, tiles.keys, key_width,
                  tiles.scores, MOELA_PAGE_TOKENS, false);
  const bool first = key == 0;
  const auto keys_of = [&](int64_t i) {
    return std::min<int64_t>(MOELA_PAGE_TOKENS, position + i - key + 1);
  };
  for (int64_t i = 0; i < rows; i++) {
    float* scores = tiles.scores + i * MOELA_PAGE_TOKENS;
    kernels.scale(keys_of(i), shape.scale, scores);
    softmax_step(kernels, first, keys_of(i), scores, states[i], shape.dv, o + i * o_stride);
  }
  // Adds keys [begin, end) to rows [row, row + n).
  const auto add_values = [&](int64_t row, int64_t n, int64_t begin, int64_t end) {
    kernels.gemm_nn(MOELA_F32, n, shape.dv, end - begin,
                    tiles.scores + row * MOELA_PAGE_TOKENS + begin, MOELA_PAGE_TOKENS,
                    tiles.values + begin * shape.dv, shape.dv, o + row * o_stride, o_stride,
                    !first || begin > 0);
  };
  // Rows at the causal border take their own number of keys: a key beyond must not enter, not even
  // with weight 0.
  const int64_t border =
      std::min(rows, std::max<int64_t>(0, key + MOELA_PAGE_TOKENS - 1 - position));
  for (int64_t i = 0; i < border; i += BORDER_ROWS) {
    const int64_t end = std::min(i + BORDER_ROWS, border);
    add_values(i, end - i, 0, keys_of(i));
    for (int64_t row = i + 1; row < end; row++) add_values(row, 1, keys_of(i), keys_of(row));
  }
  if (border < rows) add_values(border, rows - border, 0, MOELA_PAGE_TOKENS);
}

// One thread's memory of a block in tiles, in floats.
struct TiledMemory {
  float* own;      // the attention's
  float* entries;  // [64, r + dr]
  float* rounded;  // bf16 [64, r + dr]
  float* kv_b;     // bf16 [dn + dv, r]

  static int64_t own_floats(const Kernels& kernels, const HeadRows& head) {
    return ceil_div(kernels.attention->bytes(head), 64) * 16;
  }
  static int64_t entry_floats(const HeadRows& head) {
    return MOELA_PAGE_TOKENS * (head.r + head.dr);
  }
  static int64_t floats(const Kernels& kernels, const HeadRows& head) {
    return own_floats(kernels, head) + 2 * entry_floats(head) + (head.dn + head.dv + 1) * head.r;
  }
  TiledMemory(const Kernels& kernels, const HeadRows& head, float* memory)
      : own(memory),
        entries(own + own_floats(kernels, head)),
        rounded(entries + entry_floats(head)),
        kv_b(rounded + entry_floats(head)) {}
};

// kv_b_proj of a head in bf16: in place, or rounded to memory.kv_b.
const void* rounded_kv_b(const Kernels& kernels, const HeadRows& head, const WeightRows& w,
                         const TiledMemory& memory) {
  if (w.dtype == MOELA_BF16) return w.data + w.first * w.cols * 2;
  char* to = reinterpret_cast<char*>(memory.kv_b);
  for (int64_t row = 0; row < head.dn + head.dv; row++) {
    const float one = 1;
    const WeightRows from = {w.dtype, w.cols, w.data, w.scales, w.first + row};
    product_nn(kernels, from, 1, 1, &one, 1, memory.entries, head.r, false);
    kernels.store(MOELA_BF16, head.r, memory.entries, to + row * head.r * 2);
  }
  return to;
}

void attend_tiled(const Context& context, const Shape& shape, const Block& block,
                  const HeadRows& head, const WeightRows& w, float* from) {
  const StepView& step = context.step;
  const Kernels& kernels = context.kernels;
  const PagePool& pool = step.pools[block.segment->pool];
  const int64_t end = head.position + head.rows;
  const TiledMemory memory(kernels, head, from);
  char* own = reinterpret_cast<char*>(memory.own);
  kernels.attention->begin(head, rounded_kv_b(kernels, head, w, memory), own);
  for (int64_t key = 0; key < end && !cancelled(context); key += MOELA_PAGE_TOKENS) {
    const int32_t page = step.pages[block.segment->page + key / MOELA_PAGE_TOKENS];
    const int64_t n = std::min<int64_t>(MOELA_PAGE_TOKENS, end - key);
    const void* entries = pool.at(page, shape.layer);
    if (pool.dtype != MOELA_BF16) {
      decode_entries(kernels, pool, page, shape.layer, n, memory.entries);
      kernels.store(MOELA_BF16, n * (head.r + head.dr), memory.entries, memory.rounded);
      entries = memory.rounded;
    }
    kernels.attention->add_page(head, key, n, entries, own);
  }
  kernels.attention->finish(head, own);
}

void attend_block(const Context& context, const Shape& shape, const Block& block, int64_t head,
                  const float* q, const Weight& kv_b, float* memory, float* out) {
  const StepView& step = context.step;
  const Kernels& kernels = context.kernels;
  const PagePool& pool = step.pools[block.segment->pool];
  const int64_t position = block.segment->position + (block.row - block.segment->row);
  const int64_t end = position + block.rows;
  const int64_t q_stride = shape.heads * (shape.dn + shape.dr), o_stride = shape.heads * shape.dv;
  q += block.row * q_stride + head * (shape.dn + shape.dr);
  out += block.row * o_stride + head * shape.dv;
  if (is_tiled(kernels, kv_b, pool)) {
    const HeadRows rows = {shape.dn,   shape.dr, shape.dv, shape.r, shape.scale, position,
                           block.rows, q,        q_stride, out,     o_stride};
    return attend_tiled(context, shape, block, rows, w_uk(kv_b, head, shape.dn, shape.dv), memory);
  }
  Tiles tiles(shape, memory);
  for (int64_t key = 0; key < end && !cancelled(context); key += MOELA_PAGE_TOKENS) {
    const int32_t page = step.pages[block.segment->page + key / MOELA_PAGE_TOKENS];
    project(kernels, shape, pool, page, std::min<int64_t>(MOELA_PAGE_TOKENS, end - key), kv_b, head,
            tiles);
    for (int64_t row = std::max<int64_t>(0, key - position); row < block.rows; row += ROW_TILE) {
      attend(kernels, shape, key, position + row, std::min(ROW_TILE, block.rows - row),
             q + row * q_stride, q_stride, tiles, tiles.states + row, out + row * o_stride,
             o_stride);
    }
  }
  for (int64_t row = 0; row < block.rows; row++) {
    kernels.scale(shape.dv, 1 / tiles.states[row].sum, out + row * o_stride);
  }
}

}  // namespace

void mla_prefill(Context& context, int32_t layer, int64_t heads, int64_t dn, int64_t dr, int64_t dv,
                 int64_t r, float scale, const float* q, const Weight& kv_b, float* out) {
  const StepView& step = context.step;
  const Shape shape = {layer, heads, dn, dr, dv, r, scale};
  const int64_t n_rows = step.n_rows - step.n_absorbed;
  // Whole segments where they give all threads work, else blocks of rows.
  const int64_t wanted = ceil_div(2 * context.threads.count(), heads);
  const int64_t row_block = std::max(MIN_ROW_BLOCK, ceil_div(n_rows, wanted));
  std::vector<Block> blocks;
  int64_t floats = 0;
  for (int32_t i = 0; i < step.n_segments; i++) {
    const moela_segment& segment = step.segments[i];
    if (segment.row < step.n_absorbed) continue;
    const bool tiled = is_tiled(context.kernels, kv_b, step.pools[segment.pool]);
    const int64_t most = tiled ? std::min(row_block, TILED_ROW_BLOCK) : row_block;
    for (int64_t done = 0; done < segment.rows; done += most) {
      const int64_t rows = std::min(most, segment.rows - done);
      blocks.push_back({&segment, segment.row + done, rows});
      if (tiled) {
        const HeadRows head = {dn, dr, dv, r, scale, segment.position + done, rows, q, 0, out, 0};
        floats = std::max(floats, TiledMemory::floats(context.kernels, head));
      } else {
        floats = std::max(floats, Tiles::floats(shape, rows));
      }
    }
  }
  reserve_scratch(context, floats);
  const int64_t n_blocks = static_cast<int64_t>(blocks.size());
  context.threads.parallel_for(n_blocks * heads, [&](int64_t task, int thread) {
    // The last blocks of a segment have the most keys: they go first.
    attend_block(context, shape, blocks[n_blocks - 1 - task / heads], task % heads, q, kv_b,
                 context.scratch[thread].get(floats), out);
  });
}

}  // namespace moela
