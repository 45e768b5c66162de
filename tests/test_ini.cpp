// Yate's configuration grammar: what Yate 6.4.1 was seen to hold, and each rule on its own.
#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_ini {

using namespace sipmsg;

namespace {

/// Files in memory; a directory is the files below it.
class Files : public IniSource {
 public:
  std::vector<std::pair<std::string, std::string>> files;
  int reads = 0;

  Result<std::string> read(const std::string& path) override {
    ++reads;
    for (const auto& file : files) {
      if (file.first == path) return file.second;
    }
    return ErrorCode::file;
  }

  Result<std::vector<std::string>> list(const std::string& path) override {
    const std::string directory = path.back() == '/' ? path : path + "/";
    std::vector<std::string> names;
    for (const auto& file : files) {
      if (file.first.compare(0, directory.size(), directory) != 0) continue;
      const std::string name = file.first.substr(directory.size());
      if (name.find('/') == std::string::npos) names.push_back(name);
    }
    if (names.empty()) return ErrorCode::file;
    return names;
  }
};

/// The whole of it in the notation of tests/data/vectors/yate-ini/expected.txt.
std::string dump(const Ini& ini) {
  std::string out;
  for (const IniSection& section : ini.sections()) {
    out += "[" + section.name + "]\n";
    for (const IniEntry& entry : section.entries) out += entry.key + " = {" + entry.value + "}\n";
  }
  return out;
}

/// The same on one line: "[a] x={1} y={2}".
std::string brief(const Ini& ini) {
  std::string out;
  for (const IniSection& section : ini.sections()) {
    out += (out.empty() ? "[" : " [") + section.name + "]";
    for (const IniEntry& entry : section.entries) out += " " + entry.key + "={" + entry.value + "}";
  }
  return out;
}

IniOptions options() {
  IniOptions result;
  result.run_parameters = {
      {"version", "6.4.1"}, {"empty", ""}, {"off", "no"}, {"dir", "sub"}, {"nested", "${version}"}};
  result.loaded_modules = {"regfile", "ysipchan"};
  return result;
}

struct Read {
  Ini ini;
  Diagnostics diagnostics;
  Error error;
};

Read read(Files& files, const std::string& path = "main.conf", const IniOptions& how = options()) {
  Read result;
  result.error = load_ini(files, path, how, result.ini, result.diagnostics);
  return result;
}

Read read(const std::string& text) {
  Files files;
  files.files = {{"main.conf", text}};
  return read(files);
}

std::string texts(const Diagnostics& diagnostics) {
  std::string out;
  for (const Diagnostic& diagnostic : diagnostics) out += to_text(diagnostic) + "\n";
  return out;
}

}  // namespace

TEST_CASE("the sample file is held as Yate 6.4.1 was seen to hold it") {
  Files files;
  files.files = {{"conf/sample.ini", test::read_data("vectors/yate-ini/sample.ini")},
                 {"conf/inc.ini", test::read_data("vectors/yate-ini/inc.ini")}};
  std::string expected;
  for (const std::string& line :
       test::split(test::read_data("vectors/yate-ini/expected.txt"), '\n')) {
    if (!line.empty() && line[0] != '#') expected += line + "\n";
  }
  const Read result = read(files, "conf/sample.ini");
  CHECK_FALSE(result.error);
  CHECK(result.ini.complete());
  CHECK(dump(result.ini) == expected);

  const IniEntry* duplicate = result.ini.find("sect one", "dup");
  REQUIRE(duplicate != nullptr);
  CHECK(duplicate->value == "1");
  const IniEntry* continued = result.ini.find("sect one", "cont");
  REQUIRE(continued != nullptr);
  CHECK(continued->line == 15);
  const IniEntry* included = result.ini.find("fromincl", "inc2");
  REQUIRE(included != nullptr);
  CHECK(result.ini.files()[included->file] == "conf/inc.ini");
  CHECK(included->line == 3);
  const IniEntry* copied = result.ini.find("third", "x");
  REQUIRE(copied != nullptr);
  CHECK_MESSAGE(copied->line == 27, "an entry of an included section tells where it was written");
}

TEST_CASE("each rule of the grammar on its own") {
  struct Row {
    const char* name;
    const char* text;
    const char* expected;
  };
  const Row rows[] = {
      // comments
      {"; begins a comment", "[s]\n;a=1\n \t; b=2\nc=3\n", "[s] c={3}"},
      {"# begins no comment", "[s]\n#a=1\n", "[s] #a={1}"},
      {"; later in a line is part of the value", "[s]\na=1 ; x\n", "[s] a={1 ; x}"},
      // sections
      {"a section's name is trimmed and ends at the first ]", "[ \ts t ] junk]\na=1\n",
       "[s t] a={1}"},
      {"blanks may stand before a section", " \t[s]\na=1\n", "[s] a={1}"},
      {"a section may be empty", "[s]\n[t]\n", "[s] [t]"},
      {"[] changes nothing", "[s]\n[]\na=1\n[ ]\nb=2\n", "[s] a={1} b={2}"},
      {"a line without ] changes nothing", "[s]\n[t\na=1\n", "[s] a={1}"},
      {"names of sections are case sensitive", "[s]\n[S]\na=1\n", "[s] [S] a={1}"},
      {"a name that comes again continues its section", "[s]\na=1\n[t]\nb=2\n[s]\nc=3\n",
       "[s] a={1} c={3} [t] b={2}"},
      {"run parameters are put into section names", "[v${version}]\na=1\n", "[v6.4.1] a={1}"},
      {"a run parameter may have a default", "[${nosuch$d}${version$d}]\na=1\n", "[d6.4.1] a={1}"},
      {"blanks around a parameter's name do not count", "[${ version }]\n", "[6.4.1]"},
      {"what was put in is not replaced again", "[${nested}]\n", "[${version}]"},
      {"an unclosed ${ stays as it is", "[${version]\n", "[${version]"},
      {"a name that is empty after replacement takes no keys", "[s]\n[${empty}]\na=1\n[t]\nb=2\n",
       "[s] [t] b={2}"},
      // keys
      {"key and value are trimmed", "[s]\n \t a b \t= \t c d \t\n", "[s] a b={c d}"},
      {"the first = separates", "[s]\na=b=c\n", "[s] a={b=c}"},
      {"a key without = is empty", "[s]\na\n", "[s] a={}"},
      {"a line that begins with = is ignored", "[s]\n=a\n  =b\nc=1\n", "[s] c={1}"},
      {"quotes are not special", "[s]\na=\"b c\"\n", "[s] a={\"b c\"}"},
      {"a value may be empty", "[s]\na=\nb= \n", "[s] a={} b={}"},
      {"names of keys are case sensitive", "[s]\na=1\nA=2\n", "[s] a={1} A={2}"},
      {"keys may hold any octet", "[s]\n^\\(.*\\)$\xC3\xBC=1\n", "[s] ^\\(.*\\)$\xC3\xBC={1}"},
      {"duplicates stay in order", "[s]\na=1\na=2\na=1\n", "[s] a={1} a={2} a={1}"},
      {"a key before any section is ignored", "a=1\n[s]\nb=2\n", "[s] b={2}"},
      {"values are not expanded", "[s]\na=${version}\n", "[s] a={${version}}"},
      // continuation
      {"a backslash at the end joins the next line", "[s]\na=1\\\n2\nb=3\n", "[s] a={12} b={3}"},
      {"leading blanks of the joined line go, others stay", "[s]\na=1 \\\n \t2  3 \\\n4\n",
       "[s] a={1 2  3 4}"},
      {"a joined comment is text", "[s]\na=1\\\n;2\n", "[s] a={1;2}"},
      {"a joined section is text", "[s]\na=1\\\n[t]\nb=2\n", "[s] a={1[t]} b={2}"},
      {"a joined empty line ends the value", "[s]\na=1\\\n\nb=2\n", "[s] a={1} b={2}"},
      {"a blank behind the backslash keeps it", "[s]\na=1\\ \nb=2\n", "[s] a={1\\} b={2}"},
      {"of two backslashes one stays", "[s]\na=1\\\\\n2\n", "[s] a={1\\2}"},
      {"a key without = is not continued", "[s]\na\\\nb=2\n", "[s] a\\={} b={2}"},
      {"an ignored line is not continued", "[s]\n=a\\\nb=2\n", "[s] b={2}"},
      {"a backslash at the end of the file is dropped", "[s]\na=1\\", "[s] a={1}"},
      {"a key that is switched off takes its continuation along",
       "[s]\n[$enabled no]\na=1\\\n[$enabled yes]\nb=2\n[$enabled yes]\nc=3\n", "[s] c={3}"},
      {"a key outside a section takes its continuation along", "a=1\\\n[s]\nb=2\n[t]\n", "[t]"},
      // line ends
      {"LF", "[s]\na=1\nb=2", "[s] a={1} b={2}"},
      {"CR LF", "[s]\r\na=1\r\nb=2\\\r\n3\r\n", "[s] a={1} b={23}"},
      {"CR", "[s]\ra=1\rb=2\\\r3\r", "[s] a={1} b={23}"},
      {"a byte order mark is skipped", "\xEF\xBB\xBF[s]\na=1\n", "[s] a={1}"},
      {"a byte order mark later is text",
       "[s]\n\xEF\xBB\xBF"
       "a=1\n",
       "[s] \xEF\xBB\xBF"
       "a={1}"},
      {"nothing at all", "", ""},
      // directives that are none
      {"$include without argument is a section", "[$include]\na=1\n", "[$include] a={1}"},
      {"a longer word is a section", "[$enabledx no]\na=1\n[$includes x]\n",
       "[$enabledx no] a={1} [$includes x]"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK(brief(read(row.text).ini) == row.expected);
  }
}

TEST_CASE("a NUL ends a line, and that is remarked once") {
  const Read result = read(std::string("[s]\0a=1\0b=2\n", 12));
  CHECK(brief(result.ini) == "[s] a={1} b={2}");
  CHECK(texts(result.diagnostics) == "main.conf: warning: holds NUL octets; each ends its line\n");
}

TEST_CASE("lines are counted alike for every kind of line end") {
  for (const char* text : {"[s]\n\n;\nk=1\n", "[s]\r\n\r\n;\r\nk=1\r\n", "[s]\r\r;\rk=1\r"}) {
    CAPTURE(text);
    const Read result = read(text);
    const IniEntry* entry = result.ini.find("s", "k");
    REQUIRE(entry != nullptr);
    CHECK(entry->line == 4);
  }
}

TEST_CASE("a line of a million octets is read whole") {
  const Read result = read("[s]\nk=" + std::string(1000000, 'x') + "\n");
  const IniEntry* entry = result.ini.find("s", "k");
  REQUIRE(entry != nullptr);
  CHECK(entry->value.size() == 1000000);
}

TEST_CASE("$enabled in all its forms") {
  struct Row {
    const char* condition;
    bool when_on;   ///< the state after it, where it was on before
    bool when_off;  ///< and where it was off
  };
  const Row rows[] = {
      {"", true, true},
      {" yes", true, true},
      {" t", true, true},
      {" no", false, false},
      {" disable", false, false},
      {" NO", true, true},
      {" anything", true, true},
      {" 0", true, true},
      {" ${nosuch}", true, true},
      {" ${off}", false, false},
      {" ${version}", true, true},
      {" $bool yes", true, true},
      {" $bool no", false, false},
      {" $bool anything", false, false},
      {" $bool ${empty}", false, false},
      {" $filled x", true, true},
      {" $filled ${empty}", false, false},
      {" $filled", false, false},
      {" $empty x", false, false},
      {" $empty ${nosuch}", true, true},
      {" $loaded regfile", true, true},
      {" $loaded server/regfile.yate", true, true},
      {" $loaded nosuch", false, false},
      {" $unloaded regfile", false, false},
      {" $unloaded nosuch", true, true},
      {" $not yes", false, false},
      {" $not no", true, true},
      {" $not", false, false},
      {" $not $filled ${empty}", true, true},
      {" $not $loaded regfile", false, false},
      {" $not $bool anything", true, true},
      {" else", false, true},
      {" toggle", false, true},
      {" elseif yes", false, true},
      {" elseif no", false, false},
      {" elseif $filled x", false, true},
      {" elseif $not yes", false, false},
      {"\tno", false, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.condition);
    const std::string directive = "[$enabled" + std::string(row.condition) + "]\nk=1\n";
    CHECK((read("[s]\n" + directive).ini.find("s", "k") != nullptr) == row.when_on);
    CHECK((read("[s]\n[$enabled no]\n" + directive).ini.find("s", "k") != nullptr) == row.when_off);
  }
}

TEST_CASE("what is switched off are sections and directives too, until the next $enabled") {
  Files files;
  files.files = {{"main.conf",
                  "[s]\n[$enabled no]\na=1\n[t]\nb=2\n[$require nosuch]\n[$includesection t]\n"
                  "[$include other]\n[$enabled yes]\nc=3\n"},
                 {"other", "d=4\n[$enabled no]\n"}};
  const Read result = read(files);
  CHECK(brief(result.ini) == "[s] c={3}");
  CHECK(result.ini.complete());
  CHECK(result.diagnostics.empty());
}

TEST_CASE("$enabled in an included file ends with that file") {
  Files files;
  files.files = {{"main.conf", "[s]\n[$include other]\na=1\n"}, {"other", "[$enabled no]\nb=2\n"}};
  CHECK(brief(read(files).ini) == "[s] a={1}");
}

TEST_CASE("a file is included in the current section, which stays the same behind it") {
  Files files;
  files.files = {{"conf/main.conf", "[s]\na=1\n[$include inc]\nb=2\n"},
                 {"conf/inc", "c=3\n[t]\nd=4\n"}};
  CHECK(brief(read(files, "conf/main.conf").ini) == "[s] a={1} c={3} b={2} [t] d={4}");
}

TEST_CASE("paths are relative to the file that holds the line, and expanded") {
  Files files;
  files.files = {{"/etc/main.conf", "[$include ${dir}/one]\n[$include /abs]\n"},
                 {"/etc/sub/one", "[one]\n[$include two]\n[$include ..//three]\n"},
                 {"/etc/sub/two", "two=2\n"},
                 {"/etc/sub/../three", "three=3\n"},
                 {"/abs", "[abs]\nfour=4\n"}};
  const Read result = read(files, "/etc/main.conf");
  CHECK(brief(result.ini) == "[one] two={2} three={3} [abs] four={4}");
  CHECK(result.diagnostics.empty());
}

TEST_CASE("a directory is included in byte order without leftovers of editors") {
  Files files;
  files.files = {{"main.conf", "[s]\n[$include d]\nz=1\n"},
                 {"d/b", "b=1\n"},
                 {"d/\xC3\xA4", "umlaut=1\n"},
                 {"d/a10", "a10=1\n"},
                 {"d/a9", "a9=1\n[t]\n"},
                 {"d/B", "B=1\n"},
                 {"d/.hidden", "hidden=1\n"},
                 {"d/a~", "tilde=1\n"},
                 {"d/a.bak", "bak=1\n"},
                 {"d/a.tmp", "tmp=1\n"},
                 {"d/a.tmpx", "tmpx=1\n"}};
  const Read result = read(files);
  CHECK(brief(result.ini) == "[s] B={1} tmpx={1} a10={1} a9={1} b={1} umlaut={1} z={1} [t]");
  CHECK(result.ini.files()[1] == "d/B");
}

TEST_CASE("a missing file is a remark, silence, or incomplete, as the directive says") {
  struct Row {
    const char* text;
    bool complete;
    const char* remark;
  };
  const Row rows[] = {
      {"[s]\n[$include x]\n", true, "main.conf:2: warning: cannot read the file x\n"},
      {"[s]\n[$includesilent x]\n", true, ""},
      {"[s]\n[$require x]\n", false, "main.conf:2: warning: cannot read the file x\n"},
      {"[s]\n[$include ${empty}]\n", true, "main.conf:2: warning: the path to include is empty\n"},
      {"[s]\n[$require ${empty}]\n", false, "main.conf:2: warning: the path to include is empty\n"},
      {"[s]\n[$includesection x]\n", true,
       "main.conf:2: warning: does not include the section [x]: there is none\n"},
      {"[s]\n[$includesectionsilent x]\n", true, ""},
      {"[s]\n[$requiresection x]\n", false,
       "main.conf:2: warning: does not include the section [x]: there is none\n"},
      {"[$includesection s]\n[s]\n", true,
       "main.conf:1: warning: a section is included outside any section\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const Read result = read(row.text);
    CHECK_FALSE(result.error);
    CHECK(brief(result.ini) == "[s]");
    CHECK(result.ini.complete() == row.complete);
    CHECK(texts(result.diagnostics) == row.remark);
  }
}

TEST_CASE("a file that cannot be read at all is an error, and an empty configuration") {
  Files files;
  const Read result = read(files, "conf/nosuch.conf");
  CHECK(result.error.code == ErrorCode::file);
  CHECK(result.ini.sections().empty());
  REQUIRE(result.ini.files().size() == 1);
  CHECK(result.ini.files()[0] == "conf/nosuch.conf");
  CHECK(result.ini.find("s") == nullptr);
}

TEST_CASE("a file does not include itself, neither directly nor round a corner") {
  Files files;
  files.files = {{"c/main.conf", "[s]\na=1\n[$include main.conf]\n[$include .//other]\nb=2\n"},
                 {"c/./other", "c=3\n[$includesilent ../c/main.conf]\n[$include .//other]\n"}};
  const Read result = read(files, "c/main.conf");
  CHECK(brief(result.ini) == "[s] a={1} c={3} b={2}");
  CHECK(texts(result.diagnostics) ==
        "c/main.conf:3: warning: does not read c/main.conf: it includes itself\n"
        "c/./other:3: warning: cannot read the file c/././other\n");
}

TEST_CASE("the same file may be included twice, one after the other") {
  Files files;
  files.files = {{"main.conf", "[s]\n[$include x]\n[t]\n[$include x]\n"}, {"x", "a=1\n"}};
  CHECK(brief(read(files).ini) == "[s] a={1} [t] a={1}");
}

TEST_CASE("files are included ten deep and no deeper") {
  Files files;
  files.files = {{"f0", "[s]\nk0=1\n[$include f1]\n"}};
  for (int i = 1; i <= 12; ++i) {
    files.files.push_back({"f" + std::to_string(i), "k" + std::to_string(i) + "=1\n[$require f" +
                                                        std::to_string(i + 1) + "]\n"});
  }
  const Read result = read(files, "f0");
  CHECK(result.ini.find("s", "k10") != nullptr);
  CHECK(result.ini.find("s", "k11") == nullptr);
  CHECK_FALSE(result.ini.complete());
  CHECK(texts(result.diagnostics) ==
        "f10:2: warning: does not read f11: files include files more than 10 deep\n");
}

TEST_CASE("files that include each other in every order end at the limits") {
  Files files;
  files.files = {{"main.conf", "[s]\n[$include d]\n"}};
  for (char name = 'a'; name <= 'k'; ++name) {
    files.files.push_back({std::string("d/") + name, std::string(1, name) + "=1\n[$include .]\n"});
    files.files.push_back(
        {std::string("d/./") + name, std::string(1, name) + "=1\n[$include .]\n"});
  }
  IniOptions how = options();
  how.max_files = 50;
  Read result = read(files, "main.conf", how);
  CHECK(result.ini.files().size() == 50);

  how = options();
  how.max_entries = 30;
  how.max_files = 1000;
  result = read(files, "main.conf", how);
  CHECK(result.ini.find("s")->entries.size() <= 30);
  CHECK(count(result.diagnostics, Severity::error) == 1);
}

TEST_CASE("sections are included at their place when everything is read") {
  struct Row {
    const char* name;
    const char* text;
    const char* expected;
  };
  const Row rows[] = {
      {"at its place", "[a]\nx=1\n[$includesection b]\ny=2\n[b]\nz=3\n",
       "[a] x={1} z={3} y={2} [b] z={3}"},
      {"with what the section gets later", "[b]\nz=1\n[a]\n[$includesection b]\n[b]\nw=2\n",
       "[b] z={1} w={2} [a] z={1} w={2}"},
      {"several in one",
       "[a]\n[$includesection b]\n[$includesection c]\n[$includesection b]\n"
       "[b]\nx=1\n[c]\ny=2\n",
       "[a] x={1} y={2} x={1} [b] x={1} [c] y={2}"},
      {"through another", "[a]\n[$includesection b]\n[b]\n[$includesection c]\nx=1\n[c]\ny=2\n",
       "[a] y={2} x={1} [b] y={2} x={1} [c] y={2}"},
      {"by a run parameter", "[a]\n[$includesection v${version}]\n[v6.4.1]\nx=1\n",
       "[a] x={1} [v6.4.1] x={1}"},
      {"with a name of two words", "[a]\n[$includesection  b c ]\n[b c]\nx=1\n",
       "[a] x={1} [b c] x={1}"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const Read result = read(row.text);
    CHECK(brief(result.ini) == row.expected);
    CHECK(result.diagnostics.empty());
  }
}

TEST_CASE("a section that includes itself is refused, directly or round a corner") {
  Read result = read("[a]\nx=1\n[$includesection a]\ny=2\n");
  CHECK(brief(result.ini) == "[a] x={1} y={2}");
  CHECK(texts(result.diagnostics) ==
        "main.conf:3: warning: does not include the section [a]: it includes itself\n");

  result = read("[a]\nx=1\n[$includesection b]\n[b]\ny=2\n[$requiresection a]\n");
  CHECK(brief(result.ini) == "[a] x={1} y={2} [b] y={2}");
  CHECK_FALSE(result.ini.complete());
}

TEST_CASE("sections that double each other end at the limit of keys") {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    const std::string next = "[$includesection s" + std::to_string(i + 1) + "]\n";
    text += "[s" + std::to_string(i) + "]\n" + next + next;
  }
  text += "[s40]\nk=1\n";
  Files files;
  files.files = {{"main.conf", text}};
  IniOptions how = options();
  how.max_entries = 5000;
  const Read result = read(files, "main.conf", how);
  std::size_t entries = 0;
  for (const IniSection& section : result.ini.sections()) entries += section.entries.size();
  CHECK(entries <= 5000);
  CHECK(count(result.diagnostics, Severity::error) == 1);
}

TEST_CASE("a chain of a thousand sections is cut, not followed into the ground") {
  std::string text;
  for (int i = 0; i < 1000; ++i) {
    text += "[s" + std::to_string(i) + "]\nk" + std::to_string(i) + "=1\n[$includesection s" +
            std::to_string(i + 1) + "]\n";
  }
  const Read result = read(text);
  CHECK(result.ini.find("s0", "k99") != nullptr);
  CHECK(result.ini.find("s0", "k101") == nullptr);
}

TEST_CASE("lines that say nothing are remarked with file and line") {
  CHECK(texts(read("orphan=1\n[]\n[open\n[s]\n=1\n[${empty}]\nk=1\n").diagnostics) ==
        "main.conf:1: warning: a key outside any section is ignored\n"
        "main.conf:2: warning: a section without a name is ignored\n"
        "main.conf:3: warning: a line that begins with [ has no ]; it is ignored\n"
        "main.conf:5: warning: a value without a key is ignored\n"
        "main.conf:6: warning: the section's name is empty after replacement; its keys are "
        "ignored\n"
        "main.conf:7: warning: a key outside any section is ignored\n");
}

TEST_CASE("ten thousand sections are all found") {
  std::string text;
  for (int i = 0; i < 10000; ++i)
    text += "[user" + std::to_string(i) + "]\nn=" + std::to_string(i) + "\n";
  const Read result = read(text + text);
  CHECK(result.ini.sections().size() == 10000);
  for (int i = 0; i < 10000; i += 37) {
    const IniSection* section = result.ini.find("user" + std::to_string(i));
    REQUIRE(section != nullptr);
    CHECK(section->entries.size() == 2);
    CHECK(section->entries[0].value == std::to_string(i));
    CHECK(section->line == static_cast<std::uint32_t>(2 * i + 1));
  }
  CHECK(result.ini.find("user10000") == nullptr);
}

TEST_CASE("a text without files is read the same way, and includes none") {
  Diagnostics diagnostics;
  const Ini ini = parse_ini("[s]\n[$include x]\n[$includesection t]\n[t]\na=1\n", "here", options(),
                            diagnostics);
  CHECK(brief(ini) == "[s] a={1} [t] a={1}");
  CHECK(texts(diagnostics) == "here:2: warning: cannot read the file x\n");
}

TEST_CASE("booleans are Yate's words, in lower case and nothing else") {
  for (const char* text : {"true", "yes", "on", "enable", "t"}) CHECK(parse_boolean(text) == true);
  for (const char* text : {"false", "no", "off", "disable", "f"})
    CHECK(parse_boolean(text) == false);
  for (const char* text : {"1", "0", "YES", "Yes", "", "y", "n", "enabled", " yes", "yes ;x"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_boolean(text).has_value());
  }
}

TEST_CASE("integers are those of C, over the whole value") {
  struct Row {
    const char* text;
    std::optional<std::int64_t> expected;
  };
  const Row rows[] = {
      {"0", 0},
      {"42", 42},
      {"+42", 42},
      {"-42", -42},
      {"0x1F", 31},
      {"0Xff", 255},
      {"-0x10", -16},
      {"010", 8},
      {"00", 0},
      {"9223372036854775807", INT64_MAX},
      {"9223372036854775808", INT64_MAX},
      {"-99999999999999999999999", -INT64_MAX},
      {"0xffffffffffffffffffff", INT64_MAX},
      {"08", std::nullopt},
      {"0x", std::nullopt},
      {"0xg", std::nullopt},
      {"", std::nullopt},
      {"-", std::nullopt},
      {"1 ", std::nullopt},
      {"1.5", std::nullopt},
      {"12s", std::nullopt},
      {"--1", std::nullopt},
      {"a", std::nullopt},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(parse_integer(row.text) == row.expected);
  }
}

TEST_CASE("keywords are exact, else integers, else nothing") {
  const IniKeyword words[] = {{"udp", 1}, {"tcp", 2}};
  CHECK(parse_keyword("udp", words, 2) == 1);
  CHECK(parse_keyword("tcp", words, 2) == 2);
  CHECK(parse_keyword("7", words, 2) == 7);
  CHECK_FALSE(parse_keyword("TCP", words, 2).has_value());
  CHECK_FALSE(parse_keyword("", words, 2).has_value());
}

TEST_CASE("lists are split at commas, trimmed, without empty pieces") {
  const std::vector<std::string_view> pieces = split_list(" a , ,b c,");
  REQUIRE(pieces.size() == 2);
  CHECK(pieces[0] == "a");
  CHECK(pieces[1] == "b c");
  CHECK(split_list("").empty());
}

TEST_CASE("a diagnostic reads FILE:LINE: SEVERITY: TEXT") {
  CHECK(to_text({Severity::error, "a.conf", 7, "so"}) == "a.conf:7: error: so");
  CHECK(to_text({Severity::info, "a.conf", 0, "so"}) == "a.conf: info: so");
  CHECK(to_text({Severity::info, "a\n.conf", 0, "\x1b[1m\x7f \xC3\xA4"}) ==
        "a?.conf: info: ?[1m? \xC3\xA4");
}

}  // namespace test_ini
