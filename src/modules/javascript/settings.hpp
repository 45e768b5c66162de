// javascript/settings: what javascript.conf says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "process.hpp"
#include "sipmsg.hpp"
#include "source.hpp"

namespace modules {

struct JavascriptSettings {
  ScriptLimits limits;
  std::vector<ScriptSource> scripts;  ///< those of [late_scripts] last
  sipmsg::RunParameters run_parameters;
  std::string path;                ///< of the file
  std::uint32_t timeout_line = 0;  ///< 0 where it does not say how long a message may wait
};

/// Reads DIR/javascript.conf and the scripts it names, and compiles each of them once. False where
/// one of them cannot run; why stands in `diagnostics`. No such file is no mistake.
bool load_javascript(const std::string& directory, JavascriptSettings& settings,
                     sipmsg::Diagnostics& diagnostics);

}  // namespace modules
