#include "../src/program/options.hpp"

#include <doctest/doctest.h>

namespace test_options {

using namespace program;

namespace {

/// A command line with one option of each kind, and the variables they fill.
struct Arguments {
  bool trace = false;
  std::string from = "nobody";
  std::vector<std::string> listen;
  std::uint32_t count = 7;
  std::uint32_t deadline_ms = 500;
  std::string transport;
  std::string password;
  bool has_password = false;
  std::string to;
  std::string text;
  bool has_text = false;
  std::vector<std::string> argv;

  Option options[7] = {{"--trace", "", "show every message", &trace},
                       {"--from", "URI", "the sender", &from},
                       {"--listen", "ADDRESS", "where to listen;\nany number", &listen},
                       {"--count", "N", "how many", NumberTarget{&count, 1, 100}},
                       {"--deadline", "SECONDS", "how long", SecondsTarget{&deadline_ms}},
                       {"--transport", "udp|tcp", "over what", ChoiceTarget{&transport, "udp|tcp"}},
                       {"--password", "P", "secret", SecretTarget{&password, &has_password}}};
  Operand operands[2] = {{"TO-URI", &to, true}, {"TEXT", &text, false, &has_text}};
  CommandLine command{"sipmsg send [OPTIONS] TO-URI [TEXT]", "Sends one.", options, operands,
                      "More in the manual."};

  ParsedCommandLine parse(std::vector<std::string> arguments) {
    argv = std::move(arguments);
    argv.insert(argv.begin(), {"sipmsg", "send"});
    std::vector<char*> pointers;
    for (std::string& argument : argv) pointers.push_back(argument.data());
    return program::parse(command, static_cast<int>(pointers.size()), pointers.data(), 2);
  }
};

}  // namespace

TEST_CASE("options stand anywhere, their values behind a blank or an equals sign") {
  Arguments it;
  const auto parsed =
      it.parse({"--from", "sip:a@b", "sip:c@d", "--trace", "--count=42", "hello", "--deadline",
                "2.5", "--transport=tcp", "--listen", "x", "--listen=y=z"});
  CHECK(parsed.wrong == "");
  CHECK_FALSE(parsed.wants_help);
  CHECK(it.from == "sip:a@b");
  CHECK(it.to == "sip:c@d");
  CHECK(it.text == "hello");
  CHECK(it.has_text);
  CHECK(it.trace);
  CHECK(it.count == 42);
  CHECK(it.deadline_ms == 2500);
  CHECK(it.transport == "tcp");
  CHECK(it.listen == std::vector<std::string>{"x", "y=z"});
}

TEST_CASE("what is not given keeps its value") {
  Arguments it;
  CHECK(it.parse({"sip:c@d"}).wrong == "");
  CHECK(it.from == "nobody");
  CHECK(it.count == 7);
  CHECK(it.deadline_ms == 500);
  CHECK_FALSE(it.has_text);
}

TEST_CASE("a lone minus, and everything behind two, is an operand") {
  Arguments it;
  CHECK(it.parse({"sip:c@d", "-"}).wrong == "");
  CHECK(it.text == "-");
  Arguments other;
  CHECK(other.parse({"--", "--trace", "--help"}).wrong == "");
  CHECK(other.to == "--trace");
  CHECK(other.text == "--help");
}

TEST_CASE("what is wrong is said, and where") {
  struct Row {
    std::vector<std::string> arguments;
    std::string_view said;
  };
  const Row rows[] = {
      {{}, "TO-URI is missing"},
      {{"a", "b", "c"},
       "argument 4, \"c\": nothing more is expected; a text with blanks needs quotes"},
      {{"a", "--frm", "x"}, "unknown option --frm; did you mean --from?"},
      {{"a", "--zebra"}, "unknown option --zebra; what is no option goes behind --"},
      {{"a", "-x"}, "unknown option -x; what is no option goes behind --"},
      {{"a", "--from"}, "--from needs a value: URI"},
      {{"a", "--from", "x", "--from", "y"}, "--from is given twice"},
      {{"a", "--trace=yes"}, "--trace takes no value"},
      {{"a", "--count", "0"}, "--count 0: expected a number from 1 to 100"},
      {{"a", "--count", "101"}, "--count 101: expected a number from 1 to 100"},
      {{"a", "--count", "-5"}, "--count -5: expected a number from 1 to 100"},
      {{"a", "--count=99999999999999999999"},
       "--count 99999999999999999999: expected a number from 1 to 100"},
      {{"a", "--deadline", "soon"},
       "--deadline soon: expected seconds above 0, as in 2 or 0.5, at most a day"},
      {{"a", "--deadline", "1.2.3"},
       "--deadline 1.2.3: expected seconds above 0, as in 2 or 0.5, at most a day"},
      {{"a", "--transport", "ud"}, "--transport ud: expected udp or tcp"},
      {{"a", "--count", "x", "--zebra"}, "--count x: expected a number from 1 to 100"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.said);
    Arguments it;
    CHECK(it.parse(row.arguments).wrong == row.said);
  }
}

TEST_CASE("seconds are read to the millisecond") {
  struct Row {
    std::string text;
    std::uint32_t ms;
  };
  for (const Row& row : {Row{"0.001", 1}, Row{"1", 1000}, Row{"0.25", 250}, Row{".5", 500},
                         Row{"2.", 2000}, Row{"1.2345", 1234}, Row{"86400", 86400000}}) {
    CAPTURE(row.text);
    Arguments it;
    CHECK(it.parse({"a", "--deadline", row.text}).wrong == "");
    CHECK(it.deadline_ms == row.ms);
  }
  for (const char* text : {".", "", "0", "0.0009", "86401", "1,5", "1.x", "-1"}) {
    CAPTURE(text);
    Arguments it;
    CHECK(it.parse({"a", "--deadline", text}).wrong != "");
  }
}

TEST_CASE("a secret is taken and wiped from the command line, whatever else is wrong there") {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"a", "--password", "hidden"},
        std::vector<std::string>{"a", "--password=hidden"},
        std::vector<std::string>{"a", "--zebra", "--password", "hidden"}}) {
    Arguments it;
    const auto parsed = it.parse(arguments);
    CHECK(it.has_password);
    CHECK(it.password == "hidden");
    for (const std::string& argument : it.argv) {
      CHECK(argument.find("hidden") == std::string::npos);
    }
    CHECK(parsed.wrong.find("hidden") == std::string::npos);
  }
}

TEST_CASE("the help comes from the table, and asking for it comes before what is missing") {
  Arguments it;
  for (const char* name : {"--help", "-h"}) {
    CHECK(it.parse({name}).wants_help);
    CHECK(it.parse({name}).wrong == "");
  }
  CHECK(help(it.command) ==
        "usage: sipmsg send [OPTIONS] TO-URI [TEXT]\n\n"
        "Sends one.\n\n"
        "  --trace              show every message\n"
        "  --from URI           the sender\n"
        "  --listen ADDRESS     where to listen;\n"
        "                       any number\n"
        "  --count N            how many\n"
        "  --deadline SECONDS   how long\n"
        "  --transport udp|tcp  over what\n"
        "  --password P         secret\n"
        "  --                   no options behind this\n"
        "  --help               this text\n\n"
        "More in the manual.\n");
}

}  // namespace test_options
