// What TensorRT calls when it loads this library.

#include "../kernels/export.h"
#include "log.h"
#include "plugin.h"

// The creators of all plugins.
ACTVAR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static actvar::Creator select(actvar::kTokenSelect), gather(actvar::kTokenGather), scatter(actvar::kTokenScatter),
        gather_norm(actvar::kTokenGatherNorm), scatter_gated(actvar::kTokenScatterGated), ffn(actvar::kRoutedFfn);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&select,      &gather,        &scatter,
                                                                  &gather_norm, &scatter_gated, &ffn};
    count = static_cast<std::int32_t>(sizeof creators / sizeof *creators);
    return creators;
}

ACTVAR_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { actvar::set_logger_finder(finder); }
