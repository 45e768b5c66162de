// javascript/shared: see shared.hpp.
#include "shared.hpp"

#include <cstdlib>

namespace modules {

std::optional<std::string> SharedVariables::get(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) return std::nullopt;
  return found->second;
}

bool SharedVariables::set(const std::string& name, std::string_view value) {
  const auto found = values_.find(name);
  const bool is_new = found == values_.end();
  const std::size_t others =
      is_new ? octets_ : octets_ - found->first.size() - found->second.size();
  if (is_new && values_.size() >= max_count) return false;
  if (name.size() > max_octets - others || value.size() > max_octets - others - name.size()) {
    return false;
  }
  octets_ = others + name.size() + value.size();
  values_[name] = value;
  return true;
}

void SharedVariables::clear(const std::string& name) {
  const auto found = values_.find(name);
  if (found == values_.end()) return;
  octets_ -= found->first.size() + found->second.size();
  values_.erase(found);
}

std::optional<std::uint64_t> SharedVariables::increment(const std::string& name,
                                                        std::uint64_t wrap) {
  constexpr std::uint64_t largest = (std::uint64_t{1} << 53) - 1;  // a script's numbers end there
  if (wrap == 0 || wrap > largest) wrap = largest;
  const std::string text = get(name).value_or("0");
  const std::uint64_t before = std::strtoull(text.c_str(), nullptr, 10) % (wrap + 1);
  if (!set(name, std::to_string((before + 1) % (wrap + 1)))) return std::nullopt;
  return before;
}

}  // namespace modules
