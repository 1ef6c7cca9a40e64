// The shared memory of a block: every __shared__ variable of the library. They are variables of the host's thread, which
// all fibers share, and so lie together.

#pragma once

#include <cstddef>

namespace cuda_on_host {

struct SharedMemory {
    void* start;
    std::size_t bytes;

    // Fills it with bytes that are NaN and -1: a block finds nothing there that another has left.
    void poison() const;
};

// Of this thread. Ends the process if it is not found.
SharedMemory shared_memory();

}  // namespace cuda_on_host
