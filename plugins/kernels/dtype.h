// The number formats that the kernels compute in. Scores and sums are fp32 whatever this says.

#pragma once

enum ActvarDtype { kActvarFp32 = 0, kActvarFp16 = 1, kActvarBf16 = 2 };

// Bytes of one value, or 0 for a number that names no format.
inline int actvarBytes(ActvarDtype dtype) noexcept {
    return dtype == kActvarFp32 ? 4 : dtype == kActvarFp16 || dtype == kActvarBf16 ? 2 : 0;
}
