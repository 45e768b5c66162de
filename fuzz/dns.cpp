// Reads the input as a reply of the DNS to an SRV query; then orders the records, and looks for the
// next hops of a domain that has them.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

namespace {

/// Answers at once each time, which the caller must endure although no real service does it.
class Names final : public NameService {
 public:
  explicit Names(const std::vector<SrvRecord>& records) : records_(records) {}
  void look_up_srv(const std::string& name, SrvHandler done) override {
    done({}, name == "_sip._udp.example.org" ? records_ : std::vector<SrvRecord>());
  }
  void look_up_addresses(const std::string& host, AddressHandler done) override {
    ++asked;
    require(detail::is_host_name(host), "only names are looked up");
    const auto address = [&](std::uint8_t last) {
      IpAddress ip;
      ip.family = 4;
      ip.octets = {10, static_cast<std::uint8_t>(host.size()), 0, last};
      return ip;
    };
    done({}, {address(1), address(2), address(1)});
  }
  std::size_t asked = 0;

 private:
  const std::vector<SrvRecord>& records_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto parsed = parse_srv_answer(fuzz::as_text(data, size));
  if (!parsed) {
    require(parsed.error().place >= 0 && static_cast<std::size_t>(parsed.error().place) <= size,
            "a mistake has a place");
    return 0;
  }
  std::vector<SrvRecord> records = *parsed;
  require(records.size() <= max_srv_records, "the number of records is bounded");
  for (const SrvRecord& record : records) {
    touch(record.target);
    require(all_of_class(record.target, char_host), "a target is a host or the root");
    require(record.target.size() <= 253, "a target has the length of a name");
  }

  Random random(SipHashKey{});
  order_srv(records, random);
  require(records.size() == parsed->size(), "no record is lost");
  for (std::size_t i = 1; i < records.size(); ++i) {
    require(records[i - 1].priority <= records[i].priority, "a lower priority comes first");
  }

  Names names(records);
  std::size_t calls = 0;
  const auto error =
      locate(*parse_uri("sip:example.org"), &names, random,
             [&](Error failed, const std::vector<Flow>& hops) {
               ++calls;
               require(hops.empty() == static_cast<bool>(failed), "hops, or an error");
               require(hops.size() <= max_next_hops, "the number of hops is bounded");
             });
  require(!error && calls == 1, "there is one report");
  require(names.asked <= max_srv_targets, "the number of names is bounded");
  return 0;
}
