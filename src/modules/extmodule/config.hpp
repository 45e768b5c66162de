// extmodule/config: what extmodule.conf says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "listener.hpp"
#include "program.hpp"

namespace modules::extmodule {

struct Config {
  std::uint32_t timeout_ms = 0;    ///< of programs that set none of their own
  std::string path;                ///< of the file
  std::uint32_t timeout_line = 0;  ///< 0 where it does not say
  std::uint32_t grace_ms = 500;
  std::vector<ProgramSettings> programs;
  std::vector<ListenerSettings> listeners;
};

/// Reads DIR/extmodule.conf. False where a program or listener in it cannot work; why stands in
/// `diagnostics`. A file that is not there leaves `config` empty, without a remark.
bool load_config(const std::string& directory, Config& config, sipmsg::Diagnostics& diagnostics);

}  // namespace modules::extmodule
