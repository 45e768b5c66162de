// offline/message: see message.hpp.
#include "message.hpp"

#include "sipmsg.hpp"

namespace modules {

namespace {

constexpr std::string_view magic = "sipmsg-kept 1 sha-256=";
/// Before the names of the sender's own headers, so that none can be taken for a field of ours.
constexpr std::string_view header_prefix = "SIP-";

std::string checksum_of(std::string_view text) {
  sipmsg::Sha256 hash;
  hash.update(text);
  const auto octets = hash.finish();
  std::string hex(octets.size() * 2, '\0');
  sipmsg::write_hex(octets.data(), octets.size(), &hex[0]);
  return hex;
}

void add_field(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ").append(on_one_line(value)).append("\n");
}

/// Takes a line and its end off the front of `text`; nothing where none ends.
std::optional<std::string_view> take_line(std::string_view& text) {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return line;
}

bool take_time(std::string_view value, std::int64_t& time_s) {
  const auto parsed = sipmsg::parse_date_time(value);
  time_s = *parsed;
  return parsed.ok();
}

bool take_field(KeptMessage& message, std::string_view name, std::string value) {
  if (name.substr(0, header_prefix.size()) == header_prefix) {
    message.headers.emplace_back(name.substr(header_prefix.size()), std::move(value));
    return true;
  }
  if (name == "Kept") return take_time(value, message.kept_s);
  if (name == "Until") return take_time(value, message.expires_s);
  const std::pair<std::string_view, std::string*> texts[] = {
      {"User", &message.user},         {"Sender", &message.sender},
      {"From", &message.from},         {"To", &message.to},
      {"Date", &message.date},         {"Content-Type", &message.content_type},
      {"Identity", &message.identity},
  };
  for (const auto& text : texts) {
    if (text.first != name) continue;
    *text.second = std::move(value);
    return true;
  }
  return false;
}

}  // namespace

std::string on_one_line(std::string_view text) {
  constexpr char digits[] = "0123456789ABCDEF";
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    if (octet >= 0x20 && octet != 0x7f && c != '%') {
      out.push_back(c);
    } else {
      out.append({'%', digits[octet >> 4], digits[octet & 15]});
    }
  }
  return out;
}

std::string to_file_text(const KeptMessage& message) {
  std::string text;
  add_field(text, "User", message.user);
  add_field(text, "Sender", message.sender);
  add_field(text, "From", message.from);
  add_field(text, "To", message.to);
  add_field(text, "Date", message.date);
  add_field(text, "Kept", sipmsg::format_date_time(message.kept_s));
  add_field(text, "Until", sipmsg::format_date_time(message.expires_s));
  add_field(text, "Identity", message.identity);
  add_field(text, "Content-Type", message.content_type);
  for (const auto& header : message.headers) {
    add_field(text, std::string(header_prefix).append(header.first), header.second);
  }
  text.append("\n").append(message.body);
  return std::string(magic).append(checksum_of(text)).append("\n").append(text);
}

std::optional<KeptMessage> parse_file_text(std::string_view text, std::string& why) {
  const auto refuse = [&why](const char* reason) {
    why = reason;
    return std::nullopt;
  };
  const auto first = take_line(text);
  if (!first || first->substr(0, magic.size()) != magic) {
    return refuse("is no message of this version of the format");
  }
  if (first->substr(magic.size()) != checksum_of(text)) return refuse("is torn or was changed");
  KeptMessage message;
  while (true) {
    const auto line = take_line(text);
    if (!line) return refuse("has no body");
    if (line->empty()) break;
    const std::size_t colon = line->find(": ");
    if (colon == std::string_view::npos ||
        !take_field(message, line->substr(0, colon), sipmsg::unescape(line->substr(colon + 2)))) {
      return refuse("has a field that is not known");
    }
  }
  if (message.identity.empty()) return refuse("lacks a field");
  message.body = text;
  return message;
}

}  // namespace modules
