// javascript/shared: the variables that all scripts share (Engine.shared). They are kept by the
// server and outlive a script that is started anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace modules {

class SharedVariables {
 public:
  static constexpr std::size_t max_count = 10000;
  static constexpr std::size_t max_octets = std::size_t{16} << 20;  ///< names and values

  std::optional<std::string> get(const std::string& name) const;
  /// False where there is no room for it; the old value stays.
  bool set(const std::string& name, std::string_view value);
  void clear(const std::string& name);
  /// What the variable was as a number, 0 where it was none; it becomes one more. With `wrap`, both
  /// are at most that, and 0 follows. Nothing where there is no room for it.
  std::optional<std::uint64_t> increment(const std::string& name, std::uint64_t wrap);

 private:
  std::map<std::string, std::string> values_;
  std::size_t octets_ = 0;
};

}  // namespace modules
