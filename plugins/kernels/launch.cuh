// Starting a kernel: one place, so that every launch goes through the same call and reports its error.

#pragma once

#include <cuda_runtime.h>

namespace actvar {

// Arguments are converted to the kernel's parameter types, as in a plain call. An empty grid launches nothing.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The number of groups of `size` that hold `count`.
template <typename Integer>
__host__ __device__ constexpr Integer groups_of(Integer size, Integer count) {
    return (count + size - 1) / size;
}

}  // namespace actvar
