// hash: MD5, SHA-256 and SHA-512/256, HMAC, the keyed hash of all tables, random tokens.
//
// Digest authentication names three hashes: MD5 (RFC 1321), SHA-256 and SHA-512/256 (FIPS 180-4).
// They share one shape, cut into blocks, pad, mix each block into a small state, so they share the
// code that buffers and pads, and the two SHA-2 share the mixing as well. Tables whose keys an
// attacker may choose are keyed by SipHash (Aumasson, Bernstein 2012), whose values nobody can
// foresee without the key; the same function, counting, yields the random tokens of tags and
// branches. Left out on purpose: everything not needed for that (SHA-1, ciphers), and instructions
// of particular processors.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "text.hpp"

namespace sipmsg {

namespace detail {

inline const unsigned char* as_octets(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}
inline std::string_view as_text(const std::uint8_t* octets, std::size_t count) {
  return {reinterpret_cast<const char*>(octets), count};
}

inline std::uint32_t load_little_32(const unsigned char* p) {
  return static_cast<std::uint32_t>(p[0]) | static_cast<std::uint32_t>(p[1]) << 8 |
         static_cast<std::uint32_t>(p[2]) << 16 | static_cast<std::uint32_t>(p[3]) << 24;
}
inline std::uint64_t load_little_64(const unsigned char* p) {
  return load_little_32(p) | static_cast<std::uint64_t>(load_little_32(p + 4)) << 32;
}

/// The most significant octet first.
template <class Word>
Word load_big(const unsigned char* p) {
  Word word = 0;
  for (std::size_t i = 0; i < sizeof(Word); ++i) word = static_cast<Word>(word << 8 | p[i]);
  return word;
}

template <class Word>
void store_little(Word word, std::uint8_t* out) {
  for (std::size_t i = 0; i < sizeof(Word); ++i) out[i] = static_cast<std::uint8_t>(word >> 8 * i);
}
template <class Word>
void store_big(Word word, std::uint8_t* out) {
  for (std::size_t i = sizeof(Word); i-- > 0; word = static_cast<Word>(word >> 8)) {
    out[i] = static_cast<std::uint8_t>(word);
  }
}

template <class Word>
constexpr Word rotate_left(Word word, int by) {
  return static_cast<Word>(word << by | word >> (static_cast<int>(sizeof(Word)) * 8 - by));
}
template <class Word>
constexpr Word rotate_right(Word word, int by) {
  return rotate_left(word, static_cast<int>(sizeof(Word)) * 8 - by);
}

/// What MD5 and the SHA-2 have in common: input of any length is cut into blocks, and the last
/// block is filled with a one bit, zeros and the length in bits. `Core` mixes one block.
template <class Core>
class BlockHash {
 public:
  static constexpr std::size_t digest_size = Core::digest_size;
  static constexpr std::size_t block_size = Core::block_size;
  using Digest = std::array<std::uint8_t, digest_size>;

  void update(std::string_view input) {
    if (input.empty()) return;
    length_ += input.size();
    if (filled_ > 0) {
      const std::size_t taken = std::min(input.size(), block_size - filled_);
      std::memcpy(buffer_.data() + filled_, input.data(), taken);
      filled_ += taken;
      input.remove_prefix(taken);
      if (filled_ < block_size) return;
      core_.mix(buffer_.data());
      filled_ = 0;
    }
    for (; input.size() >= block_size; input.remove_prefix(block_size)) core_.mix(as_octets(input));
    if (!input.empty()) std::memcpy(buffer_.data(), input.data(), input.size());
    filled_ = input.size();
  }

  /// The digest of all that was put in. The object is spent then; a copy made before goes on.
  Digest finish() {
    buffer_[filled_++] = 0x80;
    if (filled_ > block_size - Core::length_size) {
      std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.end(), 0);
      core_.mix(buffer_.data());
      filled_ = 0;
    }
    // No input reaches 2^64 bits, so that the upper half of SHA-512's length stays zero.
    std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.end(), 0);
    Core::store_length(length_ * 8, buffer_.data() + block_size - sizeof(std::uint64_t));
    core_.mix(buffer_.data());
    return core_.digest();
  }

  static Digest of(std::string_view input) {
    BlockHash hash;
    hash.update(input);
    return hash.finish();
  }

 private:
  Core core_;
  std::uint64_t length_ = 0;
  std::size_t filled_ = 0;
  std::array<unsigned char, block_size> buffer_{};
};

/// RFC 1321 3.4. The constants are the first 32 bits of |sin(1)|, |sin(2)|, ... (radians).
class Md5Core {
 public:
  static constexpr std::size_t digest_size = 16;
  static constexpr std::size_t block_size = 64;
  static constexpr std::size_t length_size = 8;
  static void store_length(std::uint64_t bits, unsigned char* out) { store_little(bits, out); }

  void mix(const unsigned char* block) {
    std::array<std::uint32_t, 16> x;
    for (std::size_t i = 0; i < 16; ++i) x[i] = load_little_32(block + 4 * i);
    std::uint32_t a = state_[0];
    std::uint32_t b = state_[1];
    std::uint32_t c = state_[2];
    std::uint32_t d = state_[3];
    const auto step = [&](std::size_t i, std::uint32_t mixed, std::size_t word, int rotation) {
      const std::uint32_t sum = a + mixed + x[word % 16] + sines[i];
      a = d;
      d = c;
      c = b;
      b += rotate_left(sum, rotation);
    };
    constexpr std::array<std::array<int, 4>, 4> rotations{
        {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}}};
    for (std::size_t i = 0; i < 16; ++i) step(i, d ^ (b & (c ^ d)), i, rotations[0][i % 4]);
    for (std::size_t i = 16; i < 32; ++i) {
      step(i, c ^ (d & (b ^ c)), 5 * i + 1, rotations[1][i % 4]);
    }
    for (std::size_t i = 32; i < 48; ++i) step(i, b ^ c ^ d, 3 * i + 5, rotations[2][i % 4]);
    for (std::size_t i = 48; i < 64; ++i) step(i, c ^ (b | ~d), 7 * i, rotations[3][i % 4]);
    state_[0] += a;
    state_[1] += b;
    state_[2] += c;
    state_[3] += d;
  }

  std::array<std::uint8_t, digest_size> digest() const {
    std::array<std::uint8_t, digest_size> result;
    for (std::size_t i = 0; i < 4; ++i) store_little(state_[i], result.data() + 4 * i);
    return result;
  }

 private:
  static constexpr std::array<std::uint32_t, 64> sines{
      0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613,
      0xfd469501, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193,
      0xa679438e, 0x49b40821, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d,
      0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed,
      0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a, 0xfffa3942, 0x8771f681, 0x6d9d6122,
      0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6, 0xeaa127fa,
      0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665, 0xf4292244,
      0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
      0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb,
      0xeb86d391};

  std::array<std::uint32_t, 4> state_{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
};

/// The fractional parts of the cube roots of the first 80 primes (FIPS 180-4 4.2.3). SHA-256 uses
/// the upper halves of the first 64 (4.2.2).
inline constexpr std::array<std::uint64_t, 80> cube_roots{
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
    0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
    0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
    0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
    0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
    0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
    0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
    0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
    0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
    0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
    0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
    0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817};

/// The functions of FIPS 180-4 4.1.2: three numbers each, rotate, rotate, and rotate or shift.
struct Sha256Shape {
  using Word = std::uint32_t;
  static constexpr std::size_t rounds = 64;
  static constexpr std::array<int, 3> sum_0{2, 13, 22};
  static constexpr std::array<int, 3> sum_1{6, 11, 25};
  static constexpr std::array<int, 3> sigma_0{7, 18, 3};
  static constexpr std::array<int, 3> sigma_1{17, 19, 10};
  static constexpr std::array<Word, 8> initial{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
};

/// SHA-512 with a beginning of its own (5.3.6.2), cut to 256 bits (4.1.3 has the functions).
struct Sha512_256Shape {
  using Word = std::uint64_t;
  static constexpr std::size_t rounds = 80;
  static constexpr std::array<int, 3> sum_0{28, 34, 39};
  static constexpr std::array<int, 3> sum_1{14, 18, 41};
  static constexpr std::array<int, 3> sigma_0{1, 8, 7};
  static constexpr std::array<int, 3> sigma_1{19, 61, 6};
  static constexpr std::array<Word, 8> initial{
      0x22312194fc2bf72c, 0x9f555fa3c84c64c2, 0x2393b86b6f53b151, 0x963877195940eabd,
      0x96283ee2a88effe3, 0xbe5e1e2553863992, 0x2b0199fc2c85b8aa, 0x0eb72ddc81c52ca2};
};

/// FIPS 180-4 6.2 and 6.4, which differ only in what the shape says.
template <class Shape>
class Sha2Core {
 public:
  using Word = typename Shape::Word;
  static constexpr std::size_t digest_size = 32;
  static constexpr std::size_t block_size = 16 * sizeof(Word);
  static constexpr std::size_t length_size = 2 * sizeof(Word);
  static void store_length(std::uint64_t bits, unsigned char* out) { store_big(bits, out); }

  void mix(const unsigned char* block) {
    std::array<Word, Shape::rounds> w;
    for (std::size_t i = 0; i < 16; ++i) w[i] = load_big<Word>(block + sizeof(Word) * i);
    for (std::size_t i = 16; i < Shape::rounds; ++i) {
      w[i] = w[i - 16] + shifted(w[i - 15], Shape::sigma_0) + w[i - 7] +
             shifted(w[i - 2], Shape::sigma_1);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < Shape::rounds; ++i) {
      const Word choice = g ^ (e & (f ^ g));
      const Word majority = (a & b) | (c & (a | b));
      const Word first = h + rotated(e, Shape::sum_1) + choice + constant(i) + w[i];
      const Word second = rotated(a, Shape::sum_0) + majority;
      h = g;
      g = f;
      f = e;
      e = d + first;
      d = c;
      c = b;
      b = a;
      a = first + second;
    }
    const std::array<Word, 8> mixed{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += mixed[i];
  }

  std::array<std::uint8_t, digest_size> digest() const {
    std::array<std::uint8_t, digest_size> result;
    for (std::size_t i = 0; i < digest_size / sizeof(Word); ++i) {
      store_big(state_[i], result.data() + sizeof(Word) * i);
    }
    return result;
  }

 private:
  static constexpr Word constant(std::size_t i) {
    return static_cast<Word>(cube_roots[i] >> (64 - 8 * sizeof(Word)));
  }
  static constexpr Word rotated(Word x, const std::array<int, 3>& by) {
    return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ rotate_right(x, by[2]);
  }
  static constexpr Word shifted(Word x, const std::array<int, 3>& by) {
    return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ static_cast<Word>(x >> by[2]);
  }

  std::array<Word, 8> state_ = Shape::initial;
};

}  // namespace detail

/// The hashes of digest authentication. `update` any number of times with pieces of any size, then
/// `finish` once; or `of` for one piece. Sizes in octets: `digest_size`, `block_size`.
using Md5 = detail::BlockHash<detail::Md5Core>;
using Sha256 = detail::BlockHash<detail::Sha2Core<detail::Sha256Shape>>;
using Sha512_256 = detail::BlockHash<detail::Sha2Core<detail::Sha512_256Shape>>;

/// HMAC-SHA-256 (RFC 2104): a seal that only who holds the key can make or check. The key is mixed
/// in at construction; copy the fresh object once for each message.
class HmacSha256 {
 public:
  static constexpr std::size_t digest_size = Sha256::digest_size;

  explicit HmacSha256(std::string_view key) {
    std::array<std::uint8_t, Sha256::block_size> block{};
    if (key.size() > block.size()) {
      const Sha256::Digest digest = Sha256::of(key);
      std::copy(digest.begin(), digest.end(), block.begin());
    } else {
      std::copy(key.begin(), key.end(), block.begin());
    }
    for (std::uint8_t& octet : block) octet ^= 0x36;
    inner_.update(detail::as_text(block.data(), block.size()));
    for (std::uint8_t& octet : block) octet ^= 0x36 ^ 0x5c;
    outer_.update(detail::as_text(block.data(), block.size()));
  }

  void update(std::string_view input) { inner_.update(input); }
  Sha256::Digest finish() {
    const Sha256::Digest digest = inner_.finish();
    outer_.update(detail::as_text(digest.data(), digest.size()));
    return outer_.finish();
  }

 private:
  Sha256 inner_;
  Sha256 outer_;
};

/// Writes two lower-case hexadecimal digits for each octet to `out`, which has room for them.
/// Returns the end of what was written.
inline char* write_hex(const std::uint8_t* octets, std::size_t count, char* out) {
  constexpr char digits[] = "0123456789abcdef";
  for (std::size_t i = 0; i < count; ++i) {
    *out++ = digits[octets[i] >> 4];
    *out++ = digits[octets[i] & 15];
  }
  return out;
}

/// A number as 16 lower-case hexadecimal digits.
inline char* write_hex(std::uint64_t number, char* out) {
  std::array<std::uint8_t, 8> octets;
  detail::store_big(number, octets.data());
  return write_hex(octets.data(), octets.size(), out);
}

/// A number of 1 to 16 hexadecimal digits of any case, or nothing.
constexpr std::optional<std::uint64_t> parse_hex(std::string_view text) {
  if (text.empty() || text.size() > 16) return std::nullopt;
  std::uint64_t number = 0;
  for (char c : text) {
    const int digit = hex_value(c);
    if (digit < 0) return std::nullopt;
    number = number << 4 | static_cast<std::uint64_t>(digit);
  }
  return number;
}

/// Equality whose duration tells nothing of where two texts differ; that their sizes differ is no
/// secret. For everything that is compared with what an attacker sent.
inline bool equal_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference |=
        static_cast<unsigned char>(a[i]) ^ static_cast<unsigned>(static_cast<unsigned char>(b[i]));
  }
  return difference == 0;
}

using SipHashKey = std::array<std::uint8_t, 16>;

/// SipHash-2-4, the keyed hash for every table whose keys come from outside: without the key
/// nobody can find names that all fall into one slot. A key of several parts is put in part by
/// part; where one part ends does not count. A table keeps one fresh object and copies it for each
/// look-up.
class SipHash {
 public:
  explicit SipHash(const SipHashKey& key) {
    const std::uint64_t k0 = detail::load_little_64(key.data());
    const std::uint64_t k1 = detail::load_little_64(key.data() + 8);
    // The octets of "somepseudorandomlygeneratedbytes".
    state_ = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
              k1 ^ 0x7465646279746573};
  }

  void update(std::string_view input) {
    std::size_t i = 0;
    if (length_ % 8 == 0) {
      for (; i + 8 <= input.size(); i += 8) {
        mix(detail::load_little_64(detail::as_octets(input) + i));
        length_ += 8;
      }
    }
    for (; i < input.size(); ++i) {
      const auto octet = static_cast<unsigned char>(input[i]);
      word_ |= static_cast<std::uint64_t>(octet) << 8 * (length_ % 8);
      if (++length_ % 8 != 0) continue;
      mix(word_);
      word_ = 0;
    }
  }

  /// The hash of all that was put in. The object is spent then.
  std::uint64_t finish() {
    mix(word_ | length_ << 56);
    state_[2] ^= 0xff;
    for (int i = 0; i < 4; ++i) round();
    return state_[0] ^ state_[1] ^ state_[2] ^ state_[3];
  }

  static std::uint64_t of(const SipHashKey& key, std::string_view input) {
    SipHash hash(key);
    hash.update(input);
    return hash.finish();
  }

 private:
  void mix(std::uint64_t word) {
    state_[3] ^= word;
    round();
    round();
    state_[0] ^= word;
  }

  void round() {
    auto& [a, b, c, d] = state_;
    a += b;
    b = detail::rotate_left(b, 13) ^ a;
    a = detail::rotate_left(a, 32);
    c += d;
    d = detail::rotate_left(d, 16) ^ c;
    a += d;
    d = detail::rotate_left(d, 21) ^ a;
    c += b;
    b = detail::rotate_left(b, 17) ^ c;
    c = detail::rotate_left(c, 32);
  }

  std::array<std::uint64_t, 4> state_;
  std::uint64_t length_ = 0;
  std::uint64_t word_ = 0;  ///< octets that do not make eight yet
};

/// Numbers and tokens that nobody can foresee who does not know the seed, and that come again from
/// the same seed: SipHash over 0, 1, 2, ... For tags, branches, Call-IDs and cnonces (RFC 3261
/// 19.3 asks for 32 bits of randomness). Seed it with 16 octets of the operating system's
/// randomness; not for keys that must stay secret for years.
class Random {
 public:
  explicit Random(const SipHashKey& seed) : fresh_(seed) {}

  std::uint64_t next() {
    std::array<std::uint8_t, 8> octets;
    detail::store_little(count_++, octets.data());
    SipHash hash = fresh_;
    hash.update(detail::as_text(octets.data(), octets.size()));
    return hash.finish();
  }

  /// Writes `count` random token characters, lower case and digits, five bits of chance in each:
  /// 13 make 64 bits. Lower case alone, because some implementations compare tokens blind to case.
  void write_token(char* out, std::size_t count) {
    constexpr char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < count; ++i, bits >>= 5) {
      if (i % 12 == 0) bits = next();
      out[i] = letters[bits & 31];
    }
  }

 private:
  SipHash fresh_;
  std::uint64_t count_ = 0;
};

namespace detail {

/// Sixteen octets of `random`: the seed of another one, or a key.
inline SipHashKey next_key(Random& random) {
  SipHashKey key;
  store_little(random.next(), key.data());
  store_little(random.next(), key.data() + 8);
  return key;
}

}  // namespace detail

}  // namespace sipmsg
