// Bindings: what a REGISTER makes of them, how long they last, where they lead, what survives a
// restart. Not here: who may register (access), and the words of the answer (proxy).
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/data.hpp"
#include "support/sipmsg.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace test_registrar {

using namespace sipmsg;

namespace {

constexpr SipHashKey key{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

SocketAddress address_of(const std::string& text) {
  const auto address = parse_socket_address(text);
  REQUIRE(address.ok());
  return *address;
}

Flow udp_from(const std::string& remote) { return {Transport::udp, 1, address_of(remote)}; }
Flow tcp_from(const std::string& remote, std::uint32_t socket) {
  return {Transport::tcp, socket, address_of(remote)};
}

std::string lines_of(const Registrar& registrar, std::string_view user, std::uint64_t now_ms) {
  std::string buffer(65536, '\0');
  Output out(&buffer[0], buffer.size());
  registrar.write_contacts(out, user, now_ms);
  REQUIRE(!out.error());
  return std::string(out.written());
}

/// A registrar with a clock, and phones that talk to it.
struct Table {
  explicit Table(const RegistrarOptions& options = {}) : registrar(options, key) {}

  Registrar registrar;
  std::uint64_t now_ms = 1000000;
  std::string last_request;  ///< an outcome points into it

  RegisterOutcome put(const std::string& user, std::string bytes, const Flow& from) {
    last_request = std::move(bytes);
    MessageView request;
    REQUIRE(!request.parse(last_request));
    return registrar.update(user, request, from, now_ms);
  }
  std::size_t count(const std::string& user) const { return registrar.count(user, now_ms); }
  std::string lines(const std::string& user) const { return lines_of(registrar, user, now_ms); }
  std::vector<std::string> contacts(const std::string& user) const {
    std::vector<std::string> found;
    registrar.for_each(user, now_ms,
                       [&](const Binding& binding) { found.emplace_back(binding.contact_uri); });
    return found;
  }
  /// The one binding of a user. Its views live as long as the registrar is not changed.
  Binding only(const std::string& user) const {
    Binding only;
    REQUIRE(count(user) == 1);
    registrar.for_each(user, now_ms, [&](const Binding& binding) { only = binding; });
    return only;
  }
};

struct Phone {
  Table& table;
  std::string user = "bob";
  std::string call_id = "call-1";
  Flow from = udp_from("192.0.2.7:5060");
  std::uint32_t cseq = 0;

  /// `headers`: whole lines. Each request has the next CSeq.
  RegisterOutcome send(const std::string& headers) {
    ++cseq;
    const std::string bytes =
        "REGISTER sip:example.com SIP/2.0\r\n"
        "Via: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1\r\n"
        "From: <sip:bob@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\n"
        "Call-ID: " +
        call_id + "\r\nCSeq: " + std::to_string(cseq) + " REGISTER\r\n" + headers + "\r\n";
    return table.put(user, bytes, from);
  }
  int contact(const std::string& contact) { return send("Contact: " + contact + "\r\n").status; }
};

using Texts = std::vector<std::string>;

}  // namespace

// ---- REGISTER ----

TEST_CASE("a contact is kept as it was written and listed with its remaining seconds") {
  Table table;
  Phone phone{table};
  const RegisterOutcome outcome =
      phone.send("Contact: \"Bob\" <sip:101-0x55f9%41@192.0.2.7:5060;Line=1>;expires=90\r\n");
  CHECK(outcome.status == 200);
  CHECK(outcome.expires_s == 90);
  CHECK(outcome.added == 1);
  CHECK(outcome.nat_contact.empty());
  CHECK(table.lines("bob") == "Contact: <sip:101-0x55f9%41@192.0.2.7:5060;Line=1>;expires=90\r\n");
  table.now_ms += 30500;
  CHECK(table.lines("bob") == "Contact: <sip:101-0x55f9%41@192.0.2.7:5060;Line=1>;expires=60\r\n");
  CHECK(table.lines("Bob").empty());
}

TEST_CASE("q, +sip.instance and reg-id are listed where they were given") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@192.0.2.7>;q=0.25;reg-id=2;+sip.instance=\"<urn:uuid:1>\"");
  CHECK(
      table.lines("bob") ==
      "Contact: <sip:a@192.0.2.7>;expires=600;q=0.25;+sip.instance=\"<urn:uuid:1>\";reg-id=2\r\n");
  for (std::string q : {"0", "1", "0.5", "0.05", "0.005", "0.125"}) {
    CAPTURE(q);
    Phone other{table, "q" + q};
    other.contact("<sip:a@192.0.2.7>;q=" + q);
    CHECK(table.lines("q" + q) == "Contact: <sip:a@192.0.2.7>;expires=600;q=" + q + "\r\n");
  }
}

TEST_CASE("a request without Contact changes nothing and refreshes nothing") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@192.0.2.7>;expires=100");
  table.now_ms += 40000;
  const RegisterOutcome outcome = phone.send("Expires: 3000\r\n");
  CHECK(outcome.status == 200);
  CHECK(outcome.expires_s == 0);
  CHECK(table.lines("bob") == "Contact: <sip:a@192.0.2.7>;expires=60\r\n");
}

TEST_CASE("the contact's expires wins over the header, the header over the default") {
  struct Row {
    std::string contact;
    std::string expires;
    std::uint32_t granted_s;
  };
  const Row rows[] = {
      {"<sip:a@192.0.2.7>", "", 600},
      {"<sip:a@192.0.2.7>", "Expires: 100\r\n", 100},
      {"<sip:a@192.0.2.7>;expires=200", "Expires: 100\r\n", 200},
      {"<sip:a@192.0.2.7>;expires=200", "Expires: 1\r\n", 200},
      {"<sip:a@192.0.2.7>;EXPIRES=200", "", 200},
      {"sip:a@192.0.2.7;expires=200", "", 200},
      {"<sip:a@192.0.2.7;expires=200>", "Expires: 100\r\n", 100},  // that is the URI's
      {"<sip:a@192.0.2.7>;expires=60", "", 60},
      {"<sip:a@192.0.2.7>;expires=3601", "", 3600},
      {"<sip:a@192.0.2.7>;expires=4294967296", "", 3600},
      {"<sip:a@192.0.2.7>;expires=99999999999999999999999999", "", 3600},
      {"<sip:a@192.0.2.7>", "Expires: 99999999999999999999999999\r\n", 3600},
      {"<sip:a@192.0.2.7>;expires=soon", "Expires: 100\r\n", 600},
      {"<sip:a@192.0.2.7>;expires", "", 600},
      {"<sip:a@192.0.2.7>;expires=\"90\"", "", 600},
      {"<sip:a@192.0.2.7>;expires=-1", "", 600},
      {"<sip:a@192.0.2.7>", "Expires: tomorrow\r\n", 600},
  };
  for (const Row& row : rows) {
    CAPTURE(row.contact);
    CAPTURE(row.expires);
    Table table;
    Phone phone{table};
    const RegisterOutcome outcome = phone.send("Contact: " + row.contact + "\r\n" + row.expires);
    CHECK(outcome.status == 200);
    CHECK(outcome.expires_s == row.granted_s);
    CHECK(table.only("bob").expires_at_ms == table.now_ms + row.granted_s * 1000);
  }
}

TEST_CASE("too short a time is refused with the least that is granted") {
  Table table;
  Phone phone{table};
  for (const std::string headers :
       {"Contact: <sip:a@192.0.2.7>;expires=59\r\n", "Contact: <sip:a@192.0.2.7>\r\nExpires: 1\r\n",
        "Contact: <sip:a@192.0.2.7>, <sip:b@192.0.2.7>;expires=59\r\n"}) {
    CAPTURE(headers);
    const RegisterOutcome outcome = phone.send(headers);
    CHECK(outcome.status == 423);
    CHECK(outcome.min_expires_s == 60);
    CHECK(table.count("bob") == 0);
  }
}

TEST_CASE("an hour is never too short, and the default is never below the least") {
  RegistrarOptions options;
  options.expires_min_s = 7200;
  options.expires_max_s = 9000;
  Table table(options);
  Phone phone{table};
  CHECK(phone.contact("<sip:a@192.0.2.7>;expires=3599") == 423);
  CHECK(phone.send("Contact: <sip:a@192.0.2.7>;expires=3600\r\n").expires_s == 3600);
  CHECK(phone.send("Contact: <sip:a@192.0.2.7>\r\n").expires_s == 7200);
}

TEST_CASE("an expiry of zero removes that contact alone") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@192.0.2.7>, <sip:b@192.0.2.7>");
  const RegisterOutcome outcome = phone.send("Contact: <sip:a@192.0.2.7>;expires=0\r\n");
  CHECK(outcome.status == 200);
  CHECK(outcome.removed == 1);
  CHECK(outcome.expires_s == 0);
  CHECK(table.contacts("bob") == Texts{"sip:b@192.0.2.7"});
  CHECK(phone.send("Contact: <sip:c@192.0.2.7>\r\nExpires: 0\r\n").status == 200);
  CHECK(table.contacts("bob") == Texts{"sip:b@192.0.2.7"});
}

TEST_CASE("Contact: * removes all, but only alone and with Expires: 0") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@192.0.2.7>, <sip:b@192.0.2.7>");
  for (const std::string headers :
       {"Contact: *\r\n", "Contact: *\r\nExpires: 1\r\n", "Contact: *\r\nExpires: none\r\n",
        "Contact: *;expires=0\r\n", "Contact: *\r\nContact: <sip:a@192.0.2.7>\r\nExpires: 0\r\n",
        "Contact: <sip:a@192.0.2.7>\r\nContact: *\r\nExpires: 0\r\n",
        "Contact: *, <sip:a@192.0.2.7>\r\nExpires: 0\r\n", "Contact: *, *\r\nExpires: 0\r\n"}) {
    CAPTURE(headers);
    const RegisterOutcome outcome = phone.send(headers);
    CHECK(outcome.status == 400);
    CHECK(!outcome.reason.empty());
    CHECK(table.count("bob") == 2);
  }
  Phone other{table, "alice"};
  other.contact("<sip:a@192.0.2.7>");
  const RegisterOutcome outcome = phone.send("m: *\r\nExpires: 0\r\n");
  CHECK(outcome.status == 200);
  CHECK(outcome.removed == 2);
  CHECK(table.count("bob") == 0);
  CHECK(table.count("alice") == 1);
}

TEST_CASE("a contact that cannot be one is refused with the place of the mistake") {
  struct Row {
    std::string contact;
    ErrorCode code;
    std::string at;  ///< the text at the place
  };
  const Row rows[] = {
      {"", ErrorCode::bad_uri, ""},
      {"<sip:a@192.0.2.7>,", ErrorCode::bad_uri, ""},
      {"<sip:a@>", ErrorCode::bad_host, ">"},
      {"<sip:a%4@192.0.2.7>", ErrorCode::bad_escape, "%4@"},
      {"<sip:a@192.0.2.7", ErrorCode::bad_name_addr, "sip:a"},
      {"sip:a@192.0.2.7?Route=x", ErrorCode::bad_name_addr, "sip:a"},
      {"<tel:+123>", ErrorCode::unsupported_scheme, "<tel"},
      {"<mailto:a@example.com>", ErrorCode::unsupported_scheme, "<mailto"},
      {"<sips:a@192.0.2.7>", ErrorCode::unsupported_scheme, "<sips"},
      {"<sip:a@192.0.2.7>, <http://example.com>", ErrorCode::unsupported_scheme, "<http"},
      {"<sip:a@192.0.2.7>;+sip.instance=\"<a\tb>\"", ErrorCode::bad_parameter, "<sip"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.contact);
    Table table;
    const std::string bytes =
        "REGISTER sip:example.com SIP/2.0\r\nCSeq: 1 REGISTER\r\n"
        "Call-ID: 1\r\nContact: " +
        row.contact + "\r\n\r\n";
    const RegisterOutcome outcome = table.put("bob", bytes, udp_from("192.0.2.7:5060"));
    CHECK(outcome.status == 400);
    CHECK(error_name(outcome.error.code) == error_name(row.code));
    CHECK(outcome.reason == error_text(row.code));
    CHECK(bytes.substr(static_cast<std::size_t>(outcome.error.place), row.at.size()) == row.at);
    CHECK(table.registrar.size() == 0);
  }
}

TEST_CASE("contacts are the same binding where their URIs are equal by RFC 3261 19.1.4") {
  struct Row {
    std::string first;
    std::string second;
    bool same;
  };
  const Row rows[] = {
      {"<sip:a@192.0.2.7>", "<sip:a@192.0.2.7>", true},
      {"<sip:a@192.0.2.7>", "sip:a@192.0.2.7", true},
      {"<sip:%61@EXAMPLE.org>", "<SIP:a@example.ORG>", true},
      {"<sip:a@192.0.2.7;ob>", "<sip:a@192.0.2.7>", true},
      {"<sip:a@192.0.2.7>", "<sip:A@192.0.2.7>", false},
      {"<sip:a@192.0.2.7>", "<sip:a@192.0.2.7:5060>", false},
      {"<sip:a@192.0.2.7>", "<sip:a@192.0.2.7;transport=udp>", false},
      {"<sip:a@192.0.2.7;line=1>", "<sip:a@192.0.2.7;line=2>", false},
      {"<sip:a@192.0.2.7>", "<sip:a@192.0.2.7?x=y>", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.first);
    CAPTURE(row.second);
    Table table;
    Phone phone{table};
    CHECK(phone.contact(row.first) == 200);
    const RegisterOutcome outcome = phone.send("Contact: " + row.second + "\r\n");
    CHECK(outcome.refreshed == (row.same ? 1 : 0));
    CHECK(outcome.added == (row.same ? 0 : 1));
    CHECK(outcome.removed == 0);
    CHECK(table.count("bob") == (row.same ? 1 : 2));
  }
}

TEST_CASE("a contact that stands twice in a request counts as it stands last") {
  Table table;
  Phone phone{table};
  phone.contact(
      "<sip:a@192.0.2.7>;expires=100, <sip:b@192.0.2.7>, <sip:%61@192.0.2.7>;expires=200");
  CHECK(table.lines("bob") ==
        "Contact: <sip:b@192.0.2.7>;expires=600\r\nContact: <sip:%61@192.0.2.7>;expires=200\r\n");
  const RegisterOutcome outcome =
      phone.send("Contact: <sip:a@192.0.2.7>, <sip:a@192.0.2.7>;expires=0\r\n");
  CHECK(outcome.removed == 1);
  CHECK(outcome.refreshed == 0);
  CHECK(table.contacts("bob") == Texts{"sip:b@192.0.2.7"});
}

TEST_CASE("bindings come by preference, and of equal ones the latest registered first") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:low@h>;q=0.1, <sip:mid1@h>;q=0.5, <sip:mid2@h>;q=0.5");
  phone.contact("<sip:full@h>;q=1.0");
  phone.contact("<sip:silent@h>");
  phone.contact("<sip:mid3@h>;q=0.5");
  CHECK(table.contacts("bob") ==
        Texts{"sip:silent@h", "sip:full@h", "sip:mid3@h", "sip:mid1@h", "sip:mid2@h", "sip:low@h"});
  phone.contact("<sip:low@h>;q=0.1");
  phone.contact("<sip:full@h>;q=1.0");
  phone.contact("<sip:mid2@h>;q=0.7");
  CHECK(table.contacts("bob") ==
        Texts{"sip:full@h", "sip:silent@h", "sip:mid2@h", "sip:mid3@h", "sip:mid1@h", "sip:low@h"});
  phone.contact("<sip:full@h>;expires=0, <sip:low@h>;expires=0, <sip:mid3@h>;expires=0");
  CHECK(table.contacts("bob") == Texts{"sip:silent@h", "sip:mid2@h", "sip:mid1@h"});
}

TEST_CASE("a request overtaken by a later one fails as a whole") {
  struct Row {
    std::string call_id;
    std::uint32_t cseq;
    std::string headers;
    int status;
  };
  const Row rows[] = {
      {"call-1", 10, "Contact: <sip:a@192.0.2.7>;expires=100\r\n", 500},
      {"call-1", 9, "Contact: <sip:a@192.0.2.7>;expires=100\r\n", 500},
      {"call-1", 9, "Contact: <sip:a@192.0.2.7>;expires=0\r\n", 500},
      {"call-1", 9, "Contact: *\r\nExpires: 0\r\n", 500},
      {"call-1", 9, "Contact: <sip:new@192.0.2.7>, <sip:a@192.0.2.7>\r\n", 500},
      {"call-1", 9, "Contact: <sip:b@192.0.2.9>;+sip.instance=\"<urn:a>\"\r\n", 500},
      {"call-1", 9, "Contact: <sip:new@192.0.2.7>\r\n", 200},
      {"call-1", 11, "Contact: <sip:a@192.0.2.7>;expires=100\r\n", 200},
      {"call-2", 1, "Contact: <sip:a@192.0.2.7>;expires=100\r\n", 200},
      {"call-2", 1, "Contact: *\r\nExpires: 0\r\n", 200},
  };
  for (const Row& row : rows) {
    CAPTURE(row.call_id);
    CAPTURE(row.cseq);
    CAPTURE(row.headers);
    Table table;
    Phone{table, "bob", "call-1", udp_from("192.0.2.7:5060"), 9}.contact(
        "<sip:a@192.0.2.7>;+sip.instance=\"<urn:a>\"");
    const std::string before = table.lines("bob");
    Phone phone{table, "bob", row.call_id, udp_from("192.0.2.7:5060"), row.cseq - 1};
    CHECK(phone.send(row.headers).status == row.status);
    CHECK((table.lines("bob") == before) == (row.status == 500));
  }
}

TEST_CASE("whatever refuses a request, nothing of it happens") {
  RegistrarOptions options;
  options.max_bindings_per_user = 3;
  Table table(options);
  Phone phone{table};
  phone.contact("<sip:a@h>;q=0.5, <sip:b@h>");
  const std::string before = table.lines("bob");
  const std::uint64_t revision = table.registrar.revision();
  struct Row {
    int status;
    std::string second;
  };
  const Row rows[] = {{400, "<sip:c@h:0>"},
                      {400, "<tel:1>"},
                      {423, "<sip:c@h>;expires=5"},
                      {403, "<sip:c@h>, <sip:d@h>, <sip:e@h>"}};
  for (const Row& row : rows) {
    CAPTURE(row.status);
    const std::string contacts = "<sip:a@h>;expires=0, <sip:b@h>;q=0.1, " + row.second;
    CHECK(phone.contact(contacts) == row.status);
    CHECK(table.lines("bob") == before);
    CHECK(table.registrar.revision() == revision);
  }
}

// ---- one phone is one binding ----

TEST_CASE("a phone that comes back with another contact takes its old binding's place") {
  const std::string instance = ";+sip.instance=\"<urn:uuid:927d6feb>\"";
  struct Row {
    std::string first;
    std::string second;
    std::size_t left;
  };
  const Row rows[] = {
      {instance, instance, 1},
      {instance + ";reg-id=1", instance + ";reg-id=1", 1},
      {instance + ";reg-id=1", instance + ";reg-id=2", 2},
      {instance, instance + ";reg-id=1", 1},
      {instance + ";reg-id=1", instance, 1},
      {instance, ";+sip.instance=\"<urn:uuid:other>\"", 2},
      {instance, "", 2},
      {"", instance, 2},
      {instance + ";reg-id=x", instance + ";reg-id=y", 1},
  };
  for (const Row& row : rows) {
    CAPTURE(row.first);
    CAPTURE(row.second);
    Table table;
    Phone phone{table};
    CHECK(phone.contact("<sip:102@192.0.2.7:25114>" + row.first) == 200);
    Phone restarted{table, "bob", "call-2"};
    CHECK(restarted.contact("<sip:102@192.0.2.7:43170>" + row.second) == 200);
    CHECK(table.count("bob") == row.left);
    CHECK(table.contacts("bob")[0] == "sip:102@192.0.2.7:43170");
  }
}

TEST_CASE("reg-id without an instance means nothing, and is not listed") {
  Table table;
  Phone phone{table};
  for (int i = 0; i < 2; ++i) CHECK(phone.contact("<sip:a@h>;reg-id=1") == 200);
  CHECK(table.lines("bob") == "Contact: <sip:a@h>;expires=600\r\n");
}

TEST_CASE("with reg-id on both sides the URI does not matter (RFC 5626 6)") {
  Table table;
  Phone phone{table};
  const std::string contact = "<sip:bob@10.0.0.5>";
  phone.contact(contact + ";reg-id=1;+sip.instance=\"<urn:a>\"");
  phone.contact(contact + ";reg-id=1;+sip.instance=\"<urn:b>\"");
  CHECK(table.count("bob") == 2);
  CHECK(phone.contact("<sip:x@10.0.0.9>;reg-id=1;+sip.instance=\"<urn:a>\";expires=0") == 200);
  CHECK(table.only("bob").instance == "\"<urn:b>\"");
}

TEST_CASE("a removal without reg-id goes by the URI alone") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@192.0.2.7:1111>;+sip.instance=\"<urn:a>\"");
  phone.contact("<sip:a@192.0.2.7:2222>;+sip.instance=\"<urn:a>\"");
  phone.contact("<sip:a@192.0.2.7:1111>;+sip.instance=\"<urn:a>\";expires=0");
  CHECK(table.contacts("bob") == Texts{"sip:a@192.0.2.7:2222"});
}

TEST_CASE("old and new contact of one phone may stand in one request, in any order") {
  const std::string instance = ";+sip.instance=\"<urn:a>\";reg-id=1";
  const std::string old_contact = "<sip:a@192.0.2.7:1111>;expires=0" + instance;
  const std::string new_contact = "<sip:a@192.0.2.7:2222>" + instance;
  for (const std::string& contacts :
       {old_contact + ", " + new_contact, new_contact + ", " + old_contact}) {
    CAPTURE(contacts);
    Table table;
    Phone phone{table};
    phone.contact("<sip:a@192.0.2.7:1111>" + instance);
    CHECK(phone.contact(contacts) == 200);
    CHECK(table.contacts("bob") == Texts{"sip:a@192.0.2.7:2222"});
  }
}

TEST_CASE("two contacts of one phone in one request are two bindings, also when refreshed") {
  Table table;
  Phone phone{table};
  const std::string instance = ";+sip.instance=\"<urn:a>\"";
  for (int i = 0; i < 3; ++i) {
    CHECK(phone.contact("<sip:a@192.0.2.7>" + instance + ", <sip:a@[2001:db8::7]>" + instance) ==
          200);
    CHECK(table.contacts("bob") == Texts{"sip:a@192.0.2.7", "sip:a@[2001:db8::7]"});
  }
}

// ---- limits ----

TEST_CASE("a user's limit refuses more bindings with 403, but renews, replaces and removes") {
  RegistrarOptions options;
  options.max_bindings_per_user = 2;
  Table table(options);
  Phone phone{table};
  CHECK(phone.contact("<sip:a@h>, <sip:b@h>") == 200);
  const RegisterOutcome refused = phone.send("Contact: <sip:c@h>\r\n");
  CHECK(refused.status == 403);
  CHECK(refused.retry_after_s == 0);
  CHECK(phone.contact("<sip:a@h>") == 200);
  CHECK(phone.contact("<sip:c@h>, <sip:a@h>;expires=0") == 200);
  CHECK(table.contacts("bob") == Texts{"sip:c@h", "sip:b@h"});
  CHECK(phone.contact("<sip:x@h>, <sip:y@h>, <sip:b@h>;expires=0, <sip:c@h>;expires=0") == 200);
  CHECK(phone.contact("<sip:1@h>;expires=0, <sip:2@h>;expires=0, <sip:3@h>;expires=0, "
                      "<sip:4@h>;expires=0, <sip:5@h>;expires=0") == 403);
  Phone other{table, "alice"};
  CHECK(other.contact("<sip:c@h>") == 200);
}

TEST_CASE("a user above a limit that was lowered may keep what is there") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@h>, <sip:b@h>, <sip:c@h>");
  RegistrarOptions options;
  options.max_bindings_per_user = 2;
  table.registrar.set_options(options);
  CHECK(phone.contact("<sip:a@h>, <sip:b@h>, <sip:c@h>") == 200);
  CHECK(phone.contact("<sip:d@h>") == 403);
  CHECK(phone.contact("<sip:d@h>, <sip:a@h>;expires=0") == 200);
  CHECK(table.count("bob") == 3);
}

TEST_CASE("a full table answers 503 with Retry-After, and renews all the same") {
  RegistrarOptions options;
  options.max_bindings = 2;
  Table table(options);
  Phone{table, "a"}.contact("<sip:a@h>");
  Phone phone{table, "b"};
  phone.contact("<sip:b@h>");
  const RegisterOutcome refused = Phone{table, "c"}.send("Contact: <sip:c@h>\r\n");
  CHECK(refused.status == 503);
  CHECK(refused.retry_after_s == 30);
  CHECK(table.registrar.size() == 2);
  CHECK(phone.contact("<sip:b@h>") == 200);
  CHECK(phone.contact("<sip:b@h>;expires=0") == 200);
  CHECK(Phone{table, "c"}.contact("<sip:c@h>") == 200);
}

TEST_CASE("a binding with more text or more parameters than are kept is refused") {
  Table table;
  Phone phone{table};
  const std::string room(Registrar::max_binding_text - 40, 'x');
  CHECK(phone.contact("<sip:" + room + "@h>") == 200);
  CHECK(phone.contact("<sip:" + room + std::string(40, 'x') + "@h>") == 403);
  CHECK(phone.contact("<sip:a@h>;+sip.instance=\"" + std::string(253, 'x') + "\"") == 200);
  CHECK(phone.contact("<sip:b@h>;+sip.instance=\"" + std::string(254, 'x') + "\"") == 403);
  CHECK(phone.send("Contact: <sip:c@h>\r\nPath: <sip:" + room + "@h;lr>\r\n").status == 200);
  CHECK(phone.send("Contact: <sip:d@h>\r\nPath: <sip:" + room + "@h;lr>, <sip:abcdefgh@h;lr>\r\n")
            .status == 403);
  std::string parameters;
  for (std::size_t i = 0; i < Registrar::max_uri_parts; ++i) parameters += ";x";
  CHECK(phone.contact("<sip:e@h" + parameters + ">") == 200);
  CHECK(phone.contact("<sip:e@h" + parameters + "?x=1&y=1>") == 403);
  CHECK(phone.contact("<sip:e@h" + parameters + ";y>") == 403);
  Phone longname{table, std::string(Registrar::max_binding_text, 'x')};
  CHECK(longname.contact("<sip:a@h>") == 403);
  Phone nobody{table, ""};
  CHECK(nobody.contact("<sip:a@h>") == 400);
}

// ---- time ----

TEST_CASE("an expired binding is never seen again, swept out or not") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@h>;expires=60, <sip:b@h>;expires=120");
  table.now_ms += 59999;
  CHECK(table.lines("bob") == "Contact: <sip:a@h>;expires=1\r\nContact: <sip:b@h>;expires=61\r\n");
  table.now_ms += 1;
  CHECK(table.contacts("bob") == Texts{"sip:b@h"});
  CHECK(table.lines("bob") == "Contact: <sip:b@h>;expires=60\r\n");
  CHECK(table.registrar.save(table.now_ms, 5000).find("sip:a@h") == std::string::npos);
  CHECK(table.registrar.size() == 2);
}

TEST_CASE("an expired binding neither counts against the limit nor is out of order") {
  RegistrarOptions options;
  options.max_bindings_per_user = 1;
  Table table(options);
  Phone phone{table, "bob", "call-1", udp_from("192.0.2.7:5060"), 50};
  phone.contact("<sip:a@h>;expires=60");
  table.now_ms += 60000;
  Phone again{table, "bob", "call-1"};
  CHECK(again.contact("<sip:a@h>") == 200);
  CHECK(table.registrar.size() == 1);
}

TEST_CASE("advance takes out what has expired, when something has") {
  Table table;
  Registrar& registrar = table.registrar;
  CHECK(registrar.next_deadline() == Registrar::never);
  const std::uint64_t start = table.now_ms;
  Phone{table, "a"}.contact("<sip:a@h>;expires=100");
  Phone{table, "b"}.contact("<sip:b@h>;expires=60");
  Phone{table, "c"}.contact("<sip:c@h>;expires=61");
  CHECK(registrar.next_deadline() == start + 60000);
  registrar.advance(start + 59999);
  CHECK(registrar.size() == 3);
  registrar.advance(start + 60000);
  CHECK(registrar.size() == 2);
  CHECK(registrar.next_deadline() == start + 65000);  // not a sweep for each binding
  registrar.advance(start + 65000);
  CHECK(registrar.size() == 1);
  CHECK(registrar.next_deadline() == start + 100000);
  table.now_ms = start + 100000;
  registrar.advance(table.now_ms);
  CHECK(registrar.size() == 0);
  CHECK(registrar.next_deadline() == Registrar::never);
  Phone{table, "a"}.contact("<sip:a@h>;expires=60");
  CHECK(registrar.next_deadline() == start + 160000);
}

// ---- connections ----

TEST_CASE("a closed connection takes its bindings along, of whatever user") {
  Table table;
  const Flow first = tcp_from("192.0.2.7:40001", 17);
  const Flow second = tcp_from("192.0.2.7:40002", 18);
  Phone{table, "a", "1", first}.contact("<sip:a@h>, <sip:a2@h>");
  Phone{table, "b", "2", first}.contact("<sip:b@h>");
  Phone{table, "b", "3", second}.contact("<sip:b2@h>");
  Phone{table, "b", "4", udp_from("192.0.2.7:5060")}.contact("<sip:b3@h>");
  Phone{table, "c", "5", first}.contact("<sip:c@h>");
  Phone{table, "a", "1", first, 1}.contact("<sip:a2@h>;expires=0");
  CHECK(table.registrar.remove_connection(17) == 3);
  CHECK(table.count("a") == 0);
  CHECK(table.contacts("b") == Texts{"sip:b3@h", "sip:b2@h"});
  CHECK(table.count("c") == 0);
  CHECK(table.registrar.remove_connection(17) == 0);
  CHECK(table.registrar.remove_connection(1) == 0);  // a UDP socket is no connection
  CHECK(table.registrar.remove_connection(18) == 1);
}

TEST_CASE("a phone that has reconnected survives the end of its old connection") {
  Table table;
  Phone phone{table, "a", "1", tcp_from("192.0.2.7:40001", 17)};
  phone.contact("<sip:a@h>");
  phone.from = tcp_from("192.0.2.7:40002", 18);
  phone.contact("<sip:a@h>");
  CHECK(table.registrar.remove_connection(17) == 0);
  CHECK(table.only("a").flow == phone.from);
}

TEST_CASE("a connection is needed as long as a live binding is reached over it") {
  Table table;
  CHECK_FALSE(table.registrar.has_connection(17, 0));
  Phone phone{table, "a", "1", tcp_from("192.0.2.7:40001", 17)};
  REQUIRE(phone.contact("<sip:a@h>;expires=600") == 200);
  CHECK(table.registrar.has_connection(17, table.now_ms));
  CHECK_FALSE(table.registrar.has_connection(18, table.now_ms));
  CHECK(table.registrar.has_connection(17, table.now_ms + 599999));
  CHECK_FALSE(table.registrar.has_connection(17, table.now_ms + 600000));
  REQUIRE(phone.contact("<sip:a@h>;expires=0") == 200);
  CHECK_FALSE(table.registrar.has_connection(17, table.now_ms));
}

TEST_CASE("many bindings on one connection come and go in any order") {
  RegistrarOptions options;
  options.max_bindings_per_user = 100;
  Table table(options);
  Random random(key);
  std::vector<std::vector<std::string>> expected(5);
  for (int step = 0; step < 2000; ++step) {
    const std::size_t user = random.next() % 5;
    const std::string contact = "sip:" + std::to_string(random.next() % 12) + "@h";
    const bool remove = random.next() % 3 == 0;
    const auto socket = static_cast<std::uint32_t>(random.next() % 4 + 10);
    auto& mine = expected[user];
    for (std::size_t i = 0; i < mine.size(); ++i) {
      if (mine[i] != contact) continue;
      mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (!remove) mine.insert(mine.begin(), contact);
    Phone phone{table, "user" + std::to_string(user), "call", tcp_from("192.0.2.7:40001", socket),
                static_cast<std::uint32_t>(step)};
    REQUIRE(phone.contact("<" + contact + ">;expires=" + (remove ? "0" : "600")) == 200);
    REQUIRE(table.contacts(phone.user) == mine);
  }
  std::size_t left = table.registrar.size();
  for (std::uint32_t socket = 10; socket < 14; ++socket) {
    left -= table.registrar.remove_connection(socket);
    CHECK(table.registrar.size() == left);
  }
  CHECK(left == 0);
}

// ---- where requests go ----

TEST_CASE("the flow of a contact") {
  struct Row {
    std::string contact;
    std::string source;
    std::string flow;      ///< where requests go
    std::string flow_off;  ///< the same with nat off
    bool nat;
  };
  const char* here = "198.51.100.7:5060";
  const Row rows[] = {
      // the contact is the source
      {"sip:a@198.51.100.7", here, "198.51.100.7:5060", "198.51.100.7:5060", false},
      {"sip:a@198.51.100.7:5060;transport=UDP", here, "198.51.100.7:5060", "198.51.100.7:5060",
       false},
      {"sip:a@[2001:db8::7]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060",
       false},
      // the same host with another port is believed, as of sipsak
      {"sip:a@127.0.0.1:25120", "127.0.0.1:33993", "127.0.0.1:25120", "127.0.0.1:25120", false},
      {"sip:a@192.168.1.5:6000", "192.168.1.5:5060", "192.168.1.5:6000", "192.168.1.5:6000", false},
      // another host with the same port as well: it may have two addresses
      {"sip:a@198.51.100.8", here, "198.51.100.8:5060", "198.51.100.8:5060", false},
      // private, seen from outside; or all different
      {"sip:a@192.168.1.5:5060", here, here, "192.168.1.5:5060", true},
      {"sip:a@10.0.0.5", "203.0.113.9:31000", "203.0.113.9:31000", "10.0.0.5:5060", true},
      {"sip:a@198.51.100.8:6000", here, here, "198.51.100.8:6000", true},
      {"sip:a@10.1.0.5:5060", "10.2.0.1:31000", "10.2.0.1:31000", "10.1.0.5:5060", true},
      {"sip:a@[fd00::5]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060", "[fd00::5]:5060", true},
      // never an address of nobody, of many, or of ourselves
      {"sip:a@0.0.0.0", here, here, here, true},
      {"sip:a@127.0.0.1:5060", here, here, here, true},
      {"sip:a@224.0.1.75", here, here, here, true},
      {"sip:a@255.255.255.255", here, here, here, true},
      {"sip:a@[::]", "[2001:db8::7]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060", true},
      {"sip:a@[::1]", "[2001:db8::7]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060", true},
      {"sip:a@[ff02::1]", "[2001:db8::7]:5060", "[2001:db8::7]:5060", "[2001:db8::7]:5060", true},
      {"sip:a@[::ffff:127.0.0.1]", here, here, here, true},
      // not numeric, or not as plain as that
      {"sip:a@pc.example.com", here, here, here, false},
      {"sip:a@198.51.100", here, here, here, false},
      {"sip:a@198.51.100.7:6000;transport=tcp", here, here, here, false},
      {"sip:a@198.51.100.7:6000;maddr=198.51.100.99", here, here, here, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.contact);
    CAPTURE(row.source);
    const auto uri = parse_uri(row.contact);
    REQUIRE(uri.ok());
    const Flow source = udp_from(row.source);
    const ContactRoute on = route_to_contact(*uri, source, true);
    CHECK(on.flow == udp_from(row.flow));
    CHECK(on.nat == row.nat);
    const ContactRoute off = route_to_contact(*uri, source, false);
    CHECK(off.flow == udp_from(row.flow_off));
    CHECK(!off.nat);
    const Flow connection = tcp_from(row.source, 9);
    CHECK(route_to_contact(*uri, connection, true).flow == connection);
    CHECK(route_to_contact(*uri, connection, false).flow == connection);
  }
}

TEST_CASE("the flow of a contact of another address family chooses its socket anew") {
  const auto uri = parse_uri("sip:a@[2001:db8::7]:5060");
  const ContactRoute route = route_to_contact(*uri, udp_from("198.51.100.7:5060"), true);
  CHECK(route.flow.socket == 0);
  CHECK(route.flow.remote == address_of("[2001:db8::7]:5060"));
}

TEST_CASE("a link-local contact is reached over the interface it registered on") {
  const auto uri = parse_uri("sip:a@[fe80::7]:6000");
  Flow source = udp_from("[fe80::7]:5060");
  source.remote.scope = 3;
  CHECK(route_to_contact(*uri, source, true).flow.remote.scope == 3);
}

TEST_CASE("the outcome tells of the NAT that was found") {
  Table table;
  Phone phone{table, "bob", "1", udp_from("203.0.113.9:31000")};
  const std::string headers =
      "Contact: <sip:a@203.0.113.9:31000>, <sip:b@192.168.1.5:5060;ob;x=\"1\"?y=z>\r\n";
  CHECK(phone.send(headers).status == 400);  // a quoted value is none of a URI
  RegisterOutcome outcome =
      phone.send("Contact: <sip:a@203.0.113.9:31000>, <sip:b@192.168.1.5:5060;ob>\r\n");
  CHECK(outcome.nat_contact == "sip:b@192.168.1.5:5060;ob");
  CHECK(outcome.nat_address == address_of("203.0.113.9:31000"));
  char buffer[100];
  Output out(buffer, sizeof buffer);
  write_contact_outside_nat(out, outcome.nat_contact, outcome.nat_address);
  CHECK(out.written() == "sip:b@203.0.113.9:31000;ob");
  table.registrar.for_each("bob", table.now_ms, [](const Binding& binding) {
    CHECK(binding.nat == (binding.contact_uri == "sip:b@192.168.1.5:5060;ob"));
    CHECK(binding.flow == udp_from("203.0.113.9:31000"));
  });
  outcome = phone.send("Contact: <sip:b@192.168.1.5:5060;ob>;expires=0\r\n");
  CHECK(outcome.nat_contact.empty());
}

TEST_CASE("a contact outside its NAT has brackets where the address needs them") {
  char buffer[100];
  Output out(buffer, sizeof buffer);
  write_contact_outside_nat(out, "sip:pc.local?x=y", address_of("[2001:db8::7]:5070"));
  CHECK(out.written() == "sip:[2001:db8::7]:5070");
}

TEST_CASE("a refresh from elsewhere leads there") {
  Table table;
  Phone phone{table, "bob", "1", udp_from("203.0.113.9:31000")};
  phone.contact("<sip:b@192.168.1.5>");
  phone.from = udp_from("203.0.113.9:31999");
  phone.contact("<sip:b@192.168.1.5>");
  CHECK(table.only("bob").flow == udp_from("203.0.113.9:31999"));
}

TEST_CASE("Path is kept in order, and leads to the proxy that the request came through") {
  Table table;
  Phone phone{table};
  const RegisterOutcome outcome = phone.send(
      "Path: <sip:p1.example.com;lr>,\r\n <sip:p2.example.com;lr>\r\n"
      "Contact: <sip:a@192.0.2.99:6000>\r\nPath: \"x\r\n y\" <sip:p3.example.com;lr>\r\n");
  CHECK(outcome.status == 200);
  CHECK(outcome.nat_contact.empty());
  const Binding binding = table.only("bob");
  CHECK(binding.path ==
        "<sip:p1.example.com;lr>, <sip:p2.example.com;lr>, \"x   y\" <sip:p3.example.com;lr>");
  CHECK(binding.flow == phone.from);
  for (const std::string path : {"<tel:1>", "<sips:p.example.com>", "<sip:p.example.com", ""}) {
    CAPTURE(path);
    CHECK(phone.send("Path: " + path + "\r\nContact: <sip:b@h>\r\n").status == 400);
  }
}

TEST_CASE("the URI of a request has nothing that only a contact may have") {
  struct Row {
    std::string contact;
    std::string request_uri;
  };
  const Row rows[] = {
      {"sip:a@h;ob", "sip:a@h;ob"},
      {"sip:a?b@h", "sip:a?b@h"},
      {"sip:a?b@h;x?Route=%3Csip:evil.example%3E&To=y", "sip:a?b@h;x"},
      {"sip:a@h;method=INVITE", "sip:a@h"},
      {"sip:a@h:5070;lr;Method=INVITE;x=y?z=1", "sip:a@h:5070;lr;x=y"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.contact);
    Table table;
    Phone phone{table};
    CHECK(phone
              .send("Contact: <" + row.contact +
                    ">;+sip.instance=\"<urn:a>\"\r\nUser-Agent: test\r\n")
              .status == 200);
    const Binding binding = table.only("bob");
    CHECK(binding.contact_uri == row.contact);
    CHECK(binding.request_uri == row.request_uri);
    CHECK(binding.instance == "\"<urn:a>\"");
    CHECK(binding.user_agent == "test");
    CHECK(binding.call_id == "call-1");
    CHECK(binding.cseq == 1);
  }
}

TEST_CASE("of a client's name no more than 64 octets are kept, and none that ends a line") {
  Table table;
  Phone phone{table};
  phone.send("Contact: <sip:a@h>\r\nUser-Agent: a\r\n b" + std::string(100, 'x') + "\r\n");
  CHECK(table.only("bob").user_agent == "a   b" + std::string(59, 'x'));
}

// ---- RFC 4475 ----

TEST_CASE("the registrations of RFC 4475") {
  struct Row {
    std::string file;
    int status;
    Texts contacts;
  };
  const Row rows[] = {
      {"escnull", 200, {"sip:%00@host5.example.com", "sip:%00%00@host5.example.com"}},
      {"cparam01", 200, {"sip:+19725552222@gw1.example.net"}},
      {"cparam02", 200, {"sip:+19725552222@gw1.example.net;unknownparam"}},
      {"regescrt", 200, {"sip:user@example.com?Route=%3Csip:sip.example.com%3E"}},
      {"regbadct", 400, {}},
      {"scalar02", 400, {}},
      {"unksm2", 400, {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.file);
    Table table;
    const std::string bytes = test::read_data("rfc4475/" + row.file + ".dat");
    CHECK(table.put("bob", bytes, udp_from("192.0.2.7:5060")).status == row.status);
    CHECK(table.contacts("bob") == row.contacts);
    if (row.file == "regescrt") {
      CHECK(table.only("bob").request_uri == "sip:user@example.com");
    }
  }
}

TEST_CASE("an absurd expiry is cut to the longest (RFC 4475 3.1.2.4 but for its CSeq)") {
  std::string bytes = test::read_data("rfc4475/scalar02.dat");
  const std::size_t cseq = bytes.find("36893488147419103232");
  bytes.replace(cseq, 20, "7");
  Table table;
  CHECK(table.put("bob", bytes, tcp_from("192.0.2.7:40000", 1)).expires_s == 3600);
}

// ---- real clients ----

TEST_CASE("what real clients register is listed as they wrote it, and goes when they say so") {
  std::string session;
  Table table;
  int requests = 0;
  for (const std::string& line : test::split(test::read_data("captures/README.md"), '\n')) {
    const std::vector<std::string> cells = test::split(line, '|');
    if (cells.size() < 7 || cells[6].compare(0, 9, " REGISTER") != 0) continue;
    const std::string file = std::string(trim(cells[4]));
    CAPTURE(file);
    if (cells[1] + cells[3] + cells[5] != session) {
      session = cells[1] + cells[3] + cells[5];
      table.registrar.remove_connection(7);
      Phone{table, "bob", "end of " + session}.send("Contact: *\r\nExpires: 0\r\n");
      REQUIRE(table.registrar.size() == 0);
    }
    const std::string bytes = test::read_data("captures/" + file);
    MessageView request;
    REQUIRE(!request.parse(bytes));
    const auto via = request.top_via();
    const SocketAddress source{*parse_ip(via->host), via->port, 0};
    const bool tcp = trim(cells[5]) == "tcp";
    const Flow from{tcp ? Transport::tcp : Transport::udp, 7, source};
    const RegisterOutcome outcome = table.registrar.update("bob", request, from, table.now_ms);
    CHECK(outcome.status == 200);
    CHECK(outcome.nat_contact.empty());
    ++requests;
    if (file.find("unregister") != std::string::npos) {
      CHECK(table.count("bob") == 0);
      continue;
    }
    CHECK(outcome.expires_s == 60);
    const Binding binding = table.only("bob");
    const auto contact = parse_name_addr(request.header(HeaderId::contact));
    CHECK(binding.contact_uri == contact->uri.text);
    CHECK(binding.flow.socket == 7);
    CHECK(binding.flow.remote.port == (tcp ? source.port : contact->uri.port));
    table.now_ms += 50000;
  }
  CHECK(requests > 70);
}

// ---- the file ----

namespace {

Ini ini_of(const std::string& text) {
  Diagnostics diagnostics;
  return parse_ini(text, "test", {}, diagnostics);
}

Registrar::LoadResult load(Registrar& registrar, const std::string& text, std::uint64_t now_ms,
                           std::uint64_t now_unix_s) {
  return registrar.load(ini_of(text), now_ms, now_unix_s,
                        [](std::string_view, Flow&) { return true; });
}

}  // namespace

TEST_CASE("bindings come back from the file as they were, with the time they have left") {
  Table table;
  Phone phone{table, "bob", "call-1@h", udp_from("203.0.113.9:31000")};
  phone.send(
      "Contact: <sip:a@192.168.1.5;x?h=1>;q=0.5;reg-id=3;+sip.instance=\"<urn:uuid:1>\"\r\n"
      "Contact: <sip:a2@192.168.1.5>;q=0.5, <sip:a1@[2001:db8::1]:5061>;q=0.5;expires=90\r\n"
      "User-Agent: PJSUA/v2.17-dev Linux\r\n");
  Flow local = udp_from("[fe80::5]:6000");
  local.remote.scope = 4;
  Phone{table, "carol", "call-3", local}.send(
      "Contact: <sip:c@[fe80::5]:6000>\r\nPath: <sip:p1;lr>, <sip:p2;lr>\r\n");
  const std::string lines = table.lines("bob");
  table.now_ms += 10500;
  const std::string text = table.registrar.save(table.now_ms, 1700000000);

  Registrar restarted({}, SipHashKey{9});
  const auto result = load(restarted, text, 77, 1700000030);
  CHECK(result.loaded == 4);
  CHECK(result.dropped == 0);
  table.now_ms += 30000;
  CHECK(lines_of(restarted, "bob", 77) == table.lines("bob"));
  CHECK(lines_of(restarted, "carol", 77) == table.lines("carol"));
  CHECK(lines_of(restarted, "bob", 77) != lines);
  std::vector<Binding> before, after;
  for (const std::string user : {"bob", "carol"}) {
    table.registrar.for_each(user, table.now_ms, [&](const Binding& b) { before.push_back(b); });
    restarted.for_each(user, 77, [&](const Binding& b) { after.push_back(b); });
  }
  REQUIRE(after.size() == before.size());
  for (std::size_t i = 0; i < after.size(); ++i) {
    CHECK(after[i].contact_uri == before[i].contact_uri);
    CHECK(after[i].request_uri == before[i].request_uri);
    CHECK(after[i].instance == before[i].instance);
    CHECK(after[i].path == before[i].path);
    CHECK(after[i].user_agent == before[i].user_agent);
    CHECK(after[i].call_id == before[i].call_id);
    CHECK(after[i].cseq == before[i].cseq);
    CHECK(after[i].reg_id == before[i].reg_id);
    CHECK(after[i].flow == before[i].flow);
    CHECK(after[i].nat == before[i].nat);
    CHECK(after[i].q == before[i].q);
    CHECK(after[i].has_q == before[i].has_q);
  }
  // The order of requests holds over the restart.
  Phone late{table, "bob", "call-1@h", udp_from("203.0.113.9:31000")};
  CHECK(late.contact("<sip:a2@192.168.1.5>") == 500);
}

TEST_CASE("no name and no header can break out of its line in the file") {
  const Texts users = {
      "bob",
      "bob]\n[eve",
      "x\r\ndata=sip/sip:evil@h",
      "[$include /etc/passwd]",
      "$include /etc/passwd",
      "$enabled false",
      "${configpath}",
      ";comment",
      "ends in\\",
      "ends in\\\\",
      " blanks around\t",
      "100%41",
      "%0A",
      "a=b",
      "=",
      "]",
      "\xEF\xBB\xBFmark",
      "gr\xC3\xBC\xC3\x9F",
      std::string("nul\0nul", 7),
      "\x7f\x01\xff",
      "general",
  };
  Table table;
  const std::string odd = " a \\ %0A;x=]\xC3\xBC[${y}\\";
  for (const std::string& user : users) {
    Phone phone{table, user, "call\\%0D" + std::to_string(user.size())};
    const RegisterOutcome outcome =
        phone.send("Contact: <sip:%0A%5B@192.0.2.7;x=%5C>;+sip.instance=\"" + odd +
                   "x\"\r\nUser-Agent: " + odd + "\r\nPath: \"" + odd + "x\" <sip:p;lr>\r\n");
    REQUIRE(outcome.status == 200);
  }
  const std::string text = table.registrar.save(table.now_ms, 5000);
  Registrar restarted({}, key);
  const auto result = load(restarted, text, 0, 5000);
  CHECK(result.loaded == users.size());
  CHECK(result.dropped == 0);
  for (const std::string& user : users) {
    CAPTURE(user);
    CHECK(restarted.count(user, 0) == 1);
    CHECK(lines_of(restarted, user, 0) == table.lines(user));
    const Binding before = table.only(user);
    restarted.for_each(user, 0, [&](const Binding& after) {
      CHECK(after.path == before.path);
      CHECK(after.user_agent == before.user_agent);
      CHECK(after.call_id == before.call_id);
    });
  }
}

TEST_CASE("the file can be read as Yate's") {
  Table table;
  Phone phone{table, "102"};
  phone.contact("<sip:102@192.0.2.7:5060;transport=udp>;expires=60");
  phone.contact("<sip:102@192.0.2.7:5062>;expires=90");
  const Ini file = ini_of(table.registrar.save(table.now_ms, 1700000000));
  REQUIRE(file.sections().size() == 1);
  CHECK(file.find("102", "driver")->value == "sip");
  CHECK(file.find("102", "data")->value == "sip/sip:102@192.0.2.7:5062");
  CHECK(file.find("102", "expires")->value == "1700000090");
}

TEST_CASE("Yate's own file is read, but for its TCP connections") {
  const std::string text =
      "[102]\ndriver=sip\ndata=sip/sip:102@192.0.2.7:5080\nroute_params=oconnection_id\n"
      "oconnection_id=general\nexpires=5100\n\n"
      "[103]\ndriver=sip\ndata=sip/sip:103@192.0.2.7:5082\nconnection_id=tcp:3\n"
      "connection_reliable=true\nexpires=5100\n"
      "[104]\ndriver=iax\ndata=iax/104@192.0.2.7\nexpires=5100\n";
  Registrar registrar({}, key);
  const auto result = load(registrar, text, 1000, 5000);
  CHECK(result.loaded == 1);
  CHECK(result.dropped == 2);
  registrar.for_each("102", 1000, [](const Binding& binding) {
    CHECK(binding.flow == Flow{Transport::udp, 0, address_of("192.0.2.7:5080")});
    CHECK(binding.expires_at_ms == 101000);
  });
}

TEST_CASE("what is expired, unknown, beyond a limit or malformed is not loaded") {
  struct Row {
    std::string what;
    std::string lines;
    bool loaded;
  };
  const Row rows[] = {
      {"good", "data=sip/sip:a@192.0.2.7\nexpires=5001\n", true},
      {"expired", "data=sip/sip:a@192.0.2.7\nexpires=5000\n", false},
      {"no expiry", "data=sip/sip:a@192.0.2.7\n", false},
      {"odd expiry", "data=sip/sip:a@192.0.2.7\nexpires=soon\n", false},
      {"no driver", "data=sip:a@192.0.2.7\nexpires=5001\n", false},
      {"no URI", "data=sip/\nexpires=5001\n", false},
      {"bad URI", "data=sip/sip:a@192.0.2.7>\nexpires=5001\n", false},
      {"tel", "data=sip/tel:1\nexpires=5001\n", false},
      {"a name", "data=sip/sip:a@example.com\nexpires=5001\n", false},
      {"bad address", "data=sip/sip:a@192.0.2.7\naddress=example.com:1\nexpires=5001\n", false},
      {"no port", "data=sip/sip:a@192.0.2.7\naddress=192.0.2.7:0\nexpires=5001\n", false},
      {"all hosts", "data=sip/sip:a@h\naddress=255.255.255.255:5060\nexpires=5001\n", false},
      {"address", "data=sip/sip:a@h\naddress=192.0.2.7:5060\nexpires=5001\n", true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Registrar registrar({}, key);
    const auto result = load(registrar, "[bob]\n" + row.lines, 0, 5000);
    CHECK(result.loaded == (row.loaded ? 1 : 0));
    CHECK(result.dropped == (row.loaded ? 0 : 1));
  }

  RegistrarOptions options;
  options.max_bindings = 3;
  options.max_bindings_per_user = 2;
  Registrar registrar(options, key);
  std::string text;
  for (const std::string user : {"unknown", "bob", "alice"}) {
    text += "[" + user + "]\n";
    for (const std::string port : {"1", "2", "3"}) {
      text += "data=sip/sip:a@192.0.2.7:" + port + "\nexpires=9000000\n";
    }
  }
  const auto result = registrar.load(ini_of(text), 0, 5000, [](std::string_view user, Flow& flow) {
    flow.socket = 42;
    return user != "unknown";
  });
  CHECK(result.loaded == 3);
  CHECK(result.dropped == 6);
  CHECK(registrar.count("bob", 0) == 2);
  CHECK(registrar.count("alice", 0) == 1);
  registrar.for_each("alice", 0, [](const Binding& binding) {
    CHECK(binding.flow.socket == 42);
    CHECK(binding.expires_at_ms == 3600000);  // a clock that was wrong makes nothing eternal
  });
}

TEST_CASE("bindings on TCP connections and expired ones are not saved") {
  Table table;
  Phone{table, "a", "1", tcp_from("192.0.2.7:40001", 17)}.contact("<sip:a@192.0.2.7>");
  Phone{table, "b"}.contact("<sip:b@192.0.2.7>;expires=60");
  Phone both{table, "c", "2", tcp_from("192.0.2.7:40001", 17)};
  both.contact("<sip:c1@192.0.2.7>");
  both.from = udp_from("192.0.2.7:5060");
  both.contact("<sip:c2@192.0.2.7>");
  table.now_ms += 60000;
  const Ini file = ini_of(table.registrar.save(table.now_ms, 5000));
  REQUIRE(file.sections().size() == 1);
  CHECK(file.sections()[0].name == "c");
  CHECK(file.find("c", "data")->value == "sip/sip:c2@192.0.2.7");
}

TEST_CASE("the revision tells whether the file has to be written") {
  Table table;
  Phone phone{table};
  std::uint64_t last = table.registrar.revision();
  const auto changed = [&] {
    const bool different = table.registrar.revision() != last;
    last = table.registrar.revision();
    return different;
  };
  CHECK(!changed());
  phone.contact("<sip:a@h>");
  CHECK(changed());
  phone.send("");
  CHECK(!changed());
  phone.contact("<sip:a@h>");
  CHECK(changed());
  phone.contact("<sip:a@h>;expires=0");
  CHECK(changed());
  phone.contact("<sip:a@h>;expires=0");
  CHECK(!changed());
}

// ---- memory ----

namespace {

/// What the heap has given out, the allocator's own share included; always 0 where the C library
/// does not tell or the allocator is another one, as with sanitizers.
std::size_t heap_in_use() {
#if defined(__GLIBC__)
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
#else
  return 0;
#endif
}

}  // namespace

TEST_CASE("a binding takes at most 300 octets, everything counted" * doctest::test_suite("long")) {
  for (const Transport transport : {Transport::udp, Transport::tcp}) {
    CAPTURE(transport_name(transport));
    const std::size_t before = heap_in_use();
    Table table;
    constexpr std::uint32_t users = 10000;
    for (std::uint32_t i = 0; i < users; ++i) {
      const std::string user = "user" + std::to_string(10000 + i);
      Phone phone{table, user, "S2l6EebEzl", {transport, i + 1, address_of("192.168.1.120:43170")}};
      phone.send("Contact: <sip:" + user +
                 "@192.168.1.120:43170;transport=" + std::string(transport_parameter(transport)) +
                 ">;+sip.instance=\"<urn:uuid:927d6feb-9f9e-0022-9164-6d8da660ec4c>\"\r\n"
                 "User-Agent: Linphonec/5.1.65\r\n");
    }
    REQUIRE(table.registrar.size() == users);
    const std::size_t per_binding = (heap_in_use() - before) / users;
    CAPTURE(per_binding);
    CHECK(per_binding <= 300);
  }
}

TEST_CASE("looking up allocates nothing") {
  Table table;
  Phone phone{table};
  phone.contact("<sip:a@h>;q=0.5, <sip:b@h>;+sip.instance=\"<urn:a>\", <sip:c@h?x=y>");
  std::size_t found = 0;
  const test::AllocationCount allocations;
  for (const std::string_view user : {"bob", "nobody", "alice"}) {
    table.registrar.for_each(
        user, table.now_ms, [&](const Binding& binding) { found += !binding.request_uri.empty(); });
    found += table.registrar.count(user, table.now_ms);
  }
  CHECK(allocations.count() == 0);
  CHECK(found == 6);
}

}  // namespace test_registrar
