/*
 * moela.h: the whole boundary of the kernel library, C99.
 *
 * libmoela (CPU) and libmoela_cuda export the same symbols. TypeScript records a model as programs,
 * flat arrays of moela_op; the library plans their workspace and replays them for each step.
 *
 * Conventions
 * - Handles are opaque. Constructors return a handle or NULL; other calls return a moela_status.
 *   Each call that can fail takes `err, err_len`: a UTF-8 message is written there, cut to fit and
 *   zero-terminated. Errors are never thread-local: a call may run on any thread.
 * - Nothing here exits, aborts or throws. No callbacks.
 * - Structs that grow carry their own size first; moela_layout() tells sizes and offsets.
 * - Ranges are [p0, p1). Matrices are row-major. A weight [rows, cols] is [out, in], as stored in
 *   checkpoints, so that linear computes y = x W^T.
 * - A NULL handle where one is needed gives MOELA_ERR_ARGUMENT, and destroying NULL does nothing.
 */
#ifndef MOELA_H
#define MOELA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MOELA_API __declspec(dllexport)
#else
#define MOELA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version ------------------------------------------------------------------------------- */

/* Raised whenever a struct, an enum or a signature here changes. */
#define MOELA_ABI_VERSION 4

MOELA_API uint32_t moela_abi_version(void);
/* Writes the hash of the sources this library was built from, zero-terminated. */
MOELA_API int32_t moela_build_id(char* out, size_t out_len);
/*
 * Writes the layout of every struct of this header as JSON:
 * {"moela_op":{"size":112,"fields":{"kind":[0,4],...}},...} with [offset, size] a field.
 * Returns the length needed, without the closing zero.
 */
MOELA_API int64_t moela_layout(char* out, size_t out_len);

typedef enum moela_status {
  MOELA_OK = 0,
  MOELA_ERR_ARGUMENT = 1,  /* a value out of range, a handle of the wrong kind */
  MOELA_ERR_MEMORY = 2,    /* message: "<bytes asked> <bytes free> <what for>" */
  MOELA_ERR_IO = 3,        /* a file could not be opened, mapped or is too short */
  MOELA_ERR_DEVICE = 4,    /* no such device, or it has failed */
  MOELA_ERR_CANCELLED = 5, /* the control word asked for it */
  MOELA_ERR_INTERNAL = 6
} moela_status;

typedef enum moela_dtype {
  MOELA_F32 = 0,
  MOELA_BF16 = 1,
  MOELA_F16 = 2,  /* in files only: loads as f32 */
  MOELA_FP8 = 3,  /* E4M3; weights with scales, see below */
  MOELA_INT8 = 4, /* weights and caches with scales, see below */
  MOELA_INT4 = 5, /* weights with scales, see below */
  MOELA_INT6 = 6, /* caches only, see moela_pool_desc */
  MOELA_I32 = 7,  /* values only */
  MOELA_F64 = 8   /* constants only */
} moela_dtype;

/* ---- device -------------------------------------------------------------------------------- */

typedef struct moela_device moela_device;

typedef struct moela_device_options {
  uint32_t size;   /* sizeof(moela_device_options) */
  int32_t index;   /* which GPU; 0 on the CPU */
  int32_t threads; /* CPU threads, the caller included; 0: as many as the process may use */
  int32_t kernels; /* moela_kernels; 0: the best that the device has */
} moela_device_options;

typedef enum moela_kernels {
  MOELA_KERNELS_AUTO = 0,
  MOELA_KERNELS_REFERENCE = 1,
  MOELA_KERNELS_AVX2 = 2,
  MOELA_KERNELS_AVX512 = 3,
  MOELA_KERNELS_AMX = 4,
  MOELA_KERNELS_GENERIC = 5,
  MOELA_KERNELS_SM90 = 6,
  /* sm90, with the layers of a step of one row in one launch: the same bits. What AUTO is on
   * Hopper, where other steps run as sm90; asked for by name, they are an ARGUMENT error */
  MOELA_KERNELS_SM90_PERSISTENT = 7
} moela_kernels;

typedef struct moela_device_info {
  uint32_t size;
  int32_t kernels;   /* in use */
  int32_t available; /* bit set: 1 << moela_kernels of those that would work */
  int32_t threads;
  uint64_t memory_total; /* bytes */
  uint64_t memory_free;  /* on the CPU within the cgroup's limit */
  char name[96];         /* processor or GPU */
} moela_device_info;

/* Errors: DEVICE when the kernels asked for are not available here. */
MOELA_API moela_device* moela_device_create(const moela_device_options* options, char* err,
                                            size_t err_len);
MOELA_API void moela_device_destroy(moela_device* device);
MOELA_API int32_t moela_device_query(moela_device* device, moela_device_info* info, char* err,
                                     size_t err_len);
/*
 * Reads `bytes` of memory once with all threads, `repeats` times, and writes the best rate in
 * bytes a second. The measure that benchmarks divide by.
 */
MOELA_API int32_t moela_device_bandwidth(moela_device* device, uint64_t bytes, int32_t repeats,
                                         double* rate, char* err, size_t err_len);

/* ---- model: files, weights, pools, programs, workspace --------------------------------------- */

/*
 * A model owns everything below and its memory. Calls into one model are serialised inside.
 * The device must outlive it. Destroying waits for a call that is running.
 */
typedef struct moela_model moela_model;

MOELA_API moela_model* moela_model_create(moela_device* device, char* err, size_t err_len);
MOELA_API void moela_model_destroy(moela_model* model);

typedef struct moela_memory {
  uint32_t size;
  uint32_t reserved;
  uint64_t weights_private; /* bytes allocated for weights */
  uint64_t weights_mapped;  /* bytes of weights read from mapped files in place */
  uint64_t pools;           /* bytes of pages in use, all pools */
  uint64_t workspace;
} moela_memory;
MOELA_API int32_t moela_model_memory(moela_model* model, moela_memory* memory, char* err,
                                     size_t err_len);

/* Maps a file for reading. Returns its index (>= 0) or -status. `path` is UTF-8. */
MOELA_API int32_t moela_model_add_file(moela_model* model, const char* path, char* err,
                                       size_t err_len);

/*
 * A weight: `count` matrices [rows, cols] of one type (count > 1: the experts of a layer, so that
 * grouped operations take one id). A vector is [1, n].
 *
 * Types with scales, the same in files and in memory, G = ceil(cols / 128) groups of 128 columns a
 * row (the last may be short):
 * - FP8: E4M3 bytes [rows, cols]; f32 scales [ceil(rows / 128), G]. w = value * scale.
 * - INT8: int8 q [rows, cols] in [-127, 127]; bf16 scales [rows, G]. w = q * scale.
 * - INT4: q in [-8, 7], stored as q + 8 in [rows, 32 ceil(cols / 64)] bytes: byte j of the 32 bytes
 *   of 64 columns holds column j in its low nibble and column j + 32 in its high one. uint32 scales
 *   [rows, G], little-endian: the low 16 bits a bf16 scale, the four nibbles above, lowest first, a
 *   factor in [0, 15] for each 32 columns. w = q * factor * scale; q * factor fits in int8. What
 *   lies beyond cols is 8 (zero).
 * Products with INT8 and INT4 are integer: a row x of the input is quantized by group of 128 to
 * round(x * (127 / max|x|)), and each group's exact sum, times (max|x| / 127) * scale, is added in
 * ascending order of groups.
 */
typedef struct moela_weight_desc {
  uint32_t size;
  int32_t stored; /* moela_dtype in the files */
  int32_t dtype;  /* wanted: equal to stored reads the mapping in place, else converted now */
  int32_t count;
  int64_t rows;
  int64_t cols;
  uint64_t seed; /* generated weights: see moela_generate */
  float mean;
  float deviation;
} moela_weight_desc;

typedef struct moela_weight_part { /* one of `count` */
  int32_t file;                    /* index from moela_model_add_file; -1: generated */
  int32_t scale_file;              /* types with scales: their file; else -1 */
  uint64_t offset;                 /* bytes from the file's start; generated: the tensor's key */
  uint64_t scale_offset;           /* types with scales: where they begin in their file */
} moela_weight_part;

/*
 * Returns the weight's id (>= 0) or -status. control: NULL or int32[2]; word 0 is polled for
 * cancellation (nonzero), word 1 gets the share done in 1/1000.
 */
MOELA_API int32_t moela_model_add_weight(moela_model* model, const moela_weight_desc* desc,
                                         const moela_weight_part* parts, int32_t* control,
                                         char* err, size_t err_len);
/* A weight from the caller's memory, copied: MOELA_F32, BF16, I32 or F64 [count, rows, cols]. */
MOELA_API int32_t moela_model_add_constant(moela_model* model, int32_t dtype, int32_t count,
                                           int64_t rows, int64_t cols, const void* data,
                                           uint64_t bytes, char* err, size_t err_len);
/* Copies a part of a weight out, as f32 [rows, cols]: for tests and tools. */
MOELA_API int32_t moela_model_read_weight(moela_model* model, int32_t weight, int32_t part,
                                          float* out, uint64_t out_bytes, char* err,
                                          size_t err_len);

/*
 * Seeded random numbers, a pure function of (seed, key, index): the sum of the four 16-bit words
 * of a 64-bit hash, centred and scaled so that the standard deviation is `deviation`. Fills
 * `count` elements of dtype (F32 or BF16) from element `begin` of the tensor named by `key`.
 */
MOELA_API int32_t moela_generate(uint64_t seed, uint64_t key, uint64_t begin, uint64_t count,
                                 float mean, float deviation, int32_t dtype, void* out, char* err,
                                 size_t err_len);

/*
 * Converts a matrix [rows, cols] (desc->count 1) in the caller's memory as loading would, from
 * desc->stored to desc->dtype; scales are NULL, with 0 bytes, for types without. Rows are converted
 * independently but for FP8, so that a matrix may be cut at multiples of 128 rows.
 */
MOELA_API int32_t moela_convert(const moela_weight_desc* desc, const void* data,
                                uint64_t data_bytes, const void* scales, uint64_t scale_bytes,
                                void* out, uint64_t out_bytes, void* out_scales,
                                uint64_t out_scale_bytes, char* err, size_t err_len);

/* ---- page pools: the latent cache ------------------------------------------------------------ */

#define MOELA_PAGE_TOKENS 64

/*
 * One pool per cache type. A page holds MOELA_PAGE_TOKENS tokens of all layers; within a page:
 * [layers][MOELA_PAGE_TOKENS][kv_lora_rank + qk_rope_head_dim] elements, first the normed latent,
 * then the rotated shared key (pairs interleaved as in the checkpoint).
 *
 * FP8, INT8 and INT6 have two 8-bit scales a token and layer, one of the latent, one of the key:
 * each layer of a page is its elements, then uint8 [MOELA_PAGE_TOKENS][2]. A code c is the scale 0
 * when c == 0, else (8 + c % 8) * 2^(c / 8 - 27) (three bits of mantissa, five of exponent: 2^-24
 * to 240): the smallest scale with max|x| <= scale * Q. Rounding is to nearest, ties to even.
 *
 * The key is int8 in all three, the last qk_rope_head_dim bytes of a token's elements: x =
 * value * scale, Q = 127. Attention bears errors of a latent far better than those of the key.
 *
 * The latent before it: FP8: E4M3 of x / scale, Q = 448. INT8: round(x / scale), Q = 127. INT6:
 * six bits an element on average over latent and key, (kv_lora_rank + qk_rope_head_dim) * 3 / 4
 * bytes. As the key takes eight bits, the last 2 * qk_rope_head_dim latents have five and the
 * others six, Q = 31. q = round(x / scale), or of five bits 2 * round(x / scale / 2), at most 30;
 * c = q + 32. Six bits: 16 elements in 12 bytes: byte j < 8 holds the low four bits of c of
 * elements j (low nibble) and j + 8 (high), byte 8 + j the upper two of elements j, j + 4, j + 8, j
 * + 12, lowest first. Five bits, c / 2: 32 elements in 20 bytes: byte j < 16 holds the low four of
 * elements j and j + 16, byte 16 + j the upper one of elements j, j + 4, ... j + 28, lowest first.
 * INT6 needs both widths to be multiples of 16, and kv_lora_rank at least twice qk_rope_head_dim.
 */
typedef struct moela_pool_desc {
  uint32_t size;
  int32_t dtype; /* MOELA_F32, BF16, FP8, INT8 or INT6 */
  int32_t layers;
  int32_t kv_lora_rank;
  int32_t qk_rope_head_dim;
  int32_t max_pages; /* address space is reserved for these; memory comes with use */
} moela_pool_desc;

/* Returns the pool's id (>= 0) or -status. */
MOELA_API int32_t moela_model_add_pool(moela_model* model, const moela_pool_desc* desc, char* err,
                                       size_t err_len);
/* Bytes of one page. */
MOELA_API int64_t moela_pool_page_bytes(moela_model* model, int32_t pool, char* err,
                                        size_t err_len);
/* Copies the first `tokens` tokens of page `from` to page `to`, all layers (copy on write). */
MOELA_API int32_t moela_pool_copy(moela_model* model, int32_t pool, int32_t from, int32_t to,
                                  int32_t tokens, char* err, size_t err_len);
/* Says that pages hold nothing any more: their memory may go back to the system. */
MOELA_API int32_t moela_pool_release(moela_model* model, int32_t pool, const int32_t* pages,
                                     int32_t n_pages, char* err, size_t err_len);
/* Whole pages to or from the caller's memory, in the layout above: to save and load caches. */
MOELA_API int32_t moela_pool_read(moela_model* model, int32_t pool, int32_t page, void* out,
                                  uint64_t out_bytes, char* err, size_t err_len);
MOELA_API int32_t moela_pool_write(moela_model* model, int32_t pool, int32_t page, const void* data,
                                   uint64_t bytes, char* err, size_t err_len);

/* ---- programs -------------------------------------------------------------------------------- */

/* Which rows of a step an operation or a value has. */
typedef enum moela_rows {
  MOELA_ROWS_ALL = 0,       /* [0, n_rows) */
  MOELA_ROWS_ABSORBED = 1,  /* [0, n_absorbed): attention as MQA over the latent */
  MOELA_ROWS_PROJECTED = 2, /* [n_absorbed, n_rows): attention as MHA over up-projected keys */
  MOELA_ROWS_LOGITS = 3     /* [0, n_logits): the rows that ask for logits */
} moela_rows;

/*
 * Operations. R: the rows of `rows`; values are f32 unless said otherwise. H heads, d hidden_size,
 * r kv_lora_rank, dn qk_nope_head_dim, dr qk_rope_head_dim, dv v_head_dim, E experts, k chosen.
 * Unused in / out / weight entries are -1. "residual" inputs may be -1.
 */
typedef enum moela_op_kind {
  /* out0 [R, d] = row tokens[i] of weight0 [V, d]. n0: d */
  MOELA_OP_EMBED = 0,
  /* out0 [R, d] = in0 / rms(in0) * weight0 [1, d]. n0: d, n1: elements between rows of in0
   * (>= d: a prefix of wider rows is normed). f0: epsilon */
  MOELA_OP_RMS_NORM = 1,
  /* out0 [R, N] = in0 [R, K] weight0 [N, K]^T (+ in1 [R, N] residual). n0: N, n1: K */
  MOELA_OP_LINEAR = 2,
  /* out0 [R, dr]: cos in the first dr/2, sin in the second, of position * weight0[i],
   * weight0 f64 [1, dr/2] inverse frequencies; both times f0. n0: dr */
  MOELA_OP_ROPE_TABLE = 3,
  /* In place on in0 [R, heads, head_dim] (out0 = in0): rotates pairs (2i, 2i+1) of elements
   * [n2, n2 + n3) of each head by in1 [R, n3]. n0: heads, n1: head_dim, n2: offset, n3: dr */
  MOELA_OP_ROTARY = 4,
  /* Writes RMSNorm(in0[:, :r]) * weight0 [1, r] and the rotated in0[:, r:] of in0 [R, r + dr] to
   * the cache at each row's position. in1: rope table. n0: layer, n1: r, n2: dr. f0: epsilon */
  MOELA_OP_CACHE_WRITE = 5,
  /* out0 [R, H, r + dr] = f0 * [q_nope W_UK | q_pe] of in0 [R, H, dn + dr] (rotated),
   * weight0 = kv_b_proj [H (dn + dv), r]; rows: ABSORBED. n0: H, n1: dn, n2: dr, n3: dv, n4: r.
   * f0: softmax scale */
  MOELA_OP_MLA_ABSORB = 6,
  /* out0 [R, H, r] = softmax(in0 [R, H, r + dr] . cache rows [0, position]) . their latents;
   * rows: ABSORBED. n0: layer, n1: H, n2: r, n3: dr */
  MOELA_OP_MLA_DECODE = 7,
  /* out0 [R, H, dv] = W_UV in0 [R, H, r], weight0 = kv_b_proj; rows: ABSORBED. n as MLA_ABSORB */
  MOELA_OP_MLA_EXPAND = 8,
  /* out0 [R, H, dv]: causal attention of in0 [R, H, dn + dr] (rotated) over keys and values
   * up-projected from the cache by weight0 = kv_b_proj; rows: PROJECTED.
   * n0: layer, n1: H, n2: dn, n3: dr, n4: dv, n5: r. f0: softmax scale */
  MOELA_OP_MLA_PREFILL = 9,
  /* out0 i32 [R, k] experts in descending order of choice, out1 [R, k] their weights, from
   * in0 [R, E] logits; weight0: -1 or bias f32 [1, E] that selection alone uses. n0: E, n1: k,
   * n2: n_group, n3: topk_group, n4: moela_scoring, n5: moela_group_score, n6: 1 to renormalise
   * the chosen. f0: factor on the weights. Ties go to the lowest index */
  MOELA_OP_ROUTER = 10,
  /* out0 i32 [E + 1 + R k]: E + 1 offsets (expert e has slots [off[e], off[e + 1])), then the slots
   * (row * k + rank) sorted by expert, then by slot. in0: i32 [R, k]. n0: E, n1: k */
  MOELA_OP_MOE_PLAN = 11,
  /* out0 [R k, I] = silu(x G_e^T) * (x U_e^T), x = row slot / k of in0 [R, d], e the slot's expert;
   * weight0 gate, weight1 up, each E parts [I, d]. in1: plan; -1: all rows, k = 1, part 0.
   * n0: I, n1: d, n2: k, n3: E */
  MOELA_OP_GATE_UP = 12,
  /* out0 [R k, d] = in0 [R k, I] D_e^T; weight0: E parts [d, I]. in1: plan. n0: d, n1: I, n2: k,
   * n3: E */
  MOELA_OP_EXPERT_DOWN = 13,
  /* out0 [R, d] = in3 residual + (sum over rank of in1[R, rank] * in0 [R, k, d], ascending,
   * + in2 [R, d] shared, may be -1). n0: d, n1: k */
  MOELA_OP_COMBINE = 14,
  /* out0 [n_logits, d] = rows logit_rows of in0 [n_rows, d]; rows: LOGITS. n0: d */
  MOELA_OP_GATHER = 15,
  /* Copies in0 [n_logits, V] to the caller's logits when asked; rows: LOGITS. n0: V */
  MOELA_OP_LOGITS_OUT = 16,
  /* Writes log-softmax(in0 [n_logits, V])[target] where a target is given; rows: LOGITS. n0: V */
  MOELA_OP_LOGPROB = 17,
  /* Draws the next token of each row that has a moela_sampling; rows: LOGITS. in0 [n_logits, V].
   * n0: V */
  MOELA_OP_SAMPLE = 18,
  MOELA_OP_COUNT = 19
} moela_op_kind;

typedef enum moela_scoring { MOELA_SCORE_SOFTMAX = 0, MOELA_SCORE_SIGMOID = 1 } moela_scoring;

typedef enum moela_group_score {
  MOELA_GROUP_NONE = 0,    /* plain top-k */
  MOELA_GROUP_MAX = 1,     /* group_limited_greedy: excluded groups score 0 */
  MOELA_GROUP_TOP2_SUM = 2 /* noaux_tc: excluded groups score -inf */
} moela_group_score;

typedef struct moela_op {
  int32_t kind; /* moela_op_kind */
  int32_t rows; /* moela_rows */
  int32_t in[4];
  int32_t out[2];
  int32_t weight[2];
  int32_t n[8];
  float f[2];
} moela_op;

/* A symbolic tensor of a program: elements = rows * cols + extra. */
typedef struct moela_value {
  int32_t dtype; /* MOELA_F32 or MOELA_I32 */
  int32_t rows;  /* MOELA_ROWS_LOGITS, or anything else for the step's rows */
  int64_t cols;
  int64_t extra;
  int32_t keep; /* 1: keeps its contents after the step, for moela_value_read */
  int32_t reserved;
} moela_value;

typedef struct moela_program_desc {
  uint32_t size;
  int32_t max_rows;
  int32_t max_logits; /* the LOGITS operations run in blocks of at most so many rows */
  int32_t n_values;
  int32_t n_ops;
  int32_t reserved;
} moela_program_desc;

/*
 * Checks every operation against the shapes of its values and weights, plans the workspace.
 * Returns the program's id (>= 0) or -status. Workspace is shared by all programs of the model.
 */
MOELA_API int32_t moela_model_add_program(moela_model* model, const moela_program_desc* desc,
                                          const moela_value* values, const moela_op* ops, char* err,
                                          size_t err_len);

/* Values of the program's last step (keep) or, written, of its next: [first, first + count). */
MOELA_API int32_t moela_value_read(moela_model* model, int32_t program, int32_t value,
                                   int64_t first, int64_t count, void* out, char* err,
                                   size_t err_len);
MOELA_API int32_t moela_value_write(moela_model* model, int32_t program, int32_t value,
                                    int64_t first, int64_t count, const void* data, char* err,
                                    size_t err_len);

/* ---- steps ------------------------------------------------------------------------------------
 */

/* Consecutive rows of one sequence. Segments of the absorbed path come first. */
typedef struct moela_segment {
  int32_t row;      /* first row */
  int32_t rows;     /* count, >= 1 */
  int32_t position; /* of the first row */
  int32_t pool;
  int32_t
      page; /* first entry of this sequence in `pages`: entry i holds tokens [64 i, 64 i + 64) */
  int32_t n_pages;
} moela_segment;

/* How the token after a logits row is drawn. Offsets are entries of `aux`. */
typedef struct moela_sampling {
  float temperature;        /* 0: greedy */
  float top_p;              /* 1: off */
  float min_p;              /* 0: off */
  float typical_p;          /* 1: off */
  float repetition_penalty; /* 1: off */
  float presence_penalty;   /* 0: off */
  float frequency_penalty;  /* 0: off */
  int32_t top_k;            /* 0: off */
  uint64_t seed;
  int32_t index;   /* of the token to be drawn, [0, 2^31 - 65536): the draw's counter */
  int32_t history; /* prompt tokens, then output tokens */
  int32_t n_prompt;
  int32_t n_output;
  int32_t bias; /* n_bias pairs: token, bits of an f32 */
  int32_t n_bias;
  int32_t mask; /* -1, or ceil(V / 32) words: token t allowed iff bit t % 32 of word t / 32 */
  int32_t stop; /* n_stop tokens that end the sequence */
  int32_t n_stop;
  int32_t min_index;    /* until this index the stop tokens are not drawn */
  int32_t top_logprobs; /* -1: none wanted, not even the token's own */
  int32_t segment;      /* whose next token it is */
} moela_sampling;

/*
 * The distribution that a draw would come from: probabilities [vocab] after bias, penalties, mask,
 * temperature (> 0) and filters.
 */
MOELA_API int32_t moela_filter(const moela_sampling* sampling, const int32_t* aux, int32_t n_aux,
                               const float* logits, int64_t vocab, float* probabilities, char* err,
                               size_t err_len);

/*
 * What a step writes for each token drawn, in order of step, then of row:
 * int32 words [0] row of `sampling`, [1] token, [2] bits of f32 log-softmax of the raw logits at
 * the token (NaN when not wanted), [3] 1 when a stop token; then top_logprobs pairs (token, bits).
 * Entries are `entry_words` apart.
 */
typedef struct moela_step {
  uint32_t size;
  int32_t program;
  int32_t n_rows;     /* 1 .. max_rows */
  int32_t n_absorbed; /* rows on the absorbed path */
  int32_t n_segments;
  int32_t n_pages;    /* entries of `pages` */
  int32_t n_logits;   /* 0 .. n_rows; may exceed max_logits */
  int32_t n_sampling; /* 0 or n_logits */
  int32_t n_aux;
  int32_t entry_words;  /* >= 4 + 2 max(top_logprobs) */
  int32_t steps;        /* > 1: each drawn token is fed back as the next step's row, so every
                         * segment has one row, every row is sampled, and pages cover the steps.
                         * A sequence that drew a stop token sits the rest out. */
  int32_t masks_follow; /* 1: the masks in aux are still being written. Sampling waits until
                         * control[MOELA_CONTROL_MASKS] != 0, so that the caller computes them
                         * while the layers run. Needs control and steps == 1. */
} moela_step;

/* Words of `control` (int32, may lie in shared memory). */
#define MOELA_CONTROL_CANCEL 0 /* the caller sets it: the call ends between two operations */
#define MOELA_CONTROL_COUNT 1  /* entries written so far */
#define MOELA_CONTROL_DONE 2   /* 1 when the call has ended, whatever its status */
#define MOELA_CONTROL_STEPS 3  /* steps completed: each has written every one of its rows' cache */
#define MOELA_CONTROL_YIELD                                                                      \
  4                           /* the caller sets it: the call ends, well, after the step at hand \
                               */
#define MOELA_CONTROL_MASKS 5 /* the caller sets it: the masks in aux are complete */
#define MOELA_CONTROL_WORDS 8

/*
 * Runs a step (or several). tokens [n_rows]; segments [n_segments]; pages [n_pages];
 * logit_rows [n_logits], ascending; targets NULL or [n_logits] (-1: none) for LOGPROB, whose
 * results go to logprobs [n_logits]; sampling [n_sampling]; aux [n_aux]; logits NULL or
 * [n_logits, V]; entries: room for steps * n_logits entries.
 * After a failure or cancellation the cache holds exactly the steps of MOELA_CONTROL_STEPS;
 * what lies beyond is undefined and must not be read.
 */
MOELA_API int32_t moela_model_run(moela_model* model, const moela_step* step, const int32_t* tokens,
                                  const moela_segment* segments, const int32_t* pages,
                                  const int32_t* logit_rows, const int32_t* targets,
                                  const moela_sampling* sampling, const int32_t* aux, float* logits,
                                  float* logprobs, int32_t* entries, int32_t* control, char* err,
                                  size_t err_len);

/*
 * Blocks until control[MOELA_CONTROL_COUNT] != seen or control[MOELA_CONTROL_DONE] != 0 or the
 * time is up. Returns the count. Needs no handle; call it beside moela_model_run.
 */
MOELA_API int32_t moela_wait(const int32_t* control, int32_t seen, int32_t timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
