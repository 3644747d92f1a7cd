// Whether a moela_sampling can be trusted: its numbers, and the lists it points to in `aux`.
#pragma once

#include <cstdint>

#include "moela.h"

namespace moela {

// Steps that one call runs at most: indices of tokens must leave room for them.
constexpr int32_t MAX_STEPS = 65536;

// Throws ARGUMENT with what is wrong. aux [n_aux], token ids are below `vocab`.
void check_sampling(const moela_sampling& sampling, int64_t n_aux, int64_t vocab,
                    const int32_t* aux);

}  // namespace moela
