#include "bank_conflicts.h"

#include <cstdint>

namespace {

constexpr unsigned kRows = 8, kRowBytes = 16, kBankBytes = 128;

int conflicts = 0;

}  // namespace

void cuda_on_host::count_bank_conflicts(char const* const* rows) {
    unsigned taken = 0;
    for (unsigned i = 0; i < kRows; ++i)
        taken |= 1u << reinterpret_cast<std::uintptr_t>(rows[i]) % kBankBytes / kRowBytes;
    conflicts += taken != (1u << kRows) - 1;
}

int cudaOnHostBankConflicts() {
    int const count = conflicts;
    conflicts = 0;
    return count;
}
