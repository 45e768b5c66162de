// extmodule/locals: the values that one external program reads and changes by `setlocal`.
//
// Some rule the session (timeout, maxqueue, restart and so on); some belong to calls and channels,
// which a message server has none of: they are kept and told, and change nothing. Facts about the
// engine can be read only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sipmsg.hpp"

namespace modules::extmodule {

/// What programs may know of the engine.
struct Facts {
  sipmsg::RunParameters engine;             ///< read as `engine.NAME`
  sipmsg::Ini config;                       ///< yate.conf, read as `config.SECTION.KEY`
  std::vector<std::string> loaded_modules;  ///< read as `loaded.NAME`, "true" or "false"
  std::string run_id;

  /// Nothing for a name that is no fact; empty text for a fact that is not known.
  std::optional<std::string> find(std::string_view name) const;
};

struct Locals {
  /// What a setlocal is answered with.
  struct Told {
    std::string value;
    bool done = false;
  };

  std::string id;
  std::string reason;
  bool disconnected = false;
  bool setdata = true;
  std::string trackparam;  ///< the program's name in the parameter `handlers`; empty: "extmodule"
  std::uint32_t timeout_ms = 4000;
  bool timebomb = false;          ///< a program that lets a message time out is ended
  std::uint32_t bufsize = 8192;   ///< octets in the longest line it may begin
  std::uint32_t maxqueue = 1000;  ///< messages that wait at once, each way; 0: as many as allowed
  std::optional<bool> restart;    ///< nothing: only after a failure
  bool reenter = false;           ///< it is offered its own messages
  bool selfwatch = false;         ///< it is shown what became of its own messages
  bool settime = false;           ///< its messages are as of now, whatever they say
  std::uint32_t debuglevel = 8;   ///< of its `debug` lines those up to this are logged
  std::string debugname;          ///< how it is called in the log

  static constexpr std::uint32_t largest_maxqueue = 10000;

  std::uint32_t max_waiting() const { return maxqueue == 0 ? largest_maxqueue : maxqueue; }

  /// An empty value asks. A number out of range is moved into it; what is no boolean or no number,
  /// an unknown name and one that can only be read change nothing.
  Told set(std::string_view name, std::string_view value, const Facts& facts);
};

}  // namespace modules::extmodule
