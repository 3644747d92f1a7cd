// Page pools: the latent cache of all sequences.
#include <cstring>
#include <utility>

#include "runtime/error.h"
#include "runtime/model.h"

using namespace moela;

namespace {

constexpr int64_t MAX_BYTES = int64_t{1} << 47;

Pool& pool_of(moela_model* model, int32_t pool) {
  require(pool >= 0 && pool < static_cast<int32_t>(model->pools.size()), "no such pool");
  return model->pools[pool];
}

void check_page(const Pool& pool, int32_t page) {
  require(page >= 0 && page < pool.view.max_pages, "no such page");
}

}  // namespace

int32_t moela_model_add_pool(moela_model* model, const moela_pool_desc* desc, char* err,
                             size_t err_len) {
  int32_t id = -1;
  const int32_t status = guard(err, err_len, [&] {
    require(model && desc && desc->size == sizeof *desc, "pool of another layout");
    require(desc->dtype == MOELA_F32 || desc->dtype == MOELA_BF16 || desc->dtype == MOELA_FP8 ||
                desc->dtype == MOELA_INT8 || desc->dtype == MOELA_INT6,
            "caches are f32, bf16, fp8, int8 or int6");
    require(desc->dtype != MOELA_INT6 ||
                (desc->kv_lora_rank % 16 == 0 && desc->qk_rope_head_dim % 16 == 0),
            "int6 caches need kv_lora_rank and qk_rope_head_dim to be multiples of 16");
    require(desc->dtype != MOELA_INT6 || desc->kv_lora_rank / 2 >= desc->qk_rope_head_dim,
            "int6 caches need kv_lora_rank to be at least twice qk_rope_head_dim");
    require(desc->layers > 0 && desc->layers <= 4096 && desc->kv_lora_rank > 0 &&
                desc->kv_lora_rank <= 65536 && desc->qk_rope_head_dim > 0 &&
                desc->qk_rope_head_dim <= 65536 && desc->max_pages > 0,
            "pool with a dimension out of range");
    std::lock_guard lock(model->mutex);
    Pool pool;
    pool.view = {desc->dtype,     desc->layers, desc->kv_lora_rank, desc->qk_rope_head_dim,
                 desc->max_pages, nullptr};
    require(desc->max_pages <= MAX_BYTES / pool.view.page_bytes(),
            "pool larger than any address space");
    pool.memory = model->device->allocate(
        static_cast<uint64_t>(desc->max_pages) * pool.view.page_bytes(), "cache pages", true);
    pool.view.base = pool.memory->data();
    pool.used = Block(desc->max_pages, "cache pages", true);
    model->pool_views.push_back(pool.view);
    model->pools.push_back(std::move(pool));
    model->backend->pool_added(model->pools.back());
    id = static_cast<int32_t>(model->pools.size()) - 1;
  });
  return status == MOELA_OK ? id : -status;
}

int64_t moela_pool_page_bytes(moela_model* model, int32_t pool, char* err, size_t err_len) {
  int64_t bytes = 0;
  const int32_t status = guard(err, err_len, [&] {
    require(model, "no model");
    std::lock_guard lock(model->mutex);
    bytes = pool_of(model, pool).view.page_bytes();
  });
  return status == MOELA_OK ? bytes : -status;
}

int32_t moela_pool_copy(moela_model* model, int32_t pool, int32_t from, int32_t to, int32_t tokens,
                        char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model, "no model");
    std::lock_guard lock(model->mutex);
    Pool& target = pool_of(model, pool);
    check_page(target, from);
    check_page(target, to);
    require(tokens >= 0 && tokens <= MOELA_PAGE_TOKENS, "a page has no so many tokens");
    const PagePool& view = target.view;
    const int64_t bytes = tokens * view.row_bytes(), scales = tokens * view.scale_bytes();
    target.mark(from);
    target.mark(to);
    for (int32_t layer = 0; layer < view.layers; layer++) {
      model->device->copy_within(view.at(to, layer), view.at(from, layer), bytes);
      if (scales == 0) continue;
      model->device->copy_within(view.scales_at(to, layer), view.scales_at(from, layer), scales);
    }
  });
}

int32_t moela_pool_release(moela_model* model, int32_t pool, const int32_t* pages, int32_t n_pages,
                           char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && pages && n_pages >= 0, "no pages");
    std::lock_guard lock(model->mutex);
    Pool& target = pool_of(model, pool);
    for (int32_t i = 0; i < n_pages; i++) check_page(target, pages[i]);
    for (int32_t i = 0; i < n_pages; i++) target.unmark(pages[i]);
  });
}

int32_t moela_pool_read(moela_model* model, int32_t pool, int32_t page, void* out,
                        uint64_t out_bytes, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && out, "nothing to read into");
    std::lock_guard lock(model->mutex);
    Pool& source = pool_of(model, pool);
    check_page(source, page);
    require(out_bytes == static_cast<uint64_t>(source.view.page_bytes()), "size of a page");
    if (!source.used.data()[page]) {
      memset(out, 0, out_bytes);
      return;
    }
    model->device->copy_out(out, source.view.at(page, 0), out_bytes);
  });
}

int32_t moela_pool_write(moela_model* model, int32_t pool, int32_t page, const void* data,
                         uint64_t bytes, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && data, "nothing to write");
    std::lock_guard lock(model->mutex);
    Pool& target = pool_of(model, pool);
    check_page(target, page);
    require(bytes == static_cast<uint64_t>(target.view.page_bytes()), "size of a page");
    target.mark(page);
    model->device->copy_in(target.view.at(page, 0), data, bytes);
  });
}
