// javascript: scripts that see and change every message (javascript.conf), on Duktape.
//
// Each script of [scripts] and [late_scripts] is started with the server, runs in a process of its
// own (process.hpp says why), and stays. What Yate does with scripts for single calls
// is left out: [general] routing, [instances], [handlers] and [posthooks].
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

std::unique_ptr<Module> make_javascript();

}  // namespace modules
