// javascript/text: texts on their way into a script and back.
//
// Parameters are octets, UTF-8 mostly, and whoever sends a message may put anything there. A
// script's text is a row of 16-bit units, which Duktape keeps as CESU-8: UTF-8 in which a character
// beyond U+FFFF is two surrogates of three octets each. An octet that is not UTF-8, say 0xE9,
// becomes the lone surrogate U+DCE9, which no UTF-8 can hold, and the same octet again on the way
// back: so what a script only passes on arrives as it was.
#pragma once

#include <string>
#include <string_view>

namespace modules {

/// Whether the text is the same on both sides, as nearly all are.
bool is_ascii(std::string_view text);
/// `out` is replaced by the form Duktape takes.
void to_script_text(std::string_view octets, std::string& out);
/// `out` gets the octets added that Duktape's text stands for. Surrogates without a partner that
/// stand for no octet become U+FFFD.
void from_script_text(std::string_view text, std::string& out);

/// Where a text reads as a number without a loss: -9007199254740991 to 9007199254740991, written
/// the only way a script would print it. So "101" does; "007", "+40", "1e3" and "-0" stay texts.
bool is_plain_number(std::string_view text);

}  // namespace modules
