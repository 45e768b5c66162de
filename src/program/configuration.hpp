// configuration: the settings that `serve` runs with and `check` judges.
#pragma once

#include <cstdio>
#include <string>

#include "../modules/modules.hpp"
#include "sipmsg.hpp"

namespace program {

/// Reads the directory, or makes the settings of a server without one where it is empty. False
/// where they cannot be used; why stands in `diagnostics`. The modules read their files, too.
bool load_configuration(const std::string& directory, sipmsg::Settings& settings,
                        modules::Modules& extensions, sipmsg::Diagnostics& diagnostics);

void print(std::FILE* out, const sipmsg::Diagnostics& diagnostics);

}  // namespace program
