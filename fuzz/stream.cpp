// Reads the input as a stream, cut in chunks as its first octet says, and once more in single
// octets: the events have to be the same.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

namespace {

constexpr std::size_t limit = 6000;  // beyond the size of a block, and within reach of the fuzzer

std::string events(std::string_view octets, std::size_t chunk) {
  static StreamBuffers buffers(2);
  StreamFramer framer(buffers, limit);
  std::string log;
  while (!octets.empty()) {
    const StreamFramer::Room room = framer.writable();
    require(room.size > 0, "there is room until there is an error");
    const std::size_t size = std::min(std::min(chunk, room.size), octets.size());
    octets.copy(room.data, size);
    framer.commit(size);
    octets.remove_prefix(size);
    for (StreamEvent event = framer.next(); event != StreamEvent::need_more;
         event = framer.next()) {
      log.append(std::to_string(static_cast<int>(event))).append(framer.error().name());
      if (event == StreamEvent::message || event == StreamEvent::error) {
        const MessageView& message = framer.view();
        touch(message.body());
        for (std::size_t i = 0; i < message.header_count(); ++i) touch(message.field_line(i));
        log.append(message.call_id());
      }
      if (event == StreamEvent::error) return log;
      if (event == StreamEvent::message) log.append(framer.view().bytes());
      log.push_back('\n');
    }
    require(framer.pending() < limit, "an unfinished message is below the limit");
    require(framer.capacity() <= std::max(StreamBuffers::block_size, 2 * framer.pending()),
            "memory follows what came");
  }
  return log + std::to_string(framer.pending());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view octets = fuzz::as_text(data + 1, size - 1);
  const std::string whole = events(octets, octets.size());
  require(events(octets, std::size_t{data[0]} + 2) == whole, "chunks make no difference");
  require(events(octets, 1) == whole, "single octets make no difference");
  return 0;
}
