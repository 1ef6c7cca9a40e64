// What the operators on tokens have in common.

#pragma once

#include <string>

#include "operator.h"

namespace actvar {

// Of a scatter: K tokens that cannot all be different ones of L.
inline std::string scatter_fault(Sizes const& sizes) {
    if (sizes.known('K') && sizes.known('L') && sizes['K'] > sizes['L'])
        return number(sizes['K']) + " tokens cannot have different places in a row of " + number(sizes['L']);
    return "";
}

inline std::size_t no_workspace(Sizes const&, nvinfer1::DataType) { return 0; }

}  // namespace actvar
