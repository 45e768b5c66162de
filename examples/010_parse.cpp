// Reads one SIP message: what stands in the start line, who sent it, to whom, which way it came,
// and the text in it. Nothing is copied: everything a MessageView returns points into the bytes it
// was given, so keep those where they are.
//
//     c++ -std=c++17 -DSIPMSG_NO_UV -Iinclude examples/010_parse.cpp -o 010_parse
#include <sipmsg.hpp>

#include <iostream>

int main() {
  const std::string_view bytes =
      "MESSAGE sip:bob@example.org SIP/2.0\r\n"
      "Via: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK776sgd;rport\r\n"
      "Max-Forwards: 70\r\n"
      "f: \"Alice \\\"Al\\\" Liddell\" <sip:alice%20l@example.org>;tag=49583\r\n"  // f means From
      "To: sip:bob@example.org\r\n"
      "Call-ID: asd88asd77a@192.0.2.7\r\n"
      "CSeq: 1 MESSAGE\r\n"
      "Content-Type: text/plain\r\n"
      "Content-Length: 18\r\n"
      "\r\n"
      "Watson, come here.";

  sipmsg::MessageView message;
  sipmsg::Error error = message.parse(bytes);
  if (!error) error = sipmsg::validate(message);
  if (error) {
    std::cerr << error.text() << " (octet " << error.place << ")\n";
    return 1;
  }
  const auto from = message.from();
  const auto via = message.top_via();
  std::cout << "method:  " << message.method_text() << '\n'
            << "to:      " << message.request_uri()->user << " at " << message.request_uri()->host
            << '\n'
            << "from:    " << sipmsg::unquote(from->display_name) << ", user "
            << sipmsg::unescape(from->uri.user) << '\n'
            << "came by: " << via->transport << " from " << via->host << " port " << via->port
            << '\n'
            << "hops:    " << message.max_forwards().value_or(70) << " left\n"
            << "text:    " << message.body() << "\n\n";

  // Headers in the order they came; a value is read by a function of its type when it is needed.
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    std::cout << message.field(i).name << " = " << message.field(i).value << '\n';
  }

  // Mistakes are found, named, and have a place.
  const auto uri = sipmsg::parse_uri("sip:bob@example.org:99999");
  std::cout << "\nsip:bob@example.org:99999: " << uri.error().text() << " (octet "
            << uri.error().place << ")\n";
}

// Expected output:
//   method:  MESSAGE
//   to:      bob at example.org
//   from:    Alice "Al" Liddell, user alice l
//   came by: UDP from 192.0.2.7 port 5060
//   hops:    70 left
//   text:    Watson, come here.
//
//   Via = SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK776sgd;rport
//   Max-Forwards = 70
//   f = "Alice \"Al\" Liddell" <sip:alice%20l@example.org>;tag=49583
//   To = sip:bob@example.org
//   Call-ID = asd88asd77a@192.0.2.7
//   CSeq = 1 MESSAGE
//   Content-Type = text/plain
//   Content-Length = 18
//
//   sip:bob@example.org:99999: the port is not a number from 1 to 65535 (octet 20)
