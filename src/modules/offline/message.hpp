// offline/message: one message that is kept for later, and the text of the file it is kept in.
//
// The file is for people, too: a first line with the version of the format and a checksum of all
// that follows, then fields as in a mail, an empty line, and the body as it came. Whatever a crash
// or a hand made of a file, it is either the message that was accepted or recognised as none.
// Where the files stand and when they are written is for offline_spool to say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace modules {

/// A message for a user who could not be reached. Times are seconds since 1970.
struct KeptMessage {
  std::uint64_t id = 0;     ///< rises in the order of arrival; names the file
  std::string user;         ///< whose it is: a user's name, any octets
  std::string sender;       ///< on whose account it counts
  std::string identity;     ///< what only a repetition of the same request has in common with it
  std::string from;         ///< name and URI as they came, without tag
  std::string to;           ///< likewise
  std::string date;         ///< a Date header's value: when it was sent
  std::int64_t kept_s = 0;  ///< when it was accepted
  std::int64_t expires_s = 0;
  std::string content_type;
  std::vector<std::pair<std::string, std::string>> headers;  ///< others that go with the body
  std::string body;
};

/// The file's whole text. Its id does not stand in there: it is the file's name.
std::string to_file_text(const KeptMessage& message);

/// The message of a file's text, with id 0. Nothing where it is none that `to_file_text` wrote;
/// `why` then says what is wrong with it.
std::optional<KeptMessage> parse_file_text(std::string_view text, std::string& why);

/// The text on one line: control octets, DEL and "%" as %XX, so that neither a file nor a terminal
/// takes them for more than text.
std::string on_one_line(std::string_view text);

}  // namespace modules
