// Models: creation, files, programs, and the values of programs.
#include "runtime/model.h"

#include "runtime/error.h"

using namespace moela;

moela_model* moela_model_create(moela_device* device, char* err, size_t err_len) {
  moela_model* model = nullptr;
  guard(err, err_len, [&] {
    require(device, "a model needs a device");
    model = new moela_model(device);
  });
  return model;
}

void moela_model_destroy(moela_model* model) {
  if (!model) return;
  {
    std::lock_guard lock(model->mutex);
  }  // a call that is running ends first
  delete model;
}

int32_t moela_model_memory(moela_model* model, moela_memory* memory, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && memory && memory->size == sizeof *memory, "memory of another layout");
    std::lock_guard lock(model->mutex);
    memory->weights_private = 0;
    memory->weights_mapped = 0;
    memory->pools = 0;
    for (const StoredWeight& weight : model->weights) {
      memory->weights_private += weight.memory.bytes() + weight.constant.size() +
                                 (weight.device ? weight.device->bytes() : 0);
      memory->weights_mapped += weight.mapped_bytes;
    }
    for (const Pool& pool : model->pools) {
      memory->pools += static_cast<uint64_t>(pool.n_used * pool.view.page_bytes());
    }
    memory->workspace = model->workspace ? model->workspace->bytes() : 0;
  });
}

int32_t moela_model_add_file(moela_model* model, const char* path, char* err, size_t err_len) {
  int32_t id = -1;
  const int32_t status = guard(err, err_len, [&] {
    require(model && path, "no model or no path");
    std::lock_guard lock(model->mutex);
    model->files.push_back(std::make_unique<MappedFile>(path));
    id = static_cast<int32_t>(model->files.size()) - 1;
  });
  return status == MOELA_OK ? id : -status;
}

int32_t moela_model_add_program(moela_model* model, const moela_program_desc* desc,
                                const moela_value* values, const moela_op* ops, char* err,
                                size_t err_len) {
  int32_t id = -1;
  const int32_t status = guard(err, err_len, [&] {
    require(model && desc && ops && desc->size == sizeof *desc, "program of another layout");
    require(values || desc->n_values == 0, "no values");
    std::lock_guard lock(model->mutex);
    std::vector<const Weight*> weights;
    for (const StoredWeight& weight : model->weights) weights.push_back(&weight.view);
    Program program = plan_program(*desc, values, ops, weights);
    const uint64_t bytes = static_cast<uint64_t>(program.workspace_bytes);
    if (bytes > 0 && (!model->workspace || bytes > model->workspace->bytes())) {
      model->workspace = model->device->allocate(bytes, "workspace", false);
    }
    model->programs.push_back(std::move(program));
    id = static_cast<int32_t>(model->programs.size()) - 1;
  });
  return status == MOELA_OK ? id : -status;
}

namespace {

// The place of elements [first, first + count) of a value that is kept.
char* kept(moela_model* model, int32_t program, int32_t value, int64_t first, int64_t count) {
  require(program >= 0 && program < static_cast<int32_t>(model->programs.size()),
          "no such program");
  const Program& source = model->programs[program];
  require(value >= 0 && value < static_cast<int32_t>(source.values.size()), "no such value");
  const PlannedValue& planned = source.values[value];
  require(planned.value.keep != 0, "the value is not kept");
  require(
      first >= 0 && count >= 0 && first <= planned.elements && count <= planned.elements - first,
      "the value has fewer elements");
  return model->workspace->data() + planned.offset + first * 4;
}

}  // namespace

int32_t moela_value_read(moela_model* model, int32_t program, int32_t value, int64_t first,
                         int64_t count, void* out, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && out, "nothing to read into");
    std::lock_guard lock(model->mutex);
    const char* place = kept(model, program, value, first, count);
    model->device->copy_out(out, place, count * 4);
  });
}

int32_t moela_value_write(moela_model* model, int32_t program, int32_t value, int64_t first,
                          int64_t count, const void* data, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && data, "nothing to write");
    std::lock_guard lock(model->mutex);
    char* place = kept(model, program, value, first, count);
    require(model->programs[program].values[value].producer == -1,
            "the value is written by an operation");
    model->device->copy_in(place, data, count * 4);
  });
}
