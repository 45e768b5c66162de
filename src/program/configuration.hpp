// configuration: the settings that `serve` runs with and `check` judges.
#pragma once

#include <cstdio>
#include <string>

#include "sipmsg.hpp"

namespace program {

/// Reads the directory, or makes the settings of a server without one where it is empty. False
/// where they cannot be used; why stands in `diagnostics`.
bool load_configuration(const std::string& directory, sipmsg::Settings& settings,
                        sipmsg::Diagnostics& diagnostics);

void print(std::FILE* out, const sipmsg::Diagnostics& diagnostics);

}  // namespace program
