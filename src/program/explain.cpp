// explain: a message taken apart, with what each part is for and the section that rules it.
//
// For those who learn, and for those who stare at a trace. It reads as the server does, so what it
// cannot read the server could not either; it says where that is.
#include <unistd.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "command_line.hpp"
#include "outcome.hpp"
#include "output.hpp"
#include "screen_text.hpp"
#include "sipmsg.hpp"
#include "subcommands.hpp"

namespace program {

namespace {

using sipmsg::HeaderId;

struct Explanation {
  std::string_view name;
  const char* section;
  const char* meaning;
};

constexpr Explanation explanations[] = {
    {"Accept", "RFC 3261 20.1", "the content types that are taken"},
    {"Allow", "RFC 3261 20.5", "the methods that are served"},
    {"Authorization", "RFC 3261 20.7, 22.2", "who sends it, proved to the server that asked"},
    {"Call-ID", "RFC 3261 20.8", "names this message, together with CSeq and the From tag"},
    {"Contact", "RFC 3261 20.10, 10.2", "where to reach the user; a MESSAGE has none (RFC 3428 4)"},
    {"Content-Disposition", "RFC 3261 20.11", "what the body is for"},
    {"Content-Encoding", "RFC 3261 20.12", "how the body is packed"},
    {"Content-Length", "RFC 3261 20.14, 18.3", "how many octets the body has; needed over TCP"},
    {"Content-Type", "RFC 3261 20.15", "what the body is"},
    {"CSeq", "RFC 3261 20.16", "counts the requests of one Call-ID, and repeats the method"},
    {"Date", "RFC 3261 20.17, RFC 3428 4", "when it was written"},
    {"Expires", "RFC 3261 20.19, RFC 3428 4", "how many seconds it is of use"},
    {"From", "RFC 3261 20.20, 8.1.1.3", "who says to have sent it; the tag is part of its name"},
    {"Max-Forwards", "RFC 3261 20.22", "how many servers may still pass it on"},
    {"Min-Expires", "RFC 3261 20.23", "the shortest registration that is granted"},
    {"P-Asserted-Identity", "RFC 3325 9.1", "who sent it, in the word of a trusted server"},
    {"Path", "RFC 3327", "the servers on the way to a registered user"},
    {"Proxy-Authenticate", "RFC 3261 20.27, 22.3", "a server on the way asks who sends it"},
    {"Proxy-Authorization", "RFC 3261 20.28, 22.3", "who sends it, proved to a server on the way"},
    {"Proxy-Require", "RFC 3261 20.29", "what servers on the way must be able to do"},
    {"Record-Route", "RFC 3261 20.30", "a server that wants to stay on the way"},
    {"Require", "RFC 3261 20.32", "what the recipient must be able to do"},
    {"Retry-After", "RFC 3261 20.33", "how many seconds to wait before the next try"},
    {"Route", "RFC 3261 20.34, 16.4", "a server it has to pass"},
    {"Server", "RFC 3261 20.35", "the program that answers"},
    {"Subject", "RFC 3261 20.36", "what it is about"},
    {"Supported", "RFC 3261 20.37", "what the sender is able to do beyond the standard"},
    {"To", "RFC 3261 20.39, 8.1.1.2",
     "whom it is for, as the sender put it; not changed on the way"},
    {"Unsupported", "RFC 3261 20.40", "what was required and cannot be done"},
    {"User-Agent", "RFC 3261 20.41", "the program that sent it"},
    {"Via", "RFC 3261 20.42, 18.2", "one that it passed; the answer goes back the same way"},
    {"Warning", "RFC 3261 20.43", "more about the answer, for people"},
    {"WWW-Authenticate", "RFC 3261 20.44, 22.2", "the server asks who sends it"},
};

const Explanation* find(const sipmsg::HeaderField& field) {
  const std::string_view name = field.id == HeaderId::other ? field.name : header_name(field.id);
  for (const Explanation& explanation : explanations) {
    if (sipmsg::equal_ignoring_case(explanation.name, name)) return &explanation;
  }
  return nullptr;
}

/// What is to be read has to be well formed, or at least said not to be.
std::string mistake_in(const sipmsg::HeaderField& field) {
  sipmsg::Error error;
  switch (field.id) {
    case HeaderId::from:
    case HeaderId::to: error = sipmsg::parse_name_addr(field.value).error(); break;
    case HeaderId::cseq: error = sipmsg::parse_cseq(field.value).error(); break;
    case HeaderId::content_type: error = sipmsg::parse_media_type(field.value).error(); break;
    case HeaderId::date: error = sipmsg::parse_date(field.value).error(); break;
    default: break;
  }
  if (!error) return {};
  return std::string("    but: ") + error.text() + ", at octet " + std::to_string(error.place) +
         " of the value\n";
}

std::string explain_start(const sipmsg::MessageView& message) {
  if (message.is_response()) {
    const int code = message.status_code();
    const std::string meaning = meaning_of(code);
    return "SIP/2.0 " + std::to_string(code) + " " + printable(message.reason_phrase()) +
           "\n    an answer" + (code < 200 ? ", not the final one" : "") +
           (meaning.empty() ? "" : ": " + meaning) + " (RFC 3261 7.2, 21)\n";
  }
  std::string text = printable(message.method_text()) + " " +
                     printable(message.request_uri_text()) + " SIP/2.0\n    a request: ";
  switch (message.method()) {
    case sipmsg::Method::message: text += "a message to be delivered (RFC 3428)"; break;
    case sipmsg::Method::register_: text += "where a user can be reached (RFC 3261 10)"; break;
    case sipmsg::Method::options: text += "asks what can be done (RFC 3261 11)"; break;
    case sipmsg::Method::cancel: text += "takes a request back (RFC 3261 9)"; break;
    default: text += "a method that is not served here, and answered 501 (RFC 3261 8.2.1)"; break;
  }
  const auto uri = message.request_uri();
  text += "\n    for this URI, which servers on the way replace (RFC 3261 7.1, 16.5)\n";
  if (!uri) text.append("    but: ").append(uri.error().text()).append("\n");
  return text;
}

std::string explain_body(const sipmsg::MessageView& message) {
  if (message.body().empty()) return "(no body)\n";
  const auto content = sipmsg::read_content(message);
  std::string text = "(body of " + std::to_string(message.body().size()) + " octets)\n    ";
  if (!content) {
    return text + "but: " + content.error().text() + ", at octet " +
           std::to_string(content.error().place) + "\n";
  }
  if (content->cpim) text += "in an envelope with headers of its own (RFC 3862): ";
  switch (content->kind) {
    case sipmsg::ContentKind::text: text += "text (RFC 3428 7): "; break;
    case sipmsg::ContentKind::html: text += "text with marks (HTML): "; break;
    case sipmsg::ContentKind::composing:
      text +=
          content->composing.is_active ? "is typing (RFC 3994)" : "has stopped typing (RFC 3994)";
      break;
    case sipmsg::ContentKind::notification:
      text += "what became of message " + printable(content->notification.message_id) + ": " +
              std::string(notification_status_name(content->notification.status)) + " (RFC 5438)";
      break;
    case sipmsg::ContentKind::other: text += printable(content->media_type); break;
  }
  return text + printable(content->text) + "\n";
}

std::string explain(const sipmsg::MessageView& message) {
  std::string text = explain_start(message);
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const sipmsg::HeaderField field = message.field(i);
    text.append(printable(field.name)).append(": ").append(printable(field.value)).append("\n    ");
    if (const Explanation* explanation = find(field)) {
      text.append(explanation->meaning).append(" (").append(explanation->section).append(")\n");
    } else {
      text += "not known here, and passed on as it is (RFC 3261 16.6)\n";
    }
    text += mistake_in(field);
  }
  return text + explain_body(message);
}

/// All of standard input, or of the file.
bool read_message(const std::string& path, std::string& octets) {
  if (!path.empty() && path != "-") {
    const auto file = sipmsg::read_file(path, sipmsg::max_message_size);
    if (!file) complain(path + ": " + describe(file.error()));
    octets = *file;
    return file.ok();
  }
  char piece[4096];
  while (octets.size() <= sipmsg::max_message_size) {
    const ssize_t size = ::read(STDIN_FILENO, piece, sizeof piece);
    if (size <= 0) return size == 0;
    octets.append(piece, static_cast<std::size_t>(size));
  }
  complain("standard input: " + sentence(sipmsg::Error(sipmsg::ErrorCode::too_large)));
  return false;
}

/// Editors and mail leave LF alone, where SIP wants CR LF.
void complete_line_ends(std::string& octets) {
  if (octets.find("\r\n") != std::string::npos) return;
  for (std::size_t at = octets.find('\n'); at != std::string::npos;
       at = octets.find('\n', at + 2)) {
    octets.insert(at, 1, '\r');
  }
}

}  // namespace

int explain(int argc, char** argv) {
  std::string path;
  const Operand operands[] = {{"FILE", &path, false}};
  CommandLine command;
  command.usage = "sipmsg explain [FILE | -]";
  command.summary =
      "Takes a SIP message apart and says of each part what it is for and which section of which "
      "RFC\n"
      "rules it. The message is what the file or standard input holds; where all its lines end in "
      "LF\n"
      "they are read as if they ended in CR LF.";
  command.operands = operands;
  command.notes = "Exit status: 0 it can be read, 1 it cannot (where is said), 2 wrong usage.";
  if (const auto status = read_arguments(command, argc, argv)) return *status;
  std::string octets;
  if (!read_message(path, octets)) return exit_usage;
  complete_line_ends(octets);
  sipmsg::MessageView message;
  if (const sipmsg::Error error = message.parse(octets)) {
    const auto place = static_cast<std::size_t>(error.place);
    const std::string before = octets.substr(0, place);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    complain("line " + std::to_string(line) + ", octet " + std::to_string(place) + ": " +
             error.text());
    return exit_refused;
  }
  return print_out(explain(message)) ? exit_done : exit_network;
}

}  // namespace program
