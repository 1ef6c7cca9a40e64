// Stands in for the toolkit's header of this name. A copy happens when it is waited for: nothing arrives earlier.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "fibers.h"
#include "watch.h"

namespace cuda_on_host {

struct Copy {
    void* to;
    void const* from;
    std::size_t bytes, zeros;
};

struct Pipeline {
    std::deque<std::vector<Copy>> batches{1};  // the last is not committed
};

// Of the running thread. Each kernel ends with all its copies done, so nothing is left for the next block.
inline Pipeline& pipeline() {
    static std::vector<Pipeline> pipelines(1024);
    return pipelines[static_cast<std::size_t>(thread_index())];
}

}  // namespace cuda_on_host

inline void __pipeline_memcpy_async(void* to, void const* from, std::size_t bytes, std::size_t zeros = 0) {
    if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % bytes != 0) {
        std::fprintf(stderr, "an asynchronous copy is not aligned\n");
        std::abort();
    }
    cuda_on_host::pipeline().batches.back().push_back({to, from, bytes, zeros});
    cuda_on_host::touch(to, bytes, cuda_on_host::Access::kWrite);
    std::memset(to, 0xFF, bytes);  // NaN until the copy is waited for
}

inline void __pipeline_commit() { cuda_on_host::pipeline().batches.emplace_back(); }

inline void __pipeline_wait_prior(std::size_t prior) {
    auto& batches = cuda_on_host::pipeline().batches;
    while (batches.size() > prior + 1) {
        for (auto const& copy : batches.front()) {
            cuda_on_host::touch(copy.to, copy.bytes, cuda_on_host::Access::kWrite);
            std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
            std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
        }
        batches.pop_front();
    }
}
