// The torture messages of RFC 4475: what the parser says to each, and the values that the RFC says
// are in them. tests/data/rfc4475/INDEX.tsv tells the sections, and what a server owes to each.
#include <doctest/doctest.h>

#include <map>
#include <string>

#include "support/data.hpp"
#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_torture {

using namespace sipmsg;
using namespace std::literals;

namespace {

/// What `parse` finds in the datagram, and `validate` where that finds nothing.
struct Row {
  const char* file;
  ErrorCode error;
};

const Row rows[] = {
    // 3.1.1: valid, however strange
    {"wsinv", ErrorCode::none},
    {"intmeth", ErrorCode::none},
    {"esc01", ErrorCode::none},
    {"escnull", ErrorCode::none},
    {"esc02", ErrorCode::none},
    {"lwsdisp", ErrorCode::none},
    {"longreq", ErrorCode::none},
    {"dblreq", ErrorCode::none},
    {"semiuri", ErrorCode::none},
    {"transports", ErrorCode::none},
    {"mpart01", ErrorCode::none},
    {"unreason", ErrorCode::none},
    {"noreason", ErrorCode::none},
    // 3.1.2: invalid. Four have their mistake where only those look who need the value.
    {"badinv01", ErrorCode::bad_parameter},
    {"clerr", ErrorCode::content_length_beyond},
    {"ncl", ErrorCode::bad_content_length},
    {"scalar02", ErrorCode::bad_cseq},
    {"scalarlg", ErrorCode::bad_cseq},
    {"quotbal", ErrorCode::bad_quoted_string},
    {"ltgtruri", ErrorCode::bad_uri},
    {"lwsruri", ErrorCode::bad_start_line},
    {"lwsstart", ErrorCode::bad_start_line},
    {"trws", ErrorCode::bad_start_line},
    {"escruri", ErrorCode::none},
    {"baddate", ErrorCode::none},
    {"regbadct", ErrorCode::none},
    {"badaspec", ErrorCode::bad_uri},
    {"baddn", ErrorCode::missing_blank_line},
    {"badvers", ErrorCode::bad_version},
    {"mismatch01", ErrorCode::cseq_method_mismatch},
    {"mismatch02", ErrorCode::cseq_method_mismatch},
    {"bigcode", ErrorCode::bad_status_code},
    // 3.2, 3.3, 3.4: the trouble is elsewhere, or in the choice of headers
    {"badbranch", ErrorCode::none},
    {"insuf", ErrorCode::missing_call_id},
    {"unkscm", ErrorCode::none},
    {"novelsc", ErrorCode::none},
    {"unksm2", ErrorCode::none},
    {"bext01", ErrorCode::none},
    {"invut", ErrorCode::none},
    {"regaut01", ErrorCode::none},
    {"multi01", ErrorCode::duplicate_header},
    {"mcl01", ErrorCode::conflicting_content_length},
    {"bcast", ErrorCode::none},
    {"zeromf", ErrorCode::none},
    {"cparam01", ErrorCode::none},
    {"cparam02", ErrorCode::none},
    {"regescrt", ErrorCode::none},
    {"sdp01", ErrorCode::none},
    {"inv2543", ErrorCode::none},
};

/// A torture message and what is in it. `view` may have mistakes: not every message here is valid.
struct Torture {
  explicit Torture(const std::string& file) : bytes(test::read_data("rfc4475/" + file + ".dat")) {
    error = view.parse(bytes);
    if (!error) error = validate(view);
  }

  /// The elements of a list, "|" behind each.
  std::string list(HeaderId id) const {
    std::string all;
    for (std::string_view value : view.values(id)) all.append(value).append("|");
    return all;
  }
  NameAddr contact() const {
    const auto address = parse_name_addr(view.header(HeaderId::contact));
    REQUIRE(address.ok());
    return *address;
  }

  std::string bytes;
  MessageView view;
  Error error;
};

}  // namespace

TEST_CASE("every torture message gets the verdict of RFC 4475") {
  const auto index = test::read_table("rfc4475/INDEX.tsv");
  CHECK(index.size() == std::size(rows));
  std::map<std::string, std::string> classes;
  for (const auto& line : index) classes[line[0].substr(0, line[0].size() - 4)] = line[2];
  for (const Row& row : rows) {
    CAPTURE(row.file);
    REQUIRE(classes.count(row.file) == 1);
    if (classes[row.file] == "V") REQUIRE(row.error == ErrorCode::none);
    const test::GuardedText bytes(test::read_data("rfc4475/"s + row.file + ".dat"));
    MessageView message;
    Error error = message.parse(bytes.view());
    if (!error) error = validate(message);
    CHECK(error.name() == std::string_view(error_name(row.error)));
    CHECK_FALSE(message.header(HeaderId::via).empty());  // whatever is wrong, it can be answered
  }
}

TEST_CASE("wsinv: blanks, folds, odd case and compact names wherever they may stand") {
  const Torture message("wsinv");
  CHECK(message.view.method() == Method::invite);
  CHECK(message.view.request_uri()->parameters == "unknownparam");
  CHECK(message.view.cseq()->number == 9);
  CHECK(message.view.cseq()->method == "INVITE");
  CHECK(message.view.max_forwards() == 68);
  CHECK(message.view.content_length() == 150);
  CHECK(message.view.body().size() == 150);
  CHECK(message.view.to()->tag() == "1918181833n");
  CHECK(message.view.to()->uri.text == "sip:vivekg@chair-dnrc.example.com");
  CHECK(unquote(message.view.from()->display_name) == "J Rosenberg \\\"");
  CHECK(message.view.from()->tag() == "98asjd8");
  CHECK(message.view.header(HeaderId::subject).empty());
  CHECK(message.view.header("UnknownHeaderWithUnusualValue") == ";;,,;;,;");
  CHECK(message.view.header("newfangledheader") ==
        "newfangled value\r\n continued newfangled value");
  std::string vias;
  for (std::string_view element : message.view.values(HeaderId::via)) {
    const auto via = parse_via(element);
    REQUIRE(via.ok());
    vias.append(via->transport).append(" ").append(via->host).append(" ");
    vias.append(via->branch).append("|");
  }
  CHECK(vias ==
        "UDP 192.0.2.2 390skdjuw|TCP spindle.example.com z9hG4bK9ikj8|"
        "UDP 192.168.255.111 z9hG4bK30239|");
  const auto route = parse_name_addr(message.view.header(HeaderId::route));
  CHECK(route->uri.parameter("lr") == "");
  CHECK(route->uri.parameter("unknownwith") == "value");
  CHECK(unquote(message.contact().display_name) == "Quoted string \"\"");
  CHECK(message.contact().parameters.find("newparam") == "newvalue");
  CHECK(message.contact().parameters.has("secondparam"));
  CHECK(parse_q(*message.contact().parameters.find("q")) == 330);
}

TEST_CASE("intmeth: every octet that may stand in a token or a quoted string") {
  const Torture message("intmeth");
  CHECK(message.view.method() == Method::other);
  CHECK(message.view.method_text() == "!interesting-Method0123456789_*+`.%indeed'~");
  CHECK(message.view.request_uri()->user == "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*");
  CHECK(message.view.request_uri()->password == "&it+has=1,weird!*pas$wo~d_too.(doesn't-it)");
  CHECK(message.view.request_uri()->host == "example.com");
  CHECK(message.view.top_via()->branch == "z9hG4bK-.!%66*_+`'~");
  CHECK(unquote(message.view.to()->display_name) == "BEL:\x07 NUL:\0 DEL:\x7f"s);
  CHECK(message.view.from()->display_name == "token1~` token2'+_ token3*%!.-");
  CHECK(unquote(*message.view.from()->parameters.find("fromParam''~+*_!.-%")) ==
        "\xd1\x80\xd0\xb0\xd0\xb1\xd0\xbe\xd1\x82\xd0\xb0\xd1\x8e\xd1\x89\xd0\xb8\xd0\xb9");
  CHECK(message.view.from()->tag() == "_token~1'+`*%!-.");
  CHECK(message.view.call_id() == "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{");
  CHECK(message.view.cseq()->number == 139122385);
  CHECK(message.view.max_forwards() == 255);
  CHECK(message.view.header("EXTENSIONHEADER-!.%*+_`'~") ==
        "\xef\xbb\xbf\xe5\xa4\xa7\xe5\x81\x9c\xe9\x9b\xbb");
}

TEST_CASE("esc01, escnull, esc02: escapes are decoded once, in URIs, and nowhere else") {
  const Torture escapes("esc01");
  CHECK(escapes.view.request_uri()->scheme == UriScheme::sip);
  CHECK(unescape(escapes.view.request_uri()->user) == "sips:user@example.com");
  CHECK(escapes.view.request_uri()->host == "example.net");
  CHECK(unescape(escapes.view.to()->uri.user) == "user");
  CHECK(unescape(escapes.view.from()->uri.user) == "I have spaces");
  CHECK(unescape(escapes.contact().uri.user) == "caller");
  CHECK(unescape(escapes.contact().uri.parameters) == "lr;name=value%41");

  const Torture nulls("escnull");
  CHECK(address_of_record(nulls.view.to()->uri) == "sip:null-\0-null@example.com"s);
  CHECK(nulls.list(HeaderId::contact) ==
        "<sip:%00@host5.example.com>|<sip:%00%00@host5.example.com>|");
  const auto contacts = nulls.view.values(HeaderId::contact);
  auto next = contacts.begin();
  const auto one = parse_name_addr(*next);
  const auto two = parse_name_addr(*++next);
  CHECK_FALSE(equivalent(one->uri, two->uri));

  const Torture not_register("esc02");
  CHECK(not_register.view.method() == Method::other);
  CHECK(not_register.view.cseq()->method == "RE%47IST%45R");
  CHECK(not_register.list(HeaderId::contact) ==
        "<sip:alias1@host1.example.com>|<sip:alias3@host3.example.com>|");
  CHECK(not_register.view.header("C%6Fntact") == "<sip:alias2@host2.example.com>");
  CHECK(not_register.view.to()->display_name == "\"%Z%45\"");
  CHECK(not_register.view.top_via()->branch == "z9hG4bK209%fzsnel234");
}

TEST_CASE("lwsdisp, semiuri, transports, longreq: names, users and tokens of unusual form") {
  CHECK(Torture("lwsdisp").view.from()->display_name == "caller");
  CHECK(unescape(Torture("semiuri").view.request_uri()->user) == "user;par=u@example.net");
  std::string transports;
  const Torture vias("transports");
  for (std::string_view element : vias.view.values(HeaderId::via)) {
    transports.append(parse_via(element)->transport).append(" ");
  }
  CHECK(transports == "UDP SCTP TLS UNKNOWN TCP ");
  const Torture longest("longreq");
  std::size_t count = 0;
  for (std::string_view element : longest.view.values(HeaderId::via)) {
    const auto via = parse_via(element);
    CHECK(via.ok());
    const std::string host = count == 33 ? "host" : "sip" + std::to_string(33 - count);
    CHECK(via->host == host + ".example.com");
    CHECK((via->branch.size() > 200) == (count == 33));
    ++count;
  }
  CHECK(count == 34);
  CHECK(longest.view.bytes() == longest.bytes);
}

TEST_CASE("dblreq: what follows the body is no part of a datagram, and the next one on a stream") {
  const Torture message("dblreq");
  CHECK(message.view.method() == Method::register_);
  CHECK(message.view.body().empty());
  CHECK(message.view.bytes().size() < message.bytes.size());

  StreamBuffers buffers;
  StreamFramer framer(buffers);
  const StreamFramer::Room room = framer.writable();
  framer.commit(message.bytes.copy(room.data, room.size));
  CHECK(framer.next() == StreamEvent::message);
  CHECK(framer.view().method() == Method::register_);
  CHECK(framer.next() == StreamEvent::blank);
  CHECK(framer.next() == StreamEvent::message);
  CHECK(framer.view().method() == Method::invite);
  CHECK(framer.view().body().size() == 150);
}

TEST_CASE("mpart01: a body is octets, bare LF and all") {
  const Torture message("mpart01");
  CHECK(message.view.method() == Method::message);
  CHECK(message.view.content_type()->is("multipart", "mixed"));
  CHECK(message.view.content_type()->parameters.find("boundary") == "7a9cbec02ceef655");
  CHECK(message.view.body().size() == message.view.content_length());
  CHECK(message.view.body().find("\x80") != std::string_view::npos);
  CHECK(message.view.bytes() == message.bytes);
}

TEST_CASE("unreason, noreason, scalarlg, bigcode: responses") {
  CHECK(Torture("unreason").view.status_code() == 200);
  CHECK(Torture("unreason").view.reason_phrase().substr(0, 18) == "= 2**3 * 5**2 \xd0\xbd\xd0\xbe");
  CHECK(Torture("noreason").view.status_code() == 100);
  CHECK(Torture("noreason").view.reason_phrase().empty());
  CHECK(Torture("scalarlg").view.is_response());
  CHECK(Torture("bigcode").view.is_response());
  CHECK(Torture("bigcode").view.status_code() == 0);
}

TEST_CASE("a mistake has its place") {
  const auto at = [](const std::string& file, std::string_view place) {
    const Torture message(file);
    CAPTURE(file);
    CHECK(message.error.place == static_cast<int>(message.bytes.find(place)));
  };
  at("badinv01", ";,;,,");
  at("ncl", "-999");
  at("scalarlg", "9292394834772304023312");
  at("quotbal", "\"Mr. J.");
  at("ltgtruri", "<sip:user@example.com> SIP");
  at("badvers", "SIP/7.0\r\n");
  at("mismatch01", "8 INVITE");
  at("mcl01", "13\r\n");
  at("clerr", "9999");
}

TEST_CASE("scalar02: numbers beyond all bounds are an error in CSeq and large elsewhere") {
  const Torture message("scalar02");
  CHECK(message.view.max_forwards() == std::nullopt);
  CHECK(message.view.expires() == 0xffffffff);
  CHECK(MessageView::delta_seconds(*message.contact().parameters.find("expires")) == 0xffffffff);
}

TEST_CASE("mistakes that matter only to those who need the value") {
  CHECK(Torture("escruri").view.request_uri()->headers == "Route=%3Csip:example.com%3E");
  CHECK(parse_date(Torture("baddate").view.header(HeaderId::date)).error().code ==
        ErrorCode::bad_date);
  CHECK(parse_name_addr(Torture("regbadct").view.header(HeaderId::contact)).error().code ==
        ErrorCode::bad_name_addr);
  CHECK(parse_name_addr(Torture("badinv01").view.header(HeaderId::contact)).error().code ==
        ErrorCode::bad_parameter);
  const Torture name("baddn");
  CHECK(name.view.from().error().code == ErrorCode::bad_name_addr);
  CHECK(name.view.to().error().code == ErrorCode::bad_name_addr);
}

TEST_CASE("above the parser: what the other layers have to go by") {
  const Torture branch("badbranch");
  CHECK(branch.view.top_via()->branch == "z9hG4bK");
  CHECK_FALSE(branch.view.top_via()->has_rfc3261_branch());
  CHECK(Torture("unkscm").view.request_uri()->scheme == UriScheme::other);
  CHECK(Torture("novelsc").view.request_uri()->scheme_text == "soap.beep");
  const Torture schemes("unksm2");
  CHECK(schemes.view.to()->uri.scheme_text == "isbn");
  CHECK(schemes.view.from()->uri.scheme_text == "http");
  CHECK(schemes.contact().uri.scheme_text == "name");
  const Torture extensions("bext01");
  CHECK(extensions.list(HeaderId::require) == "nothingSupportsThis|nothingSupportsThisEither|");
  CHECK(extensions.list(HeaderId::proxy_require) ==
        "noProxiesSupportThis|norDoAnyProxiesSupportThis|");
  CHECK(Torture("invut").view.content_type()->is("application", "unknownformat"));
  CHECK_FALSE(
      parse_credentials(Torture("regaut01").view.header(HeaderId::authorization))->is_digest);
  CHECK(Torture("bcast").view.status_code() == 200);
  CHECK(Torture("zeromf").view.max_forwards() == 0);
  CHECK(Torture("sdp01").view.header(HeaderId::accept) == "text/nobodyKnowsThis");
  const Torture old("inv2543");
  CHECK_FALSE(old.view.top_via()->has_rfc3261_branch());
  CHECK_FALSE(old.view.has(HeaderId::content_length));
  CHECK(old.view.from()->tag().empty());
  CHECK(old.view.body().substr(0, 5) == "v=0\r\n");
}

TEST_CASE("cparam01, cparam02, regescrt: a parameter is the URI's in <> and the header's without") {
  CHECK(Torture("cparam01").contact().uri.text == "sip:+19725552222@gw1.example.net");
  CHECK(Torture("cparam01").contact().parameters.has("unknownparam"));
  CHECK(Torture("cparam02").contact().uri.parameter("unknownparam") == "");
  CHECK_FALSE(Torture("cparam02").contact().parameters.has("unknownparam"));
  CHECK(Torture("regescrt").contact().uri.headers == "Route=%3Csip:sip.example.com%3E");
}

}  // namespace test_torture
