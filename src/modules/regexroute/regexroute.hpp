// regexroute: rules of regular expressions that route, refuse and change messages, as Yate's module
// of that name has them.
//
// Here are the module and the sections of regexroute.conf that are not rules: [priorities],
// [extra],
// [$once] and [$init]. rules reads the rules, walk leads a message through
// them, text puts values into their targets, functions has the functions, and
// pattern the regular expressions.
//
// Left out on purpose: call.preroute, which is not sent for a MESSAGE, and with it [contexts];
// msleep, which would hold up everybody; status commands.
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

std::unique_ptr<Module> make_regexroute();

}  // namespace modules
