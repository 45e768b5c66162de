// database/mysql: the module mysqldb, for servers of MariaDB and MySQL.
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

/// Answers the message `database` for the accounts of mysqldb.conf.
std::unique_ptr<Module> make_mysqldb();

}  // namespace modules
