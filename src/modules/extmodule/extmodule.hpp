// extmodule: applications as programs of their own, in any language.
//
// extmodule.conf names programs to start and places to listen for programs; both speak the line
// protocol of Yate's external modules. How the files of this module share the work: `codec` is the
// protocol's lines, `locals` what a program may set, `session` what both sides do with it, all
// three without libuv; `connection`, `program` and `listener` put it on libuv; `config` reads the
// file.
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

std::unique_ptr<Module> make_extmodule();

}  // namespace modules
