// Benchmark of the parser on the six messages of tests/data/corpus: bench/README.md says what the
// levels are and how to read the numbers.
//
//     parse                      the whole table
//     parse L1 a_message 1000    one row that many times, nothing printed: for callgrind
//
// Every row asserts what it read, so that a parser that skips work cannot win.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <sipmsg.hpp>

using namespace sipmsg;

namespace {

/// What the levels have to sum up to for each file, so that a parser that skips work fails.
struct Expected {
  const char* name;
  std::uint64_t level_1;  ///< 1000 for each header field, and the octets of the body
  std::uint64_t level_2;  ///< the octets of the typed values, and the numbers
};

constexpr Expected corpus[] = {
    {"a_message", 11020, 5289},   {"b_message_auth", 19265, 68879},
    {"c_register", 14000, 10571}, {"d_200", 8000, 5198},
    {"e_401", 9000, 5237},        {"f_torture", 14030, 339},
};

/// L1: the start line, the index of headers with their names recognised, the body.
__attribute__((noinline)) std::uint64_t level_1(std::string_view bytes) {
  MessageView message;
  if (message.parse(bytes)) return 0;
  return message.header_count() * 1000 + message.body().size();
}

std::uint64_t sum(std::string_view text) { return text.size(); }
std::uint64_t sum(const UriView& uri) {
  return sum(uri.user) + sum(uri.host) + uri.port + sum(uri.parameters);
}
std::uint64_t sum(const Result<NameAddr>& address) {
  if (!address) return 0;
  return sum(address->display_name) + sum(address->uri) + sum(address->tag());
}

/// L2: L1 and the typed values of Request-URI, top Via, From, To, Call-ID, CSeq, Max-Forwards, all
/// Contacts, Content-Length, Content-Type, and Authorization with all its parameters.
__attribute__((noinline)) std::uint64_t level_2(std::string_view bytes) {
  MessageView message;
  if (message.parse(bytes)) return 0;
  std::uint64_t total = sum(message.call_id()) + message.content_length().value_or(0) +
                        message.max_forwards().value_or(0);
  if (message.is_request()) {
    const auto uri = message.request_uri();
    if (uri) total += sum(*uri);
  }
  const auto via = message.top_via();
  if (via) {
    total += sum(via->transport) + sum(via->host) + via->port + sum(via->branch) +
             sum(via->received) + sum(via->rport) + via->has_rport;
  }
  total += sum(message.from()) + sum(message.to());
  const auto cseq = message.cseq();
  if (cseq) total += cseq->number + sum(cseq->method);
  for (std::string_view element : message.values(HeaderId::contact)) {
    const auto contact = parse_name_addr(element);
    total += sum(contact);
    if (!contact) continue;
    for (const Parameter& parameter : contact->parameters) total += sum(parameter.value);
  }
  if (message.has(HeaderId::content_type)) {
    const auto type = message.content_type();
    if (type) total += sum(type->type) + sum(type->subtype);
  }
  if (message.has(HeaderId::authorization)) {
    const auto credentials = parse_credentials(message.header(HeaderId::authorization));
    if (credentials) {
      total += sum(credentials->username) + sum(credentials->realm) + sum(credentials->nonce) +
               sum(credentials->uri) + sum(credentials->response) + sum(credentials->cnonce) +
               sum(credentials->nonce_count_text);
    }
  }
  return total;
}

std::string read_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    std::fprintf(stderr, "cannot open %s\n", path.c_str());
    std::exit(2);
  }
  std::string bytes;
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, file)) > 0;)
    bytes.append(buffer, n);
  std::fclose(file);
  return bytes;
}

using Level = std::uint64_t (*)(std::string_view);

struct Row {
  std::string name;
  std::vector<std::string> messages;  ///< parsed in this order
  std::uint64_t expected[2] = {0, 0};
  std::size_t octets = 0;

  void add(const Expected& file, const std::string& bytes) {
    messages.push_back(bytes);
    octets += bytes.size();
    expected[0] += file.level_1;
    expected[1] += file.level_2;
  }
};

std::vector<Row> make_rows() {
  std::vector<Row> rows;
  for (const Expected& file : corpus) {
    rows.emplace_back();
    rows.back().name = file.name;
    rows.back().add(file, read_file(std::string(SIPMSG_TEST_DATA "/corpus/") + file.name + ".sip"));
  }
  // Files a to e in an order that no branch predictor learns: 1024 steps of a linear congruential
  // generator, the same in every run.
  Row mix;
  mix.name = "mix";
  std::uint32_t state = 1;
  for (int i = 0; i < 1024; ++i) {
    state = state * 1664525U + 1013904223U;
    const std::size_t file = (state >> 16) % 5;
    mix.add(corpus[file], rows[file].messages[0]);
  }
  rows.push_back(mix);
  return rows;
}

void run(const Row& row, Level level, std::uint64_t expected, std::size_t times) {
  for (std::size_t i = 0; i < times; ++i) {
    std::uint64_t total = 0;
    for (const std::string& message : row.messages) total += level(message);
    if (total != expected) {
      std::fprintf(stderr, "%s: read %llu instead of %llu\n", row.name.c_str(),
                   static_cast<unsigned long long>(total),
                   static_cast<unsigned long long>(expected));
      std::exit(1);
    }
  }
}

/// Nanoseconds per message: the best of several runs, because whatever disturbs a run slows it.
double measure(const Row& row, Level level, std::uint64_t expected) {
  constexpr int runs = 15;
  constexpr std::size_t messages_per_run = 50000;
  const std::size_t times = messages_per_run / row.messages.size() + 1;
  double best = 0;
  for (int i = 0; i < runs; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run(row, level, expected, times);
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    const double per_message =
        took.count() / static_cast<double>(times) / static_cast<double>(row.messages.size());
    if (i == 0 || per_message < best) best = per_message;
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr Level levels[] = {level_1, level_2};
  const std::vector<Row> rows = make_rows();
  if (argc == 4) {
    const int level = std::strcmp(argv[1], "L1") == 0 ? 0 : 1;
    for (const Row& row : rows) {
      if (row.name == argv[2]) {
        run(row, levels[level], row.expected[level], std::strtoul(argv[3], nullptr, 10));
        return 0;
      }
    }
    std::fprintf(stderr, "no row %s\n", argv[2]);
    return 2;
  }
  std::printf("%-16s %8s %10s %8s %10s %8s\n", "message", "octets", "L1 ns", "MB/s", "L2 ns",
              "MB/s");
  for (const Row& row : rows) {
    const double octets =
        static_cast<double>(row.octets) / static_cast<double>(row.messages.size());
    std::printf("%-16s %8.0f", row.name.c_str(), octets);
    for (int level = 0; level < 2; ++level) {
      const double ns = measure(row, levels[level], row.expected[level]);
      std::printf(" %10.1f %8.0f", ns, octets / ns * 1000);
    }
    std::printf("\n");
  }
}
