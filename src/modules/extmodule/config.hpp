// extmodule/config: what extmodule.conf says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "listener.hpp"
#include "program.hpp"

namespace modules::extmodule {

struct Config {
  std::uint32_t grace_ms = 500;
  std::vector<ProgramSettings> programs;
  std::vector<ListenerSettings> listeners;
};

/// Reads DIR/extmodule.conf. False where a program or listener in it cannot work; why stands in
/// `diagnostics`. A file that is not there leaves `config` empty, without a remark.
bool load_config(const std::string& directory, Config& config, sipmsg::Diagnostics& diagnostics);

}  // namespace modules::extmodule
