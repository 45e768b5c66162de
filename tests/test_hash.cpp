// Hashes against published vectors, in pieces of every size; the keyed hash; random tokens.
#include <doctest/doctest.h>

#include <set>
#include <string>

#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_hash {

using namespace sipmsg;

namespace {

std::string from_hex(const std::string& hex) {
  std::string octets;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    octets.push_back(static_cast<char>(hex_value(hex[i]) * 16 + hex_value(hex[i + 1])));
  }
  return octets;
}

template <class Digest>
std::string to_hex(const Digest& digest) {
  std::string hex(digest.size() * 2, '?');
  const char* end = write_hex(digest.data(), digest.size(), &hex[0]);
  CHECK(end == hex.data() + hex.size());
  return hex;
}

/// The digest of `message`, put in in pieces of `piece` octets.
template <class Hash>
std::string hash_in_pieces(std::string_view message, std::size_t piece) {
  Hash hash;
  for (; message.size() > piece; message.remove_prefix(piece))
    hash.update(message.substr(0, piece));
  hash.update(message);
  return to_hex(hash.finish());
}

std::string hash_named(const std::string& name, std::string_view message, std::size_t piece) {
  if (name == "MD5") return hash_in_pieces<Md5>(message, piece);
  if (name == "SHA-256") return hash_in_pieces<Sha256>(message, piece);
  if (name == "SHA-512-256") return hash_in_pieces<Sha512_256>(message, piece);
  return "unknown hash";
}

SipHashKey counting_key() {
  SipHashKey key;
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::uint8_t>(i);
  return key;
}

}  // namespace

TEST_CASE("every published and computed hash vector comes out, whatever the size of the pieces") {
  const auto rows = test::read_table("vectors/hash.txt");
  CHECK(rows.size() == 58);
  for (const auto& row : rows) {
    REQUIRE(row.size() == 5);
    CAPTURE(row[0]);
    CAPTURE(row[2]);
    const std::string message = row[3] == "-" ? "" : from_hex(row[3]);
    REQUIRE(message.size() * 8 == std::stoul(row[2]));
    for (std::size_t piece = 1; piece <= message.size() + 1; ++piece) {
      if (hash_named(row[0], message, piece) == row[4]) continue;
      CAPTURE(piece);
      CHECK(hash_named(row[0], message, piece) == row[4]);
    }
  }
}

TEST_CASE("a million letters a have the published digests" * doctest::test_suite("long")) {
  const std::string message(1000000, 'a');
  for (std::size_t piece : {std::size_t{1000000}, std::size_t{4097}, std::size_t{63}}) {
    CAPTURE(piece);
    CHECK(hash_named("MD5", message, piece) == "7707d6ae4e027c70eea2a935c2296f21");
    CHECK(hash_named("SHA-256", message, piece) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    CHECK(hash_named("SHA-512-256", message, piece) ==
          "9a59a052930187a97038cae692f30708aa6491923ef5194394dc68d56c74fb21");
  }
}

TEST_CASE("a copy of a hash goes on by itself") {
  Sha256 hash;
  hash.update("ab");
  Sha256 copy = hash;
  copy.update("x");
  hash.update("c");
  CHECK(hash.finish() == Sha256::of("abc"));
  CHECK(copy.finish() == Sha256::of("abx"));
}

TEST_CASE("HMAC-SHA-256 agrees with RFC 4231") {
  const struct {
    std::string key, message, digest;
  } rows[] = {
      {std::string(20, '\x0b'), "Hi There",
       "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
      {"Jefe", "what do ya want for nothing?",
       "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
      {std::string(20, '\xaa'), std::string(50, '\xdd'),
       "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
      {std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First",
       "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
  };
  for (const auto& row : rows) {
    HmacSha256 hmac(row.key);
    hmac.update(row.message.substr(0, 3));
    hmac.update(row.message.substr(3));
    CHECK(to_hex(hmac.finish()) == row.digest);
  }
}

TEST_CASE("SipHash-2-4 agrees with its authors' vectors, in one piece and in two") {
  // Key 00 01 .. 0f, message 00 01 .. (n-1).
  const std::uint64_t vectors[64] = {
      0x726fdb47dd0e0e31, 0x74f839c593dc67fd, 0x0d6c8009d9a94f5a, 0x85676696d7fb7e2d,
      0xcf2794e0277187b7, 0x18765564cd99a68d, 0xcbc9466e58fee3ce, 0xab0200f58b01d137,
      0x93f5f5799a932462, 0x9e0082df0ba9e4b0, 0x7a5dbbc594ddb9f3, 0xf4b32f46226bada7,
      0x751e8fbc860ee5fb, 0x14ea5627c0843d90, 0xf723ca908e7af2ee, 0xa129ca6149be45e5,
      0x3f2acc7f57c29bdb, 0x699ae9f52cbe4794, 0x4bc1b3f0968dd39c, 0xbb6dc91da77961bd,
      0xbed65cf21aa2ee98, 0xd0f2cbb02e3b67c7, 0x93536795e3a33e88, 0xa80c038ccd5ccec8,
      0xb8ad50c6f649af94, 0xbce192de8a85b8ea, 0x17d835b85bbb15f3, 0x2f2e6163076bcfad,
      0xde4daaaca71dc9a5, 0xa6a2506687956571, 0xad87a3535c49ef28, 0x32d892fad841c342,
      0x7127512f72f27cce, 0xa7f32346f95978e3, 0x12e0b01abb051238, 0x15e034d40fa197ae,
      0x314dffbe0815a3b4, 0x027990f029623981, 0xcadcd4e59ef40c4d, 0x9abfd8766a33735c,
      0x0e3ea96b5304a7d0, 0xad0c42d6fc585992, 0x187306c89bc215a9, 0xd4a60abcf3792b95,
      0xf935451de4f21df2, 0xa9538f0419755787, 0xdb9acddff56ca510, 0xd06c98cd5c0975eb,
      0xe612a3cb9ecba951, 0xc766e62cfcadaf96, 0xee64435a9752fe72, 0xa192d576b245165a,
      0x0a8787bf8ecb74b2, 0x81b3e73d20b49b6f, 0x7fa8220ba3b2ecea, 0x245731c13ca42499,
      0xb78dbfaf3a8d83bd, 0xea1ad565322a1a0b, 0x60e61c23a3795013, 0x6606d7e446282b93,
      0x6ca4ecb15c5f91e1, 0x9f626da15c9625f3, 0xe51b38608ef25f57, 0x958a324ceb064572};
  std::string message;
  for (std::size_t size = 0; size < 64; ++size) {
    for (std::size_t cut = 0; cut <= size; ++cut) {
      SipHash hash(counting_key());
      hash.update(std::string_view(message).substr(0, cut));
      hash.update(std::string_view(message).substr(cut));
      CAPTURE(size);
      CAPTURE(cut);
      CHECK(hash.finish() == vectors[size]);
    }
    message.push_back(static_cast<char>(size));
  }
  CHECK(SipHash::of(counting_key(), "") == vectors[0]);
  SipHashKey other = counting_key();
  other[15] ^= 1;
  CHECK(SipHash::of(other, "") != vectors[0]);
}

TEST_CASE("numbers are written as 16 hexadecimal digits and read back") {
  for (std::uint64_t number :
       {std::uint64_t{0}, std::uint64_t{0x0123456789abcdef}, ~std::uint64_t{0}}) {
    char text[16];
    REQUIRE(write_hex(number, text) == text + 16);
    CHECK(parse_hex(std::string_view(text, 16)) == number);
  }
  char text[16];
  write_hex(std::uint64_t{0xfedcba9876543210}, text);
  CHECK(std::string(text, 16) == "fedcba9876543210");
  CHECK(parse_hex("0000000A") == 10);
  CHECK_FALSE(parse_hex("").has_value());
  CHECK_FALSE(parse_hex("0g").has_value());
  CHECK_FALSE(parse_hex("00000000000000000").has_value());
}

TEST_CASE("comparison in constant time sees every octet") {
  CHECK(equal_constant_time("", ""));
  CHECK(equal_constant_time("abc", "abc"));
  CHECK_FALSE(equal_constant_time("abc", "abcd"));
  CHECK_FALSE(equal_constant_time("abc", "ab"));
  const std::string text(40, '\xf0');
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string other = text;
    other[i] = static_cast<char>(other[i] ^ 0x80);
    CHECK_FALSE(equal_constant_time(text, other));
  }
}

TEST_CASE("random numbers come again from the same seed and differ from every other seed's") {
  Random first(counting_key());
  Random second(counting_key());
  SipHashKey other_seed = counting_key();
  other_seed[0] ^= 1;
  Random other(other_seed);
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t number = first.next();
    CHECK(number == second.next());
    seen.insert(number);
    seen.insert(other.next());
  }
  CHECK(seen.size() == 2000);
}

TEST_CASE("random tokens fill exactly their room, with all of 32 characters") {
  Random random(counting_key());
  std::set<char> used;
  std::set<std::string> tokens;
  for (int i = 0; i < 200; ++i) {
    std::string room(27, '#');
    random.write_token(&room[1], 25);
    CHECK(room.front() == '#');
    CHECK(room.back() == '#');
    const std::string token = room.substr(1, 25);
    CHECK(is_token(token));
    tokens.insert(token);
    used.insert(token.begin(), token.end());
  }
  CHECK(tokens.size() == 200);
  CHECK(used.size() == 32);
  random.write_token(nullptr, 0);
}

}  // namespace test_hash
