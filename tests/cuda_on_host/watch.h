// Watches the accesses of a block's threads to its shared memory, in a library that was built to be watched.

#pragma once

#include <cstddef>

namespace cuda_on_host {

enum class Access { kRead, kWrite, kAtomic };

// One access of the running thread; nothing where the address is not shared memory, or nobody watches.
void touch(void const* address, std::size_t bytes, Access access);

// A block of this kernel begins: nobody has read or written.
void watch_block(void const* kernel);

// Whether a fault was found since it was last asked.
bool found_fault();

}  // namespace cuda_on_host

// Which shared variables there are: `count` of them, each with its name, its first byte and the one after its last, from
// the start of shared memory, and the kernel that it is of, from the start of the library. What lies elsewhere is nobody's.
extern "C" void cudaOnHostSetVariables(int count, char const* const* names, std::size_t const* starts,
                                       std::size_t const* ends, std::size_t const* kernels);
