// Banks of shared memory: 128 bytes that follow one another are read at once, and of two that are 128 apart only one.

#pragma once

namespace cuda_on_host {

// Counts a conflict where two of eight rows of 16 bytes, which ldmatrix reads at once, share banks.
void count_bank_conflicts(char const* const* rows);

}  // namespace cuda_on_host

// How many there were since it was last asked.
extern "C" int cudaOnHostBankConflicts();
