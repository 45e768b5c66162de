// javascript/link: see link.hpp.
#include "link.hpp"

#include <cstring>

namespace modules {

namespace {

using Length = std::uint32_t;

}  // namespace

void FrameWriter::begin(FrameType type) {
  octets_.resize(ended_);
  const Length length = 0;  // known at the end
  raw(&length, sizeof length);
  octets_.push_back(static_cast<char>(type));
}

void FrameWriter::text(std::string_view value) {
  number(value.size());
  octets_.append(value);
}

bool FrameWriter::end() {
  const std::size_t size = octets_.size() - ended_ - sizeof(Length);
  if (size > max_frame_size) {
    octets_.resize(ended_);
    return false;
  }
  const auto length = static_cast<Length>(size);
  std::memcpy(&octets_[ended_], &length, sizeof length);
  ended_ = octets_.size();
  return true;
}

void FrameWriter::consume(std::size_t size) {
  octets_.erase(0, size);
  ended_ -= size;
}

std::optional<FrameType> FrameReader::type() {
  if (rest_.empty()) return std::nullopt;
  const auto value = static_cast<std::uint8_t>(rest_.front());
  rest_.remove_prefix(1);
  if (value > static_cast<std::uint8_t>(FrameType::last)) return std::nullopt;
  return static_cast<FrameType>(value);
}

std::uint64_t FrameReader::number() {
  std::uint64_t value = 0;
  if (!good_ || rest_.size() < sizeof value) {
    good_ = false;
    return 0;
  }
  std::memcpy(&value, rest_.data(), sizeof value);
  rest_.remove_prefix(sizeof value);
  return value;
}

std::string_view FrameReader::text() {
  const std::uint64_t size = number();
  if (size > rest_.size()) good_ = false;
  if (!good_) return {};
  const std::string_view value = rest_.substr(0, static_cast<std::size_t>(size));
  rest_.remove_prefix(value.size());
  return value;
}

std::uint64_t FrameReader::count(std::size_t entry_size) {
  const std::uint64_t entries = number();
  if (entries > rest_.size() / entry_size) good_ = false;
  return good_ ? entries : 0;
}

FrameState split_frame(std::string_view& octets, std::string_view& frame) {
  Length length = 0;
  if (octets.size() < sizeof length) return FrameState::incomplete;
  std::memcpy(&length, octets.data(), sizeof length);
  if (length == 0 || length > max_frame_size) return FrameState::broken;
  if (octets.size() - sizeof length < length) return FrameState::incomplete;
  frame = octets.substr(sizeof length, length);
  octets.remove_prefix(sizeof length + length);
  return FrameState::whole;
}

}  // namespace modules
