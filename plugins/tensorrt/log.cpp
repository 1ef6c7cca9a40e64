#include "log.h"

#include <atomic>

namespace actvar {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> the_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    if (finder != nullptr) the_finder = finder;
}

void log_error(std::string const& message) noexcept {
    nvinfer1::ILoggerFinder* const finder = the_finder;
    nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
}

}  // namespace actvar
