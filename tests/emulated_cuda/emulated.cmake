# The CUDA library on an emulated GPU, for tests: the sources of csrc/cuda by the compiler of C++,
# with this folder's headers in the place of CUDA's. Included by csrc/CMakeLists.txt.
set(MOELA_EMULATED_ARCH 900 CACHE STRING "compute capability times 10: 800 or 900")
set(emulated ${CMAKE_CURRENT_LIST_DIR})
file(GLOB kernels CONFIGURE_DEPENDS cuda/*.cc cuda/*.cu)
file(GLOB emulator CONFIGURE_DEPENDS ${emulated}/*.cc)
add_library(moela_cuda SHARED ${sources} ${kernels} ${emulator})
# nvcc includes the runtime by itself, looks at memory by any type, and warns of its own.
set(device_options -xc++ -include cuda_runtime.h -march=native -fno-strict-aliasing
                   -Wno-unknown-pragmas -Wno-maybe-uninitialized -Wno-uninitialized
                   -Wno-unused-parameter
                   -D__CUDA_ARCH__=${MOELA_EMULATED_ARCH})
if(MOELA_EMULATED_ARCH GREATER_EQUAL 900)
  list(APPEND device_options -D__CUDA_ARCH_FEAT_SM90_ALL)
endif()
# Most of the time goes into switching between threads: what is quickly compiled is as good.
set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
                            "${device_options};-O1")
set_source_files_properties(${emulator} PROPERTIES COMPILE_OPTIONS "${device_options}")
# A GPU refuses what a CPU forgives: vectors that do not lie on multiples of their size.
target_compile_options(moela_cuda PRIVATE -fsanitize=alignment -fno-sanitize-recover=alignment)
target_link_options(moela_cuda PRIVATE -fsanitize=alignment)
target_include_directories(moela_cuda PRIVATE ${emulated}/include ${emulated})
