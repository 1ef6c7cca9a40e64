// The compiler is asked to call a thread sanitizer at every access (-fsanitize=thread); the sanitizer is this file.
//
// Two accesses of one byte by two threads, one of them a write, are a race unless a barrier of the block stands between
// them, or both are of one warp and a barrier of the warp does.

#include "watch.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "fibers.h"
#include "shared_memory.h"

namespace cuda_on_host {
namespace {

constexpr int kNobody = -1, kSeveral = -2;  // several lanes of a warp

struct Seen {
    int thread = kNobody, warp = 0;
    unsigned block_epoch = 0, warp_epoch = 0;
    bool atomic = false;
};

struct Byte {
    Seen write, read, other_read;  // the two reads are of two warps
};

struct Variable {
    std::string name;
    std::size_t start, end, kernel;
};

[[gnu::used]] thread_local char guard_end[256];  // after all others, as this file is linked last

bool watched = false, faulty = false;
std::vector<Variable> variables;
std::vector<Byte> bytes;
SharedMemory memory{nullptr, 0};
std::size_t running_kernel = 0;

Seen now(bool atomic) {
    int const thread = thread_index();
    return {thread, thread / kWarp, block_epoch(), warp_epoch(), atomic};
}

bool races(Seen const& before, Seen const& after) {
    if (before.thread == kNobody || before.thread == after.thread || before.block_epoch != after.block_epoch)
        return false;
    if (before.warp == after.warp && before.warp_epoch != after.warp_epoch) return false;
    return !(before.atomic && after.atomic);
}

Variable const* variable_at(std::size_t place) {
    for (Variable const& variable : variables)
        if (variable.start <= place && place < variable.end) return &variable;
    return nullptr;
}

void say(char const* what, std::size_t place, int one, int other) {
    faulty = true;
    Variable const* const variable = variable_at(place);
    std::fprintf(stderr, "shared memory: %s, byte %zu of %s, threads %d and %d\n", what,
                 place - (variable ? variable->start : 0), variable ? variable->name.c_str() : "all", one, other);
}

// A read takes the place of one that is of its own warp or that a barrier has made harmless.
void remember(Byte& byte, Seen const& read) {
    for (Seen* slot : {&byte.read, &byte.other_read}) {
        bool const same = slot->block_epoch == read.block_epoch && slot->thread != kNobody;
        if (same && slot->warp != read.warp) continue;
        bool const together = same && slot->warp_epoch == read.warp_epoch && slot->thread != read.thread;
        *slot = read;
        if (together) slot->thread = kSeveral;
        return;
    }
}

void check(Byte& byte, std::size_t place, Access access) {
    Seen const here = now(access == Access::kAtomic);
    if (races(byte.write, here)) say("a race of two accesses, the first a write", place, byte.write.thread, here.thread);
    if (access == Access::kRead) return remember(byte, here);
    for (Seen const& read : {byte.read, byte.other_read})
        if (races(read, here)) say("a race of a read with a write", place, read.thread, here.thread);
    byte = Byte{here, {}, {}};
}

}  // namespace

void touch(void const* address, std::size_t count, Access access) {
    if (!watched || faulty || memory.start == nullptr) return;
    auto const first = reinterpret_cast<std::uintptr_t>(address), start = reinterpret_cast<std::uintptr_t>(memory.start);
    if (first < start || first >= start + memory.bytes) return;
    for (std::size_t place = first - start; place < first - start + count && !faulty; ++place) {
        Variable const* const variable = variable_at(place);
        if (!variables.empty() && (variable == nullptr || variable->kernel != running_kernel))
            return say("an access outside of the kernel's variables", place, thread_index(), thread_index());
        if (place < bytes.size()) check(bytes[place], place, access);
    }
}

void watch_block(void const* kernel) {
    if (!watched) return;
    memory = shared_memory();
    bytes.assign(memory.bytes, Byte{});
    Dl_info library{};
    if (dladdr(reinterpret_cast<void const*>(&watched), &library) != 0)
        running_kernel = static_cast<std::size_t>(static_cast<char const*>(kernel) -
                                                  static_cast<char const*>(library.dli_fbase));
}

bool found_fault() {
    bool const found = faulty;
    faulty = false;
    return found;
}

}  // namespace cuda_on_host

void cudaOnHostSetVariables(int count, char const* const* names, std::size_t const* starts, std::size_t const* ends,
                            std::size_t const* kernels) {
    cuda_on_host::variables.clear();
    for (int i = 0; i < count; ++i) cuda_on_host::variables.push_back({names[i], starts[i], ends[i], kernels[i]});
}

// What the compiler calls.

using cuda_on_host::Access;
using cuda_on_host::touch;

#define ACTVAR_SIZE(n)                                                                                        \
    extern "C" void __tsan_read##n(void* address) { touch(address, n, Access::kRead); }                       \
    extern "C" void __tsan_write##n(void* address) { touch(address, n, Access::kWrite); }                     \
    extern "C" void __tsan_unaligned_read##n(void* address) { touch(address, n, Access::kRead); }             \
    extern "C" void __tsan_unaligned_write##n(void* address) { touch(address, n, Access::kWrite); }
ACTVAR_SIZE(1)
ACTVAR_SIZE(2)
ACTVAR_SIZE(4)
ACTVAR_SIZE(8)
ACTVAR_SIZE(16)

extern "C" void __tsan_init() { cuda_on_host::watched = true; }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_read_range(void* address, unsigned long bytes) { touch(address, bytes, Access::kRead); }
extern "C" void __tsan_write_range(void* address, unsigned long bytes) { touch(address, bytes, Access::kWrite); }
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" char __tsan_atomic8_load(char const volatile* address, int) {
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
extern "C" int __tsan_atomic32_load(int const volatile* address, int) { return __atomic_load_n(address, __ATOMIC_SEQ_CST); }
extern "C" void __tsan_atomic32_store(int volatile* address, int value, int) {
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);
}
