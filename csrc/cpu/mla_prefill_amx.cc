// MLA_PREFILL in AMX: keys, values, queries and the softmax's weights rounded to bf16, sums in f32
// (gemm_bf16_amx.cc says how they are rounded). TiledAttention in kernels.h: what the caller does.
//
// Tiles of rows begin at positions that are multiples of 16: a page's first key is a tile's, too,
// so that every row of a tile sees it. A row's lane and the number of keys that it sees in a page,
// the others having weight 0, follow from its position alone.
#if defined(__x86_64__)

#include "softmax_amx.h"

namespace moela {
namespace {

constexpr int64_t COLUMNS = 32;   // of bf16 in a tile
constexpr int64_t TILE_ROWS = 4;  // tiles of rows whose scores are made at once

int64_t blocks_of(int64_t k) { return (k + COLUMNS - 1) / COLUMNS; }

// One thread's memory. All in tiles: of a left factor [rows / 16][blocks] 16 rows of 32 columns, of
// a right factor [columns / 16][blocks] 16 pairs of its rows.
struct Memory {
  int64_t r_blocks, nope_blocks, key_blocks, value_tiles, row_tiles;
  char *w_uk, *w_uv;           // left [dn, r], right [r, dv]
  char *latents, *transposed;  // of a page, left [64, r] and right [r, 64]
  char *keys, *values;         // of a page, right [dn + dr, 64] and right [64, dv]
  char *scores, *weights;      // of TILE_ROWS: f32 [16][16] by 16 keys; left [16, 64]
  char* spare;
  char* q;      // left [rows, dn + dr]
  float* o;     // [row tiles][value tiles][16][16]
  float* most;  // [row tiles][16], of the scores so far
  float* sums;  // likewise
  int64_t bytes;

  Memory(const HeadRows& head, char* from)
      : r_blocks(blocks_of(head.r)),
        nope_blocks(blocks_of(head.dn)),
        key_blocks(nope_blocks + blocks_of(head.dr)),
        value_tiles(2 * blocks_of(head.dv)),
        row_tiles((head.position + head.rows - 1) / TILE - head.position / TILE + 1) {
    int64_t at = 0;
    const auto take = [&](int64_t tiles) {
      char* begin = from + at;
      at += tiles * TILE_BYTES;
      return begin;
    };
    w_uk = take(2 * nope_blocks * r_blocks);
    w_uv = take(value_tiles * r_blocks);
    latents = take(KEY_TILES * r_blocks);
    transposed = take(KEY_TILES * r_blocks);
    keys = take(KEY_TILES * key_blocks);
    values = take(value_tiles * 2);
    scores = take(TILE_ROWS * KEY_TILES);
    weights = take(TILE_ROWS * 2);
    spare = take(value_tiles * 4);
    q = take(row_tiles * key_blocks);
    o = reinterpret_cast<float*>(take(row_tiles * value_tiles));
    most = reinterpret_cast<float*>(take(blocks_of(2 * row_tiles)));
    sums = reinterpret_cast<float*>(take(blocks_of(2 * row_tiles)));
    bytes = at;
  }
  float* o_tile(int64_t t) const { return o + t * value_tiles * TILE_FLOATS; }
};

__m512i round32(const float* x) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
}

// 16 rows of bf16 as the tiles of a left factor, a right one's, or both; NULL: not wanted.
// row(i, block, room): columns [32 block, + 32) of row i, which may be put in `room` [64].
template <class Row>
void pack(int64_t blocks, char* left, char* right, const Row& row) {
  for (int64_t block = 0; block < blocks; block++) {
    __m512i words[16];
    for (int i = 0; i < 16; i++) {
      alignas(64) char room[64];
      words[i] = load512(row(i, block, room));
      if (left) _mm512_store_si512(left + block * TILE_BYTES + i * 64, words[i]);
    }
    if (!right) continue;
    transpose16(words);
    for (int i = 0; i < 16; i++) _mm512_store_si512(right + block * TILE_BYTES + i * 64, words[i]);
  }
}

// Columns [32 block, + 32) of a row of k elements of bf16, zeros beyond; a NULL row is zeros.
const char* columns_of(const char* row, int64_t k, int64_t block, char* room) {
  const int64_t bytes = row ? at_most(COLUMNS, k - block * COLUMNS) * 2 : 0;
  if (bytes == 64) return row + block * 64;
  memset(room, 0, 64);
  if (bytes) memcpy(room, row + block * 64, bytes);
  return room;
}

// A weight [rows, r] of bf16 as `tiles` tiles of 16 rows each, zeros beyond.
void pack_weight(const char* w, int64_t rows, int64_t r, int64_t tiles, bool transpose, char* to) {
  const int64_t blocks = blocks_of(r);
  for (int64_t t = 0; t < tiles; t++, to += blocks * TILE_BYTES) {
    pack(blocks, transpose ? nullptr : to, transpose ? to : nullptr,
         [&](int64_t i, int64_t block, char* room) {
           const int64_t row = t * TILE + i;
           return columns_of(row < rows ? w + row * r * 2 : nullptr, r, block, room);
         });
  }
}

int64_t bytes(const HeadRows& head) { return Memory(head, nullptr).bytes; }

void begin(const HeadRows& head, const void* kv_b, char* from) {
  const Memory memory(head, from);
  const char* w = static_cast<const char*>(kv_b);
  pack_weight(w, head.dn, head.r, 2 * memory.nope_blocks, false, memory.w_uk);
  pack_weight(w + head.dn * head.r * 2, head.dv, head.r, memory.value_tiles, true, memory.w_uv);
  const int64_t skipped = head.position % TILE;
  for (int64_t t = 0; t < memory.row_tiles; t++) {
    pack(memory.key_blocks, memory.q + t * memory.key_blocks * TILE_BYTES, nullptr,
         [&](int64_t i, int64_t block, char* room) -> const char* {
           const int64_t row = t * TILE + i - skipped;
           const bool rotary = block >= memory.nope_blocks;
           const int64_t at = (rotary ? block - memory.nope_blocks : block) * COLUMNS;
           const int64_t count = at_most(COLUMNS, (rotary ? head.dr : head.dn) - at);
           float wide[COLUMNS] = {};
           if (row >= 0 && row < head.rows) {
             const float* x = head.q + row * head.q_stride + (rotary ? head.dn : 0) + at;
             memcpy(wide, x, count * sizeof(float));
           }
           _mm512_store_si512(room, round32(wide));
           return room;
         });
  }
  memset(memory.o, 0, memory.row_tiles * memory.value_tiles * TILE_BYTES);
  for (int64_t i = 0; i < memory.row_tiles * TILE; i++) {
    memory.most[i] = -__builtin_inff();
    memory.sums[i] = 0;
  }
}

// Four tiles of sums: left tiles 0 and 1 with right tiles 0 and 1, `blocks` blocks each.
void multiply(int64_t blocks, const char* left, const char* right, float (*y)[TILE_FLOATS]) {
  const int64_t next = blocks * TILE_BYTES;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t block = 0; block < blocks; block++, left += TILE_BYTES, right += TILE_BYTES) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + next, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + next, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, y[0], 64);
  _tile_stored(1, y[1], 64);
  _tile_stored(2, y[2], 64);
  _tile_stored(3, y[3], 64);
}

// 16 rows of f32 as eight rows of a right factor's tile. Returns whether all are finite in bf16.
bool store_pairs(const float* y, char* to) {
  const __m512i upper = _mm512_set1_epi32(0x7f800000), lower = _mm512_set1_epi32(0x7f80);
  unsigned infinite = 0;
  for (int p = 0; p < 8; p++, y += 2 * TILE, to += 64) {
    const __m512i two =
        reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_load_ps(y + TILE), _mm512_load_ps(y)));
    const __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(two));
    const __m512i odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(two, 1));
    const __m512i words = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    infinite |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(words, upper), upper);
    infinite |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(words, lower), lower);
    _mm512_store_si512(to, words);
  }
  return infinite == 0;
}

// Keys and values of a page's first n entries, bf16 [n, r + dr]; zeros beyond. Returns whether all
// values are finite.
bool project(const HeadRows& head, const Memory& memory, int64_t n, const char* entries) {
  const int64_t width = (head.r + head.dr) * 2, tile = memory.r_blocks * TILE_BYTES;
  const int64_t key_tile = memory.key_blocks * TILE_BYTES;
  for (int64_t t = 0; t < KEY_TILES; t++) {
    const auto row = [&](int64_t i) {
      return t * TILE + i < n ? entries + (t * TILE + i) * width : nullptr;
    };
    pack(memory.r_blocks, memory.latents + t * tile, memory.transposed + t * tile,
         [&](int64_t i, int64_t block, char* room) {
           return columns_of(row(i), head.r, block, room);
         });
    pack(memory.key_blocks - memory.nope_blocks, nullptr,
         memory.keys + t * key_tile + memory.nope_blocks * TILE_BYTES,
         [&](int64_t i, int64_t block, char* room) {
           return columns_of(row(i) ? row(i) + head.r * 2 : nullptr, head.dr, block, room);
         });
  }
  alignas(64) float y[4][TILE_FLOATS];
  bool finite = true;
  for (int64_t t = 0; t < KEY_TILES; t += 2) {
    for (int64_t block = 0; block < memory.nope_blocks; block++) {
      multiply(memory.r_blocks, memory.w_uk + 2 * block * tile, memory.transposed + t * tile, y);
      for (int i = 0; i < 4; i++) {
        store_pairs(y[i], memory.keys + (t + i % 2) * key_tile + block * TILE_BYTES + i / 2 * 512);
      }
    }
    for (int64_t v = 0; v < memory.value_tiles; v += 2) {
      multiply(memory.r_blocks, memory.latents + t * tile, memory.w_uv + v * tile, y);
      for (int i = 0; i < 4; i++) {
        char* to = memory.values + ((v + i % 2) * 2 + t / 2) * TILE_BYTES + i / 2 * 512;
        finite = store_pairs(y[i], to) && finite;
      }
    }
  }
  return finite;
}

// The running softmax of a tile of rows, the first of which sees `seen` keys of the page: its
// scores become weights, its state and results are rescaled.
void soften(const HeadRows& head, const Memory& memory, int64_t t, int64_t seen, float* scores,
            char* weights) {
  alignas(64) float shrink[TILE];
  if (!softmax_tile(seen, head.scale, scores, memory.most + t * TILE, memory.sums + t * TILE,
                    weights, shrink)) {
    return;
  }
  float* o = memory.o_tile(t);
  for (int64_t i = 0; i < memory.value_tiles * TILE; i++, o += TILE) {
    _mm512_store_ps(o, _mm512_mul_ps(_mm512_load_ps(o), _mm512_set1_ps(shrink[i % TILE])));
  }
}

// o [value tiles][16][16] += weights [16, 64] times values, two tiles at a time.
void add_values(int64_t value_tiles, const char* weights, const char* values, float* o) {
  _tile_loadd(4, weights, 64);
  _tile_loadd(5, weights + TILE_BYTES, 64);
  for (int64_t v = 0; v < value_tiles; v += 2) {
    _tile_loadd(0, o, 64);
    _tile_loadd(6, values, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(1, o + TILE_FLOATS, 64);
    _tile_loadd(7, values + 2 * TILE_BYTES, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, values + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 5, 6);
    _tile_loadd(7, values + 3 * TILE_BYTES, 64);
    _tile_dpbf16ps(1, 5, 7);
    _tile_stored(0, o, 64);
    _tile_stored(1, o + TILE_FLOATS, 64);
    o += 2 * TILE_FLOATS;
    values += 4 * TILE_BYTES;
  }
}

// The same where a value is not finite: 0 times it is not 0, so each row has values of its own,
// zeros where it sees no key.
void add_values_by_row(const Memory& memory, int64_t t, int64_t seen, const char* weights) {
  const int64_t floats = memory.value_tiles * TILE_FLOATS;
  float* before = reinterpret_cast<float*>(memory.spare);
  float* o = before + floats;
  char* values = reinterpret_cast<char*>(o + floats);
  memcpy(before, memory.o_tile(t), floats * sizeof(float));
  for (int64_t i = 0; i < TILE; i++) {
    memcpy(o, before, floats * sizeof(float));
    memcpy(values, memory.values, memory.value_tiles * 2 * TILE_BYTES);
    for (int64_t key = seen + i; key < PAGE; key++) {
      for (int64_t v = 0; v < memory.value_tiles; v++) {
        char* pairs = values + (v * 2 + key / COLUMNS) * TILE_BYTES + key % COLUMNS / 2 * 64;
        for (int64_t j = 0; j < TILE; j++) memset(pairs + j * 4 + key % 2 * 2, 0, 2);
      }
    }
    add_values(memory.value_tiles, weights, values, o);
    for (int64_t v = 0; v < memory.value_tiles; v++) {
      const int64_t at = v * TILE_FLOATS + i * TILE;
      memcpy(memory.o_tile(t) + at, o + at, TILE * sizeof(float));
    }
  }
}

void add_page(const HeadRows& head, int64_t key, int64_t n, const void* entries, char* from) {
  const Tiles tiles;
  const Memory memory(head, from);
  const bool finite = project(head, memory, n, static_cast<const char*>(entries));
  const int64_t start = head.position / TILE * TILE;
  const int64_t key_tile = memory.key_blocks * TILE_BYTES;
  int64_t t = key > start ? (key - start) / TILE : 0;
  for (; t < memory.row_tiles; t += TILE_ROWS) {
    const int64_t count = at_most(TILE_ROWS, memory.row_tiles - t);
    const auto seen = [&](int64_t i) { return start + (t + i) * TILE - key + 1; };
    const auto scores = [&](int64_t i) {
      return reinterpret_cast<float*>(memory.scores) + i * KEY_TILES * TILE_FLOATS;
    };
    for (int64_t i = 0; i < count; i++) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t block = 0; block < memory.key_blocks; block++) {
        const char* keys = memory.keys + block * TILE_BYTES;
        _tile_loadd(4, memory.q + (t + i) * key_tile + block * TILE_BYTES, 64);
        _tile_loadd(5, keys, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, keys + key_tile, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, keys + 2 * key_tile, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, keys + 3 * key_tile, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
      _tile_stored(0, scores(i), 64);
      _tile_stored(1, scores(i) + TILE_FLOATS, 64);
      _tile_stored(2, scores(i) + 2 * TILE_FLOATS, 64);
      _tile_stored(3, scores(i) + 3 * TILE_FLOATS, 64);
    }
    for (int64_t i = 0; i < count; i++) {
      soften(head, memory, t + i, seen(i), scores(i), memory.weights + i * 2 * TILE_BYTES);
    }
    for (int64_t i = 0; i < count; i++) {
      const char* weights = memory.weights + i * 2 * TILE_BYTES;
      if (finite || seen(i) >= PAGE) {
        add_values(memory.value_tiles, weights, memory.values, memory.o_tile(t + i));
      } else {
        add_values_by_row(memory, t + i, seen(i), weights);
      }
    }
  }
}

void finish(const HeadRows& head, char* from) {
  const Memory memory(head, from);
  const int64_t skipped = head.position % TILE;
  for (int64_t row = 0; row < head.rows; row++) {
    const int64_t t = (row + skipped) / TILE, i = (row + skipped) % TILE;
    const __m512 factor = _mm512_set1_ps(1 / memory.sums[t * TILE + i]);
    for (int64_t j = 0; j < head.dv; j += TILE) {
      const float* o = memory.o_tile(t) + j / TILE * TILE_FLOATS + i * TILE;
      // The sign of a 0 may come from keys that the row does not see: there is one 0.
      const __m512 x = _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(o), factor), _mm512_setzero_ps());
      _mm512_mask_storeu_ps(head.out + row * head.o_stride + j, first_lanes16(head.dv - j), x);
    }
  }
}

}  // namespace

const TiledAttention& attention_amx() {
  static constexpr TiledAttention attention{bytes, begin, add_page, finish};
  return attention;
}

}  // namespace moela

#endif
