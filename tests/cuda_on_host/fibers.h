// The threads of a block, as fibers of one host thread.

#pragma once

#include <functional>

namespace cuda_on_host {

constexpr int kWarp = 32;

// Runs `thread` once for each of `threads` indices, in an order that `set_order` decides.
void run_block(int threads, std::function<void()> const& thread);

// Index of the running fiber in its block.
int thread_index();

// Barriers that the block, or the running fiber's warp, has passed.
unsigned block_epoch();
unsigned warp_epoch();

// Wait for all fibers of the block, or of the warp, that have not ended; returns the sum of their values.
int wait_for_block(int value);
void wait_for_warp();

// One value per lane, exchanged between the lanes of a warp.
unsigned& lane_value(int lane);

}  // namespace cuda_on_host

// Which order the fibers run in: 0 that of their indices; others shuffle them, and even ones run each warp as far as it
// gets before the next.
extern "C" void cudaOnHostSetOrder(unsigned seed);
