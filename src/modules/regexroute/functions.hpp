// regexroute/functions: what $(function,...) yields, and the global variables.
//
// All functions of Yate's regexroute that a message router needs. Left out: accepting, threadname
// and transcode, which are about calls and threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "sipmsg.hpp"
#include "text.hpp"

namespace modules::regexroute {

/// Global variables: they outlive messages, and a configuration that is read anew.
class Variables {
 public:
  using Values = std::map<std::string, std::string, std::less<>>;

  /// Names can be made of what senders write, so their number has a limit.
  static constexpr std::size_t max_count = 10000;

  /// False where there are too many.
  bool set(std::string_view name, std::string_view value);
  void clear(std::string_view name);
  /// Empty where there is none; valid until the variable is set again or cleared.
  std::string_view get(std::string_view name) const;
  bool has(std::string_view name) const { return values_.find(name) != values_.end(); }
  const Values& values() const { return values_; }

 private:
  Values values_;
};

/// What functions know beside their message. Outlives the rules that use it.
struct Environment {
  Variables& variables;
  sipmsg::RunParameters run_parameters;
  std::vector<std::string> loaded_modules;
  sipmsg::Ini engine_configuration;  ///< yate.conf, for $(config,...)
  std::string run_id;
  sipmsg::Random random;
  std::function<std::uint64_t()> now_unix_us;
  std::uint32_t dispatching = 0;  ///< messages of rules that are being handled just now
};

class Arguments;

/// A function by its name. `least` and `most` count its arguments; the last of `most` holds further
/// commas, too; 0 is any number.
struct Function {
  std::string_view name;
  std::size_t least = 0;
  std::size_t most = 0;
  std::string (*yield)(const Arguments& arguments) = nullptr;
};

/// What $(...) begins with: `size` octets name the function. A word that is no function's name is
/// the name of a global variable, where nothing follows it.
struct FunctionName {
  const Function* function = nullptr;  ///< null for an unknown one
  std::size_t size = 0;
  bool has_arguments = false;
};

FunctionName find_function(std::string_view content);

std::string evaluate(const Call& call, const Scope& scope);

/// A whole decimal number with or without a sign, leading zeros and blanks around it; else 0. Too
/// large ones become the largest there is.
std::int64_t to_number(std::string_view text);

}  // namespace modules::regexroute
