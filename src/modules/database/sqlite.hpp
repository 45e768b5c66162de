// database/sqlite: the module sqlitedb, which keeps databases in files of this machine.
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

/// Answers the message `database` for the accounts of sqlitedb.conf.
std::unique_ptr<Module> make_sqlitedb();

}  // namespace modules
