// Products in AMX with BF16: the input is rounded to bf16. AMX takes 32 columns at a time: of their
// products the even ones are added in ascending order, each with one rounding, the odd ones
// likewise, then the two sums, and their sum is added to what is there; subnormals count as zero.
// Few rows do the same in AVX-512, so that a row has the same bits in any company.
#if defined(__x86_64__)

#include "amx.h"

namespace moela {
namespace {

constexpr int64_t COLUMNS = 32;  // in a tile

int64_t blocks_of(int64_t k) { return (k + COLUMNS - 1) / COLUMNS; }

// Columns [begin, begin + 32) of a row in bf16, to nearest even, zeros beyond k.
__m512i round_columns(const float* x, int64_t k, int64_t begin) {
  const __m512 low = _mm512_maskz_loadu_ps(first_lanes16(k - begin), x + begin);
  const int64_t rest = k - begin - 16;
  const __m512 high =
      rest > 0 ? _mm512_maskz_loadu_ps(first_lanes16(rest), x + begin + 16) : _mm512_setzero_ps();
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// Few rows lie as they are, many in tiles of words of two columns.
void pack(int64_t m, int64_t k, const float* const* rows, char* out) {
  const int64_t blocks = blocks_of(k);
  if (m < MANY_ROWS) {
    for (int64_t i = 0; i < m; i++) {
      for (int64_t block = 0; block < blocks; block++) {
        _mm512_storeu_si512(out + (i * blocks + block) * 64,
                            round_columns(rows[i], k, block * COLUMNS));
      }
    }
    return;
  }
  for (int64_t first = 0; first < m; first += TILE) {
    for (int64_t block = 0; block < blocks; block++) {
      __m512i words[16];
      for (int64_t i = 0; i < 16; i++) {
        words[i] = first + i < m ? round_columns(rows[first + i], k, block * COLUMNS)
                                 : _mm512_setzero_si512();
      }
      transpose16(words);
      for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * 64, words[i]);
      out += TILE_BYTES;
    }
  }
}

// 16 rows of BF16 from column `begin` on as a tile: in place, or in room where rows or columns end.
const char* bf16_tile(const WeightRows& b, int64_t row, int64_t rows, int64_t begin, char* room,
                      int64_t* stride) {
  const char* from = b.data + (row * b.cols + begin) * 2;
  *stride = b.cols * 2;
  if (rows >= STRIP && begin + COLUMNS <= b.cols) return from;
  memset(room, 0, TILE_BYTES);
  const int64_t bytes = at_most(COLUMNS, b.cols - begin) * 2;
  for (int64_t j = 0; j < at_most(rows, STRIP); j++) {
    memcpy(room + j * 64, from + j * b.cols * 2, bytes);
  }
  *stride = 64;
  return room;
}

void many_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
               bool add) {
  const Tiles tiles;
  const int64_t blocks = blocks_of(b.cols), count = tiles_of(m);
  const int64_t tile_bytes = blocks * TILE_BYTES;
  alignas(64) char room[2][TILE_BYTES];
  alignas(64) float y[TILE * STRIP];
  const auto store = [&](int64_t t, int64_t j) {
    store_transposed(y, m - t * TILE, n - j, c + t * TILE * ldc + j, ldc, add);
  };
  // Two strips of the weight with two tiles of the input at a time.
  for (int64_t j = 0; j < n; j += 2 * STRIP) {
    const bool two = j + STRIP < n;
    for (int64_t t = 0; t < count; t += 2) {
      const bool both = t + 1 < count;
      const char* x = packed + t * tile_bytes;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t block = 0; block < blocks; block++) {
        int64_t stride;
        const char* w = bf16_tile(b, b.first + j, n - j, block * COLUMNS, room[0], &stride);
        // The same columns of the next rows, which come after these are done.
        for (int64_t i = 0; t == 0 && i < 2 * STRIP; i++) {
          _mm_prefetch(w + (2 * STRIP + i) * stride, _MM_HINT_T1);
        }
        _tile_loadd(4, w, stride);
        _tile_loadd(6, x + block * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (both) {
          _tile_loadd(7, x + tile_bytes + block * TILE_BYTES, 64);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (!two) continue;
        w = bf16_tile(b, b.first + j + STRIP, n - j - STRIP, block * COLUMNS, room[1], &stride);
        _tile_loadd(5, w, stride);
        _tile_dpbf16ps(2, 5, 6);
        if (both) _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, y, 64);
      store(t, j);
      if (both) {
        _tile_stored(1, y, 64);
        store(t + 1, j);
      }
      if (!two) continue;
      _tile_stored(2, y, 64);
      store(t, j + STRIP);
      if (both) {
        _tile_stored(3, y, 64);
        store(t + 1, j + STRIP);
      }
    }
  }
}

// Subnormals count as zero while it lives, as AMX has it.
class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned saved_;
};

// Lanes are rows of the weight.
void few_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
              bool add) {
  const FlushSubnormals flush;
  const int64_t blocks = blocks_of(b.cols);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  alignas(64) char room[TILE_BYTES];
  for (int64_t j = 0; j < n; j += STRIP) {
    __m512 y[MANY_ROWS];
    for (__m512& sum : y) sum = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; block++) {
      int64_t stride;
      const char* w = bf16_tile(b, b.first + j, n - j, block * COLUMNS, room, &stride);
      __m512i words[16];
      for (int i = 0; i < 16; i++) {
        words[i] = load512(w + i * stride);
        // The next strip follows these rows in memory.
        _mm_prefetch(w + (i + STRIP) * stride, _MM_HINT_T0);
      }
      transpose16(words);
      for (int64_t i = 0; i < m; i++) {
        const char* x = packed + (i * blocks + block) * 64;
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int p = 0; p < 16; p++) {
          const __m512 x_even = _mm512_set1_ps(bf16_to_f32(load_at<uint16_t>(x, 2 * p)));
          const __m512 x_odd = _mm512_set1_ps(bf16_to_f32(load_at<uint16_t>(x, 2 * p + 1)));
          const __m512 w_even = _mm512_castsi512_ps(_mm512_slli_epi32(words[p], 16));
          const __m512 w_odd = _mm512_castsi512_ps(_mm512_and_si512(words[p], upper));
          even = _mm512_fmadd_ps(w_even, x_even, even);
          odd = _mm512_fmadd_ps(w_odd, x_odd, odd);
        }
        y[i] = _mm512_add_ps(y[i], _mm512_add_ps(even, odd));
      }
    }
    const __mmask16 lanes = first_lanes16(n - j);
    for (int64_t i = 0; i < m; i++) {
      float* to = c + i * ldc + j;
      const __m512 sum = add ? _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), y[i]) : y[i];
      _mm512_mask_storeu_ps(to, lanes, sum);
    }
  }
}

}  // namespace

int64_t packed_bytes_bf16_amx(int64_t m, int64_t k) {
  return m >= MANY_ROWS ? tiles_of(m) * blocks_of(k) * TILE_BYTES : m * blocks_of(k) * 64;
}

void pack_bf16_amx(int64_t m, int64_t k, const float* const* rows, char* out) {
  pack(m, k, rows, out);
}

void gemm_bf16_amx(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                   int64_t ldc, bool add) {
  if (m >= MANY_ROWS) return many_rows(b, m, n, packed, c, ldc, add);
  few_rows(b, m, n, packed, c, ldc, add);
}

}  // namespace moela

#endif
