/** Every symbol of csrc/include/moela.h that TypeScript calls, with the C type of each parameter. */

/** The table for `Deno.dlopen`. Calls that may take long run on a thread of their own. */
export const SYMBOLS = {
  moela_abi_version: { parameters: [], result: "u32" },
  moela_build_id: {
    parameters: [
      "buffer", // char* out
      "usize", // size_t out_len
    ],
    result: "i32",
  },
  moela_layout: {
    parameters: [
      "buffer", // char* out
      "usize", // size_t out_len
    ],
    result: "i64",
  },
  moela_device_create: {
    parameters: [
      "buffer", // const moela_device_options* options
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "pointer", // moela_device*
  },
  moela_device_destroy: {
    parameters: [
      "pointer", // moela_device* device
    ],
    result: "void",
  },
  moela_device_query: {
    parameters: [
      "pointer", // moela_device* device
      "buffer", // moela_device_info* info
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_device_bandwidth: {
    parameters: [
      "pointer", // moela_device* device
      "u64", // uint64_t bytes
      "i32", // int32_t repeats
      "buffer", // double* rate
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
    nonblocking: true,
  },
  moela_model_create: {
    parameters: [
      "pointer", // moela_device* device
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "pointer", // moela_model*
  },
  moela_model_destroy: {
    parameters: [
      "pointer", // moela_model* model
    ],
    result: "void",
  },
  moela_model_memory: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // moela_memory* memory
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_add_file: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // const char* path
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_add_weight: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // const moela_weight_desc* desc
      "buffer", // const moela_weight_part* parts
      "buffer", // int32_t* control
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
    nonblocking: true,
  },
  moela_model_add_constant: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t dtype
      "i32", // int32_t count
      "i64", // int64_t rows
      "i64", // int64_t cols
      "buffer", // const void* data
      "u64", // uint64_t bytes
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_read_weight: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t weight
      "i32", // int32_t part
      "buffer", // float* out
      "u64", // uint64_t out_bytes
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_generate: {
    parameters: [
      "u64", // uint64_t seed
      "u64", // uint64_t key
      "u64", // uint64_t begin
      "u64", // uint64_t count
      "f32", // float mean
      "f32", // float deviation
      "i32", // int32_t dtype
      "buffer", // void* out
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_convert: {
    parameters: [
      "buffer", // const moela_weight_desc* desc
      "buffer", // const void* data
      "u64", // uint64_t data_bytes
      "buffer", // const void* scales
      "u64", // uint64_t scale_bytes
      "buffer", // void* out
      "u64", // uint64_t out_bytes
      "buffer", // void* out_scales
      "u64", // uint64_t out_scale_bytes
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
    nonblocking: true,
  },
  moela_filter: {
    parameters: [
      "buffer", // const moela_sampling* sampling
      "buffer", // const int32_t* aux
      "i32", // int32_t n_aux
      "buffer", // const float* logits
      "i64", // int64_t vocab
      "buffer", // float* probabilities
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_add_pool: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // const moela_pool_desc* desc
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_pool_page_bytes: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t pool
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i64",
  },
  moela_pool_copy: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t pool
      "i32", // int32_t from
      "i32", // int32_t to
      "i32", // int32_t tokens
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_pool_release: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t pool
      "buffer", // const int32_t* pages
      "i32", // int32_t n_pages
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_pool_read: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t pool
      "i32", // int32_t page
      "buffer", // void* out
      "u64", // uint64_t out_bytes
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_pool_write: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t pool
      "i32", // int32_t page
      "buffer", // const void* data
      "u64", // uint64_t bytes
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_add_program: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // const moela_program_desc* desc
      "buffer", // const moela_value* values
      "buffer", // const moela_op* ops
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_value_read: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t program
      "i32", // int32_t value
      "i64", // int64_t first
      "i64", // int64_t count
      "buffer", // void* out
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_value_write: {
    parameters: [
      "pointer", // moela_model* model
      "i32", // int32_t program
      "i32", // int32_t value
      "i64", // int64_t first
      "i64", // int64_t count
      "buffer", // const void* data
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
  },
  moela_model_run: {
    parameters: [
      "pointer", // moela_model* model
      "buffer", // const moela_step* step
      "buffer", // const int32_t* tokens
      "buffer", // const moela_segment* segments
      "buffer", // const int32_t* pages
      "buffer", // const int32_t* logit_rows
      "buffer", // const int32_t* targets
      "buffer", // const moela_sampling* sampling
      "buffer", // const int32_t* aux
      "buffer", // float* logits
      "buffer", // float* logprobs
      "buffer", // int32_t* entries
      "buffer", // int32_t* control
      "buffer", // char* err
      "usize", // size_t err_len
    ],
    result: "i32",
    nonblocking: true,
  },
  moela_wait: {
    parameters: [
      "buffer", // const int32_t* control
      "i32", // int32_t seen
      "i32", // int32_t timeout_ms
    ],
    result: "i32",
    nonblocking: true,
  },
} as const satisfies Deno.ForeignLibraryInterface;
