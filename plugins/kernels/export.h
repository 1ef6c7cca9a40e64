// Marks the functions that the library shows; everything else in it is hidden.

#pragma once

#define ACTVAR_EXPORT extern "C" __attribute__((visibility("default")))
