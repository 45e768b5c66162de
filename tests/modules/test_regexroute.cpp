// regexroute: what Yate 6.4.1 was seen to do with the same rules, each feature on its own, and
// every mistake by its line.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/regexroute/regexroute.hpp"
#include "../../src/modules/regexroute/walk.hpp"
#include "support/data.hpp"

namespace test_regexroute {

using namespace modules;
using namespace modules::regexroute;
using sipmsg::Diagnostics;
using sipmsg::Severity;

namespace {

using Parameters = ListMessage::Parameters;

/// "a=1|b=2" as parameters.
Parameters parameters_of(const std::string& text) {
  Parameters out;
  for (const std::string& piece : test::split(text, '|')) {
    const std::size_t equals = piece.find('=');
    out.emplace_back(piece.substr(0, equals), piece.substr(equals + 1));
  }
  return out;
}

/// And back, without what the engine adds.
std::string text_of(const Message& message) {
  std::string out;
  message.for_each([&out](std::string_view name, std::string_view value) {
    if (name == "handlers") return;
    out.append(out.empty() ? "" : "|").append(name).append("=").append(value);
  });
  return out;
}

/// One line each. What the C library says about a bad expression is left out.
std::string texts(const Diagnostics& diagnostics) {
  std::string out;
  for (const auto& diagnostic : diagnostics) {
    const std::string line = to_text(diagnostic);
    const std::string what = "bad regular expression";
    const std::size_t place = line.find(what);
    out += (place == std::string::npos ? line : line.substr(0, place + what.size())) + "\n";
  }
  return out;
}

/// Rules and all they act upon, without a server.
struct Bench {
  Variables variables;
  Environment environment{variables, {}, {}, {}, "1700000000", sipmsg::Random({}), [] {
                            return std::uint64_t{1700000000000042};
                          }};
  Host host{environment};
  RuleOptions options;
  RuleBook book;
  Diagnostics diagnostics;
  std::string log;
  std::string dispatched;

  explicit Bench(const std::string& text, RuleOptions how = {}) : options(std::move(how)) {
    host.log = [this](Severity severity, std::string_view line) {
      log.append(severity_name(severity)).append(": ").append(line).append("\n");
    };
    host.dispatch = [this](const MessagePointer& message) {
      dispatched += message->name() + "(" + text_of(*message) + ")";
    };
    book.read(sipmsg::parse_ini(text, "rr.conf", {}, diagnostics), options, diagnostics);
  }

  /// "TARGET|PARAMETERS" where it is handled, "-|PARAMETERS" where it is not.
  std::string route(const std::string& called, const std::string& more = "") {
    ListMessage message("call.route", parameters_of(more));
    message.created_unix_s = 1234;
    return route(message, called);
  }
  std::string route(ListMessage& message, const std::string& called) {
    Walk walk(book, host, message, called);
    std::string out = walk.run("default") ? message.return_value : "-";
    for (const MessagePointer& one : walk.take_enqueued()) {
      dispatched += "later:" + one->name() + "(" + text_of(*one) + ")";
    }
    const std::string left = text_of(message);
    return left.empty() ? out : out + "|" + left;
  }
};

struct Row {
  const char* name;
  const char* rules;  ///< of [default] first
  const char* called;
  const char* parameters;
  const char* expected;
};

void check_rows(const std::vector<Row>& rows, const RuleOptions& options = {}) {
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CAPTURE(row.rules);
    Bench bench(std::string("[default]\n") + row.rules, options);
    CHECK(texts(bench.diagnostics) == "");
    CHECK(bench.route(row.called, row.parameters) == row.expected);
  }
}

/// A file of the project.
std::string read_file(const std::string& name) { return test::read_data("../../" + name); }

/// A directory of its own, removed at the end.
class Directory {
 public:
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "regexroute-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Directory() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path + "/" + name, std::ios::binary) << text;
  }
  std::string path;
};

/// The module as the program uses it, on a server that does not listen.
struct Running {
  uv_loop_t loop{};
  sipmsg::Server server;
  Engine engine;
  std::string log;
  modules::Context context;
  std::unique_ptr<Module> module = make_regexroute();
  Diagnostics diagnostics;

  explicit Running(const std::string& directory)
      : server((uv_loop_init(&loop), &loop), sipmsg::open_settings()),
        context{&loop, server, engine,
                [this](Severity, std::string_view line) { log.append(line).append("\n"); }} {
    if (module->load(directory, diagnostics) && module->is_enabled()) module->start(context);
  }
  ~Running() {
    if (module) module->stop();
    module.reset();
    server.close();
    uv_run(&loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&loop) == 0);
  }

  /// "true TARGET PARAMETERS"; "none" where nobody answered.
  std::string dispatch(const std::string& name, const std::string& parameters) {
    auto message = std::make_shared<ListMessage>(name, parameters_of(parameters));
    std::string out = "none";
    engine.dispatch(message, [&out](bool handled) { out = handled ? "true" : "false"; });
    return out + " " + message->return_value + " " + text_of(*message);
  }
};

}  // namespace

TEST_CASE("every case that Yate was observed in comes out as there, but for the closed injection") {
  Running running(std::string(SIPMSG_TEST_DATA) + "/vectors/yate-regexroute");
  CHECK(texts(running.diagnostics)
            .find("regexroute.conf:19: warning: there is no section [nosuchctx]") !=
        std::string::npos);
  CHECK(count(running.diagnostics, Severity::error) == 0);
  const auto rows = test::read_table("vectors/yate-regexroute/cases.tsv");
  REQUIRE(rows.size() == 42);
  for (const auto& row : rows) {
    REQUIRE(row.size() == 5);
    CAPTURE(row[0]);
    const std::string others = row[1] == "-" ? "" : "|" + row[1];
    std::string target = row[3];
    if (row[0] == "paren") {
      // Yate lets the ) of the value "a,b)c" end $(length,...). Here a value is never looked at.
      REQUIRE(target == "3c)");
      target = "5";
    }
    CHECK(running.dispatch("call.route", "called=" + row[0] + others) ==
          row[2] + " " + target + " " + row[4]);
  }
}

TEST_CASE("regular expressions are basic ones, unanchored, with up to nine captures") {
  check_rows({
      {"unanchored", "1=hit", "414", "", "hit"},
      {"anchored at both ends", "^1$=hit", "11", "", "-"},
      {"captures", "^\\(.\\)\\(.\\)\\(.\\)\\(.\\)\\(.\\)\\(.\\)\\(.\\)\\(.\\)\\(.\\).$=\\9\\8\\1",
       "abcdefghij", "", "iha"},
      {"\\0 is what matched, not all", "b.=<\\0>", "abcd", "", "<bc>"},
      {"\\0 of a plain text", "bc=<\\0>", "abcd", "", "<bc>"},
      {"\\0 of a plain beginning", "^ab=<\\0>", "abcd", "", "<ab>"},
      {"\\0 of anything", ".*=<\\0>", "abcd", "", "<abcd>"},
      {"a group that took no part is empty", "^a\\(x\\)\\?b$=<\\1>", "ab", "", "<>"},
      {"groups of plain texts are empty", "^ab$=<\\1>", "ab", "", "<>"},
      {"intervals", "^[0-9]\\{3\\}$=hit", "101", "", "hit"},
      {"alternatives", "^\\(a\\|b\\)$=\\1", "b", "", "b"},
      {"+ alone is a plus sign", "^a+$=hit", "a+", "", "hit"},
      {"a final ^ inverts", "^a^=not a<\\0>", "b", "", "not a<>"},
      {"a final ^ inverts what matches", "^a^=not a", "a", "", "-"},
      {"nothing but ^ matches always", "^=hit", "b", "", "hit"},
      {"the match text is trimmed", "^a$=hit", " a\t", "", "hit"},
      {"octets above 127", "^\xc3\xa9.$=hit", "\xc3\xa9x", "", "hit"},
  });
}

TEST_CASE("extended and insensitive hold for every expression") {
  RuleOptions extended;
  extended.syntax.extended = true;
  check_rows(
      {
          {"+ repeats", "^a+$=hit", "aaa", "", "hit"},
          {"( ) capture", "^(a)(b)$=\\2\\1", "ab", "", "ba"},
          {"intervals", "^[0-9]{3}$=hit", "101", "", "hit"},
          {"in conditions", "${p}^(x+)$=if ^a+$=hit", "aa", "p=xx", "hit|p=xx"},
          {"the default rule needs no syntax", "${p}=hit", "a", "p=no", "-|p=no"},
      },
      extended);
  RuleOptions insensitive;
  insensitive.syntax.insensitive = true;
  check_rows({{"case does not count", "^aBc$=hit", "AbC", "", "hit"},
              {"nor in plain texts", "b=<\\0>", "ABC", "", "<B>"}},
             insensitive);
}

TEST_CASE("plain texts are matched without the library as the library would") {
  const char* expressions[] = {
      "^abc$", "^abc", "abc", "^", "^$", ".*", "^a b@c-d_e:f/g,%&!#~<>\"'$"};
  const char* subjects[] = {"", "abc", "xabc", "abcx", "a", "a b@c-d_e:f/g,%&!#~<>\"'"};
  for (const char* expression : expressions) {
    for (const char* subject : subjects) {
      CAPTURE(expression);
      CAPTURE(subject);
      Pattern plain;
      Pattern compiled;
      REQUIRE(plain.compile(expression, {}).empty());
      REQUIRE(compiled.compile(expression, {false, true}).empty());  // that is never plain
      Captures a;
      Captures b;
      const std::string text = subject;
      const bool matches = plain.matches(text, a);
      CHECK(matches == compiled.matches(text, b));
      if (matches) CHECK((a[0] == b[0] && a[0].data() == b[0].data()));
    }
  }
}

TEST_CASE("parameters and functions can be matched") {
  check_rows({
      {"parameter", "${p}^1$=hit", "x", "p=1", "hit|p=1"},
      {"parameter with blanks", "${ p } ^1$=hit", "x", "p= 1 ", "hit|p= 1 "},
      {"missing parameter is empty", "${p}^$=hit", "x", "", "hit"},
      {"default where it is missing", "${p$d}^d$=hit", "x", "", "hit"},
      {"no default where it is empty", "${p$d}^$=hit", "x", "p=", "hit|p="},
      {"\\0 is of the parameter", "${p}.=\\0", "x", "p=yz", "y|p=yz"},
      {"function", "$(length,${p})^3$=hit", "x", "p=abc", "hit|p=abc"},
      {"function with ) inside ${}", "$(length,${p$a)b})^3$=hit", "x", "", "hit"},
      {"true function", "$(eq,1,1)=hit", "x", "", "hit"},
      {"false function", "$(eq,1,2)=hit", "x", "", "-"},
      {"inverted", "$(eq,1,2)^=hit", "x", "", "hit"},
      {"captures are of the last match", "${p}^\\(.\\)=if ^\\(.\\)=\\1", "x", "p=y", "x|p=y"},
      {"a backslash in a condition's function is itself", "$(length,\\1)^2$=hit", "x", "", "hit"},
  });
}

TEST_CASE("without an expression a value must be true") {
  for (const char* value : {"", "false", "no", "off", "disable", "f", "0", "000", " "}) {
    CAPTURE(value);
    Bench bench("[default]\n${p}=true\n${p}^=false\n");
    CHECK(bench.route("x", std::string("p=") + value) == std::string("false|p=") + value);
  }
  for (const char* value : {"yes", "true", "1", "FALSE", "00x", "-"}) {
    CAPTURE(value);
    Bench bench("[default]\n${p}^=false\n${p}=true\n");
    CHECK(bench.route("x", std::string("p=") + value) == std::string("true|p=") + value);
  }
  RuleOptions options;
  options.default_rule = "^ok$";
  check_rows({{"own default rule", "${p}=hit", "x", "p=ok", "hit|p=ok"},
              {"own default rule inverted", "${p}^=hit", "x", "p=no", "hit|p=no"}},
             options);
  options.default_rule = "^bad$^";
  check_rows({{"one that is inverted", "${p}=hit", "x", "p=ok", "hit|p=ok"},
              {"and inverted again", "${p}^=hit", "x", "p=bad", "hit|p=bad"}},
             options);
}

TEST_CASE("conditions are chained with if, and, or") {
  check_rows({
      {"if", "^a=if b$=hit", "ab", "", "hit"},
      {"if fails", "^a=if b$=hit", "ac", "", "-"},
      {"and", "^a=and b=and c$=hit", "abc", "", "hit"},
      {"or, the first", "^a=or ^b=hit\\0", "a", "", "hita"},
      {"or, the second", "^a=or ^b=hit\\0", "b", "", "hitb"},
      {"or, neither", "^a=or ^b=hit", "c", "", "-"},
      {"or skips all that follows", "^a=or ^b=and ^c=hit", "a", "", "hit"},
      {"what follows or must hold for the second", "^a=or ^b=and c$=hit", "b", "", "-"},
      {"and without or ends the rule", "^a=and ^b=or ^c=hit", "c", "", "-"},
      {"or behind and", "^a=and b=or c$=hit", "ac", "", "hit"},
      {"a word that only begins so", "^a=iffy", "a", "", "iffy"},
      {"the filter of the page: 101 may",
       "${route_type}^msg$=if ${username}^101$^=-;reason=forbidden", "x",
       "route_type=msg|username=101", "-|route_type=msg|username=101"},
  });
  Bench filter("[default]\n${route_type}^msg$=if ${username}^101$^=-;reason=forbidden\n");
  CHECK(filter.route("x", "route_type=msg|username=102") ==
        "-|route_type=msg|username=102|reason=forbidden");
}

TEST_CASE("targets take captures, parameters and functions") {
  check_rows({
      {"\\\\ is one backslash", ".*=a\\\\1", "x", "", "a\\1"},
      {"another escape stays", ".*=a\\n", "x", "", "a\\n"},
      {"a backslash at the end of an assignment stays", ".*=t;p=a\\;q=b", "x", "", "t|p=a\\|q=b"},
      {"parameter", ".*=<${p}>", "x", "p=1", "<1>|p=1"},
      {"default", ".*=<${p$d}>", "x", "", "<d>"},
      {"a capture in a name", "^\\(.\\)$=<${p\\1}>", "x", "px=1", "<1>|px=1"},
      {"a capture in a default", "^\\(.\\)$=<${p$\\1}>", "x", "", "<x>"},
      {"$() and $($)", ".*=t;p=a$()b$($)c", "x", "", "t|p=a;b$c"},
      {"the first ; divides, also inside ${}", ".*=t;p=a;b=c", "x", "", "t|p=a|b=c"},
      {"an empty target goes on", "a=${p}\nb=hit", "ab", "", "hit"},
  });
}

TEST_CASE("what a sender writes is never read as a rule") {
  check_rows({
      {") ends no function", ".*=$(length,${p})", "x", "p=a,b)c", "5|p=a,b)c"},
      {", makes no argument", ".*=$(index,1,${p},z)", "x", "p=a,b", "z|p=a,b"},
      {"; makes no assignment", ".*=${p}", "x", "p=a;q=1", "a;q=1|p=a;q=1"},
      {"= makes no assignment", ".*=t;${p}", "x", "p=a=b|a=1", "t|p=a=b|a=1"},
      {"$name is no variable", ".*=<$(length,${p})>", "x", "p=$secret", "<7>|p=$secret"},
      {"${} is not replaced again", "^\\(.*\\)$=<\\1>", "${p}", "p=1", "<${p}>|p=1"},
      {"$() is not called", ".*=<${p}>", "x", "p=$(runid)", "<$(runid)>|p=$(runid)"},
      {"no word becomes an action", ".*=${p}", "x", "p=return true", "return true|p=return true"},
      {"nor by a capture", "^\\(.*\\)$=\\1", "jump sub", "", "jump sub"},
      {"a variable's name cannot be chosen", ".*=t;${p}=1", "x", "p=$v", "t|p=$v|$v=1"},
  });
}

TEST_CASE("assignments set and clear parameters and global variables") {
  check_rows({
      {"set", ".*=t;p=1", "x", "", "t|p=1"},
      {"replace", ".*=t;p=1", "x", "p=0|q=2", "t|p=1|q=2"},
      {"empty", ".*=t;p=", "x", "p=0", "t|p="},
      {"clear", ".*=t;p", "x", "p=0|q=2", "t|q=2"},
      {"one after the other", ".*=t;p=1;q=${p};p=2", "x", "", "t|p=2|q=1"},
      {"the target is made before", ".*=<${p}>;p=1", "x", "p=0", "<0>|p=1"},
      {"only assignments", ".*=;p=1\nx=t", "x", "", "t|p=1"},
      {"noop", ".*=noop;p=1\nx=t", "x", "", "t|p=1"},
      {"blanks and empty pieces", ".*= t ;; p q = 1  2 ;", "x", "", "t|p q=1  2"},
      {"a made name", "^\\(.\\)$=t;osip_\\1=1", "x", "", "t|osip_x=1"},
      {"a made name that is empty", ".*=t;${p}=1", "x", "", "t"},
      {"an = in the value", ".*=t;p=a=b", "x", "", "t|p=a=b"},
      {"variable", ".*=;$v=1\nx=$(v)", "x", "", "1"},
      {"cleared variable", ".*=;$v=1;$v\nx=<$(v)>", "x", "", "<>"},
      {"set before return false", ".*=return;p=1", "x", "", "-|p=1"},
  });
  Bench bench("[default]\na=t;$n=7\nb=$(n)\n");
  bench.route("a");
  CHECK_MESSAGE(bench.route("b") == "7", "variables outlive the message");
}

TEST_CASE("actions") {
  check_rows({
      {"return ends the context", "a=return\na=t", "a", "", "-"},
      {"return true", ".*=return true;p=1", "a", "", "|p=1"},
      {"return of a value", ".*=return ${p}", "a", "p=yes", "|p=yes"},
      {"include goes on", ".*=include s\n.*=t\n[s]\n.*=;p=1", "a", "", "t|p=1"},
      {"include that routes", ".*=include s\n.*=t\n[s]\n.*=u", "a", "", "u"},
      {"call", ".*=call s\n[s]\n.*=u", "a", "", "u"},
      {"jump does not come back", ".*=jump s\n.*=t\n[s]\nb=u", "a", "", "-"},
      {"goto", ".*=goto s\n[s]\n.*=u", "a", "", "u"},
      {"a context by a value", ".*=jump ${p}\n[s]\n.*=u", "a", "p=s", "u|p=s"},
      {"a missing one with @", ".*=@include none\n.*=t", "a", "", "t"},
      {"@jump", ".*=@jump s\n[s]\n.*=u", "a", "", "u"},
      {"match", ".*=match b\n^a$=t\n^b$=u", "a", "", "u"},
      {"newmatch", ".*=newmatch b\n^b$=u", "a", "", "u"},
      {"match in an included context stays", ".*=include s\n^b$=u\n[s]\n.*=match b", "a", "", "u"},
      {"match with nothing changes nothing", ".*=match ${p}\n^a$=t", "a", "", "t"},
      {"retval without a target", ".*=retval v\n.*=return true", "a", "", "v"},
      {"a context called contexts can be included", ".*=include contexts\n[contexts]\n.*=t", "a",
       "", "t"},
  });
  Bench bench("[default]\n.*=rename my.message;p=1\n.*=$(message,name)\n");
  ListMessage message("call.route");
  CHECK(bench.route(message, "a") == "my.message|p=1");
  CHECK(message.name() == "my.message");
  Bench retval("[default]\n.*=retval v\n");
  ListMessage unhandled("call.route");
  CHECK(retval.route(unhandled, "a") == "-");
  CHECK_MESSAGE(unhandled.return_value == "v", "retval stays where nobody routes");
}

TEST_CASE("blocks") {
  const std::string chain =
      "[default]\n"
      "^a={\n"
      "  ^a1=A1\n"
      "  .*=;in=a\n"
      "} ^b=if b={\n"
      "  ^b1={\n"
      "    .*=B1\n"
      "  } ={\n"
      "    .*=;in=b-other\n"
      "  }\n"
      "} ^c=C\n"
      ".*=END\n";
  const std::pair<const char*, const char*> rows[] = {
      {"a1", "A1"}, {"a2", "END|in=a"}, {"b1", "B1"}, {"b2", "END|in=b-other"},
      {"c", "C"},   {"ac", "END|in=a"}, {"d", "END"}};
  for (const auto& row : rows) {
    CAPTURE(row.first);
    Bench bench(chain);
    CHECK(texts(bench.diagnostics) == "");
    CHECK(bench.route(row.first) == row.second);
  }
  check_rows({
      {"else without a condition captures all", "^a={\n} =<\\0>", "b", "", "<b>"},
      {"else is skipped where the block was entered", "^a={\n} =<\\0>\n.*=t", "a", "", "t"},
      {"an empty block", "^a={\n}\n.*=t", "a", "", "t"},
      {"a block with a chained condition", "^a=or ^b={\n.*=in\n}\n.*=t", "b", "", "in"},
      {"a skipped block skips the blocks in it", "^a={\n^b={\n.*=x\n} ={\n.*=y\n}\n.*=z\n}\n.*=t",
       "b", "", "t"},
      {"include from inside a block comes back into it",
       "^a={\n.*=include s\n.*=in\n}\n.*=t\n[s]\n^b={\n}\n", "a", "", "in"},
  });
  std::string deep = "[default]\n";
  for (int i = 0; i < 10; ++i) deep += ".*={\n";
  deep += ".*=deep\n";
  for (int i = 0; i < 10; ++i) deep += "}\n";
  Bench bench(deep);
  CHECK(texts(bench.diagnostics) == "");
  CHECK(bench.route("x") == "deep");
}

TEST_CASE("functions") {
  const std::pair<const char*, const char*> rows[] = {
      {"$(length,abc)", "3"},
      {"$(length,a,b)", "3"},
      {"$(length)", "0"},
      {"$(upper,aBc\xc3\xa9)", "ABC\xc3\xa9"},
      {"$(lower,AbC)", "abc"},
      {"$(chr,65)$(chr,0x42)", "AB"},
      {"<$(chr,0)>", "<>"},
      {"$(hex,10)", "0a"},
      {"$(hex,0x1234)", "34 12"},
      {"$(hex,1,4)", "01 00 00 00"},
      {"$(hex,0x010203,9,:)", "03:02:01:00"},
      {"$(hex,258,2,)", "0201"},
      {"$(hex,-1)", "ff ff ff ff"},
      {"$(add,2,3)", "5"},
      {"$(+,2,3)", "5"},
      {"$(add,007,5)", "012"},
      {"$(add,7,5,4)", "0012"},
      {"$(add,99,1)", "100"},
      {"$(sub,1,3)$(-,5,2)", "-23"},
      {"$(sub,1,3,4)", "-002"},
      {"$(sub,100,1)", "099"},
      {"$(mul,6,7)$(*,-2,3)", "42-6"},
      {"$(mul,1000000000000000000,1000000000000000000)", "1000000000000000000"},
      {"$(mul,-99999999999999999999,99999999999999999999,1)", "-1000000000000000000"},
      {"$(add,99999999999999999999,99999999999999999999,1)", "2000000000000000000"},
      {"$(div,7,2)$(/,7,0)", "30"},
      {"$(mod,7,4)$(%,7,0)", "30"},
      {"$(add,x,1)$(add,1x,1,1)",
       "1"
       "1"},
      {"$(eq,1,01)$(ne,1,1)", "truefalse"},
      {"$(gt,2,1)$(>,1,2)", "truefalse"},
      {"$(lt,1,2)$(<,2,1)", "truefalse"},
      {"$(ge,2,2)$(le,3,2)", "truefalse"},
      {"$(streq,a,a)$(streq,a,b)", "truefalse"},
      {"$(strne,a,a)$(strne,a,b)", "falsetrue"},
      {"$(strpos,c,abc)$(strpos,x,abc)", "2-1"},
      {"$(strpos,b,a,b)", "2"},
      {"$(index,0,x,y,z)$(index,4,x,y,z)", "xy"},
      {"<$(index,-1,x,y)>", "<x>"},
      {"$(rotate,1,x,y,z)", "y z x"},
      {"$(config,telephony,answer)", ""},
      {"$(engine,version)", "0.0.7"},
      {"$(engine,none)", ""},
      {"$(loaded,regfile)$(loaded,pbx)", "truefalse"},
      {"$(message,name)", "call.route"},
      {"$(message)", "call.route"},
      {"$(message,time)", "1234"},
      {"$(message,count)", "2"},
      {"$(message,parameters)", "a,b"},
      {"$(message,parameters,+)", "a+b"},
      {"$(message,broadcast)", "false"},
      {"$(message,other)", ""},
      {"$(variables,count)$(variables)", "22"},
      {"$(variables,list)", "other,v"},
      {"$(variables,list,-)", "other-v"},
      {"$(variables,v)$(variables,w)", "truefalse"},
      {"$(runid)", "1700000000"},
      {"$(nodename)", "node-1"},
      {"$(timestamp)", "20231114221320.000042"},
      {"$(dispatching)", "0"},
      {"$(v)", "7"},
      {"$(none)", ""},
      {"$(add,$v,1)", "8"},
      {"$(length,$other)", "5"},
      {"$(streq,$v,7)", "true"},
      {"$(++5)$(--5)", "64"},
      {"$(++$v)$(v)", "88"},
      {"$(--$v)$(v)", "66"},
      {"$(index,$v,a,b,c,d)$(v)", "d0"},
      {"$(${a})", "7"},
      {"$(length,${a})", "1"},
      {"$( length,ab )", "2"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.first);
    Bench bench(std::string("[default]\n.*=match ") + row.first + "\n.*=return\n" +
                "[out]\n.*=t;out=" + row.first + "\n");
    CHECK(texts(bench.diagnostics) == "");
    bench.variables.set("v", "7");
    bench.variables.set("other", "12345");
    bench.environment.run_parameters = {{"version", "0.0.7"}, {"nodename", "node-1"}};
    bench.environment.loaded_modules = {"regfile"};
    ListMessage message("call.route", {{"a", "v"}, {"b", "2"}});
    message.created_unix_s = 1234;
    Walk walk(bench.book, bench.host, message, "x");
    CHECK(walk.run("out"));
    CHECK(message.get_or("out") == row.second);
  }
}

TEST_CASE("functions that look elsewhere") {
  Bench bench(
      "[default]\n.*=$(config,general,key) $(random,a?b?"
      "?) $(message,retval)\n");
  Diagnostics none;
  bench.environment.engine_configuration =
      sipmsg::parse_ini("[general]\nkey=value\n", "y", {}, none);
  ListMessage message("call.route");
  message.return_value = "before";
  const std::string made = bench.route(message, "x");
  REQUIRE(made.size() == std::string("value a1b23 before").size());
  CHECK(made.substr(0, 7) == "value a");
  CHECK((sipmsg::is_digit(made[7]) && made[8] == 'b' && sipmsg::is_digit(made[10])));
  CHECK(made.substr(11) == " before");
}

TEST_CASE("rules write to the log, one line, whatever the message holds") {
  Bench bench(
      "[default]\n"
      ".*=echo called \\0 by ${p};not=set\n"
      ".*=output $(length,abc)\n"
      ".*=debug 1 one\n.*=debug 5 five\n.*=debug 10 ten\n.*=debug none\n");
  CHECK(bench.route("x", "p=a\r\n\x1b[31mb") == "-|p=a\r\n\x1b[31mb");
  CHECK(bench.log ==
        "info: called x by a???[31mb;not=set\ninfo: 3\nerror: one\nwarning: five\ninfo: ten\n"
        "info: none\n");
  Bench longer("[default]\n.*=echo ${p}\n");
  longer.route("x", "p=" + std::string(5000, 'a'));
  CHECK(longer.log == "info: " + std::string(1000, 'a') + "...\n");
}

TEST_CASE("dispatch and enqueue make another message of this one") {
  Bench bench(
      "[default]\n"
      "^\\(.\\)=dispatch my.\\1; p = ${q} ;r=2;$v=3\n"
      ".*=enqueue later.one;p=1\n"
      ".*=enqueue ${none}\n"
      ".*=t$(v)\n");
  CHECK(bench.route("x", "q=1") == "t3|q=1");
  CHECK(bench.dispatched == "my.x(p=1|r=2)later:later.one(p=1)");
}

TEST_CASE("what cannot be a rule is an error with its line") {
  struct Mistake {
    const char* text;
    const char* expected;
  };
  const Mistake mistakes[] = {
      {"[a]\nok=t\n^\\(=t\n", "rr.conf:3: error: bad regular expression\n"},
      {"[a]\n${p}\\(=t\n", "rr.conf:2: error: bad regular expression\n"},
      {"[a]\nx=if [=t\n", "rr.conf:2: error: bad regular expression\n"},
      {"[a]\nx\\{70000\\}=t\n", "rr.conf:2: error: bad regular expression\n"},
      {"[a]\n\\(\\(x\\{255\\}\\)\\{255\\}\\)\\{255\\}=t\n",
       "rr.conf:2: error: the regular expression repeats too often\n"},
      {"[a]\n\\(.\\)\\1=t\n",
       "rr.conf:2: warning: a back-reference can take very long, so only the first 64 octets of a "
       "value are looked at\n"},
      {"[a]\n${p=t\n", "rr.conf:2: error: ${ without }\n"},
      {"[a]\n${}x=t\n", "rr.conf:2: error: ${} names no parameter\n"},
      {"[a]\n$(length,x=t\n", "rr.conf:2: error: $( without )\n"},
      {"[a]\n$(lenght,x)=t\n", "rr.conf:2: error: unknown function \"lenght\"\n"},
      {"[a]\nx=$(lenght,x)\n", "rr.conf:2: error: unknown function \"lenght\"\n"},
      {"[a]\nx=t;p=$(lenght,x)\n", "rr.conf:2: error: unknown function \"lenght\"\n"},
      {"[a]\nx=t;p=$(add,1)\n", "rr.conf:2: error: too few arguments: \"add,1\"\n"},
      {"[a]\nx=$(add,$(v),1)\n",
       "rr.conf:2: error: a function inside a function; give the inner one to a parameter first: "
       "\"$(add,$(v),1)\"\n"},
      {"[a]\nx=a$(runid\n", "rr.conf:2: error: $( without ): \"$(runid\"\n"},
      {"[a]\nx=a${p\n", "rr.conf:2: error: ${ without }: \"${p\"\n"},
      {"[a]\nx=a${}\n", "rr.conf:2: error: ${} names no parameter: \"${}\"\n"},
      {"[a]\nx=if ^y$\n", "rr.conf:2: error: if, and, or need REGEX=TARGET behind them\n"},
      {"[a]\nx=or =t\n", "rr.conf:2: error: if, and, or need REGEX=TARGET behind them\n"},
      {"[a]\nx=include\n", "rr.conf:2: error: include needs something behind it\n"},
      {"[a]\nx=@jump;p=1\n", "rr.conf:2: error: jump needs something behind it\n"},
      {"[a]\nx=match\n", "rr.conf:2: error: match needs something behind it\n"},
      {"[a]\nx=rename\n", "rr.conf:2: error: rename needs something behind it\n"},
      {"[a]\nx=dispatch ;p=1\n", "rr.conf:2: error: dispatch needs something behind it\n"},
      {"[a]\nx=enqueue\n", "rr.conf:2: error: enqueue needs something behind it\n"},
      {"[a]\nx=@match y\n",
       "rr.conf:2: error: @ stands before include, call, jump and goto only\n"},
      {"[a]\nx=return maybe\n",
       "rr.conf:2: error: return takes a boolean, such as true or false\n"},
      {"[a]\nx=msleep 10\n",
       "rr.conf:2: error: msleep would hold up everybody's messages, and is not possible here\n"},
      {"[a]\nx=t;=1\n", "rr.conf:2: error: an assignment without a name\n"},
      {"[a]\nx=t;$=1\n", "rr.conf:2: error: an assignment without a name\n"},
      {"[a]\nx=include none\n", "rr.conf:2: warning: there is no section [none]\n"},
      {"[a]\nx=@include none\n", ""},
      {"[a]\nx={\ny=t\n", "rr.conf:2: error: the block that begins here is not closed\n"},
      {"[a]\nx={\n} y={\n", "rr.conf:3: error: the block that begins here is not closed\n"},
      {"[a]\n}\n", "rr.conf:2: error: } without a block that it closes\n"},
      {"[a]\nx={\n}\n} y=t\n", "rr.conf:4: error: } without a block that it closes\n"},
      {"[a]\nx=t;p={\n", "rr.conf:2: error: { must stand alone behind the =\n"},
      {"[contexts]\nx\\(=default\n", "rr.conf:2: error: bad regular expression\n"},
  };
  for (const Mistake& mistake : mistakes) {
    CAPTURE(mistake.text);
    Bench bench(mistake.text);
    CHECK(texts(bench.diagnostics) == std::string(mistake.expected));
  }
  std::string deep = "[a]\n";
  for (int i = 0; i < 11; ++i) deep += "x={\n";
  for (int i = 0; i < 11; ++i) deep += "}\n";
  CHECK(texts(Bench(deep).diagnostics) ==
        "rr.conf:12: error: more than 10 blocks inside one another\n");
  CHECK(texts(Bench("[a]\n" + std::string(5000, 'x') + ".=t\n").diagnostics) ==
        "rr.conf:2: error: the regular expression is too long\n");
  RuleOptions without_default;
  without_default.default_rule = "";
  CHECK(
      texts(Bench("[a]\n${p}=t\n", without_default).diagnostics) ==
      "rr.conf:2: error: a regular expression is missing, and [priorities] defaultrule is empty\n");
  Pattern pattern;
  CHECK(pattern.compile(std::string_view("a\0b", 3), {}) == "a regular expression holds no NUL");
  CHECK(pattern.compile("^\\([0-9]\\{1,3\\}\\.\\)\\{3\\}[0-9]\\{1,3\\}$", {}) == "");
}

TEST_CASE("rules that lead in circles come to an end") {
  Bench bench("[default]\n.*=include a\n.*=END\n[a]\n.*=;n=x\n.*=include a\n.*=jump a\n");
  CHECK(bench.route("x") == "END|n=x");
  CHECK(bench.log.find("warning: rr.conf:6: include and jump lead deeper than maxdepth") == 0);

  bench.log.clear();
  bench.host.max_depth = 100;
  CHECK(bench.route("x") == "-|n=x");
  CHECK(bench.log.find("the rules take too many steps for one message") != std::string::npos);
  CHECK(std::count(bench.log.begin(), bench.log.end(), '\n') <= 60 + 10);
  CHECK_MESSAGE(bench.route("x") == "-|n=x", "each message has its own steps");
}

TEST_CASE("include goes as deep as maxdepth says") {
  std::string rules = "[default]\n.*=include c1\n";
  for (int i = 1; i <= 6; ++i) {
    const std::string number = std::to_string(i);
    rules +=
        "[c" + number + "]\n.*=;n=" + number + "\n.*=@include c" + std::to_string(i + 1) + "\n";
  }
  Bench bench(rules);
  CHECK(bench.route("x") == "-|n=5");
  bench.host.max_depth = 6;
  CHECK(bench.route("x") == "-|n=6");
}

TEST_CASE("a missing context is told once it is asked for, but not with @") {
  Bench bench("[default]\n.*=@include ${p}\n.*=include ${p}\n.*=include ${q}\n.*=t\n");
  CHECK(bench.route("x", "p=a\nb") == "t|p=a\nb");
  CHECK(bench.log == "warning: rr.conf:3: there is no section [a?b]\n");
}

TEST_CASE("values are as large as they may be, and no larger") {
  std::string rules = "[default]\n.*=;p=0123456789abcdef\n";
  for (int i = 0; i < 20; ++i) rules += ".*=;p=${p}${p}\n";
  Bench bench(rules);
  ListMessage message("call.route");
  bench.route(message, "x");
  CHECK(message.get_or("p").size() == Text::max_size);
}

TEST_CASE("global variables have a limit") {
  Bench bench("[default]\n^\\(.*\\)$=t;$\\1=1\n");
  for (std::size_t i = 0; i <= Variables::max_count; ++i) bench.route("v" + std::to_string(i));
  CHECK(bench.variables.values().size() == Variables::max_count);
  CHECK(bench.log == "warning: too many global variables; a new one is not set\n");
  CHECK_MESSAGE(bench.route("v0") == "t", "one that is there can still be set");
}

TEST_CASE("only the beginning of a long value is matched, and there is no end in it") {
  const std::string longer(Pattern::max_subject + 1, 'a');
  const std::string longest_matched(Pattern::max_subject, 'a');
  Pattern all;
  REQUIRE(all.compile("^a*$", {}).empty());
  Captures captures;
  CHECK(all.matches(longest_matched, captures));
  CHECK_FALSE(all.matches(longer, captures));
  Pattern some;
  REQUIRE(some.compile("^\\(a*\\)", {}).empty());
  CHECK(some.matches(longer, captures));
  CHECK(captures[1].data() == longer.data());
  CHECK(captures[1].size() == Pattern::max_subject);
  Pattern twice;
  REQUIRE(twice.compile("^\\(a*\\)\\1$", {}).empty());
  CHECK(twice.has_back_reference());
  CHECK(twice.matches(std::string(Pattern::max_subject_of_back_reference, 'a'), captures));
  CHECK_FALSE(
      twice.matches(std::string(Pattern::max_subject_of_back_reference + 2, 'a'), captures));
}

TEST_CASE("a NUL hides nothing of a value") {
  Bench bench("[default]\n${p}secret=-;reason=forbidden\n.*=t\n");
  ListMessage message("call.route", {{"p", std::string("a\0secret", 8)}});
  bench.route(message, "x");
  CHECK(message.return_value == "-");
  CHECK(message.get_or("reason") == "forbidden");
}

TEST_CASE("messages that dispatch messages come to an end") {
  Bench bench("[default]\n.*=dispatch call.route\n.*=t$(dispatching)\n");
  std::string seen;
  bench.host.dispatch = [&](const MessagePointer& message) {
    Walk walk(bench.book, bench.host, *message, "x");
    walk.run("default");
    seen += message->return_value;
  };
  CHECK(bench.route("x") == "t0");
  CHECK(seen == "t16t15t14t13t12t11t10t9t8t7t6t5t4t3t2t1");
  CHECK(bench.log ==
        "warning: rr.conf:2: messages dispatch messages too deep; this one is left out\n");
  std::string many = "[default]\n";
  for (int i = 0; i <= 100; ++i) many += ".*=enqueue m\n";
  Bench enqueuing(many);
  ListMessage message("call.route");
  Walk walk(enqueuing.book, enqueuing.host, message, "x");
  walk.run("default");
  CHECK(walk.take_enqueued().size() == Walk::max_enqueued);
  CHECK(enqueuing.log == "warning: rr.conf:102: too many messages are enqueued\n");
}

TEST_CASE("the rules that the sample switches off do what it says") {
  std::string text;
  for (std::string line : test::split(read_file("conf/regexroute.conf.sample"), '\n')) {
    if (line.size() > 1 && line[0] == ';' && line[1] != ' ') line.erase(0, 1);
    text += line + "\n";
  }
  Bench bench(text);
  CHECK(texts(bench.diagnostics) == "");
  CHECK(bench.route("0", "username=101") == "-|username=101");
  CHECK(bench.route("0", "username=103") == "-|username=103|reason=forbidden");
  CHECK(bench.route("info", "username=103") == "-|username=103|called=101");
  CHECK(bench.route("102", "username=103|called=102|xsip_body=a badword") ==
        "-|username=103|called=102|xsip_body=a badword|reason=rejected");
  CHECK(bench.log == "warning: 103 wrote a bad word to 102\n");
}

// ---- the module --------------------------------------------------------------------------------

TEST_CASE("without its file the module is off, and that is no mistake") {
  Directory directory;
  const auto module = make_regexroute();
  Diagnostics diagnostics;
  CHECK(module->load(directory.path, diagnostics));
  CHECK(texts(diagnostics) == "");
  CHECK_FALSE(module->is_enabled());
  CHECK(module->name() == "regexroute");
}

TEST_CASE("a file that cannot be read is an error") {
  Directory directory;
  std::filesystem::create_directory(directory.path + "/regexroute.conf");
  const auto module = make_regexroute();
  Diagnostics diagnostics;
  CHECK_FALSE(module->load(directory.path, diagnostics));
  CHECK(count(diagnostics, Severity::error) == 1);
}

TEST_CASE("settings that are not as they should be are told with their line") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[priorities]\n"
                  "route=x\n"
                  "maxdepth=3\n"
                  "extended=maybe\n"
                  "preroute=50\n"
                  "rout=1\n"
                  "route=5\n"
                  "[extra]\n"
                  "no.context=100\n"
                  "my.message=-1\n"
                  "my.message=100,,,p,^\\(\n"
                  "[my.message]\n"
                  ".*=t\n"
                  "[contexts]\n");
  const auto module = make_regexroute();
  Diagnostics diagnostics;
  CHECK_FALSE(module->load(directory.path, diagnostics));
  const std::string file = directory.path + "/regexroute.conf:";
  CHECK(texts(diagnostics) ==
        file + "2: warning: route is no integer; the default is used\n" + file +
            "3: warning: maxdepth is out of range; 5 is used\n" + file +
            "4: warning: extended is no boolean; the default is used\n" + file +
            "5: info: preroute has no effect here\n" + file + "6: warning: unknown key rout\n" +
            file + "9: error: there is no section [no.context] with its rules\n" + file +
            "10: error: the priority of my.message is no integer from 0 to 1000000\n" + file +
            "11: error: filter of my.message: bad regular expression\n" + file +
            "14: info: [contexts] is not asked: call.preroute is not sent for messages\n");
}

TEST_CASE("the module routes at its priority, in the context of the message") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[priorities]\nroute=55\nextended=yes\n"
                  "[default]\n^(1+)$=sip/\\1\n[other]\n.*=other\n");
  Running running(directory.path);
  CHECK(texts(running.diagnostics) == "");
  auto message = std::make_shared<ListMessage>("call.route", parameters_of("called=11"));
  running.engine.dispatch(message, nullptr);
  CHECK(message->return_value == "sip/11");
  CHECK(message->get_or("handlers") == "regexroute:55");
  CHECK(running.dispatch("call.route", "called=2") == "false  called=2");
  CHECK(running.dispatch("call.route", "called=2|context=other") ==
        "true other called=2|context=other");
  CHECK(running.dispatch("call.route", "called=2|context=") == "false  called=2|context=");
  CHECK(running.dispatch("call.route", "caller=2") == "false  caller=2");
  running.module->stop();
  CHECK(running.dispatch("call.route", "called=11") == "false  called=11");
}

TEST_CASE("route=0 switches routing off, and trackparam=no leaves no trace") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[priorities]\nroute=0\ntrackparam=no\n[extra]\nmy.message=10\n"
                  "[default]\n.*=t\n[my.message]\n.*=\\0\n");
  Running running(directory.path);
  CHECK_FALSE(running.engine.is_wanted("call.route"));
  auto message = std::make_shared<ListMessage>("my.message");
  running.engine.dispatch(message, nullptr);
  CHECK_MESSAGE(message->return_value == "my.message", "without a parameter the name is matched");
  CHECK_FALSE(message->get("handlers").has_value());
}

TEST_CASE("[extra] installs handlers with a parameter, a context and a filter") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[extra]\n"
                  "call.route=200,caller,reroute\n"
                  "exact.one=10,,c,kind,a\n"
                  "regex.one=10,,c,kind,^a\\{1,2\\}$\n"
                  "inverted.one=10,,c,kind,^a^\n"
                  "[default]\n^x$=;first=1\n"
                  "[reroute]\n.*=by \\0\n"
                  "[c]\n.*=t\n");
  Running running(directory.path);
  CHECK(texts(running.diagnostics) == "");
  CHECK(running.dispatch("call.route", "called=x|caller=me") ==
        "true by me called=x|caller=me|first=1");
  const std::pair<const char*, std::vector<const char*>> rows[] = {
      {"exact.one", {"a"}}, {"regex.one", {"a", "aa"}}, {"inverted.one", {"", "b", "baa"}}};
  for (const auto& row : rows) {
    for (const char* kind : {"", "a", "aa", "aaa", "b", "baa"}) {
      CAPTURE(row.first);
      CAPTURE(kind);
      bool expected = false;
      for (const char* one : row.second) expected = expected || std::string(one) == kind;
      const std::string parameters = std::string("kind=") + kind;
      CHECK(running.dispatch(row.first, parameters) ==
            (expected ? "true t " : "false  ") + parameters);
    }
  }
}

TEST_CASE("the same line of [extra] twice installs once, unless add_once=no") {
  for (const bool once : {true, false}) {
    Directory directory;
    directory.write("regexroute.conf",
                    std::string("[priorities]\nadd_once=") + (once ? "yes" : "no") +
                        "\n[extra]\nm=10\nm=10\nm=20\n[m]\n.*=;n=$(add,${n},1)\n");
    Running running(directory.path);
    CHECK(running.dispatch("m", "n=0") == (once ? "false  n=2" : "false  n=3"));
  }
}

TEST_CASE("[$once] sets variables once, [$init] at every reading, and both stay over a reload") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[$once]\nkept=1\n[$init]\nfresh=1\n"
                  "[default]\nadd=;$kept=2;$fresh=2\n.*=$(kept)$(fresh)\n");
  {
    Running running(directory.path);
    CHECK(running.dispatch("call.route", "called=add") == "true 22 called=add");
  }
  Running again(directory.path);
  CHECK(again.dispatch("call.route", "called=x") == "true 21 called=x");
}

TEST_CASE("dispatched messages are handled on the spot, enqueued ones when the rules are through") {
  Directory directory;
  directory.write("regexroute.conf",
                  "[extra]\nnow=10\nlater=10\nforever=10\n"
                  "[default]\n^forever$=enqueue forever\n"
                  ".*=enqueue later\n.*=dispatch now\n.*=$(seen)\n"
                  "[now]\n.*=;$seen=now\n"
                  "[later]\n.*=;$seen=later\n"
                  "[forever]\n.*=enqueue forever;n=1\n");
  Running running(directory.path);
  CHECK(running.dispatch("call.route", "called=x") == "true now called=x");
  CHECK(running.dispatch("call.route", "called=forever") == "true now called=forever");
  CHECK(running.log == "messages enqueue messages without end; the rest is left out\n");
  directory.write("regexroute.conf", "[default]\n.*=$(seen)\n");
  Running again(directory.path);
  CHECK(again.dispatch("call.route", "called=x") == "true later called=x");
}

TEST_CASE("$(config) reads yate.conf beside, and run parameters are there") {
  Directory directory;
  directory.write("yate.conf", "[telephony]\nanswer=42\nbroken\n");
  directory.write(
      "regexroute.conf",
      "[default]\n.*=$(config,telephony,answer) $(engine,configpath) $(loaded,regexroute)\n");
  Running running(directory.path);
  CHECK(running.dispatch("call.route", "called=x") ==
        "true 42 " + directory.path + " true called=x");
}

TEST_CASE("the sample and the example hold no mistake") {
  for (const std::string name :
       {"conf/regexroute.conf.sample", "examples/scripts/filter/regexroute.conf"}) {
    CAPTURE(name);
    Directory directory;
    directory.write("regexroute.conf", read_file(name));
    Running running(directory.path);
    CHECK(texts(running.diagnostics) == "");
    CHECK(running.module->is_enabled());
    if (name.find("filter") == std::string::npos) continue;
    CHECK(running.dispatch("call.route", "called=102|route_type=msg|username=101") ==
          "false  called=102|route_type=msg|username=101");
    CHECK(running.dispatch("call.route", "called=102|route_type=msg|username=103") ==
          "true - called=102|route_type=msg|username=103|reason=forbidden");
    CHECK(running.dispatch("call.route", "called=102|route_type=msg") ==
          "true - called=102|route_type=msg|reason=forbidden");
  }
}

}  // namespace test_regexroute
