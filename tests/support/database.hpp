// A database module of the program on a loop, with its configuration in a directory of its own.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../../src/modules/module.hpp"
#include "data.hpp"
#include "loop.hpp"

namespace test {

/// A directory that is gone with everything in it at the end of the test.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "sipmsg-XXXXXX").string();
    REQUIRE(::mkdtemp(&name[0]) != nullptr);
    path = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path + "/" + name, std::ios::binary) << text;
  }

  std::string path;
};

/// A message on its way, and what became of it.
struct Question {
  std::shared_ptr<modules::ListMessage> message;
  int answers = 0;
  bool handled = false;

  std::string get(std::string_view name) const { return message->get_or(name, "(absent)"); }
  /// One cell as text.
  std::string cell(std::size_t row, std::size_t column) const {
    if (message->table == nullptr || row >= message->table->rows.size()) return "(no such row)";
    return message->table->rows[row].at(column).value_or("(null)");
  }
};
using QuestionPointer = std::shared_ptr<Question>;

/// The module at work. At the end it stops, and the loop must run dry.
class DatabaseFixture {
 public:
  using Parameters = modules::ListMessage::Parameters;
  using Maker = std::unique_ptr<modules::Module> (*)();

  DatabaseFixture(Maker maker, const std::string& file, const std::string& configuration)
      : module(maker()) {
    directory.write(file, configuration);
    const bool loaded = module->load(directory.path, diagnostics);
    std::string remarks;
    for (const auto& diagnostic : diagnostics) remarks += sipmsg::to_text(diagnostic) + "\n";
    INFO(remarks);
    REQUIRE(loaded);
    start();
  }
  ~DatabaseFixture() {
    module->stop();
    server.close();
  }

  void start() {
    context.log = [this](sipmsg::Severity, std::string_view line) { log.emplace_back(line); };
    module->start(context);
  }

  /// Dispatches it and goes on; more parameters may follow the query.
  QuestionPointer send(const std::string& query, const Parameters& more = {},
                       const std::string& account = "store") {
    auto question = std::make_shared<Question>();
    question->message = std::make_shared<modules::ListMessage>("database");
    question->message->add("account", account);
    question->message->add("query", query);
    for (const auto& parameter : more) question->message->add(parameter.first, parameter.second);
    dispatch(question);
    return question;
  }
  void dispatch(const QuestionPointer& question) {
    engine.dispatch(question->message, [question](bool handled) {
      ++question->answers;
      question->handled = handled;
    });
  }
  /// The same, and waits for the answer.
  QuestionPointer ask(const std::string& query, const Parameters& more = {},
                      const std::string& account = "store") {
    const QuestionPointer question = send(query, more, account);
    CHECK(wait(question));
    return question;
  }
  /// The same for what is expected to go well.
  QuestionPointer run(const std::string& query, const std::string& account = "store") {
    const QuestionPointer question = ask(query, {}, account);
    CHECK(question->handled);
    INFO(query);
    CHECK(question->get("error_text") == "(absent)");
    CHECK(question->get("error") == "(absent)");
    return question;
  }
  bool wait(const QuestionPointer& question) {
    return loop.run_until([&] { return question->answers != 0; }) && question->answers == 1;
  }
  bool has_logged(const std::string& words) const {
    for (const std::string& line : log) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }

  TemporaryDirectory directory;
  EventLoop loop;
  modules::Engine engine;
  sipmsg::Server server{loop.uv()};
  modules::Context context{loop.uv(), server, engine, nullptr};
  std::unique_ptr<modules::Module> module;
  sipmsg::Diagnostics diagnostics;
  std::vector<std::string> log;
};

/// The sample of a module's file is without fault, is off as it is shipped, and has every key.
inline void check_sample(DatabaseFixture::Maker maker, const std::string& name) {
  const std::string sample = read_data("../../conf/" + name + ".sample");
  std::string switched_on = sample;  // each ";key=value" and ";[section]"
  for (std::size_t i = 0; (i = switched_on.find("\n;", i)) != std::string::npos; ++i) {
    if (switched_on[i + 2] != ' ' && switched_on[i + 2] != '\n') switched_on.erase(i + 1, 1);
  }
  TemporaryDirectory directory;
  sipmsg::Diagnostics diagnostics;
  const auto load = [&](const std::string& text) {
    directory.write(name, text);
    const auto module = maker();
    CHECK(module->load(directory.path, diagnostics));
    return module->is_enabled();
  };
  CHECK_FALSE(load(sample));
  CHECK(load(switched_on));
  CHECK(diagnostics.empty());

  CHECK(load("[general]\nno_such_key=\n[account]\nno_such_key=\n"));
  REQUIRE(diagnostics.size() == 2);
  for (const auto& diagnostic : diagnostics) {
    std::string keys = diagnostic.text.substr(diagnostic.text.find("known are ") + 10) + ", ";
    for (std::size_t end = 0; (end = keys.find(", ")) != std::string::npos;) {
      CAPTURE(keys.substr(0, end));
      CHECK(switched_on.find("\n" + keys.substr(0, end) + "=") != std::string::npos);
      keys.erase(0, end + 2);
    }
  }
}

}  // namespace test
