// Which instruction sets the processor and the system have.
#pragma once

namespace moela {

bool x86_has_avx2();
bool x86_has_avx512();  // with VNNI
bool x86_has_amx();     // int8 and bf16; asks the system for the tiles

}  // namespace moela
