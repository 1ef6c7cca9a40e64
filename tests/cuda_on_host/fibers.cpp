#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace cuda_on_host {
namespace {

constexpr std::size_t kStack = 256 * 1024;

// Fibers that wait for one another. A fiber that has ended no longer counts.
struct Barrier {
    int members = 0, waiting = 0, sum = 0, result = 0;
    unsigned generation = 0;

    void release_if_complete() {
        if (waiting == 0 || waiting < members) return;
        result = sum;
        waiting = sum = 0;
        ++generation;
    }
};

// A context enters a fiber for the first time; from then on jumps, which unlike contexts make no system call.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool entered = false;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Barrier* waits_for = nullptr;
    unsigned generation = 0;
    bool ended = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Barrier> warps;
    std::vector<unsigned> lane_values;
    Barrier all;
    ucontext_t scheduler_context;
    jmp_buf scheduler;
    std::function<void()> const* thread = nullptr;
    int running = 0;
};

Block block;
std::mt19937 generator;
bool shuffled = false, hasty = false;

void enter() {
    (*block.thread)();
    Fiber& self = block.fibers[static_cast<std::size_t>(block.running)];
    self.ended = true;
    for (Barrier* barrier : {&block.all, &block.warps[static_cast<std::size_t>(block.running / kWarp)]}) {
        --barrier->members;
        barrier->release_if_complete();
    }
    _longjmp(block.scheduler, 1);
}

int wait(Barrier& barrier, int value) {
    Fiber& self = block.fibers[static_cast<std::size_t>(block.running)];
    self.waits_for = &barrier;
    self.generation = barrier.generation;
    ++barrier.waiting;
    barrier.sum += value;
    barrier.release_if_complete();
    if (_setjmp(self.place) == 0) _longjmp(block.scheduler, 1);
    return barrier.result;
}

// Runs a fiber until it waits or ends.
void resume(Fiber& fiber) {
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.entered) _longjmp(fiber.place, 1);
    fiber.entered = true;
    swapcontext(&block.scheduler_context, &fiber.context);
}

bool can_run(Fiber const& fiber) {
    return !fiber.ended && (fiber.waits_for == nullptr || fiber.waits_for->generation != fiber.generation);
}

void prepare(int threads) {
    if (block.fibers.size() < static_cast<std::size_t>(threads)) block.fibers.resize(static_cast<std::size_t>(threads));
    block.all = Barrier{threads};
    block.warps.assign(static_cast<std::size_t>((threads + kWarp - 1) / kWarp), Barrier{});
    block.lane_values.assign(block.warps.size() * kWarp, 0);
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = block.fibers[static_cast<std::size_t>(i)];
        fiber.waits_for = nullptr;
        fiber.ended = fiber.entered = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        ++block.warps[static_cast<std::size_t>(i / kWarp)].members;
    }
}

// The threads that are run together as far as they get: all of the block, or those of a warp.
std::vector<std::vector<int>> groups_of(int threads) {
    std::vector<std::vector<int>> groups(hasty ? block.warps.size() : 1);
    for (int i = 0; i < threads; ++i) groups[hasty ? static_cast<std::size_t>(i / kWarp) : 0].push_back(i);
    return groups;
}

// Runs every fiber of a group that can run, up to where it waits; returns whether there was any.
bool run_once(std::vector<int>& group) {
    bool advanced = false;
    if (shuffled) std::shuffle(group.begin(), group.end(), generator);
    for (int i : group) {
        Fiber& fiber = block.fibers[static_cast<std::size_t>(i)];
        if (!can_run(fiber)) continue;
        fiber.waits_for = nullptr;
        block.running = i;
        resume(fiber);
        advanced = true;
    }
    return advanced;
}

}  // namespace

void run_block(int threads, std::function<void()> const& thread) {
    prepare(threads);
    block.thread = &thread;
    std::vector<std::vector<int>> groups = groups_of(threads);
    for (bool advanced = true; advanced;) {
        advanced = false;
        if (shuffled) std::shuffle(groups.begin(), groups.end(), generator);
        for (std::vector<int>& group : groups)
            while (run_once(group)) advanced = true;
    }
    if (block.all.members > 0) {
        std::fprintf(stderr, "%d of %d threads wait at a barrier that the others never reach\n", block.all.members,
                     threads);
        std::abort();
    }
}

int thread_index() { return block.running; }

unsigned block_epoch() { return block.all.generation; }

unsigned warp_epoch() { return block.warps[static_cast<std::size_t>(block.running / kWarp)].generation; }

int wait_for_block(int value) { return wait(block.all, value); }

void wait_for_warp() { wait(block.warps[static_cast<std::size_t>(block.running / kWarp)], 0); }

unsigned& lane_value(int lane) {
    return block.lane_values[static_cast<std::size_t>(block.running / kWarp * kWarp + lane)];
}

}  // namespace cuda_on_host

void cudaOnHostSetOrder(unsigned seed) {
    cuda_on_host::shuffled = seed != 0;
    cuda_on_host::hasty = seed != 0 && seed % 2 == 0;
    cuda_on_host::generator.seed(seed);
}
